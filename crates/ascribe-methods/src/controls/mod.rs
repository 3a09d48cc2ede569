//! Controls: what a gradient method must beat to be worth its price.
//!
//! Here live similarity of hidden states, BM25, verbatim overlap, gradient norm and chance. None of them looks at a query's gradient. Each
//! goes through the same calibration as the methods (see `combine`): an uncalibrated control is a straw man.

pub mod bm25;
pub mod embedding;
pub mod gradient_norm;
pub mod ngram;
pub mod random;
pub mod text;
pub mod verbatim;
