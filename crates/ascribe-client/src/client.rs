//! One function per route. Answers are capped, so that a broken server cannot fill the memory of an inference stack.

use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::error::{ClientError, Problem};
use crate::rows::Rows;
use crate::types::{
    Attribution, AttributionRequest, Audit, Dataset, Datasets, Examples, Health, Index, Keys, Receipt, Reloaded,
    Statement,
};

/// Time limit of a call, if nobody says otherwise: what a server takes at most by default, and a little more.
const TIMEOUT: Duration = Duration::from_secs(35);
/// Largest answer that is read.
const ANSWER_CAP_BYTES: u64 = 64 << 20;
/// Longest line of a stream.
const LINE_CAP_BYTES: usize = 8 << 20;
/// Tries after an overload, if nobody says otherwise.
const RETRIES: u32 = 3;
/// A server's word about when to come back is believed up to this.
const WAIT_CAP: Duration = Duration::from_secs(10);
const NDJSON: &str = "application/x-ndjson";

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    address: String,
    key: Option<String>,
    timeout: Duration,
    retries: u32,
}

impl ClientBuilder {
    /// API key, sent as a bearer token.
    #[must_use]
    pub fn key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// Time limit of a call, from connecting to the last byte. Streams have it per connection and head, not for their lines.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// How often a call is tried again after 429 and 503, each time after what the server asks for (at most ten seconds). The
    /// server has done nothing then, so a receipt is never made twice. Calls that got no answer are not tried again.
    #[must_use]
    pub fn retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// The client. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn build(self) -> Result<Client, ClientError> {
        let base = self.address.trim_end_matches('/').to_owned();
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://"));
        if host.is_none_or(|h| h.is_empty() || h.contains(['/', '?', '#', '@', ' '])) {
            return Err(ClientError::Address { found: self.address });
        }
        let agent = |whole| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .user_agent(concat!("ascribe-client/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(self.timeout))
                .timeout_recv_response(Some(self.timeout))
                .timeout_global(whole);
            Agent::from(config.build())
        };
        let (calls, streams) = (agent(Some(self.timeout)), agent(None));
        let bearer = self.key.map(|key| format!("Bearer {key}"));
        Ok(Client { base, bearer, retries: self.retries, calls, streams })
    }
}

/// A server. Cheap to clone; clones and threads share its connections.
#[derive(Clone)]
pub struct Client {
    base: String,
    bearer: Option<String>,
    retries: u32,
    calls: Agent,
    streams: Agent,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Client").field("base", &self.base).field("key", &self.bearer.is_some()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client with the default settings and no key.
    ///
    /// # Errors
    /// [`ClientError::Address`].
    pub fn new(address: &str) -> Result<Self, ClientError> {
        Self::builder(address).build()
    }

