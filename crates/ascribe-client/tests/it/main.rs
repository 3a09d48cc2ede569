//! The client against a server process on loopback, and against servers that lie.
#![allow(clippy::unwrap_used)] // test code: a panic with the error is the report

#[path = "../../../ascribe-engine/tests/it/common.rs"]
#[allow(dead_code)] // the home of the walk's tests; some of it is theirs alone
mod common;
#[path = "../../../ascribe-server/tests/it/server.rs"]
#[allow(dead_code)] // the server of the server's tests
mod server;
#[path = "../../../ascribe-server/tests/it/wall.rs"]
mod wall;

mod hostile;
mod real;
