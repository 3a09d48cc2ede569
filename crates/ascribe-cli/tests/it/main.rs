//! The `ascribe` command from outside: its words, its JSON, its exit codes, and that it can be stopped.
//!
//! Here never lives what the engine computes; those tests stand beside the engine.
#![allow(clippy::unwrap_used)] // test code: a panic with the error is the report

mod bench;
mod common;
mod help;
mod interrupt;
mod lab;
mod ledger;
mod output;
mod pay;
mod search;
mod store;
mod verbatim;
