//! `ascribe audit`: a run made again, its books, and the logs beside it.

use std::path::Path;

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::evidence::{self, Evidence, EvidenceKeys};
use ascribe_engine::run_file::RUN_FILE;
use ascribe_engine::{Home, audit};
use ascribe_payout::usage::UsageCheck;
use ascribe_payout::{self as payout, PayRunRecord, RUN_JSON};
use serde::Serialize;

use super::log::{read_verifier, read_verifiers};
use super::pay::receipts_text;
use crate::args::{AuditArgs, Format};
use crate::output::print;

/// What was found, with what the logs say.
#[derive(Serialize)]
struct Audited<T> {
    #[serde(flatten)]
    run: T,
    evidence: Evidence,
}

/// Runs the command: of a payout run, or of a run of the walk.
///
/// # Errors
/// Any difference.
pub fn run(home: Option<&Path>, args: &AuditArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    let mut keys = EvidenceKeys {
        log: args.log_key.as_deref().map(read_verifier).transpose()?,
        usage: args.usage_key.as_deref().map(read_verifier).transpose()?,
        witnesses: read_verifiers(&args.witness)?,
    };
    let dir = &args.dir;
    if dir.join(RUN_JSON).exists() {
        let check = UsageCheck { log: args.usage_log.clone(), key: keys.usage.clone() };
        if args.usage_log.is_some() {
            // Of a log of many runs the receipts of this one are checked, not that all of them settle its pool.
            keys.usage = None;
        }
        let run = payout::verify_with(dir, args.scores.as_deref(), &check, bars)?;
        let pool = PayRunRecord::read(dir)?.run.policy.pool;
        let evidence = evidence::check(dir, RUN_JSON, Some((&pool.currency.to_string(), pool.minor)), &keys, bars)?;
        return print(format, &Audited { run, evidence }, |found| {
            let run = &found.run;
            let text =
                format!("run {}: {} files made again with the same bytes; the books close", run.run_id, run.files);
            text + &receipts_text(&run.receipts) + &evidence_text(&found.evidence)
        });
    }
    let run = audit::run(&Home::find(home)?, dir, bars)?;
    let evidence = evidence::check(dir, RUN_FILE, None, &keys, bars)?;
    print(format, &Audited { run, evidence }, |found| {
        format!("{} files made again, every byte the same", found.run.files) + &evidence_text(&found.evidence)
    })
}

fn evidence_text(evidence: &Evidence) -> String {
    let mut text = String::new();
    if let Some(logged) = &evidence.record {
        text += &format!("\nthe record is entry {} of {} in the log of {}", logged.index, logged.size, logged.origin);
        for (witness, moment) in &logged.witnesses {
            text += &format!("\nwitnessed by {witness} at {moment}");
        }
    }
    if let Some(usage) = &evidence.usage {
        text += &format!("\n{} usage receipts hold, {} were erased", usage.receipts, usage.erased);
    }
    for path in &evidence.unchecked {
        text += &format!("\nnot checked, no key was given: {path}");
    }
    text
}
