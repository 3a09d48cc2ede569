//! The tables of the book, the same on SQLite and PostgreSQL.

use ascribe_sql::Migration;

/// Who owns the tables, in the database's list of schemas.
pub(crate) const COMPONENT: &str = "book";

/// Bits of a transfer's place that count its entry's legs.
pub(crate) const LEG_BITS: u32 = 20;
/// Most legs of an entry.
pub(crate) const LEGS_MAX: usize = (1 << LEG_BITS) - 1;

/// All versions of the schema. A version that was released never changes.
///
/// - `book_entries` and `book_transfers` are the book: rows are added, never changed. A transfer's `place` is its entry's
///   number times 2^20 plus its leg, so that both tables grow at their end and a transfer needs no index of its own; its id is
///   its entry's id and its leg, and an entry's id stands once.
/// - `book_resolutions` says which pending transfers were posted or voided: its key is what lets that happen once.
/// - `book_balances` and `book_maturity` (credits of payees by day) follow from the transfers; `verify` adds them up again.
/// - `book_head` holds the number of entries and the hash chain over them. Writers queue at it.
/// - Amounts are sub-units: millionths of the currency's minor unit.
pub(crate) const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    statements: &[
        "CREATE TABLE book_accounts (
            id BIGINT PRIMARY KEY,
            currency TEXT NOT NULL,
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            address TEXT NOT NULL,
            UNIQUE (currency, kind, name, address))",
        "CREATE TABLE book_datasets (
            id BIGINT PRIMARY KEY,
            urn TEXT NOT NULL UNIQUE)",
        "CREATE TABLE book_entries (
            seq BIGINT PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            digest BLOB NOT NULL,
            kind TEXT NOT NULL,
            at_unix_s BIGINT NOT NULL,
            memo TEXT NOT NULL,
            CHECK (length(id) = 16 AND length(digest) = 32))",
        "CREATE TABLE book_transfers (
            place BIGINT PRIMARY KEY,
            debit BIGINT NOT NULL,
            credit BIGINT NOT NULL,
            amount AMOUNT NOT NULL,
            why BIGINT NOT NULL,
            phase BIGINT NOT NULL,
            pending BIGINT,
            dataset BIGINT,
            CHECK (debit <> credit))",
        "CREATE TABLE book_resolutions (
            pending BIGINT PRIMARY KEY REFERENCES book_transfers (place),
            by_place BIGINT NOT NULL REFERENCES book_transfers (place))",
        "CREATE TABLE book_balances (
            account BIGINT PRIMARY KEY REFERENCES book_accounts (id),
            debits_posted AMOUNT NOT NULL,
            credits_posted AMOUNT NOT NULL,
            debits_pending AMOUNT NOT NULL,
            credits_pending AMOUNT NOT NULL)",
        "CREATE TABLE book_maturity (
            account BIGINT NOT NULL REFERENCES book_accounts (id),
            day BIGINT NOT NULL,
            credited AMOUNT NOT NULL,
            PRIMARY KEY (account, day))",
        "CREATE TABLE book_settlements (
            id BLOB PRIMARY KEY,
            currency TEXT NOT NULL,
            terms TEXT NOT NULL,
            seq BIGINT)",
        "CREATE TABLE book_disputes (
            id TEXT PRIMARY KEY,
            currency TEXT NOT NULL,
            owner TEXT NOT NULL,
            address TEXT NOT NULL,
            reason TEXT NOT NULL,
            opened_unix_s BIGINT NOT NULL,
            pending BIGINT,
            outcome TEXT,
            resolved_unix_s BIGINT)",
        "CREATE INDEX book_disputes_by_owner ON book_disputes (currency, owner)",
        "CREATE TABLE book_customers (
            customer TEXT PRIMARY KEY,
            key_sha256 BLOB NOT NULL)",
        "CREATE TABLE book_payments (
            key TEXT PRIMARY KEY,
            state TEXT NOT NULL,
            request TEXT NOT NULL,
            authorization_json TEXT NOT NULL,
            credit_json TEXT NOT NULL,
            transaction_hash TEXT,
            failure TEXT,
            updated_unix_s BIGINT NOT NULL)",
        "CREATE INDEX book_payments_by_state ON book_payments (state)",
        "CREATE TABLE book_head (
            id BIGINT PRIMARY KEY,
            entries BIGINT NOT NULL,
            chain TEXT NOT NULL,
            CHECK (id = 1))",
        "INSERT INTO book_head VALUES (1, 0, '')",
    ],
}];
