//! Everything that the ledger refuses, each with what was expected and what was found. No recovery lives here.

use ascribe_core::Digest;

/// Why the ledger refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A currency code is not in the exponent table.
    #[error("unknown currency {found:?}; hint: its number of decimals must be known, add it to the table in `amount`")]
    UnknownCurrency {
        /// The code that was given.
        found: String,
    },
    /// A text is not an amount.
    #[error(
        "not an amount: {found:?}; expected digits with at most {decimals} decimals, one space and a currency, like \"1000.00 USD\""
    )]
    BadAmount {
        /// The text.
        found: String,
        /// Decimals that the currency allows.
        decimals: u8,
    },
    /// An integer left the range of 128 bits.
    #[error("overflow while computing {what}: the result does not fit 128 bits")]
    Overflow {
        /// What was computed.
        what: &'static str,
    },
    /// An account identifier is not CAIP-10, or its EVM address has a wrong checksum.
    #[error("bad account {found:?}: {why}")]
    BadAccount {
        /// The text.
        found: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name that stands in the books is empty, too long or holds control characters.
    #[error("bad {what} {found:?}: expected 1 to {max} characters without control characters")]
    BadName {
        /// Which name.
        what: &'static str,
        /// The text, shortened.
        found: String,
        /// Longest allowed.
        max: usize,
    },
    /// A date is not `YYYY-MM-DD`, or the period runs backwards.
    #[error("bad period {found:?}: {why}")]
    BadPeriod {
        /// The text.
        found: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Parts per million exceed one million, or the payees of a licence do not sum to it.
    #[error("{what}: expected {expected} ppm, found {found}")]
    BadPpm {
        /// Which figure.
        what: String,
        /// The rule.
        expected: &'static str,
        /// What was given.
        found: u64,
    },
    /// The run does not name a digest that its identity rests on.
    #[error(
        "run inputs lack the digest of {missing:?}; hint: the run id must pin every file that the payout follows from"
    )]
    MissingInput {
        /// The missing key.
        missing: &'static str,
    },
    /// An event refers to a dataset that has no terms.
    #[error("response {response}: dataset ordinal {dataset} is unknown; the plan has terms for ordinals below {known}")]
    UnknownDataset {
        /// The response.
        response: u32,
        /// The ordinal that was found.
        dataset: u32,
        /// Number of datasets with terms.
        known: usize,
    },
    /// A response, or a dataset within a response, stands twice.
    #[error("duplicate {what} {found}; it would be paid twice")]
    Duplicate {
        /// What stands twice.
        what: &'static str,
        /// Its name.
        found: String,
    },
    /// A transfer id was used before with other contents.
    #[error(
        "transfer id {id} is already in the journal with other contents; transfers are immutable, correct with a new one"
    )]
    ReusedTransferId {
        /// The id.
        id: String,
    },
    /// A transfer moves nothing or moves from an account to itself.
    #[error("transfer {id} is void of meaning: {why}")]
    EmptyTransfer {
        /// The id.
        id: String,
        /// Why.
        why: &'static str,
    },
    /// A transfer would take more from an account than it holds.
    #[error("transfer {id} overdraws {account}: holds {holds} sub-units, needs {needs}")]
    Overdrawn {
        /// The id.
        id: String,
        /// The account.
        account: String,
        /// Available.
        holds: u128,
        /// Asked for.
        needs: u128,
    },
    /// A resolution names a pending transfer that is absent, not pending, already resolved or different.
    #[error("transfer {id} cannot resolve {pending}: {why}")]
    BadResolution {
        /// The resolving transfer.
        id: String,
        /// The transfer it names.
        pending: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The accounts do not add up to the pool.
    #[error("not conserved: {what}: expected {expected} sub-units, found {found}")]
    NotConserved {
        /// Which sum.
        what: &'static str,
        /// Expected sum.
        expected: u128,
        /// Sum that was found.
        found: u128,
    },
    /// A tree of no leaves was asked for.
    #[error(
        "no payee can be paid, so there is no payout tree; hint: raise the pool, lower the minimum, or name accounts on the tree's chain"
    )]
    EmptyTree,
    /// A token has fewer decimals than the pool's currency.
    #[error(
        "token decimals: expected at least the currency's {expected}, found {found}; amounts could not be said exactly"
    )]
    TokenDecimals {
        /// Decimals of the currency.
        expected: u8,
        /// Decimals of the token.
        found: u8,
    },
    /// No file for a bank can be made of this run.
    #[error("no bank file: {why}")]
    NoBankFile {
        /// Why not.
        why: String,
    },
    /// A leaf of a cumulative tree fell or vanished.
    #[error("cumulative amount of {account} fell from {before} to {now}; claims that were made cannot be taken back")]
    LeafFell {
        /// Address of the leaf.
        account: String,
        /// Amount in the earlier tree.
        before: u128,
        /// Amount in the later tree.
        now: u128,
    },
    /// A file is larger than its reader believes.
    #[error("{file}: {len_bytes} bytes, more than the {max_bytes} that its reader accepts")]
    TooLarge {
        /// Which file.
        file: &'static str,
        /// Its length.
        len_bytes: usize,
        /// The cap.
        max_bytes: usize,
    },
    /// A file does not parse.
    #[error("{file}: line {line}: {why}")]
    Malformed {
        /// Which file.
        file: &'static str,
        /// Line of the file, from 1; 0 when the whole file is meant.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A recomputed value differs from what a file says.
    #[error("{file}: {what}: expected {expected}, found {found}")]
    Mismatch {
        /// Which file.
        file: &'static str,
        /// Which value.
        what: String,
        /// Recomputed.
        expected: String,
        /// Written.
        found: String,
    },
    /// A value would not serialise; only a broken build of this crate does that.
    #[error("cannot write {file}: {why}")]
    Unwritable {
        /// Which file.
        file: &'static str,
        /// The serialiser's words.
        why: String,
    },
}

impl LedgerError {
    /// A mismatch of two digests.
    pub(crate) fn digests(file: &'static str, what: &str, expected: &Digest, found: &Digest) -> Self {
        Self::Mismatch { file, what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }
}

/// Longest name that the books accept, in characters.
pub const NAME_MAX: usize = 200;

/// Refuses names that would make the books unreadable.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), LedgerError> {
    let n_chars = name.chars().count();
    if n_chars == 0 || n_chars > NAME_MAX || name.chars().any(char::is_control) || name.trim() != name {
        return Err(LedgerError::BadName { what, found: name.chars().take(80).collect(), max: NAME_MAX });
    }
    Ok(())
}

/// Refuses bytes that its own writer would not have written: unknown fields, white space, other spellings of a number.
pub(crate) fn check_canonical(file: &'static str, found: &[u8], expected: &[u8]) -> Result<(), LedgerError> {
    if found == expected {
        return Ok(());
    }
    let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let show = |bytes: &[u8]| String::from_utf8_lossy(&bytes[same..bytes.len().min(same + 40)]).into_owned();
    Err(LedgerError::Mismatch {
        file,
        what: format!("spelling from byte {same} on"),
        expected: format!("{:?}", show(expected)),
        found: format!("{:?}", show(found)),
    })
}
