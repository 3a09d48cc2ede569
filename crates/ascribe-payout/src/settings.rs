//! How a pool is paid out: the policy file and the flags of `ascribe pay`, in one serialisable form that is part of the run's identity.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_ledger::EvmAddress;
use ascribe_shares::Rule;
use serde::{Deserialize, Serialize};

use crate::approval::ApprovalRule;
use crate::error::PayError;
use crate::files;

/// The use that a licence must permit for a dataset to be paid.
pub const TRAIN: &str = "ai-train";

/// Settings of a payout run. As a TOML file:
///
/// ```toml
/// rule = { kind = "influence_proportional" }   # shapley, blend (alpha_ppm), pro_rata, equal
/// coverage_ppm = 850000        # part of the pool that measured evidence covers
/// noise_floor = "0.0"          # an owner's net at or below it earns nothing, in the unit of the scores
/// noise_controls = ["planted"] # rows of planted noise: per response a second floor, paid to nobody
/// minimum_minor = 100          # smaller balances are carried
/// cap_ppm = 500000             # most that one owner gets of a pool
/// embargo = { "new-poems" = "2027-01-01" }   # not paid in periods that begin before this day
/// approval = { above_minor = 1000000, approvers = ["did:key:z6Mk…", "did:key:z6Mk…"] }   # two people above 10,000.00
/// revenue_share = { "odes" = 500000 }        # the licensor's part of what its dataset earns, in ppm
/// trained = "2026-10-05"       # licences count as of this day; later revocations do not stop payment
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaySettings {
    /// Scores to weights.
    pub rule: Rule,
    /// Part of the pool that measured evidence covers, in ppm.
    pub coverage_ppm: u32,
    /// Noise floor, in the unit of the scores; text, because a float in a file is read back in more than one way.
    pub noise_floor: String,
    /// Names under which the score file has planted noise: text that the operator scored like a dataset and that nobody owns. Per
    /// response an owner's net must exceed the largest of their sums, whatever its sign; they themselves are paid to nobody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub noise_controls: Vec<String>,
    /// Balances below this many minor units are carried.
    pub minimum_minor: u64,
    /// Most that one owner gets, in ppm of the pool.
    pub cap_ppm: Option<u32>,
    /// Datasets that are not paid in periods that begin before a day.
    pub embargo: BTreeMap<String, String>,
    /// Of what a dataset earns, the part that its licence's terms give to the licensor, in ppm; all of it where nothing is said. The
    /// rest stays unattributed (`Cap`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub revenue_share: BTreeMap<String, u32>,
    /// Day on which the training of the model began: licences must have been in force then, and revocations from then on count.
    /// Without it, licences must be in force in the period, and revocations that took effect before its first day count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained: Option<String>,
    /// Chain of the on-chain files; without one, the chain that most payees are on.
    pub chain_id: Option<u64>,
    /// Token contract of the on-chain files; without one they carry the zero address, which nobody can be paid from.
    pub token: Option<String>,
    /// Decimals of that token; without them, the currency's.
    pub token_decimals: Option<u8>,
    /// Name of the payer in the bank's file.
    pub debtor_name: String,
    /// IBAN of the payer.
    pub debtor_iban: Option<String>,
    /// Pools above which more than one person must have signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalRule>,
}

impl Default for PaySettings {
    fn default() -> Self {
        Self {
            rule: Rule::default(),
            coverage_ppm: 1_000_000,
            noise_floor: "0".to_owned(),
            noise_controls: Vec::new(),
            minimum_minor: 1,
            cap_ppm: None,
            embargo: BTreeMap::new(),
            revenue_share: BTreeMap::new(),
            trained: None,
            chain_id: None,
            token: None,
            token_decimals: None,
            debtor_name: "Ascribe operator".to_owned(),
            debtor_iban: None,
            approval: None,
        }
    }
}

