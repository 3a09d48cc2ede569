//! The identity of a run: the digests it follows from, its policy, code version and period, hashed as canonical JSON.
//! Reading those files and checking those digests is the engine's work.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ascribe_core::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::amount::{Money, integer_text};
use crate::apportion::PPM;
use crate::error::{LedgerError, check_name};

/// Digests that every run must name: the registry that gave the terms, and the share table that gave the weights.
pub const REQUIRED_INPUTS: [&str; 2] = ["registry", "shares"];
/// What stands in for a share table where shares are computed within the run: the score file itself.
const SCORES_INPUT: &str = "scores";

/// Largest pool in sub-units. A pool passes over the books three times (funded, accrued, settled), and the sum of all
/// that was moved must fit 128 bits too; in cents this is still some 10^30 dollars.
pub const POOL_MAX_SUB_UNITS: u128 = u128::MAX / 4;

/// First and last day of what is paid, inclusive. Reads and prints like `2026-01-01/2026-01-31`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    start: String,
    end: String,
}

impl Period {
    /// First day, `YYYY-MM-DD`.
    pub fn start(&self) -> &str {
        &self.start
    }

    /// Last day, `YYYY-MM-DD`; the date of every transfer in the text journal.
    pub fn end(&self) -> &str {
        &self.end
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.start, self.end)
    }
}

impl FromStr for Period {
    type Err = LedgerError;

    fn from_str(text: &str) -> Result<Self, LedgerError> {
        let bad = |why| LedgerError::BadPeriod { found: text.chars().take(40).collect(), why };
        let (start, end) = text.split_once('/').ok_or_else(|| bad("expected YYYY-MM-DD/YYYY-MM-DD"))?;
        if !is_date(start) || !is_date(end) {
            return Err(bad("expected two calendar dates as YYYY-MM-DD/YYYY-MM-DD"));
        }
        // ISO dates order as text.
        if end < start {
            return Err(bad("it ends before it starts"));
        }
        Ok(Self { start: start.to_owned(), end: end.to_owned() })
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let form = bytes.len() == 10
        && bytes.iter().enumerate().all(|(i, b)| if i == 4 || i == 7 { *b == b'-' } else { b.is_ascii_digit() });
    if !form {
        return false;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u32>().unwrap_or(0);
    let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return false,
    };
    year > 0 && (1..=days).contains(&day)
}

/// The figures that decide who gets what, beside the input files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPolicy {
    /// The share policy as the share table names it.
    pub shares: String,
    /// Settled revenue to split.
    pub pool: Money,
    /// Part of the pool that measured evidence covers, in ppm; the rest is Unattributed.
    pub coverage_ppm: u32,
    /// Balances below this many minor units are carried, not paid. 0 and 1 mean the same: only whole units are paid.
    #[serde(with = "integer_text")]
    pub minimum_minor: u128,
}

/// One payout run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Digests of the files that the payout follows from, by name; at least [`REQUIRED_INPUTS`].
    pub inputs: BTreeMap<String, Digest>,
    /// The figures.
    pub policy: RunPolicy,
    /// Version of the code.
    pub version: String,
    /// What is paid.
    pub period: Period,
}

impl Run {
    /// `SHA-256(JCS({inputs, policy, period, version}))`, RFC 8785: the same inputs give the same id, so a rerun is a no-op.
    ///
    /// # Errors
    /// [`LedgerError::Unwritable`] if the values do not serialise, which needs a defect of this crate.
    pub fn run_id(&self) -> Result<Digest, LedgerError> {
        let unwritable = |why: String| LedgerError::Unwritable { file: "run", why };
        let canonical = serde_json_canonicalizer::to_vec(self).map_err(|error| unwritable(error.to_string()))?;
        Ok(Digest(Sha256::digest(&canonical).into()))
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// A missing required input, coverage above one million ppm, a pool above [`POOL_MAX_SUB_UNITS`], names that would garble the books.
    pub fn check(&self) -> Result<(), LedgerError> {
        for missing in REQUIRED_INPUTS {
            let from_scores = missing == "shares" && self.inputs.contains_key(SCORES_INPUT);
            if !self.inputs.contains_key(missing) && !from_scores {
                return Err(LedgerError::MissingInput { missing });
            }
        }
        for name in self.inputs.keys() {
            check_name("input name", name)?;
        }
        check_name("code version", &self.version)?;
        if self.policy.coverage_ppm > PPM {
            let found = self.policy.coverage_ppm.into();
            return Err(LedgerError::BadPpm { what: "coverage".into(), expected: "at most 1000000", found });
        }
        if self.policy.pool.sub_units()?.0 > POOL_MAX_SUB_UNITS {
            return Err(LedgerError::Overflow { what: "the turnover of the pool" });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn toy_run(pool: &str, coverage_ppm: u32, minimum_minor: u128) -> Run {
        let inputs = REQUIRED_INPUTS.iter().map(|name| ((*name).to_owned(), Digest::of(name.as_bytes()))).collect();
        let policy = RunPolicy {
            shares: "influence_proportional".into(),
            pool: pool.parse().unwrap(),
            coverage_ppm,
            minimum_minor,
        };
        Run { inputs, policy, version: "0.1.0".into(), period: "2026-01-01/2026-01-31".parse().unwrap() }
    }

    /// The canonical text, by hand: keys sorted by code unit, no white space.
    #[test]
    fn run_id_is_the_digest_of_canonical_json() {
        let run = toy_run("1000.00 USD", 800_000, 100);
        let (registry, shares) = (Digest::of(b"registry"), Digest::of(b"shares"));
        let text = format!(
            "{{\"inputs\":{{\"registry\":\"{registry}\",\"shares\":\"{shares}\"}},\"period\":\"2026-01-01/2026-01-31\",\
             \"policy\":{{\"coverage_ppm\":800000,\"minimum_minor\":\"100\",\"pool\":\"1000.00 USD\",\
             \"shares\":\"influence_proportional\"}},\"version\":\"0.1.0\"}}"
        );
        assert_eq!(run.run_id().unwrap(), Digest::of(text.as_bytes()));
    }

    #[test]
    fn every_figure_changes_the_id() {
        let base = toy_run("1000.00 USD", 800_000, 100);
        let id = base.run_id().unwrap();
        assert_eq!(base.clone().run_id().unwrap(), id);
        for other in [
            toy_run("1000.01 USD", 800_000, 100),
            toy_run("1000.00 EUR", 800_000, 100),
            toy_run("1000.00 USD", 800_001, 100),
            toy_run("1000.00 USD", 800_000, 101),
            Run { version: "0.1.1".into(), ..base.clone() },
            Run { period: "2026-01-01/2026-01-30".parse().unwrap(), ..base.clone() },
        ] {
            assert_ne!(other.run_id().unwrap(), id);
        }
    }

    #[test]
    fn refuses_broken_runs() {
        let mut run = toy_run("1 USD", 1_000_001, 0);
        assert!(run.check().unwrap_err().to_string().starts_with("coverage: expected at most 1000000 ppm"));
        run.policy.coverage_ppm = 0;
        run.check().unwrap();
        run.inputs.remove("shares");
        assert_eq!(run.check(), Err(LedgerError::MissingInput { missing: "shares" }));
        for text in ["", "2026-01-01", "2026-02-30/2026-03-01", "2026-01-02/2026-01-01", "2025-02-29/2025-03-01", "x/y"]
        {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
        assert!("2024-02-29/2024-02-29".parse::<Period>().is_ok());
    }
}
