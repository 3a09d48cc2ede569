//! The policy step from outside: a book by hand, laws, bad input, the file.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod file;
mod laws;
mod toy;
