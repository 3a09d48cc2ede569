//! Integration tests of the methods: closed forms, second routes, invariances, bad input.
#![allow(clippy::unwrap_used)] // a test may panic; helpers outside of test functions too

mod bad_input;
mod block_fisher;
mod by_hand;
mod coded;
mod combine;
mod grass;
mod invariance;
mod inverse;
mod lorif;
mod rows;
mod softmax;
mod steps;
mod support;
mod trajectory;
mod trak;
mod whole;
