//! Tests that cross crates: what ships is what the papers say, and files written by an earlier version still open and still
//! mean the same.
//!
//! `cargo test -p ascribe-tests -- --ignored make_golden` writes the golden folders of the newest versions again, from the
//! values in these files; that is how they were made. A folder of an older version is never written again.
#![allow(clippy::unwrap_used)] // test code: a panic with the error is the report

mod golden_engine;
mod golden_models;
mod golden_registry;
mod methods_paper;
mod shipped;
