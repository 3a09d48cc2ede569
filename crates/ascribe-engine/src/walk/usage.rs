//! Station 9, its second half: every response that the pool was split over leaves a receipt in the run folder's own usage log.
//!
//! Receipts are made from the journal, so their weights are the money that each dataset got by the response, in sub-units; what is
//! left of the whole stayed unattributed, or was dust. Signed by the registry's usage key, in the demo by the public demo key, which
//! shows how receipts are checked and proves nothing about who signed.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, NoProgress};
use ascribe_ledger::{Account, Journal, Memo};
use ascribe_registry::{
    PaidResponse, PaidShares, UsageLog, UsageRun, UsageSalts, UsageShare, check_usage_run, even_minor, parse_moment,
    request_id, salted_hash, usage_signer, verify_usage_log,
};
use ascribe_shares::ShareBook;
use ascribe_tlog::{Ed25519Key, KEY_FILE, read_key};

use super::context::Context;
use super::evaluate::COMBINED;
use super::shares::SHARES_FILE;
use crate::error::EngineError;
use crate::files;

/// The usage log, relative to the run folder.
pub const USAGE_DIR: &str = "usage";

/// Does something with the run as its receipts see it; without a key they lack their outputs.
fn with_run<T>(
    context: &Context,
    book: &ShareBook,
    journal: &Journal,
    key: Option<&Ed25519Key>,
    work: impl FnOnce(&UsageRun<'_>) -> T,
) -> Result<T, EngineError> {
    let pool = journal.run().policy.pool;
    let n = book.responses.len() as u64;
    let weight_total = pool.sub_units()?.0.checked_div(n.into()).unwrap_or(0);
    let mut earned: BTreeMap<u32, BTreeMap<&str, u128>> = BTreeMap::new();
    for transfer in journal.transfers() {
        if let (Account::Payable(_), Memo::Accrual { response, dataset }) = (&transfer.credit, &transfer.memo) {
            *earned.entry(*response).or_default().entry(dataset).or_default() += transfer.amount.0;
        }
    }
    let query = |i: u64| book.responses[i as usize].query.0;
    let id = |i: u64| request_id(&format!("{}/{}", context.model_name, query(i)));
    let salts = key.map(UsageSalts::of);
    let output = |i: u64| context.tokenizer.decode(&context.corpus.queries[query(i) as usize].tokens);
    let response = |i: u64| {
        let share = |(dataset, weight): (&&str, &u128)| UsageShare { dataset: (*dataset).to_owned(), weight: *weight };
        PaidResponse {
            salted_output: salts.as_ref().map(|salts| salted_hash(&salts.salt(&id(i)), output(i).as_bytes())),
            weight_total,
            shares: PaidShares::Listed(earned.get(&query(i)).into_iter().flatten().map(share).collect()),
            revenue_minor: even_minor(pool.minor, n, i),
        }
    };
    let weights = context.run_record.subjects.iter().find(|subject| subject.name == context.last().file);
    Ok(work(&UsageRun {
        model_sha256: weights.map_or_else(Digest::default, |subject| subject.sha256),
        run_id: context.run_record.invocation_id.clone(),
        method: COMBINED.to_owned(),
        spec_sha256: book.provenance.spec,
        attribution_sha256: Some(files::digest(&context.out.join(SHARES_FILE))?),
        currency: pool.currency.to_string(),
        // The run's own time: a clock would give the same run other bytes every day.
        settled_unix_s: parse_moment(&format!("{}T00:00:00Z", journal.run().period.end())).unwrap_or(0),
        n_responses: n,
        id: &id,
        response: &response,
    }))
}

/// Brings the log in the run folder to the receipts of this run: left alone when it holds just these, made anew otherwise. Like the
/// payout files beside it, it is that of the run in the folder; what another run left there goes with that run's payout.
///
/// # Errors
/// A usage key that cannot be read, the disk's.
pub(super) fn write(context: &Context, book: &ShareBook, journal: &Journal) -> Result<(), EngineError> {
    let dir = context.out.join(USAGE_DIR);
    let registry = registry_dir(context);
    let signer = usage_signer(registry)?;
    with_run(context, book, journal, Some(signer.key()), |run| {
        let there = check_usage_run(&dir, signer.verifier(), &[], run, &NoProgress);
        if there.is_ok_and(|found| found.size == run.n_responses && found.erased == 0) {
            return Ok(());
        }
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(|e| EngineError::io(&dir, e))?;
        }
        std::fs::create_dir_all(&dir).map_err(|e| EngineError::io(&dir, e))?;
        UsageLog::open(&dir, usage_signer(registry)?)?.settle(run, &NoProgress)?;
        Ok(())
    })?
}

/// The folder of the registry, which knows it by its log.
fn registry_dir(context: &Context) -> &Path {
    context.registry.log().path().parent().unwrap_or(Path::new("."))
}

/// Holds the receipts of the run in `dir` against its journal, without its inputs: every signature, digest and request, and that what
/// they settled is the pool. Differences in words.
///
/// # Errors
/// What is wrong with the log.
pub(crate) fn differences(dir: &Path, journal: &Journal) -> Result<Vec<String>, EngineError> {
    let usage = dir.join(USAGE_DIR);
    if !usage.exists() {
        return Ok(vec![format!("{USAGE_DIR}/: no receipts of the responses that were paid")]);
    }
    let key = read_key(&usage.join("log")).map_err(ascribe_registry::RegistryError::from)?;
    let found = verify_usage_log(&usage, &key, &[], &NoProgress)?;
    let pool = journal.run().policy.pool;
    let settled = vec![(pool.currency.to_string(), pool.minor.to_string())];
    if found.revenue == settled {
        return Ok(Vec::new());
    }
    Ok(vec![format!("{USAGE_DIR}/: receipts settle {:?}, the pool is {:?}", found.revenue, settled)])
}

/// True when the receipts in two run folders were signed by different keys: then their bytes cannot be the same.
pub(crate) fn other_key(one: &Path, other: &Path) -> bool {
    let key = |dir: &Path| std::fs::read(dir.join(USAGE_DIR).join("log").join(KEY_FILE)).unwrap_or_default();
    key(one) != key(other)
}

/// Holds the receipts in `dir`, which another operator signed, against the run that `context` and `book` give: all but the salted
/// outputs, which only that operator can make.
///
/// # Errors
/// The first receipt that is missing, forged, or not what the run gives.
pub(crate) fn check(context: &Context, book: &ShareBook, journal: &Journal, dir: &Path) -> Result<(), EngineError> {
    let usage = dir.join(USAGE_DIR);
    let key = read_key(&usage.join("log")).map_err(ascribe_registry::RegistryError::from)?;
    with_run(context, book, journal, None, |run| check_usage_run(&usage, &key, &[], run, &NoProgress))??;
    Ok(())
}
