//! What is refused before a server is asked.

use ascribe_index::IndexError;
use ascribe_pgvector::{PgParams, PgVectorIndex};

use crate::contract::clustered;

#[test]
fn an_address_that_is_none_is_refused_and_its_password_is_not_shown() {
    let reader = clustered(20, 8, 2, 1);
    for address in ["postgresql://me:hush@127.0.0.1:1/none", "postgresql://me:hush@db.example/none"] {
        let error = PgVectorIndex::build(&reader, address, "t", PgParams::default()).unwrap_err();
        assert!(matches!(error, IndexError::Backend { .. }), "{error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let reader = clustered(20, 8, 2, 1);
    let good = PgParams::default();
    for bad in [
        PgParams { n_neighbours: 1, ..good },
        PgParams { n_neighbours: 101, ..good },
        PgParams { ef_construction: 3, ..good },
        PgParams { ef_construction: 1001, ..good },
        PgParams { ef_construction: 31, ..good },
    ] {
        let error = PgVectorIndex::build(&reader, "postgresql://127.0.0.1:1/none", "t", bad).unwrap_err();
        assert!(matches!(error, IndexError::BadSetting { .. }), "{bad:?}: {error}");
    }
}
