//! The tables of a registry, the same on SQLite and PostgreSQL.

use ascribe_sql::Migration;

/// Who owns the tables, in the database's list of schemas.
pub(super) const COMPONENT: &str = "registry";

/// All versions of the schema. A version that was released never changes.
///
/// - What was signed is kept as the bytes that were signed (`document`), columns beside it are for asking.
/// - `signatures` holds licences and revocations alike: they share digests, nonces and the log.
/// - `log_index` is empty between the commit of a message and its line in the log; recovery fills it (see `recover`).
/// - `UNIQUE (licensor, nonce)` and the check against the highest one are what refuse a replay.
pub(super) const MIGRATIONS: [Migration; 1] = [Migration {
    version: 1,
    statements: &[
        "CREATE TABLE contributors (
            name TEXT PRIMARY KEY,
            added_unix_s BIGINT NOT NULL)",
        "CREATE TABLE datasets (
            uuid TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            contributor TEXT NOT NULL REFERENCES contributors (name),
            version BIGINT NOT NULL,
            CHECK (version >= 1))",
        "CREATE TABLE dataset_versions (
            uuid TEXT NOT NULL REFERENCES datasets (uuid),
            version BIGINT NOT NULL,
            content_root BLOB NOT NULL,
            record_count BIGINT NOT NULL,
            len_bytes BIGINT NOT NULL,
            manifest BLOB NOT NULL,
            terms BLOB NOT NULL,
            added_unix_s BIGINT NOT NULL,
            PRIMARY KEY (uuid, version),
            CHECK (record_count >= 1))",
        "CREATE INDEX dataset_versions_by_root ON dataset_versions (content_root)",
        "CREATE TABLE payees (
            uuid TEXT NOT NULL,
            version BIGINT NOT NULL,
            account TEXT NOT NULL,
            share_ppm BIGINT NOT NULL,
            PRIMARY KEY (uuid, version, account),
            FOREIGN KEY (uuid, version) REFERENCES dataset_versions (uuid, version),
            CHECK (share_ppm BETWEEN 1 AND 1000000))",
        "CREATE TABLE signatures (
            digest BLOB PRIMARY KEY,
            kind TEXT NOT NULL,
            uuid TEXT NOT NULL,
            version BIGINT NOT NULL,
            licensor TEXT NOT NULL,
            nonce BIGINT NOT NULL,
            subject BLOB,
            valid_from BIGINT NOT NULL,
            valid_until BIGINT NOT NULL,
            document BLOB NOT NULL,
            accepted_unix_s BIGINT NOT NULL,
            log_index BIGINT,
            UNIQUE (licensor, nonce),
            FOREIGN KEY (uuid, version) REFERENCES dataset_versions (uuid, version),
            CHECK (kind IN ('licence', 'revocation')))",
        "CREATE INDEX signatures_by_dataset ON signatures (uuid)",
        "CREATE INDEX signatures_by_subject ON signatures (subject)",
        "CREATE TABLE disputes (
            id BIGINT PRIMARY KEY,
            uuid TEXT NOT NULL REFERENCES datasets (uuid),
            claimant TEXT NOT NULL,
            reason TEXT NOT NULL,
            opened_unix_s BIGINT NOT NULL,
            closed_unix_s BIGINT,
            outcome TEXT)",
    ],
}];
