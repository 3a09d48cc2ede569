//! Station 10: the page. Gathers what the stations left, draws it, writes it.

use ascribe_core::{FeatureReader as _, Progress, QueryId};
use ascribe_ledger::PayoutRow as LedgerRow;
use ascribe_linalg::Stream;
use ascribe_methods::combine::HeldOut;
use ascribe_methods::group::intervals::Verdict;
use ascribe_shares::ShareBook;
use ascribe_store::ScoreFile;
use ascribe_store::scores::read_scores;

use super::context::Context;
use super::evaluate::{COMBINED, Evaluation, Measured};
use super::features::open_train;
use super::index::IndexReport;
use super::intervals::{Intervals, ShareInterval};
use super::pay::Paid;
use super::score::{METHODS, SCORES_FILE};
use crate::error::EngineError;
use crate::files;
use crate::report::data::{
    DatasetRow, Fact, IndexFacts, MethodRow, PayoutRow, ReportData, ResponseRow, ShareBar, SourceHit, Timing,
};
use crate::summary::MethodSummary;
use crate::train::run::{HELD_OUT_FILE, HeldOutRow};

/// The page, relative to the run folder.
pub const REPORT_FILE: &str = "report.html";
/// Source records shown per response.
const HITS_SHOWN: usize = 5;
/// Characters of a snippet.
const SNIPPET_CHARS: usize = 320;
/// Resamplings of the payout intervals.
const DRAWS: usize = 1000;

/// What the page is made of, besides the run folder.
pub struct Ingredients<'a> {
    /// Agreement with retraining, shares, truth.
    pub evaluation: &'a Evaluation,
    /// Shares.
    pub book: &'a ShareBook,
    /// Payouts.
    pub paid: &'a Paid,
    /// Seconds per station.
    pub timings: &'a [Timing],
}

/// Draws and writes `report.html`.
///
/// # Errors
/// From the files of the run folder, the template, the disk.
pub fn run(context: &Context, parts: &Ingredients<'_>, progress: &dyn Progress) -> Result<(), EngineError> {
    progress.start("report", 0, "");
    let html = html(context, parts)?;
    files::write_atomic(&context.out.join(REPORT_FILE), html.as_bytes())?;
    progress.finish(&format!("{} kB", html.len() / 1000));
    Ok(())
}

/// The page as text: the same ingredients and files give the same bytes.
///
/// # Errors
/// As [`run`].
pub fn html(context: &Context, parts: &Ingredients<'_>) -> Result<String, EngineError> {
    let evaluation = parts.evaluation;
    let scores = read_scores(&context.out.join(SCORES_FILE))?;
    let (index, intervals) = (IndexReport::read(&context.out)?, Intervals::read(&context.out)?);
    let pool = &context.attribution.pool;
    let currency = pool.split_whitespace().nth(1).unwrap_or_default();
    let data = ReportData {
        facts: facts(context, evaluation, &intervals, parts.paid)?,
        datasets: dataset_rows(context)?,
        responses: response_rows(context, evaluation, &intervals, &scores)?,
        methods: method_rows(evaluation),
        ceiling: evaluation.ceiling.as_ref().map(ceiling_row),
        default_method: COMBINED.to_owned(),
        payout: payout_rows(context, parts),
        pool: pool.clone(),
        unattributed: format!("{} {currency}", unattributed(parts.paid)?),
        coverage: evaluation.coverage.mean,
        coverage_note: format!(
            "Coverage is the mean overlap of held-out shares with the shares that {} seeds of leave-one-dataset-out \
             retraining show, over {} responses; the rest of the pool is not paid out but kept apart. The accounts are \
             demo accounts: no owner named here has signed or will be paid.",
            evaluation.seeds.len(),
            evaluation.usable
        ),
        index: IndexFacts {
            rows: index.rows,
            dim: index.dim,
            recall_at_10: index.recall_at_10,
            bytes_per_example: index.bytes_per_example,
        },
        timings: parts.timings.to_vec(),
        truth_heat: truth_heat(context, evaluation),
    };
    Ok(crate::report::render(&data)?)
}

fn unattributed(paid: &Paid) -> Result<String, EngineError> {
    let money = paid.rows.first().map(|r| r.amount.currency);
    let all = paid.conservation.unattributed.plus(paid.conservation.dust)?.plus(paid.conservation.unspent)?;
    Ok(money.map_or_else(String::new, |currency| all.decimal(currency)))
}

