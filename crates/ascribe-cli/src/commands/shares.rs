//! What `ascribe score`, `shares`, `eval` and `demo` print about shares: mean shares with their bounds, how far they are known,
//! what is too noisy to pay, and what their sums leave out.

use std::collections::BTreeMap;

use ascribe_engine::bench::report::GateFigure;
use ascribe_engine::walk::evaluate::Evaluation;
use ascribe_engine::walk::intervals::{Intervals, PoolInterval};
use ascribe_engine::walk::stamps::Stamp;
use ascribe_engine::{HeldOut, Origin};
use serde::Serialize;

use crate::output::table;

/// Result of `ascribe score`.
#[derive(Serialize)]
pub struct Scored<'a> {
    /// Key and outputs of the station.
    #[serde(flatten)]
    pub stamp: Option<&'a Stamp>,
    /// Shares of the default method.
    pub shares: &'a Intervals,
}

/// Result of `ascribe shares`.
#[derive(Serialize)]
pub struct Shared<'a> {
    /// Part of a pool that measured evidence covers, in ppm.
    pub coverage_ppm: u32,
    /// Responses by verdict of the policy.
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Shares of the default method.
    pub shares: &'a Intervals,
}

/// Result of `ascribe eval`: the evaluation, and the shares beside it.
#[derive(Serialize)]
pub struct Evaluated<'a> {
    /// Every method against retraining.
    #[serde(flatten)]
    pub evaluation: &'a Evaluation,
    /// What is demanded of the default, met or missed.
    pub gates: Vec<GateFigure>,
    /// Shares of the default method.
    pub intervals: &'a Intervals,
}

/// Shares with the policy's verdicts, for a person.
pub fn shared_text(found: &Shared<'_>) -> String {
    let verdicts: Vec<String> = found.verdicts.iter().map(|(name, n)| format!("{n} {name}")).collect();
    let coverage = f64::from(found.coverage_ppm) / 1e4;
    format!("coverage {coverage:.1} %\nresponses by the policy: {}\n\n{}", verdicts.join(", "), text(found.shares))
}

/// Everything about the shares, for a person.
pub fn text(found: &Intervals) -> String {
    let noise = Noise {
        n_responses: found.responses.len() as u64,
        too_noisy: found.n_too_noisy() as u64,
        threshold: found.threshold,
        sources: &found.sources,
        additivity: found.additivity_residual,
    };
    format!("{}\n{}\n{}", method_text(found), pool_text(&found.pool), noise.text())
}

/// Weights, where they came from, and what they reached.
fn method_text(found: &Intervals) -> String {
    let (m, c) = (&found.method, &found.method.calibration);
    let parts: Vec<String> =
        c.channels.iter().zip(&c.weights).map(|(ch, w)| format!("{w:.2} {} ({:?})", ch.name, ch.transform)).collect();
    let of = |h: &HeldOut| format!("{:.3} [{:.3}, {:.3}]", h.share_error, h.low, h.high);
    let (origin, held_out) = match &m.origin {
        Origin::Bank { digest, seeds, responses } => (
            format!("fitted on {responses} responses, {} retraining seeds, bank {}", seeds.len(), &digest[..16]),
            "on responses that were not fitted",
        ),
        Origin::Defaults => (
            "documented default weights: this model has no retrain bank".to_owned(),
            "on finch, which had no say in the weights; on this model not measured",
        ),
    };
    let unseen =
        m.datasets.as_ref().map_or_else(String::new, |h| format!(", {} on datasets that no fit had seen", of(h)));
    format!(
        "shares: softmax of {} at temperature {:.2}\n{origin}\nshare error {} {held_out}{unseen}\n",
        parts.join(" + "),
        c.temperature,
        of(&m.queries)
    )
}

/// Mean shares, largest first.
pub fn pool_text(pool: &[PoolInterval]) -> String {
    let mut sorted: Vec<&PoolInterval> = pool.iter().collect();
    sorted.sort_by(|a, b| b.share.total_cmp(&a.share));
    let row = |p: &&PoolInterval| vec![p.dataset.clone(), format!("{:.3} [{:.3}, {:.3}]", p.share, p.low, p.high)];
    table(&["dataset", "mean share, 95 % over responses"], &sorted.iter().map(row).collect::<Vec<_>>())
}

/// How far shares are known.
pub struct Noise<'a> {
    /// Responses.
    pub n_responses: u64,
    /// Of them too noisy to pay.
    pub too_noisy: u64,
    /// Half width above which that is so.
    pub threshold: f64,
    /// Standard errors by source.
    pub sources: &'a BTreeMap<String, f64>,
    /// Additivity residual.
    pub additivity: f64,
}

impl Noise<'_> {
    /// Three lines.
    pub fn text(&self) -> String {
        let sources: Vec<String> =
            self.sources.iter().map(|(name, e)| format!("{} {e:.4}", name.replace('_', " "))).collect();
        let sources = if sources.is_empty() { "none has replicates".to_owned() } else { sources.join(", ") };
        format!(
            "standard error of a share by source: {sources}\ntoo noisy to pay: {} of {} responses (half width of a 95 % interval \
             above {})\nadditivity residual: {:+.4} of the summed influence (second order)\n",
            self.too_noisy, self.n_responses, self.threshold, self.additivity
        )
    }
}
