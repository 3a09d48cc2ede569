//! A run folder of version 1, which must be read for ever.

use std::path::{Path, PathBuf};

use ascribe_core::NoProgress;
use ascribe_payout::{PayRunRecord, run, verify};

use crate::common::{ROWS, job, registry};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/payrun/v1")
}

#[test]
fn version_1_opens() {
    let record = PayRunRecord::read(&golden()).unwrap();
    verify::check_digests(&golden(), &record).unwrap();
    assert_eq!(record.paid_payees, 2);
    // The version of the program is part of a run's identity, so only the same version makes the same run again.
    if record.run.version == env!("CARGO_PKG_VERSION") {
        verify::verify(&golden(), None, &NoProgress).unwrap();
    }
}

/// Writes the golden folder: `cargo test -p ascribe-payout -- --ignored write_golden`. Only for a new version.
#[test]
#[ignore = "writes files"]
fn write_golden() {
    let dir = tempfile::tempdir().unwrap();
    registry(&dir.path().join("registry"));
    run(&job(dir.path(), ROWS), &golden(), &NoProgress).unwrap();
}
