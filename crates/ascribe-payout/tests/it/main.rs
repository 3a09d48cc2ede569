//! Payout runs from outside: golden folder, crashes, order, earlier runs. The command line's contract is tested beside the command.

#![allow(clippy::unwrap_used)]

mod common;
mod golden;
mod inputs;
mod receipts;
mod revenue;
mod runs;
mod terms;
