//! From the engine's answer to the wire's, and to its receipt.

use ascribe_core::Digest;
use ascribe_engine::respond::{Answer, Found};
use ascribe_registry::{SettledRevenue, Usage, UsageReceipt, UsageSalts, UsageShare, salted_hash};
use ascribe_tlog::random_bytes;

use crate::generation::Known;
use crate::problem::Problem;
use crate::wire::{
    Attribution, AttributionRequest, IndexRef, WireApprox, WireHit, WireRun, WireShare, WireSource, WireSpan, WireToken,
};

/// Whole against which the weights of a receipt stand: parts per 10¹².
pub const WEIGHT_TOTAL: u128 = 1_000_000_000_000;
/// Currency of a receipt for which nothing was settled: ISO 4217's code for none.
const NO_CURRENCY: &str = "XXX";

/// A new random id: 128 bits, hex, after a prefix that says what it names.
///
/// # Errors
/// The system has no random bytes.
pub fn new_id(prefix: &str) -> Result<String, Problem> {
    let bytes = random_bytes().map_err(|_| Problem::fault())?;
    Ok(format!("{prefix}_{}", hex::encode(&bytes[..16])))
}

/// The answer for the wire, without a receipt.
pub fn attribution(id: String, answer: &Answer, known: &Known) -> Attribution {
    // Sorted by number first: rows are made once, where they stay.
    let allowed = |k: &usize| answer.allowed.get(*k).copied().unwrap_or(false);
    let mut order: Vec<usize> = (0..answer.shares.len()).filter(allowed).collect();
    order.sort_unstable_by(|&a, &b| {
        let by_share = answer.shares[b].share.total_cmp(&answer.shares[a].share);
        by_share.then_with(|| known.names[a].dataset.cmp(&known.names[b].dataset))
    });
    let share = |k: usize| {
        let (names, share) = (known.names[k].clone(), &answer.shares[k]);
        WireShare {
            dataset: names.dataset,
            dataset_id: names.dataset_id,
            owner: names.owner,
            licence: names.licence,
            share: share.share,
            low: share.low,
            high: share.high,
            std_error: share.std_error,
            score: answer.scores.get(k).copied().unwrap_or(0.0),
        }
    };
    let shares = order.into_iter().map(share).collect();
    let (verdict, half_width) = verdict(answer);
    let token =
        |t: &ascribe_engine::respond::TokenInfluence| WireToken { text: t.text.clone(), influence: t.influence };
    Attribution {
        id,
        method: answer.method.clone(),
        index: IndexRef { generation: known.opened.generation.clone(), rows_blake3: known.opened.rows_blake3.clone() },
        spec_hash: answer.spec.to_string(),
        model: known.opened.model.clone(),
        hits: answer.hits.iter().map(|found| hit(found, known)).collect(),
        shares,
        coverage: answer.coverage,
        verdict: verdict.to_owned(),
        half_width,
        approx: WireApprox {
            mode: answer.approx.mode.to_owned(),
            recall: answer.approx.recall,
            rescored: answer.approx.rescored,
        },
        tokens: answer.tokens.as_ref().map(|all| all.iter().map(token).collect()),
        verbatim: answer.verbatim.as_ref().map(|runs| runs.iter().map(|r| run(r, known)).collect()),
        receipt: None,
        receipt_error: None,
    }
}

/// The verdict in words. Shares that no bank has measured pay nobody.
fn verdict(answer: &Answer) -> (&'static str, Option<f64>) {
    use ascribe_engine::respond::Verdict;
    match answer.verdict {
        _ if answer.coverage <= 0.0 => ("not measured", None),
        Some(Verdict::Payable { half_width }) => ("payable", Some(half_width)),
        Some(Verdict::TooNoisyToPay { half_width, .. }) => ("too noisy to pay", Some(half_width)),
        // Measured against retraining, but with nothing known of what was drawn by chance.
        None => ("too noisy to pay", None),
    }
}

