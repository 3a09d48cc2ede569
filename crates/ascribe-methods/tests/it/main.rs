//! Integration tests of the methods: closed forms, second routes, invariances, bad input.

mod bad_input;
mod block_fisher;
mod combine;
mod invariance;
mod support;
mod trajectory;