fn facts(
    context: &Context,
    evaluation: &Evaluation,
    intervals: &Intervals,
    paid: &Paid,
) -> Result<Vec<Fact>, EngineError> {
    let fact = |label: &str, value: String| Fact { label: label.into(), value };
    let store = open_train(context, &context.last().name)?;
    let mut facts = vec![
        fact("Ascribe", env!("CARGO_PKG_VERSION").into()),
        fact(
            "Model",
            format!("{} ({} steps, seed {})", context.model_name, context.recipe.train.steps, context.recipe.seed),
        ),
        fact("Training run", context.run_record.invocation_id.clone()),
        fact("Feature rows", format!("{} numbers each, {:?} at rest", store.spec().dim, store.row_type())),
        fact("Feature spec", store.spec().hash().to_string()),
        fact("Retrain bank", format!("{} seeds, digest {}", evaluation.seeds.len(), evaluation.bank)),
        fact("Default method", default_words(evaluation)),
        fact(
            "Share intervals",
            format!(
                "nominal {:.0} %, measured {:.1} % on responses that the rule was not fitted on",
                100.0 * evaluation.conformal.level,
                100.0 * evaluation.interval_check.coverage
            ),
        ),
        fact("Held-out share error", held_out_words(intervals)),
        fact("Spread of a share", spread_words(intervals)),
        fact(
            "Additivity residual",
            format!(
                "{:+.4} of the summed influence, second order, mean over responses: what sums of datasets leave out",
                intervals.additivity_residual
            ),
        ),
        fact("Seed", context.attribution.seed.to_string()),
        fact("Signatures", "demo keys, made in public: no owner named here has signed or will be paid".into()),
    ];
    let name = |ordinal: u32| context.registry.datasets()[ordinal as usize].name();
    facts.extend(paid.parts.iter().map(|part| {
        let percent = f64::from(part.ppm) / 1e4;
        fact(
            "Licensed earlier",
            format!("{percent:.2} % of {} is {}'s, which is paid for it", name(part.from), name(part.to)),
        )
    }));
    facts.extend(context.inputs.iter().map(|(name, digest)| fact(name, digest.to_string())));
    Ok(facts)
}

fn held_out_words(intervals: &Intervals) -> String {
    let of = |h: &HeldOut| format!("{:.3} [{:.3}, {:.3}]", h.share_error, h.low, h.high);
    let m = &intervals.method;
    let datasets = m.datasets.as_ref().map_or_else(|| "not measured".to_owned(), of);
    format!("{} on responses that were not fitted, {datasets} on datasets that no fit had seen", of(&m.queries))
}

/// Standard errors by source, and how many responses are too noisy.
fn spread_words(intervals: &Intervals) -> String {
    let parts: Vec<String> =
        intervals.sources.iter().map(|(name, e)| format!("{} {e:.4}", name.replace('_', " "))).collect();
    format!(
        "root mean square standard error by source: {}; {} of {} responses too noisy to pay (half width of a 95 % interval above \
         {})",
        parts.join(", "),
        intervals.n_too_noisy(),
        intervals.responses.len(),
        intervals.threshold
    )
}

fn verdict_words(verdict: Verdict) -> String {
    match verdict {
        Verdict::Payable { half_width } => format!("Its shares are known to ±{half_width:.3}: payable."),
        Verdict::TooNoisyToPay { half_width, threshold } => {
            format!("Its shares are known to ±{half_width:.3} only, which is above {threshold}: too noisy to pay.")
        }
    }
}

/// The combination in words: channel, transform and weight.
fn default_words(evaluation: &Evaluation) -> String {
    let c = &evaluation.calibration;
    let parts = c.channels.iter().zip(&c.weights);
    let words: Vec<String> = parts.map(|(ch, w)| format!("{} {w:.2} ({:?})", ch.name, ch.transform)).collect();
    format!("softmax of {} at temperature {:.2}", words.join(" + "), c.temperature)
}

fn dataset_rows(context: &Context) -> Result<Vec<DatasetRow>, EngineError> {
    let path = context.model_dir.join(HELD_OUT_FILE);
    let held_out: Vec<HeldOutRow> = serde_json::from_slice(&files::read(&path)?)?;
    let n_examples = context.corpus.example_counts();
    let row = |(k, dataset): (usize, &ascribe_registry::Dataset)| {
        let m = &dataset.manifest;
        let bits = held_out.iter().find(|h| h.dataset == m.name);
        let bits = bits.ok_or_else(|| EngineError::Content {
            path: path.clone(),
            expected: format!("a row for {}", m.name),
            found: "none".into(),
        })?;
        Ok(DatasetRow {
            name: m.name.clone(),
            title: m.title.clone(),
            owner: m.owner.clone(),
            licence: m.licence.clone(),
            language: m.language.clone(),
            records: m.record_count,
            examples: n_examples[k],
            content_root: m.content_root.to_string(),
            bits_per_byte: bits.bits_per_byte,
            bits_per_byte_bigram: bits.bits_per_byte_bigram,
            bits_per_byte_unigram: bits.bits_per_byte_unigram,
        })
    };
    context.registry.datasets().iter().enumerate().map(row).collect()
}

