//! Integration tests of the formats: invariance, crashes, damage, full disks, old files.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // what tests share may panic like the tests themselves

mod common;
mod damage;
mod direct;
mod factors;
mod faults;
mod features;
mod full;
mod generations;
mod golden;
mod kill;
mod kills;
mod leaves;
mod notes;
mod owners;
mod remote;
mod rows;
mod score_rows;
mod scores;
