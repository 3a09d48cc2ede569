//! One suite over both engines: the same promises on SQLite and on PostgreSQL.
//!
//! SQLite always runs. PostgreSQL runs when `ASCRIBE_TEST_POSTGRES` holds the address of a server;
//! `tests/conformance/sql/run.sh` starts one and fails when there is none.

#![allow(clippy::unwrap_used, reason = "what fails in a test fails the test")]

mod crash;
mod exports;
mod fixture;
mod income;
mod laws;
mod suite;

/// Makes one test per promise and engine. The PostgreSQL half is ignored by a plain `cargo test`; the conformance suite asks
/// for it, sets the address and counts the tests.
macro_rules! on_both_engines {
    ($($module:ident::$promise:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $promise() { crate::$module::$promise(&crate::fixture::Place::sqlite()); })*
        }
        mod postgres {
            $(
                #[test]
                #[ignore = "needs a server: tests/conformance/sql/run.sh"]
                fn $promise() { crate::$module::$promise(&crate::fixture::Place::postgres(stringify!($promise))); }
            )*
        }
    };
}

on_both_engines!(
    suite::an_empty_book_verifies,
    suite::a_response_pays_its_contributors,
    suite::an_entry_stands_once,
    suite::a_batch_is_all_or_nothing,
    suite::no_account_falls_below_zero,
    suite::pending_is_resolved_once,
    suite::currencies_never_meet,
    suite::amounts_of_128_bits,
    suite::settlement_holds_carries_and_repeats,
    suite::payments_come_back_or_are_paid,
    suite::disputes_freeze,
    suite::clawbacks_set_off,
    suite::two_writers_lose_nothing,
    suite::a_changed_book_is_found_out,
    suite::many_payees_settle,
    suite::a_payout_run_is_taken_in_once,
    laws::any_history_is_conserved_and_free_of_order,
    income::prepaid_balances_are_spent_once,
    income::payments_are_credited_on_settlement_only,
    income::a_crash_between_sending_and_crediting,
    income::what_a_chain_may_do_to_a_payment,
);
