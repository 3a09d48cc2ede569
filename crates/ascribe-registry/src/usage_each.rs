//! Receipts of a usage log for whoever books them: each handed over only after the whole log holds.

use std::path::Path;

use ascribe_core::Progress;
use ascribe_tlog::NoteVerifier;

use crate::error::RegistryError;
use crate::usage::UsageReceipt;
use crate::usage_log::{UsageAudit, verify_usage_log, walk_usage_log};

/// Checks a whole usage log as [`verify_usage_log`] does, then hands over its receipts in the order of the log; erased ones are left
/// out. Nothing is handed over from a log with anything wrong in it. Reads only, so that it may run beside the log's writer: receipts
/// that enter between the two passes are handed over, too. Cost: every signature is checked twice; memory is one batch of receipts.
///
/// # Errors
/// The first thing that is wrong with the log; the first error of `each`, which ends the walk.
pub fn each_usage_receipt<E: From<RegistryError>>(
    dir: &Path,
    log: &NoteVerifier,
    progress: &dyn Progress,
    each: &mut dyn FnMut(&UsageReceipt) -> Result<(), E>,
) -> Result<UsageAudit, E> {
    verify_usage_log(dir, log, &[], progress)?;
    // The walk has errors of its own kind: the caller's is kept beside it.
    let mut refused = None;
    let walked = walk_usage_log(dir, log, &[], progress, &mut |index, _, signed| {
        let Some(signed) = signed else { return Ok(()) };
        each(&signed.receipt).map_err(|error| {
            refused = Some(error);
            RegistryError::field(dir, format!("receipt {index}"), "one that is taken", "one that was refused")
        })
    });
    match refused {
        Some(error) => Err(error),
        None => Ok(walked?),
    }
}