    /// A client with other settings.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder { address: address.into(), key: None, timeout: TIMEOUT, retries: RETRIES }
    }

    /// `POST /v1/attributions`: which datasets and records a response owes, and its receipt if one was asked for.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn attribute(&self, request: &AttributionRequest) -> Result<Attribution, ClientError> {
        self.send(&Call::post("/v1/attributions", request)?)
    }

    /// `POST /v1/attributions:batch`: several responses, answers in their order. One that fails leaves the others; one that breaks
    /// the contract refuses the whole batch, and the error names its place.
    ///
    /// # Errors
    /// [`ClientError`] of the batch as a whole.
    pub fn attribute_batch(
        &self,
        requests: &[AttributionRequest],
    ) -> Result<Vec<Result<Attribution, Problem>>, ClientError> {
        #[derive(Serialize)]
        struct Batch<'a> {
            requests: &'a [AttributionRequest],
        }
        self.batch(&Call::post("/v1/attributions:batch", &Batch { requests })?)
    }

    fn batch(&self, call: &Call) -> Result<Vec<Result<Attribution, Problem>>, ClientError> {
        #[derive(serde::Deserialize)]
        struct Answers {
            responses: Vec<serde_json::Value>,
        }
        let answers: Answers = self.send(call)?;
        answers.responses.into_iter().map(|one| item(one).map_err(|found| call.unexpected(200, ITEM, found))).collect()
    }

    /// `POST /v1/attributions` for one row of numbers, sent as octets: a fifth of the bytes of JSON, and none of its reading.
    ///
    /// # Errors
    /// [`ClientError`]; more than one row is refused by the server.
    pub fn attribute_row(&self, row: &Rows<'_>) -> Result<Attribution, ClientError> {
        self.send(&row.call("/v1/attributions"))
    }

    /// `POST /v1/attributions:batch` for several rows of numbers, answers in their order, as of [`Client::attribute_batch`].
    ///
    /// # Errors
    /// [`ClientError`] of the batch as a whole.
    pub fn attribute_rows(&self, rows: &Rows<'_>) -> Result<Vec<Result<Attribution, Problem>>, ClientError> {
        self.batch(&rows.call("/v1/attributions:batch"))
    }

    /// The same as a stream: as many questions as you like, answers as they are made, in the order of the questions; one that breaks
    /// the contract refuses only itself.
    ///
    /// # Errors
    /// [`ClientError`] before the first answer; later ones come out of the iterator, which then ends.
    pub fn attribute_stream(&self, requests: &[AttributionRequest]) -> Result<Lines, ClientError> {
        let mut body = Vec::new();
        for request in requests {
            serde_json::to_writer(&mut body, request).map_err(unwritable)?;
            body.push(b'\n');
        }
        let call = Call::of("/v1/attributions:batch".into(), body, NDJSON);
        let response = self.answered(&self.streams, &call)?;
        let status = response.status().as_u16();
        if response.headers().get("content-type").is_none_or(|kind| !kind.as_bytes().starts_with(NDJSON.as_bytes())) {
            return Err(call.unexpected(status, "lines of JSON", "another content type".into()));
        }
        Ok(Lines { reader: Some(BufReader::new(Box::new(response.into_body().into_reader()))), call })
    }

    /// `GET /v1/receipts/{id}`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn receipt(&self, id: &str) -> Result<Receipt, ClientError> {
        self.send(&Call::get(format!("/v1/receipts/{}", escaped(id))))
    }

    /// `GET /v1/datasets`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn datasets(&self) -> Result<Datasets, ClientError> {
        self.send(&Call::get("/v1/datasets"))
    }

    /// `GET /v1/datasets/{id}`, by name or `urn:uuid:…`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn dataset(&self, id: &str) -> Result<Dataset, ClientError> {
        self.send(&Call::get(format!("/v1/datasets/{}", escaped(id))))
    }

    /// `GET /v1/owners/{id}/statement`: what an owner's datasets have earned by receipts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn statement(&self, owner: &str) -> Result<Statement, ClientError> {
        self.send(&Call::get(format!("/v1/owners/{}/statement", escaped(owner))))
    }

    /// `GET /v1/examples`: held-out responses to try.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn examples(&self) -> Result<Examples, ClientError> {
        self.send(&Call::get("/v1/examples"))
    }

    /// `GET /v1/index`: generation, model, methods.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn index(&self) -> Result<Index, ClientError> {
        self.send(&Call::get("/v1/index"))
    }

    /// `GET /v1/keys`: what receipts are checked with.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn keys(&self) -> Result<Keys, ClientError> {
        self.send(&Call::get("/v1/keys"))
    }

    /// `GET /openapi.json`: the contract, for what is served now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn contract(&self) -> Result<serde_json::Value, ClientError> {
        self.send(&Call::get("/openapi.json"))
    }

    /// `GET /healthz`: the process lives.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn health(&self) -> Result<Health, ClientError> {
        self.send(&Call::get("/healthz"))
    }

    /// `GET /metrics`: counters as OpenMetrics text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn metrics(&self) -> Result<String, ClientError> {
        let call = Call { accept: OPENMETRICS, ..Call::get("/metrics") };
        let mut response = self.answered(&self.calls, &call)?;
        let status = response.status().as_u16();
        String::from_utf8(read(&mut response, &call)?).map_err(|e| call.unexpected(status, "text", e.to_string()))
    }

    /// `GET /admin/audit`: the last actions of administrators, oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn audit(&self) -> Result<Audit, ClientError> {
        self.send(&Call::get("/admin/audit"))
    }

    /// `GET /readyz`: refused while the server drains. Not tried again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ready(&self) -> Result<Health, ClientError> {
        Self { retries: 0, ..self.clone() }.send(&Call::get("/readyz"))
    }

    /// `POST /admin/reload`: index, model, registry and keys again. What cannot be loaded changes nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reload(&self) -> Result<Reloaded, ClientError> {
        self.send(&Call::of("/admin/reload".into(), Vec::new(), JSON))
    }

    /// Sends a call and reads its JSON.
    pub(crate) fn send<T: DeserializeOwned>(&self, call: &Call) -> Result<T, ClientError> {
        let mut response = self.answered(&self.calls, call)?;
        let bytes = read(&mut response, call)?;
        let status = response.status().as_u16();
        serde_json::from_slice(&bytes).map_err(|e| call.unexpected(status, "JSON of the contract", e.to_string()))
    }

    /// Sends a call until it is answered with success, or refused for good.
    fn answered(&self, agent: &Agent, call: &Call) -> Result<Response<Body>, ClientError> {
        let mut left = self.retries;
        loop {
            let mut response = self.once(agent, call)?;
            if response.status().is_success() {
                return Ok(response);
            }
            let error = refusal(&mut response, call);
            if left == 0 || !error.is_temporary() {
                return Err(error);
            }
            left -= 1;
            let asked = match &error {
                ClientError::Refused { retry_after, .. } => *retry_after,
                _ => None,
            };
            std::thread::sleep(asked.unwrap_or(Duration::from_secs(1)).min(WAIT_CAP));
        }
    }

    fn once(&self, agent: &Agent, call: &Call) -> Result<Response<Body>, ClientError> {
        let url = format!("{}{}", self.base, call.path);
        let lost =
            |source| ClientError::Transport { method: call.method, path: call.path.clone(), source: Box::new(source) };
        let bearer = self.bearer.iter().map(|bearer| ("authorization", bearer));
        let headers = || bearer.clone().chain(call.headers.iter().map(|(name, value)| (*name, value)));
        match &call.body {
            None => {
                let request = agent.get(&url).header("accept", call.accept);
                headers().fold(request, |request, (name, value)| request.header(name, value)).call().map_err(lost)
            }
            Some(body) => {
                let request = agent.post(&url).header("accept", call.accept).content_type(call.content_type);
                let request = headers().fold(request, |request, (name, value)| request.header(name, value));
                request.send(&body[..]).map_err(lost)
            }
        }
    }
}

