//! What `ascribe demo --format json` prints: one object, its names a contract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::walk::intervals::PoolInterval;

/// The demo's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemoSummary {
    /// Registered datasets.
    pub datasets: u64,
    /// Registered records.
    pub records: u64,
    /// Training examples with a feature row.
    pub examples: u64,
    /// Held-out responses explained.
    pub queries: u64,
    /// Wall seconds of this run of the command.
    pub seconds: f64,
    /// Peak resident memory, MiB.
    pub peak_rss_mib: f64,
    /// The method that shares and payouts come from.
    pub default_method: String,
    /// True when every unit of the pool is accounted for.
    pub conservation: bool,
    /// Share of the pool that measured evidence covers, in ppm.
    pub coverage_ppm: u32,
    /// Responses whose shares can be paid, by the spread of what was drawn by chance.
    #[serde(default)]
    pub payable: u64,
    /// Responses that are too noisy to pay.
    #[serde(default)]
    pub too_noisy_to_pay: u64,
    /// Half width of a share's 95 % interval above which that is so.
    #[serde(default)]
    pub noise_threshold: f64,
    /// Root mean square standard error of a share by source (projection, checkpoints, retraining seeds).
    #[serde(default)]
    pub share_std_errors: BTreeMap<String, f64>,
    /// Mean second-order part that sums of dataset influence leave out, relative to their size.
    #[serde(default)]
    pub additivity_residual: f64,
    /// Mean share of every dataset over all responses, with 95 % bounds from resampled responses.
    #[serde(default)]
    pub pool: Vec<PoolInterval>,
    /// Recall@10 of the HNSW index against exact search.
    pub hnsw_recall_at_10: f64,
    /// Seeds of the retrain bank.
    pub retraining_seeds: u64,
    /// Agreement of one retraining seed with the others: its share error against their mean; absent with a single seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_share_error: Option<f64>,
    /// Agreement of one retraining seed with the others: its Spearman with their mean; absent with a single seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling_spearman: Option<f64>,
    /// Methods and controls, measured against retraining.
    pub methods: BTreeMap<String, MethodSummary>,
}

/// One method against retraining. Share errors are held-out; intervals are over responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodSummary {
    /// Total variation between predicted and true shares: raw scores, or the fitted method on queries it was not
    /// fitted on.
    pub share_error: f64,
    /// Interval.
    pub share_error_low: f64,
    /// Interval.
    pub share_error_high: f64,
    /// The same after a one-temperature calibration, on queries it was not fitted on.
    pub calibrated: f64,
    /// Interval.
    pub calibrated_low: f64,
    /// Interval.
    pub calibrated_high: f64,
    /// Calibrated share error on queries of datasets that the calibration never saw.
    pub calibrated_unseen_datasets: f64,
    /// Mean Spearman correlation with the true loss changes over datasets.
    pub spearman: f64,
    /// Interval.
    pub low: f64,
    /// Interval.
    pub high: f64,
    /// The same without the response's own dataset.
    pub spearman_others: f64,
    /// How often the top dataset is right.
    pub top1: f64,
    /// Interval.
    pub top1_low: f64,
    /// Interval.
    pub top1_high: f64,
    /// True for controls.
    pub control: bool,
}
