//! `ascribe verbatim`.

use std::path::Path;

use anyhow::{Context as _, Result};
use ascribe_core::Progress;
use ascribe_engine::Home;
use ascribe_engine::verbatim::find::{FoundSpan, Place};
use ascribe_engine::verbatim::{
    BuildReport, BuildRequest, Evidence, FindOptions, FindReport, FindRequest, Inputs, Rank, Response, build, find,
    score,
};
use serde_json::json;

use crate::args::Format;
use crate::args::verbatim::{BuildArgs, FindArgs, RankArg, VerbatimCommand};
use crate::output::print;

/// Runs the command; only a build over registered datasets needs a home.
///
/// # Errors
/// Whatever the engine refuses.
pub fn run(home: Option<&Path>, command: &VerbatimCommand, format: Format, bars: &dyn Progress) -> Result<()> {
    match command {
        VerbatimCommand::Build(args) => print(format, &build::run(&build_request(home, args)?, bars)?, build_text),
        VerbatimCommand::Find(args) => print(format, &find::run(&find_request(args)?)?, find_text),
        VerbatimCommand::Score(args) => print(format, &score::run(&args.request(), bars)?, |r| {
            format!("{} responses, {} score rows in {}\n{}", r.queries, r.rows, r.scores.display(), r.note)
        }),
        VerbatimCommand::Verify { dir } => {
            let evidence = Evidence::open(dir)?;
            evidence.index().verify(bars)?;
            let (shards, bytes) = (evidence.index().n_shards(), evidence.index().n_bytes());
            print(format, &json!({ "shards": shards, "bytes": bytes }), |_| {
                format!("{shards} shards, {bytes} bytes, every checksum holds")
            })
        }
    }
}

fn build_request(home: Option<&Path>, args: &BuildArgs) -> Result<BuildRequest> {
    let tokenizer = match &args.tokenizer {
        Some(path) => path.clone(),
        None => Home::find(home)?.model(&args.model),
    };
    let inputs = match args.data.as_slice() {
        [] => Inputs::Registered(Home::find(home)?.datasets()),
        files => Inputs::Files(files.to_vec()),
    };
    Ok(BuildRequest { inputs, tokenizer, out: args.out.clone(), shard_tokens: args.shard_tokens })
}

fn find_request(args: &FindArgs) -> Result<FindRequest> {
    let response = match (&args.response, &args.text) {
        (Some(text), _) => Response::Text(text.clone()),
        (None, Some(path)) => {
            Response::Text(std::fs::read_to_string(path).with_context(|| path.display().to_string())?)
        }
        (None, None) => Response::Tokens(args.tokens.clone()),
    };
    let all_or = |n: usize| if n == 0 { None } else { Some(n) };
    let options = FindOptions {
        min_tokens: args.min_tokens as usize,
        rank: match args.rank {
            RankArg::Unigram => Rank::Unigram,
            RankArg::Count => Rank::Count,
        },
        max_spans: all_or(args.spans),
        max_occurrences: all_or(args.places),
    };
    Ok(FindRequest { index: args.index.clone(), response, options })
}

fn build_text(report: &BuildReport) -> String {
    format!(
        "{} datasets, {} records, {} tokens in {} shards, {} bytes\n{} tokens done in this call: {:.1} s, {:.1} CPU-seconds, \
         {:.0} MiB at most",
        report.datasets,
        report.records,
        report.tokens,
        report.shards,
        report.bytes,
        report.tokens_done,
        report.seconds,
        report.cpu_seconds,
        report.peak_rss_mib
    )
}

fn find_text(report: &FindReport) -> String {
    let spans: String = report.spans.iter().map(span_text).collect();
    format!(
        "{} of {} tokens lie in {} spans, {} shown; {} tokens searched in {:.1} ms\n\n{spans}{}",
        report.covered,
        report.tokens,
        report.n_spans,
        report.spans.len(),
        report.tokens_indexed,
        report.search_ms,
        report.note
    )
}

fn span_text(span: &FoundSpan) -> String {
    let shown = span.text.as_deref().map_or_else(String::new, |text| format!(" {}", one_line(text)));
    let counts: Vec<String> = span.datasets.iter().map(|d| format!("{} {}", d.dataset, d.count)).collect();
    let head = format!(
        "[{}..{}]{shown}\n  {} times in {} records ({}); unigram {:.1} nats\n",
        span.start,
        span.end,
        span.count,
        span.records,
        counts.join(", "),
        span.unigram_log_probability
    );
    head + &span.places.iter().map(place_text).collect::<String>() + "\n"
}

fn place_text(place: &Place) -> String {
    match &place.source {
        None => format!("  {} row {}, token {}\n", place.dataset, place.row, place.token_start),
        Some(source) => format!(
            "  {} {}: {}[{}]{}\n",
            place.dataset,
            source.id,
            one_line(&source.before),
            one_line(&source.text),
            one_line(&source.after)
        ),
    }
}

/// Line breaks are written out.
fn one_line(text: &str) -> String {
    text.replace('\n', "\\n")
}
