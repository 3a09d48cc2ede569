//! The words of Ascribe: identifiers, shapes, specifications and traits that cross crate borders.
//!
//! Here lives what two or more stations must agree on. Here never lives: input and output, threads, arithmetic on
//! gradients, policy. Orientation and sign are fixed for everybody: scores are `[query, train]`, and positive means
//! *proponent* (the presence of the training example makes the output likelier).

pub mod digest;
pub mod features;
pub mod ids;
pub mod progress;
pub mod scores;
pub mod shares;
pub mod spec;

pub use digest::{Digest, DigestStream};
pub use features::{FeatureReader, FeatureSink, Features};
pub use ids::{DatasetId, ExampleId, QueryId, RecordId, RecordSpan};
pub use progress::{NoProgress, Progress};
pub use scores::{DatasetScores, ScoreTable};
pub use shares::{Share, ShareTable};
pub use spec::{Column, FeatureSpec, ProjectorSpec, RowType};