pub(crate) const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text";
const ITEM: &str = "an answer or a problem";

/// What is sent.
pub(crate) struct Call {
    method: &'static str,
    path: String,
    body: Option<Vec<u8>>,
    content_type: &'static str,
    accept: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        let (method, path) = ("GET", path.into());
        Self { method, path, body: None, content_type: JSON, accept: JSON, headers: Vec::new() }
    }

    /// With a body of a kind; answers are lines where questions are, else JSON.
    pub(crate) fn of(path: String, body: Vec<u8>, content_type: &'static str) -> Self {
        let accept = if content_type == NDJSON { NDJSON } else { JSON };
        Self { method: "POST", path, body: Some(body), content_type, accept, headers: Vec::new() }
    }

    pub(crate) fn post(path: &str, body: &impl Serialize) -> Result<Self, ClientError> {
        Ok(Self::of(path.to_owned(), serde_json::to_vec(body).map_err(unwritable)?, JSON))
    }

    fn unexpected(&self, status: u16, expected: &'static str, found: String) -> ClientError {
        ClientError::Answer { method: self.method, path: self.path.clone(), status, expected, found }
    }
}

/// A request that JSON cannot hold; plain texts and numbers never are one.
fn unwritable(error: serde_json::Error) -> ClientError {
    let (path, expected) = ("/v1/attributions".into(), "a request that JSON can hold");
    ClientError::Answer { method: "POST", path, status: 0, expected, found: error.to_string() }
}

