//! Everything that the policy step refuses, each with what was expected and what was found.

/// Why the policy step refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SharesError {
    /// A number is NaN or infinite.
    #[error(
        "{what} of response {query}, dataset {dataset}: {found} is not a finite number; hint: look for the row in the score file"
    )]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// Row.
        query: usize,
        /// Column.
        dataset: usize,
        /// What was found.
        found: f64,
    },
    /// A calibrated share is negative.
    #[error(
        "calibrated share of response {query}, dataset {dataset} is {found}; expected at least 0; hint: hand raw scores over as raw scores, they are netted per owner"
    )]
    Negative {
        /// Row.
        query: usize,
        /// Column.
        dataset: usize,
        /// What was found.
        found: f64,
    },
    /// The lower end of an interval lies above its upper end.
    #[error("interval of response {query}, dataset {dataset}: lower end {low} is above upper end {high}")]
    BackwardInterval {
        /// Row.
        query: usize,
        /// Column.
        dataset: usize,
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// A figure that must be a fraction is none.
    #[error("{what}: expected a number from 0 to 1, found {found}")]
    NotAFraction {
        /// Which figure.
        what: &'static str,
        /// What was found.
        found: f64,
    },
    /// A noise floor is negative or no number.
    #[error("noise floor: expected a finite number of at least 0, found {found}")]
    BadNoiseFloor {
        /// What was found.
        found: f64,
    },
    /// Two inputs have different sizes.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Expected.
        expected: Vec<usize>,
        /// Found.
        found: Vec<usize>,
    },
    /// A response or dataset stands twice.
    #[error("duplicate {what} {found}")]
    Duplicate {
        /// What stands twice.
        what: &'static str,
        /// Its name.
        found: String,
    },
    /// No dataset has that ordinal.
    #[error("unknown dataset ordinal {ordinal}; the registry has {known}")]
    UnknownDataset {
        /// The ordinal.
        ordinal: u32,
        /// Number of registered datasets.
        known: usize,
    },
    /// A response has more owners than a rule can enumerate.
    #[error(
        "a response of {found} owners; Shapley values are enumerated for at most {max}; hint: use influence_proportional"
    )]
    TooManyOwners {
        /// Most.
        max: usize,
        /// Found.
        found: usize,
    },
    /// A name is empty or too long.
    #[error("bad {what} {found:?}: expected 1 to {max} characters without control characters or outer spaces")]
    BadName {
        /// Which name.
        what: &'static str,
        /// The text, shortened.
        found: String,
        /// Longest allowed.
        max: usize,
    },
    /// A file is larger than its reader believes.
    #[error("shares.json: {len_bytes} bytes, more than the {max_bytes} that its reader accepts")]
    TooLarge {
        /// Its length.
        len_bytes: usize,
        /// The cap.
        max_bytes: usize,
    },
    /// A file does not parse.
    #[error("shares.json: line {line}: {why}")]
    Malformed {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A recomputed value differs from what the file says.
    #[error("shares.json: {what}: expected {expected}, found {found}")]
    Mismatch {
        /// Which value.
        what: String,
        /// Recomputed.
        expected: String,
        /// Written.
        found: String,
    },
    /// A value would not serialise; only a broken build of this crate does that.
    #[error("cannot write {what}: {why}")]
    Unwritable {
        /// What.
        what: &'static str,
        /// The serialiser's words.
        why: String,
    },
}
