//! Station 8: integer shares per response and owner, with coverage and intervals.

use std::collections::BTreeMap;

use ascribe_core::{Digest, Progress};
use ascribe_shares::{
    Evidence, InfluenceProportional, OwnerMap, Provenance, ShareBook, SharePolicy as _, Values, Verdict,
};
use ascribe_store::scores::read_scores;
use ndarray::{Array2, Array3};

use super::calibrate;
use super::context::Context;
use super::score::SCORES_FILE;
use super::stamps::Stamps;
use crate::error::EngineError;
use crate::files;

/// Share file, relative to the run folder.
pub const SHARES_FILE: &str = "shares.json";

/// Responses by verdict of the policy, in words.
pub fn verdicts(book: &ShareBook) -> BTreeMap<&'static str, usize> {
    let names = [
        (Verdict::Payable, "payable"),
        (Verdict::TooNoisy, "too noisy to pay"),
        (Verdict::NoProponent, "without a proponent"),
        (Verdict::Cancelled, "cancelled"),
    ];
    names.map(|(verdict, name)| (name, book.count(verdict))).into()
}

/// Decides every response and writes `shares.json`, unless it is there.
///
/// What the policy sees of a response that is too noisy to pay (`intervals.json`) are intervals that reach 0: it pays none of them.
///
/// # Errors
/// From the policy or the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<ShareBook, EngineError> {
    let found = calibrate::run(context, stamps, progress)?;
    let path = context.out.join(SHARES_FILE);
    let key = Digest::of_json(&("shares", stamps.outputs_digest(&["score", "calibrate"]), context.registry.digest()))?;
    if stamps.is_done(&context.out, "shares", key) {
        return Ok(ShareBook::from_json(&files::read(&path)?)?);
    }
    progress.start("shares", 0, "");
    let (n_queries, n_datasets) = (found.responses.len(), found.datasets.len());
    let shares = Array2::from_shape_fn((n_queries, n_datasets), |(q, k)| found.responses[q].shares[k].share);
    let ends = |(q, k, end): (usize, usize, usize)| {
        let (response, share) = (&found.responses[q], &found.responses[q].shares[k]);
        match end {
            0 if response.verdict.is_payable() => share.low,
            0 => 0.0,
            _ => share.high,
        }
    };
    let intervals = Array3::from_shape_fn((n_queries, n_datasets, 2), ends);
    let queries = context.query_ids();
    let evidence = Evidence {
        queries: &queries,
        values: Values::Calibrated(shares.view()),
        intervals: intervals.view(),
        // The mean overlap of held-out shares with measured truth: what is paid where retraining says it belongs.
        coverage: found.coverage.clamp(0.0, 1.0),
        provenance: Provenance {
            scores_sha256: files::digest(&context.out.join(SCORES_FILE))?,
            spec: read_scores(&context.out.join(SCORES_FILE))?.meta.spec,
            registry: context.registry.digest(),
        },
    };
    let book = InfluenceProportional::default().shares(&evidence, &OwnerMap::of_registry(&context.registry)?)?;
    files::write_atomic(&path, &book.to_json()?)?;
    stamps.finish(&context.out, "shares", key, &[SHARES_FILE.to_owned()])?;
    let (paid, noisy) = (book.count(Verdict::Payable), book.count(Verdict::TooNoisy));
    let covered = f64::from(book.coverage_ppm) / 1e4;
    progress.finish(&format!("{paid} responses payable, {noisy} too noisy to pay, coverage {covered:.1} %"));
    Ok(book)
}
