//! Fixtures for the tests of the other crates: feature rows in memory, tiny record files, ridge regression in closed form.
//!
//! Here lives what two or more crates' tests need. Here never lives: anything that a shipped crate depends on; this
//! crate stands under `[dev-dependencies]` only, and `cargo xtask tidy` checks that it does.

pub mod features;
pub mod records;
pub mod ridge;

pub use features::{MemoryReader, gradient_spec, toy_rows};
pub use records::{TinyRecord, tiny_records, write_jsonl};
pub use ridge::Ridge;
