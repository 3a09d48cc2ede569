//! Integration tests: searches against the plain way, files against damage, kills and strangers.

#![allow(clippy::unwrap_used)] // what tests share may panic like the tests themselves

mod common;
mod faults;
mod full;
mod golden;
mod kill;
mod search;
