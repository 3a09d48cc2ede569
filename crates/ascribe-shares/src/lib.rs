//! The one policy step: scores become integer weights per dataset and owner. Floats enter, integers leave.
//!
//! Here live quantisation, duplicates, netting per owner, the verdict whether a response is known well enough to pay for, and the
//! file `shares.json`. Here never live: attribution and calibration (`methods`), their judgement (`eval`), money
//! (`ledger`), files and networks (values go in, bytes come out; the engine writes them).
//!
//! After [`quantise`] nothing is computed in floating point: sums, netting and shares are integers, so the same scores
//! give the same weights on every machine, in any order, with any number of threads.

pub mod book;
pub mod dedup;
pub mod error;
pub mod file;
pub mod net;
pub mod owners;
pub mod policy;
pub mod quantise;
pub mod rules;
pub mod sparse;

pub use book::{OwnerShare, Response, ShareBook, Verdict};
pub use dedup::{Derived, Duplicates};
pub use error::SharesError;
pub use file::{SHARES_FORMAT_VERSION, SHARES_MAX_BYTES};
pub use owners::{DatasetEntry, OwnerMap};
pub use policy::{Evidence, InfluenceProportional, PolicyRecord, Provenance, SharePolicy, TOO_NOISY_WIDTH_PPM, Values};
pub use quantise::{coverage_ppm, quantise_row};
pub use rules::{Holdings, Rule, SHAPLEY_OWNERS_MAX, Weighed};
pub use sparse::{Scored, Summed, sum_rows};
