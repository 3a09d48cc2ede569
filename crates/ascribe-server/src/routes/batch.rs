//! `POST /v1/attributions:batch`: several questions. As one JSON object, or streamed line by line.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _, stream};

use crate::app::App;
use crate::generation::Generation;
use crate::keys::Scope;
use crate::problem::Problem;
use crate::routes::Peer;
use crate::routes::attributions::answer;
use crate::routes::body::{self, Kind};
use crate::routes::settings::{Pairs, Settings};
use crate::wire::{AttributionRequest, BatchAnswer, BatchItem, BatchRequest, MAX_BATCH};

/// Media type of lines.
pub const NDJSON: &str = "application/x-ndjson";
/// Media types of questions as lines.
pub(crate) const LINES: [&str; 2] = [NDJSON, "application/jsonl"];
/// Longest line of a stream.
const LINE_LIMIT: usize = 1 << 20;

/// Attribute several responses.
///
/// Answers come in the order of the questions; one that fails is a problem in its place. A question that breaks the contract refuses
/// the whole object (of lines, only itself). With `application/x-ndjson` as content
/// type (a question per line, as many as you like) or in `accept`, answers are streamed as lines, and questions are read as
/// answers are taken. Vectors come as rows of little-endian numbers. Settings of the query hold for all questions that leave them out.
#[utoipa::path(
    post, path = "/v1/attributions:batch", operation_id = "attributeBatch", tag = "attributions",
    request_body = BatchRequest,
    responses((status = 200, description = "Answers and problems, in order", body = BatchAnswer)),
)]
pub async fn create(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    pairs: Pairs,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    app.admit(&headers, peer.map(|p| p.0.0), Scope::Attribute)?;
    let generation = app.generation();
    let (kind, settings) = (Kind::of(&headers)?, Settings::of(&headers, &pairs)?);
    settings.check(&generation.known.opened, true)?;
    if kind == Kind::Lines {
        let questions = Lines::new(body).questions(app.config.body_timeout);
        let questions = questions.map(move |question| question.map(|question| settings.fill(question)));
        return Ok(streamed(app, generation, questions));
    }
    let bytes = body::read(&app, &headers, body).await?;
    let requests = match kind {
        Kind::Numbers => settings.questions(&generation.known.opened, &bytes)?,
        _ => body::json::<BatchRequest>(&bytes)?.requests.into_iter().map(|question| settings.fill(question)).collect(),
    };
    let wants_lines = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|a| a.contains(NDJSON));
    if requests.len() > MAX_BATCH && !wants_lines {
        let detail = format!("requests: expected at most {MAX_BATCH}, found {}; hint: stream them", requests.len());
        return Err(Problem::invalid(detail));
    }
    for (i, request) in requests.iter().enumerate() {
        let known = &generation.known.opened;
        request.check(known).map_err(|p| Problem { detail: format!("requests[{i}]: {}", p.detail), ..p })?;
    }
    let questions = stream::iter(requests.into_iter().map(Ok));
    if wants_lines {
        return Ok(streamed(app, generation, questions));
    }
    let responses = items(app, generation, questions).collect().await;
    Ok(axum::Json(BatchAnswer { responses }).into_response())
}

/// Answers in order, a few at work at once: as many as there are workers, and one that waits for each.
fn items(
    app: Arc<App>,
    generation: Arc<Generation>,
    questions: impl Stream<Item = Result<AttributionRequest, Problem>> + Send + 'static,
) -> impl Stream<Item = BatchItem> + Send {
    let at_once = (2 * app.config.workers).min(app.config.queue_depth.div_ceil(2)).max(1);
    questions
        .map(move |question| {
            let (app, generation) = (Arc::clone(&app), Arc::clone(&generation));
            async move {
                let deadline = Instant::now() + app.config.request_timeout;
                let outcome = match question {
                    Ok(question) => answer(&app, &generation, &question, deadline).await,
                    Err(problem) => Err(problem),
                };
                match outcome {
                    Ok(answer) => BatchItem::Answer(Box::new(answer)),
                    Err(problem) => BatchItem::Problem(problem),
                }
            }
        })
        .buffered(at_once)
}

fn streamed(
    app: Arc<App>,
    generation: Arc<Generation>,
    questions: impl Stream<Item = Result<AttributionRequest, Problem>> + Send + 'static,
) -> Response {
    let lines = items(app, generation, questions).map(|item| {
        let mut line = serde_json::to_vec(&item).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok::<Bytes, std::io::Error>(line.into())
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
}

/// A body, cut into lines as it comes.
struct Lines {
    body: axum::body::BodyDataStream,
    held: Vec<u8>,
    done: bool,
}

impl Lines {
    fn new(body: Body) -> Self {
        Self { body: body.into_data_stream(), held: Vec::new(), done: false }
    }

    /// One question per line. A line that is no question is a problem in its place; a client that stalls, a line that is too long
    /// and a body that breaks end the stream with a problem.
    fn questions(
        self,
        patience: std::time::Duration,
    ) -> impl Stream<Item = Result<AttributionRequest, Problem>> + Send + 'static {
        stream::unfold(self, move |mut lines| async move {
            loop {
                if lines.done && lines.held.is_empty() {
                    return None;
                }
                if let Some(line) = lines.next_line() {
                    if line.iter().all(u8::is_ascii_whitespace) {
                        continue;
                    }
                    return Some((body::json(&line), lines));
                }
                let refused = match tokio::time::timeout(patience, lines.body.next()).await {
                    Ok(Some(Ok(bytes))) if lines.held.len() + bytes.len() <= LINE_LIMIT => {
                        lines.held.extend_from_slice(&bytes);
                        continue;
                    }
                    Ok(None) => {
                        lines.done = true;
                        continue;
                    }
                    Ok(Some(Ok(_))) => Problem::too_large(format!("expected lines of at most {LINE_LIMIT} bytes")),
                    Ok(Some(Err(_))) => Problem::malformed("expected a whole body, found a part of one"),
                    Err(_) => Problem::stalled("expected the next line within the time limit, found none"),
                };
                (lines.done, lines.held) = (true, Vec::new());
                return Some((Err(refused), lines));
            }
        })
    }

    /// The next whole line; the rest without an end counts when the body has ended.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        match self.held.iter().position(|b| *b == b'\n') {
            Some(at) => {
                let rest = self.held.split_off(at + 1);
                Some(std::mem::replace(&mut self.held, rest))
            }
            None if self.done => Some(std::mem::take(&mut self.held)),
            None => None,
        }
    }
}