fn hit(found: &Found, known: &Known) -> WireHit {
    let dataset = &known.catalog.datasets[found.example.dataset as usize];
    let span = |s: &ascribe_engine::respond::SpanText| WireSpan {
        record_id: s.record.clone(),
        start: s.start,
        end: s.end,
        text: s.text.clone(),
    };
    let record = found.record.as_ref();
    WireHit {
        record_id: record.map_or_else(|| found.example.to_string(), |r| r.id.clone()),
        example_id: found.example.to_string(),
        dataset: dataset.name.clone(),
        dataset_id: dataset.uuid.clone(),
        owner: dataset.owner.clone(),
        licence: dataset.licence.clone(),
        score: found.score,
        text: record.and_then(|r| r.text.clone()),
        spans: record.map_or_else(Vec::new, |r| r.spans.iter().map(span).collect()),
    }
}

fn run(run: &ascribe_engine::respond::VerbatimRun, known: &Known) -> WireRun {
    let source = |(k, record): &(u32, String)| {
        let dataset = &known.catalog.datasets[*k as usize];
        WireSource { dataset: dataset.name.clone(), dataset_id: dataset.uuid.clone(), record_id: record.clone() }
    };
    WireRun {
        start: run.start,
        end: run.end,
        token_start: run.token_start,
        token_end: run.token_end,
        text: run.text.clone(),
        count: run.count,
        sources: run.sources.iter().map(source).collect(),
    }
}

/// The receipt of an answer. Weights are parts per 10¹² of the whole, `⌊share · coverage · 10¹²⌋`: what is left is unattributed,
/// and an answer that is not payable leaves all of it. The output's salt is derived from the operator's key and the answer's id, so
/// that the operator, and nobody else, can open the receipt (`ascribe log usage open`).
///
/// # Errors
/// Revenue that cannot be read.
pub fn receipt(
    attribution: &Attribution,
    request: &AttributionRequest,
    known: &Known,
    salts: &UsageSalts,
    unix_s: u64,
) -> Result<UsageReceipt, Problem> {
    let salt = salts.salt(&attribution.id);
    let sample = request.example.and_then(|n| known.samples.get(n as usize));
    let output = request.completion.as_ref().or(sample.map(|s| &s.completion)).cloned().unwrap_or_default();
    let payable = attribution.verdict == "payable";
    let weight =
        |share: &WireShare| (share.share * attribution.coverage * WEIGHT_TOTAL as f64).floor().max(0.0) as u128;
    let share = |s: &WireShare| UsageShare { dataset: s.dataset_id.to_string(), weight: weight(s) };
    let revenue = match &request.revenue {
        None => SettledRevenue { currency: NO_CURRENCY.to_owned(), minor_units: 0 },
        Some(revenue) => SettledRevenue {
            currency: revenue.currency.clone(),
            minor_units: revenue.minor_units.parse().map_err(|_| {
                Problem::invalid(format!(
                    "revenue.minor_units: expected a decimal below 2^128, found {:?}",
                    revenue.minor_units
                ))
            })?,
        },
    };
    let bare = serde_json::to_vec(attribution).map_err(|_| Problem::fault())?;
    let usage = Usage {
        request_id: attribution.id.clone(),
        model_sha256: known.opened.model_sha256,
        run_id: known.opened.run_id.clone(),
        output_salted_sha256: salted_hash(&salt, output.as_bytes()),
        method: attribution.method.clone(),
        spec_sha256: attribution.spec_hash.parse().map_err(|_| Problem::fault())?,
        attribution_sha256: Some(Digest::of(&bare)),
        shares: if payable {
            attribution.shares.iter().map(share).filter(|s| s.weight > 0).collect()
        } else {
            Vec::new()
        },
        weight_total: WEIGHT_TOTAL,
        revenue,
        settled_unix_s: unix_s,
    };
    UsageReceipt::new(usage).map_err(|error| Problem::invalid(error.to_string()))
}