fn response_rows(
    context: &Context,
    evaluation: &Evaluation,
    intervals: &Intervals,
    scores: &ScoreFile,
) -> Result<Vec<ResponseRow>, EngineError> {
    let decoder = context.decoder(context.last())?;
    let nats = decoder.losses(&context.query_sequences())?;
    let prompt_len = context.corpus.manifest.config.prompt_len;
    let mut rows = Vec::with_capacity(nats.len());
    for (q, query) in context.corpus.queries.iter().enumerate() {
        let response = &query.tokens[prompt_len..];
        let (prompt_text, response_text) = texts(context, &query.tokens, prompt_len);
        let bar = |s: &ShareInterval| ShareBar { share: s.share, low: s.low, high: s.high };
        let (truth, found) = (&evaluation.truth[q], &intervals.responses[q]);
        rows.push(ResponseRow {
            id: q as u32,
            source_dataset: query.dataset,
            prompt: prompt_text,
            response: response_text,
            bits_per_byte: nats[q] / std::f64::consts::LN_2 / context.tokenizer.len_bytes(response) as f64,
            verdict: verdict_words(found.verdict),
            shares: found.shares.iter().map(bar).collect(),
            truth: truth.iter().any(|t| *t > 0.0).then(|| truth.clone()),
            top: hits(context, scores, QueryId(q as u32)),
        });
    }
    Ok(rows)
}

/// Prompt and response as text. A character whose bytes stand on both sides belongs to the response; one that the window
/// cuts at its ends is left out.
pub(crate) fn texts(context: &Context, tokens: &[u32], prompt_len: usize) -> (String, String) {
    let incomplete = char::REPLACEMENT_CHARACTER;
    let whole = context.tokenizer.decode(tokens);
    let prompt = context.tokenizer.decode(&tokens[..prompt_len]);
    let prompt = prompt.trim_end_matches(incomplete);
    match whole.strip_prefix(prompt) {
        Some(response) => {
            let response = response.trim_end_matches(incomplete).to_owned();
            (prompt.trim_start_matches(incomplete).to_owned(), response)
        }
        // Decoding is per byte, so a prefix of tokens is a prefix of text; were it not, two texts are still shown.
        None => (prompt.to_owned(), context.tokenizer.decode(&tokens[prompt_len..])),
    }
}

/// The records behind the most influential examples, each record once.
fn hits(context: &Context, scores: &ScoreFile, query: QueryId) -> Vec<SourceHit> {
    let mut hits: Vec<SourceHit> = Vec::new();
    for row in scores.top_examples("trajectory_fisher", query) {
        let Some(example) = row.example() else { continue };
        let at = context.corpus.examples.binary_search_by_key(&example, |e| e.id);
        let Ok(at) = at else { continue };
        let spans = &context.corpus.examples[at].spans;
        let Some(span) = spans.iter().rev().max_by_key(|s| s.token_end - s.token_start) else { continue };
        let record = context.corpus.record(span.record);
        if hits.iter().any(|h| h.record == record.id) {
            continue;
        }
        hits.push(SourceHit {
            dataset: example.dataset,
            record: record.id.clone(),
            score: row.score,
            snippet: snippet(context.corpus.span_text(span), span.byte_start > 0),
        });
        if hits.len() == HITS_SHOWN {
            break;
        }
    }
    hits
}

/// The first few hundred characters of a span, whole words, with an ellipsis where text was left out.
fn snippet(text: &str, begins_inside: bool) -> String {
    let lead = if begins_inside { "…" } else { "" };
    let Some((at, _)) = text.char_indices().nth(SNIPPET_CHARS) else { return format!("{lead}{text}") };
    // A language without spaces, or one very long word, is cut between characters.
    let end = text[..at].rfind(char::is_whitespace).filter(|&space| space > at / 2).unwrap_or(at);
    format!("{lead}{} …", &text[..end])
}

fn method_rows(evaluation: &Evaluation) -> Vec<MethodRow> {
    let names = std::iter::once(COMBINED).chain(METHODS.iter().map(|m| m.name));
    names.filter_map(|n| evaluation.methods.get(n).map(|m| method_row(n, m))).collect()
}

fn method_row(name: &str, m: &MethodSummary) -> MethodRow {
    MethodRow {
        name: name.to_owned(),
        control: m.control,
        share_error: m.share_error,
        share_error_low: m.share_error_low,
        share_error_high: m.share_error_high,
        calibrated: m.calibrated,
        calibrated_low: m.calibrated_low,
        calibrated_high: m.calibrated_high,
        top1: m.top1,
        spearman: m.spearman,
        low: m.low,
        high: m.high,
        spearman_others: m.spearman_others,
    }
}

