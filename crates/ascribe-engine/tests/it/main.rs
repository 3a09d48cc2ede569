//! The walk end to end, on a home of its own: three small datasets cut out of the shipped ones, a decoder that trains in a
//! second, a bank of two seeds. Everything is the real thing, only smaller.
//!
//! Here never lives what one crate can promise alone: those tests stand beside that crate.
#![allow(clippy::unwrap_used)] // test code: a panic with the error is the report

mod audit;
mod bad_input;
mod calibrated;
mod common;
mod decoder_bench;
mod exact;
mod full_disk;
mod respond;
mod training;
mod values;
mod walk;
