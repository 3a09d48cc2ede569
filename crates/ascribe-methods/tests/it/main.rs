//! Integration tests of the methods: closed forms, second routes, invariances, bad input.
#![allow(clippy::unwrap_used)] // a test may panic; helpers outside of test functions too

mod bad_input;
mod block_fisher;
mod combine;
mod invariance;
mod support;
mod trajectory;
