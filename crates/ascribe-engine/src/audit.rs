//! `ascribe audit`: a run is made again from its inputs, in a folder of its own, and every byte is compared.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use ascribe_ledger::{Conservation, Journal, PayoutTree, payout_rows, read_payout_csv};
use serde::Serialize;

use crate::demo::is_output;
use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::run_file::{RUN_FILE, RunFile};
use crate::walk::report::{Ingredients, REPORT_FILE};
use crate::walk::stamps::Stamps;
use crate::walk::{Context, evaluate, features, fit, index, pay, report, score, shares, usage};

/// Folder of the second run, within the audited one; removed afterwards.
const AGAIN_DIR: &str = ".audit";

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    /// Files compared.
    pub files: u64,
    /// True when every file was made again with the same bytes.
    pub identical: bool,
    /// Differences, in words; empty when identical.
    pub differences: Vec<String>,
}

/// Recomputes the run in `dir` and compares every file.
///
/// First the seal of `run.toml` and the digest of every file are checked, which finds any changed byte in seconds; only
/// a folder that passes is worth the second step, which makes everything again from registered records and weights:
/// gradients, curvature, scores, shares, payouts, page. Between the two, journal, rows and tree are held against each other ([`books`]). Timings on the page are taken from the run file; everything
/// else must come out of the inputs.
///
/// # Errors
/// [`EngineError::Audit`] with the number of differences and the first; errors of the walk, when the inputs are not
/// there any more or have changed.
pub fn run(home: &Home, dir: &Path, progress: &dyn Progress) -> Result<AuditReport, EngineError> {
    let run_file = RunFile::read(dir)?;
    let found = digests(dir)?;
    refuse(compare(&run_file.outputs, &found, "run.toml", "the folder"))?;
    refuse(books(dir)?)?;
    let again = dir.join(AGAIN_DIR);
    if again.exists() {
        std::fs::remove_dir_all(&again).map_err(|e| EngineError::io(&again, e))?;
    }
    let differences = recompute(home, &run_file, &again, &found, progress);
    // Whatever came out, the second run is not part of the first one's folder.
    let removed = if again.exists() { std::fs::remove_dir_all(&again) } else { Ok(()) };
    refuse(differences?)?;
    removed.map_err(|e| EngineError::io(&again, e))?;
    Ok(AuditReport { files: found.len() as u64 + 1, identical: true, differences: Vec::new() })
}

/// The payout files against each other, by their own readers and without the inputs: the journal closes, its balances are the rows of
/// `payout.csv`, the Merkle tree pays those rows, and the receipts settle the pool.
///
/// # Errors
/// A file that cannot be read, books that do not close.
pub fn books(dir: &Path) -> Result<Vec<String>, EngineError> {
    let journal = Journal::from_json(&files::read(&dir.join(pay::JOURNAL_FILE))?)?;
    let rows = payout_rows(&journal)?;
    Conservation::of(&journal, &rows)?;
    let mut differences = Vec::new();
    let text = String::from_utf8_lossy(&files::read(&dir.join(pay::PAYOUT_CSV))?).into_owned();
    let (run_id, written) = read_payout_csv(&text)?;
    if run_id.is_some_and(|id| id != journal.run_id()) {
        differences.push(format!("{}: of another run than {}", pay::PAYOUT_CSV, pay::JOURNAL_FILE));
    }
    if written != rows {
        differences.push(format!("{}: its rows are not the balances of {}", pay::PAYOUT_CSV, pay::JOURNAL_FILE));
    }
    let tree = PayoutTree::from_json(&files::read(&dir.join(pay::MERKLE_FILE))?)?;
    let paid: u128 = tree.leaves().iter().map(|leaf| leaf.amount).sum();
    let due: u128 = rows
        .iter()
        .filter(|row| row.account.as_ref().is_some_and(|a| a.evm().is_some()))
        .map(|row| row.amount.minor)
        .sum();
    if paid != due {
        differences.push(format!("{}: pays {paid}, the journal owes {due}", pay::MERKLE_FILE));
    }
    differences.extend(usage::differences(dir, &journal)?);
    Ok(differences)
}

