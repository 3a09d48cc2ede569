//! `journal.json`: header, one transfer per line, balances, checksum. The reader replays every transfer and believes no balance.

use serde::{Deserialize, Serialize};

use ascribe_core::Digest;

use crate::error::LedgerError;
use crate::journal::{Balance, Journal};
use crate::run::Run;
use crate::transfer::{Account, Transfer};

/// Version of `journal.json`.
pub const JOURNAL_FORMAT_VERSION: u32 = 1;
/// Largest journal that the reader accepts: some two million transfers.
pub const JOURNAL_MAX_BYTES: usize = 1 << 30;

const FILE: &str = "journal.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format_version: u32,
    run_id: Digest,
    run: Run,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalanceLine {
    account: Account,
    balance: Balance,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    header: Header,
    transfers: Vec<Transfer>,
    balances: Vec<BalanceLine>,
    sha256: Digest,
}

/// Bytes of `,\n"sha256":"…"}` and the line feed.
const FOOTER_LEN_BYTES: usize = 2 + 9 + 1 + 64 + 2 + 1;

impl Journal {
    /// The bytes of `journal.json`: JSON with one transfer and one balance per line, so that two runs can be diffed,
    /// and the SHA-256 of all bytes before the comma that precedes it.
    ///
    /// Deterministic. Amounts are sub-units as strings.
    ///
    /// # Errors
    /// [`LedgerError::Unwritable`], which needs a defect of this crate.
    pub fn to_json(&self) -> Result<Vec<u8>, LedgerError> {
        let header = Header { format_version: JOURNAL_FORMAT_VERSION, run_id: self.run_id(), run: self.run().clone() };
        let balances =
            self.balances().map(|(account, balance)| BalanceLine { account: account.clone(), balance: *balance });
        let mut out = Vec::new();
        out.extend_from_slice(b"{\"header\":");
        put(&mut out, &header)?;
        out.extend_from_slice(b",\n\"transfers\":[");
        put_lines(&mut out, self.transfers().iter())?;
        out.extend_from_slice(b"],\n\"balances\":[");
        put_lines(&mut out, balances)?;
        out.push(b']');
        let footer = format!(",\n\"sha256\":\"{}\"}}\n", Digest::of(&out));
        debug_assert_eq!(footer.len(), FOOTER_LEN_BYTES);
        out.extend_from_slice(footer.as_bytes());
        Ok(out)
    }

    /// Reads a journal back: recomputes the run id, replays every transfer through [`Journal::post`], and compares every
    /// balance. What it returns writes the same bytes.
    ///
    /// # Errors
    /// [`LedgerError::TooLarge`], [`LedgerError::Malformed`], [`LedgerError::Mismatch`], or what a replayed transfer breaks.
    pub fn from_json(bytes: &[u8]) -> Result<Self, LedgerError> {
        if bytes.len() > JOURNAL_MAX_BYTES {
            return Err(LedgerError::TooLarge { file: FILE, len_bytes: bytes.len(), max_bytes: JOURNAL_MAX_BYTES });
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|error| malformed(FILE, &error))?;
        let mismatch = |what: &str, expected: String, found: String| {
            Err(LedgerError::Mismatch { file: FILE, what: what.into(), expected, found })
        };
        if wire.header.format_version != JOURNAL_FORMAT_VERSION {
            let found = wire.header.format_version.to_string();
            return mismatch("format_version", JOURNAL_FORMAT_VERSION.to_string(), found);
        }
        let mut journal = Self::new(wire.header.run)?;
        if journal.run_id() != wire.header.run_id {
            return Err(LedgerError::digests(FILE, "run_id", &journal.run_id(), &wire.header.run_id));
        }
        for transfer in wire.transfers {
            let id = transfer.id;
            if journal.post(transfer)? == crate::journal::Outcome::AlreadyThere {
                return Err(LedgerError::Duplicate { what: "transfer", found: id.to_string() });
            }
        }
        if journal.balances().count() != wire.balances.len() {
            return mismatch("accounts", journal.balances().count().to_string(), wire.balances.len().to_string());
        }
        for ((account, balance), line) in journal.balances().zip(&wire.balances) {
            if *account != line.account || *balance != line.balance {
                let show = |account: &Account, balance: &Balance| format!("{account} {balance:?}");
                return mismatch("balance", show(account, balance), show(&line.account, &line.balance));
            }
        }
        let body = &bytes[..bytes.len().saturating_sub(FOOTER_LEN_BYTES)];
        if Digest::of(body) != wire.sha256 {
            return Err(LedgerError::digests(FILE, "sha256", &Digest::of(body), &wire.sha256));
        }
        crate::error::check_canonical(FILE, bytes, &journal.to_json()?)?;
        Ok(journal)
    }
}

/// A parser's words with its line.
pub(crate) fn malformed(file: &'static str, error: &serde_json::Error) -> LedgerError {
    LedgerError::Malformed { file, line: error.line(), why: error.to_string() }
}

fn put<T: Serialize>(out: &mut Vec<u8>, value: &T) -> Result<(), LedgerError> {
    serde_json::to_writer(out, value).map_err(|error| LedgerError::Unwritable { file: FILE, why: error.to_string() })
}

fn put_lines<T: Serialize>(out: &mut Vec<u8>, values: impl Iterator<Item = T>) -> Result<(), LedgerError> {
    for (idx, value) in values.enumerate() {
        out.extend_from_slice(if idx == 0 { b"\n" } else { b",\n" });
        put(out, &value)?;
    }
    Ok(())
}
