//! The ledger from outside: whole runs by hand, laws over random plans, broken input, files that outlive versions.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod formats;
mod laws;
mod toy;
