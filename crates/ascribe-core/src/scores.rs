//! Scores: `[query, train]`, positive = proponent.

use ndarray::Array2;

use crate::digest::Digest;
use crate::ids::{ExampleId, QueryId};

/// Example-level scores of one method.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreTable {
    /// Method name (`block_fisher`).
    pub method: String,
    /// Hash of the spec (and factors) the scores came from.
    pub spec: Digest,
    /// Row labels.
    pub queries: Vec<QueryId>,
    /// Column labels.
    pub examples: Vec<ExampleId>,
    /// `[Q, N]`.
    pub values: Array2<f32>,
}

/// Dataset-level scores of one method.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetScores {
    /// Method name.
    pub method: String,
    /// Hash of the spec (and factors) the scores came from.
    pub spec: Digest,
    /// Row labels.
    pub queries: Vec<QueryId>,
    /// `[Q, K]`; column k is the dataset with ordinal k.
    pub values: Array2<f64>,
}