impl PaySettings {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`PayError::Policy`] with line and field.
    pub fn read(path: &Path) -> Result<Self, PayError> {
        let text = String::from_utf8_lossy(&files::read(path)?).into_owned();
        let settings: Self = toml::from_str(&text)
            .map_err(|error| PayError::Policy { path: path.to_path_buf(), why: error.to_string() })?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks figures that the types allow.
    ///
    /// # Errors
    /// [`PayError::Setting`] and what the ledger refuses.
    pub fn check(&self) -> Result<(), PayError> {
        let setting = |setting, expected: &str, found: String| {
            Err(PayError::Setting { setting, expected: expected.to_owned(), found })
        };
        self.rule.check()?;
        if self.coverage_ppm > 1_000_000 {
            return setting("coverage_ppm", "at most 1000000", self.coverage_ppm.to_string());
        }
        if self.cap_ppm.is_some_and(|cap| cap == 0 || cap > 1_000_000) {
            return setting("cap_ppm", "1 to 1000000", format!("{:?}", self.cap_ppm));
        }
        self.floor()?;
        // A day is a period of one day.
        let is_day = |day: &String| format!("{day}/{day}").parse::<ascribe_ledger::Period>().is_ok();
        if let Some((name, day)) = self.embargo.iter().find(|(_, day)| !is_day(day)) {
            return setting("embargo", "a day as YYYY-MM-DD", format!("{name} = {day:?}"));
        }
        if let Some(day) = self.trained.as_ref().filter(|day| !is_day(day)) {
            return setting("trained", "a day as YYYY-MM-DD", format!("{day:?}"));
        }
        if let Some((name, ppm)) = self.revenue_share.iter().find(|(_, ppm)| **ppm > 1_000_000) {
            return setting("revenue_share", "at most 1000000 ppm", format!("{name} = {ppm}"));
        }
        if let Some(token) = &self.token {
            token.parse::<EvmAddress>()?;
        }
        if let Some(iban) = &self.debtor_iban {
            ascribe_ledger::check_iban(iban)?;
        }
        self.approval.as_ref().map_or(Ok(()), ApprovalRule::check)
    }

    /// The noise floor as a number.
    ///
    /// # Errors
    /// [`PayError::Setting`] for what is no finite number of at least 0.
    pub fn floor(&self) -> Result<f64, PayError> {
        let floor = self.noise_floor.parse::<f64>().ok().filter(|floor| floor.is_finite() && *floor >= 0.0);
        floor.ok_or_else(|| PayError::Setting {
            setting: "noise_floor",
            expected: "a finite number of at least 0, as text".into(),
            found: self.noise_floor.clone(),
        })
    }

    /// The token's address; the zero address where none is named.
    ///
    /// # Errors
    /// What is no address.
    pub fn token_address(&self) -> Result<EvmAddress, PayError> {
        Ok(self.token.as_deref().map(str::parse).transpose()?.unwrap_or(EvmAddress([0; 20])))
    }
}

/// A fraction as ppm, rounded down.
///
/// # Errors
/// Outside `[0, 1]`.
pub fn coverage(fraction: f64) -> Result<u32, PayError> {
    Ok(ascribe_shares::coverage_ppm(fraction)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        let text = "rule = { kind = \"blend\", alpha_ppm = 250000 }\ncoverage_ppm = 850000\nembargo = { a = \"2027-01-01\" }\n";
        std::fs::write(&path, text).unwrap();
        let settings = PaySettings::read(&path).unwrap();
        assert_eq!(settings.rule, Rule::Blend { alpha_ppm: 250_000 });
        for (bad, words) in [
            ("coverage_ppm = 1000001", "coverage_ppm: expected at most 1000000"),
            ("noise_floor = \"nan\"", "noise_floor: expected a finite number"),
            ("cap_ppm = 0", "cap_ppm: expected 1 to 1000000"),
            ("embargo = { a = \"soon\" }", "embargo: expected a day"),
            ("trained = \"last year\"", "trained: expected a day"),
            ("revenue_share = { a = 1000001 }", "revenue_share: expected at most 1000000 ppm"),
            ("token = \"0x12\"", "40 hex digits"),
            ("luck = 1", "unknown field `luck`"),
            ("rule = { kind = \"luck\" }", "luck"),
        ] {
            std::fs::write(&path, bad).unwrap();
            let error = PaySettings::read(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