fn read(response: &mut Response<Body>, call: &Call) -> Result<Vec<u8>, ClientError> {
    let body = response.body_mut().with_config().limit(ANSWER_CAP_BYTES).read_to_vec();
    body.map_err(|source| ClientError::Transport {
        method: call.method,
        path: call.path.clone(),
        source: Box::new(source),
    })
}

/// What a refusal says; one that is no problem document is told as it is.
fn refusal(response: &mut Response<Body>, call: &Call) -> ClientError {
    let status = response.status();
    let after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let bytes = match read(response, call) {
        Ok(bytes) => bytes,
        Err(error) => return error,
    };
    let is_quote = status == 402 && !is_problem(response);
    let quote = is_quote.then(|| serde_json::from_slice(&bytes).ok()).flatten().map(Box::new);
    let problem = serde_json::from_slice(&bytes).ok().filter(|_| quote.is_none()).unwrap_or_else(|| Problem {
        title: status.canonical_reason().unwrap_or("no reason given").to_owned(),
        detail: String::from_utf8_lossy(&bytes).chars().take(200).collect(),
        ..Problem::default()
    });
    ClientError::Refused {
        method: call.method,
        path: call.path.clone(),
        problem: Box::new(Problem { status: status.as_u16(), ..problem }),
        retry_after: after.map(Duration::from_secs),
        quote,
    }
}

fn is_problem(response: &Response<Body>) -> bool {
    response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"))
}

/// One place of a batch. A problem has a `status`, an answer has none.
fn item(one: serde_json::Value) -> Result<Result<Attribution, Problem>, String> {
    if one.get("status").is_some() {
        return serde_json::from_value(one).map(Err).map_err(|e| e.to_string());
    }
    serde_json::from_value(one).map(Ok).map_err(|e| e.to_string())
}

/// Letters of a path segment that stand for themselves (RFC 3986, unreserved); all others as bytes in hex.
pub(crate) fn escaped(segment: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    segment.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Answers of a stream, in the order of its questions.
pub struct Lines {
    /// `None` after the end or an error.
    reader: Option<BufReader<Box<dyn std::io::Read + Send + Sync>>>,
    call: Call,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("is_open", &self.reader.is_some()).finish_non_exhaustive()
    }
}

impl Iterator for Lines {
    type Item = Result<Result<Attribution, Problem>, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let mut line = Vec::new();
        // One byte over the cap tells a long line from one that just fits.
        let read = std::io::Read::take(reader, LINE_CAP_BYTES as u64 + 1).read_until(b'\n', &mut line);
        let found = match read {
            Ok(0) => {
                self.reader = None;
                return None;
            }
            Ok(_) if line.len() > LINE_CAP_BYTES => Err(format!("more than {LINE_CAP_BYTES} bytes")),
            Ok(_) if !line.ends_with(b"\n") => Err("a part of one: the stream broke off".to_owned()),
            Ok(_) => serde_json::from_slice(&line).map_err(|e| e.to_string()).and_then(item),
            Err(error) => Err(error.to_string()),
        };
        Some(found.map_err(|found| {
            self.reader = None;
            self.call.unexpected(200, ITEM, found)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        for good in ["http://127.0.0.1:1", "https://a.example/", "http://[::1]:80"] {
            assert!(Client::new(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:1", "ftp://a", "http://", "http://a/b", "http://a?b", "http://u:p@a"] {
            assert!(matches!(Client::new(bad), Err(ClientError::Address { .. })), "{bad}");
        }
    }

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(escaped("urn:uuid:a-b"), "urn:uuid:a-b");
        assert_eq!(escaped("../x?y#z 天"), "..%2Fx%3Fy%23z%20%E5%A4%A9");
    }

    #[test]
    fn the_key_stays_out_of_debug() {
        let client = Client::builder("http://127.0.0.1:1").key("secret-key").build().unwrap();
        assert!(!format!("{client:?}").contains("secret-key"));
    }
}
