//! The contract of every index, and what only a server can be asked. A plain `cargo test` runs what needs no server;
//! `tests/conformance/pgvector/run.sh` starts one and runs the module `postgres`.

#![allow(clippy::unwrap_used, reason = "what fails in a test fails the test")]

#[path = "../../../ascribe-index/tests/contract/mod.rs"]
#[allow(unused_macros, unused_imports, dead_code, reason = "its own macro makes tests that run without a server")]
mod contract;
mod graph;
mod refusals;

use std::sync::atomic::{AtomicU32, Ordering};

use ascribe_core::FeatureReader;
use ascribe_index::IndexError;
use ascribe_pgvector::{PgParams, PgVectorIndex};
use ascribe_testkit::MemoryReader;

/// The server of the suite.
fn address() -> String {
    std::env::var("ASCRIBE_TEST_POSTGRES").expect("ASCRIBE_TEST_POSTGRES holds the address of a server")
}

/// A name that no other test has.
fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn built<R: FeatureReader>(reader: &R, params: PgParams) -> Result<PgVectorIndex<'_, R>, IndexError> {
    PgVectorIndex::build(reader, &address(), &name(), params)
}

/// The contract as `contract!` makes it, but ignored where there is no server.
macro_rules! contract_of_a_server {
    ($($test:ident),* $(,)?) => {
        mod postgres {
            use super::*;

            fn made(reader: &MemoryReader) -> Result<Box<dyn ascribe_index::VectorIndex + '_>, IndexError> {
                Ok(Box::new(built(reader, PgParams::default())?))
            }

            $(#[test]
            #[ignore = "needs a server: tests/conformance/pgvector/run.sh"]
            fn $test() {
                crate::contract::$test(&made);
            })*
        }
    };
}

contract_of_a_server!(
    hits_are_those_of_sorting_everything,
    hits_do_not_depend_on_the_batch_or_the_threads,
    ties_go_to_the_lower_id_even_among_equal_rows,
    opponents_are_the_proponents_of_the_negated_query,
    extreme_sizes_are_searched_like_any_other,
    a_filter_takes_rows_out_and_changes_nothing_else,
    what_cannot_be_searched_is_refused_by_name,
    rows_that_cannot_be_searched_are_refused,
);