fn refuse(differences: Vec<String>) -> Result<(), EngineError> {
    match differences.first() {
        None => Ok(()),
        Some(first) => Err(EngineError::Audit { count: differences.len(), first: first.clone() }),
    }
}

fn recompute(
    home: &Home,
    run_file: &RunFile,
    again: &Path,
    found: &BTreeMap<String, Digest>,
    progress: &dyn Progress,
) -> Result<Vec<String>, EngineError> {
    let context = Context::open(home, &run_file.model, again, progress)?;
    let mut inputs = context.inputs.clone();
    inputs.insert("bank".to_owned(), context.bank()?.digest);
    let mut differences = compare(&run_file.inputs, &inputs, "the run's input", "today's");
    if run_file.attribution != context.attribution {
        differences.push("attribution settings: the run's differ from attribution.toml".to_owned());
    }
    if !differences.is_empty() {
        return Ok(differences);
    }
    let mut stamps = Stamps::default();
    features::run(&context, progress)?;
    fit::run(&context, &mut stamps, progress)?;
    score::run(&context, &mut stamps, progress)?;
    index::run(&context, &mut stamps, progress)?;
    let evaluation = evaluate::run(&context, &mut stamps, progress)?;
    let book = shares::run(&context, &mut stamps, progress)?;
    let paid = pay::run(&context, &mut stamps, &book, progress)?;
    let parts = Ingredients { evaluation: &evaluation, book: &book, paid: &paid, timings: &run_file.timings };
    let html = report::html(&context, &parts)?;
    files::write_atomic(&again.join(REPORT_FILE), html.as_bytes())?;
    let (mut found, mut made) = (found.clone(), digests(again)?);
    if let Some(dir) = again.parent().filter(|dir| usage::other_key(dir, again)) {
        let journal = Journal::from_json(&files::read(&again.join(pay::JOURNAL_FILE))?)?;
        usage::check(&context, &book, &journal, dir)?;
        for files in [&mut found, &mut made] {
            files.retain(|name, _| !name.starts_with(usage::USAGE_DIR));
        }
    }
    differences = compare(&found, &made, "the run", "made again");
    let summary = &run_file.summary;
    if summary.methods != evaluation.methods
        || summary.coverage_ppm != book.coverage_ppm
        || summary.conservation != paid.conservation.holds()
    {
        differences.push(format!("{RUN_FILE}: its summary is not what the stations give"));
    }
    Ok(differences)
}

fn digests(dir: &Path) -> Result<BTreeMap<String, Digest>, EngineError> {
    let again = format!("{AGAIN_DIR}/");
    let paths = files::list(dir)?.into_iter().filter(|p| is_output(p) && !p.starts_with(&again));
    paths.map(|p| Ok((p.clone(), files::digest(&dir.join(&p))?))).collect()
}

fn compare<K: AsRef<str> + Ord>(
    expected: &BTreeMap<K, Digest>,
    found: &BTreeMap<K, Digest>,
    left: &str,
    right: &str,
) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, digest) in expected {
        match found.get(name) {
            None => differences.push(format!("{}: in {left}, missing in {right}", name.as_ref())),
            Some(other) if other != digest => {
                differences.push(format!("{}: {left} says SHA-256 {digest}, {right} has {other}", name.as_ref()))
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|name| !expected.contains_key(*name));
    differences.extend(extra.map(|name| format!("{}: not in {left}, found in {right}", name.as_ref())));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_missing_and_extra_files_are_named() {
        let map = |items: &[(&str, &[u8])]| {
            items.iter().map(|(n, b)| ((*n).to_owned(), Digest::of(b))).collect::<BTreeMap<_, _>>()
        };
        let expected = map(&[("a", b"1"), ("b", b"2"), ("c", b"3")]);
        let found = map(&[("a", b"1"), ("b", b"x"), ("d", b"4")]);
        let differences = compare(&expected, &found, "run.toml", "the folder");
        assert_eq!(differences.len(), 3);
        assert!(
            differences[0].starts_with("b: ") && differences[1].starts_with("c: ") && differences[2].starts_with("d: ")
        );
        assert!(compare(&expected, &expected, "", "").is_empty());
    }
}
