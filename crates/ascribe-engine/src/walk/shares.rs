//! Station 8: integer shares per response and owner, with coverage and intervals.

use ascribe_core::{Digest, Progress};
use ascribe_shares::{
    Evidence, InfluenceProportional, OwnerMap, Provenance, ShareBook, SharePolicy as _, Values, Verdict,
};
use ascribe_store::scores::read_scores;
use ndarray::Array3;

use super::context::Context;
use super::evaluate::Evaluation;
use super::score::SCORES_FILE;
use super::stamps::Stamps;
use crate::error::EngineError;
use crate::files;

/// Share file, relative to the run folder.
pub const SHARES_FILE: &str = "shares.json";

/// Decides every response and writes `shares.json`, unless it is there.
///
/// # Errors
/// From the policy or the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<ShareBook, EngineError> {
    let path = context.out.join(SHARES_FILE);
    let key = Digest::of_json(&("shares", stamps.outputs_digest(&["score", "eval"]), context.registry.digest()))?;
    if stamps.is_done(&context.out, "shares", key) {
        return Ok(ShareBook::from_json(&files::read(&path)?)?);
    }
    progress.start("shares", 0, "");
    let evaluation = Evaluation::read(&context.out)?;
    let shares = evaluation.shares_table();
    let (low, high) = evaluation.conformal.intervals(shares.view());
    let (n_queries, n_datasets) = shares.dim();
    let ends = |(q, k, end): (usize, usize, usize)| if end == 0 { low[(q, k)] } else { high[(q, k)] };
    let intervals = Array3::from_shape_fn((n_queries, n_datasets, 2), ends);
    let queries = context.query_ids();
    let evidence = Evidence {
        queries: &queries,
        values: Values::Calibrated(shares.view()),
        intervals: intervals.view(),
        // The mean overlap of held-out shares with measured truth: what is paid where retraining says it belongs.
        coverage: evaluation.coverage.mean.clamp(0.0, 1.0),
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