fn ceiling_row(m: &Measured) -> MethodRow {
    MethodRow {
        name: "one retraining seed".into(),
        control: false,
        share_error: m.share_error.mean,
        share_error_low: m.share_error.low,
        share_error_high: m.share_error.high,
        calibrated: m.share_error.mean,
        calibrated_low: m.share_error.low,
        calibrated_high: m.share_error.high,
        top1: m.top1.mean,
        spearman: m.spearman.mean,
        low: m.spearman.low,
        high: m.spearman.high,
        spearman_others: m.spearman_others,
    }
}

/// Payout lines with the part of the attributed pool and its bootstrap interval over responses.
fn payout_rows(context: &Context, parts: &Ingredients<'_>) -> Vec<PayoutRow> {
    let intervals = owner_intervals(context, parts);
    let total: u128 = parts.paid.rows.iter().map(|r| r.amount.minor).sum();
    let row = |r: &LedgerRow| {
        let owner = context.registry.owners().owners.iter().find(|o| o.name == r.owner);
        let names = owner.iter().flat_map(|o| &o.datasets);
        // Two accounts of one owner divide the owner's interval as they divide its money.
        let mine: u128 = parts.paid.rows.iter().filter(|o| o.owner == r.owner).map(|o| o.amount.minor).sum();
        let slice = if mine > 0 { r.amount.minor as f64 / mine as f64 } else { 0.0 };
        let (low, high) = intervals.get(&r.owner).copied().unwrap_or((0.0, 0.0));
        let part = r.amount.minor as f64 / (total.max(1)) as f64;
        PayoutRow {
            owner: r.owner.clone(),
            account: r.account.as_ref().map_or_else(|| "none: carried".into(), ToString::to_string),
            datasets: names.map(|&k| context.registry.datasets()[k as usize].name().to_owned()).collect(),
            amount: format!("{} {}", r.amount.decimal(), r.amount.currency.code()),
            part,
            part_low: (low * slice).min(part),
            part_high: (high * slice).max(part),
        }
    };
    parts.paid.rows.iter().map(row).collect()
}

/// 95 % bootstrap interval of each owner's part, over responses.
fn owner_intervals(context: &Context, parts: &Ingredients<'_>) -> std::collections::BTreeMap<String, (f64, f64)> {
    let registered = context.registry.owners();
    let (owners, owner_of) = (&registered.owners, &registered.owner_idx);
    let n_owners = owners.len();
    let row = |event: &ascribe_ledger::Event| {
        let total: f64 = event.lines.iter().map(|line| line.weight as f64).sum();
        let mut row = vec![0.0; n_owners];
        event.lines.iter().for_each(|l| row[owner_of[l.dataset as usize] as usize] += l.weight as f64 / total);
        row
    };
    let parts: Vec<Vec<f64>> = parts.paid.events.iter().map(row).collect();
    let mut stream = Stream::new(context.attribution.seed, "payout-interval");
    let mut draws = vec![Vec::with_capacity(DRAWS); n_owners];
    for _ in 0..DRAWS {
        let mut sums = vec![0.0; n_owners];
        for _ in 0..parts.len() {
            let row = &parts[stream.below(parts.len() as u32) as usize];
            sums.iter_mut().zip(row).for_each(|(s, p)| *s += p);
        }
        let total: f64 = sums.iter().sum();
        draws.iter_mut().zip(&sums).for_each(|(d, s)| d.push(if total > 0.0 { s / total } else { 0.0 }));
    }
    let ends = |mut d: Vec<f64>| {
        d.sort_by(f64::total_cmp);
        (d[DRAWS / 40], d[DRAWS - 1 - DRAWS / 40])
    };
    owners.iter().map(|owner| owner.name.clone()).zip(draws.into_iter().map(ends)).collect()
}

/// Mean true share of each dataset (row) over the responses of each dataset (column).
fn truth_heat(context: &Context, evaluation: &Evaluation) -> Vec<Vec<f64>> {
    let n = context.corpus.n_datasets();
    let own = context.own();
    let mean = |k: usize, of: usize| {
        let usable =
            own.iter().zip(&evaluation.truth).filter(|(o, t)| **o as usize == of && t.iter().any(|v| *v > 0.0));
        let values: Vec<f64> = usable.map(|(_, t)| t[k]).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    (0..n).map(|k| (0..n).map(|of| mean(k, of)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippets_are_cut_at_words_and_say_so() {
        assert_eq!(snippet("short", false), "short");
        assert_eq!(snippet("inside", true), "…inside");
        let long = "word ".repeat(100);
        let cut = snippet(&long, false);
        assert!(cut.ends_with("word …") && cut.chars().count() <= SNIPPET_CHARS + 2);
        let chinese = "天".repeat(400);
        assert_eq!(snippet(&chinese, false).chars().count(), SNIPPET_CHARS + 2);
    }
}
