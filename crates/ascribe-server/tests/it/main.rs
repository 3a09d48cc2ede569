//! The server from outside: a process of its own on loopback, over a small run that is made here (three datasets, a decoder that
//! trains in a second). Every fault that the server promises to survive is a test.
#![allow(clippy::unwrap_used)] // test code: a panic with the error is the report

#[path = "../../../ascribe-engine/tests/it/common.rs"]
#[allow(dead_code)] // the home of the walk's tests; some of it is theirs alone
mod common;

mod access;
mod contract;
mod display;
mod faults;
mod load;
mod openapi;
mod paywall;
mod server;
mod wall;
