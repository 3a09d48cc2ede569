//! Amounts: minor units of a currency, and sub-units (millionths of one) in which accrual happens.
//! Parsing and printing of decimals live here; splitting is in `apportion`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::LedgerError;

/// Sub-units in one minor unit. Small events accrue far below a cent; a million steps keep what floors drop negligible.
pub const SUB_UNITS_PER_MINOR: u128 = 1_000_000;
/// Decimals that sub-units add to a currency's own.
const SUB_DECIMALS: u8 = 6;

/// Decimals of each known currency: ISO 4217 exponents, then tokens by their contracts' `decimals()`.
const EXPONENTS: &[(&str, u8)] = &[
    ("AED", 2),
    ("AUD", 2),
    ("BHD", 3),
    ("BRL", 2),
    ("CAD", 2),
    ("CHF", 2),
    ("CLP", 0),
    ("CNY", 2),
    ("CZK", 2),
    ("DKK", 2),
    ("EUR", 2),
    ("GBP", 2),
    ("HKD", 2),
    ("HUF", 2),
    ("ILS", 2),
    ("INR", 2),
    ("ISK", 0),
    ("JOD", 3),
    ("JPY", 0),
    ("KRW", 0),
    ("KWD", 3),
    ("MXN", 2),
    ("NOK", 2),
    ("NZD", 2),
    ("OMR", 3),
    ("PLN", 2),
    ("SEK", 2),
    ("SGD", 2),
    ("THB", 2),
    ("TND", 3),
    ("TRY", 2),
    ("TWD", 2),
    ("USD", 2),
    ("VND", 0),
    ("ZAR", 2),
    ("DAI", 18),
    ("ETH", 18),
    ("EURC", 6),
    ("USDC", 6),
    ("USDT", 6),
];

/// Those of the list that are tokens: no bank transfers them.
const TOKENS: &[&str] = &["DAI", "ETH", "EURC", "USDC", "USDT"];

/// A currency with its number of decimals. Serialises as its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Currency {
    code: &'static str,
    exponent: u8,
}

impl Currency {
    /// Looks `code` up.
    ///
    /// # Errors
    /// [`LedgerError::UnknownCurrency`]: a guessed number of decimals would pay wrongly by powers of ten.
    pub fn of(code: &str) -> Result<Self, LedgerError> {
        EXPONENTS
            .iter()
            .find(|(known, _)| *known == code)
            .map(|&(code, exponent)| Self { code, exponent })
            .ok_or_else(|| LedgerError::UnknownCurrency { found: code.chars().take(20).collect() })
    }

    /// The code (`USD`).
    pub const fn code(self) -> &'static str {
        self.code
    }

    /// True for a currency of ISO 4217, false for a token.
    pub fn is_iso(self) -> bool {
        !TOKENS.contains(&self.code)
    }

    /// Decimals of the major unit.
    pub const fn exponent(self) -> u8 {
        self.exponent
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code)
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Whole minor units of a currency. Reads and prints like `1000.00 USD`; serialises as that text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Money {
    /// Minor units (cents of USD, 10⁻¹⁸ of ETH).
    pub minor: u128,
    /// The currency.
    pub currency: Currency,
}

impl Money {
    /// The amount as decimal text without the currency, with all decimals (`1000.00`).
    pub fn decimal(&self) -> String {
        decimal(self.minor, self.currency.exponent)
    }

    /// The same amount in sub-units.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`] above `2^128 / 10^6` minor units.
    pub fn sub_units(&self) -> Result<SubUnits, LedgerError> {
        let value = self.minor.checked_mul(SUB_UNITS_PER_MINOR);
        value.map(SubUnits).ok_or(LedgerError::Overflow { what: "an amount in sub-units" })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.decimal(), self.currency)
    }
}

impl FromStr for Money {
    type Err = LedgerError;

    /// Strict: digits, at most one point with digits on both sides, no sign, no separators, one space, the code.
    fn from_str(text: &str) -> Result<Self, LedgerError> {
        let bad = |decimals| LedgerError::BadAmount { found: text.chars().take(80).collect(), decimals };
        let (number, code) = text.split_once(' ').ok_or_else(|| bad(2))?;
        let currency = Currency::of(code)?;
        let minor = parse_decimal(number, currency.exponent).map_err(|fault| match fault {
            DecimalFault::Form => bad(currency.exponent),
            DecimalFault::Range => LedgerError::Overflow { what: "an amount in minor units" },
        })?;
        Ok(Self { minor, currency })
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Millionths of a minor unit. Serialises as a decimal string, because JSON numbers round above 2⁵³.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct SubUnits(pub u128);

impl SubUnits {
    /// None.
    pub const ZERO: Self = Self(0);

    /// `self + other`.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`].
    pub fn plus(self, other: Self) -> Result<Self, LedgerError> {
        self.0.checked_add(other.0).map(Self).ok_or(LedgerError::Overflow { what: "a sum of sub-units" })
    }

    /// Whole minor units, rounded down.
    pub const fn minor_floor(self) -> u128 {
        self.0 / SUB_UNITS_PER_MINOR
    }

    /// Decimal text in major units with all decimals of `currency` and six more.
    pub fn decimal(self, currency: Currency) -> String {
        decimal(self.0, currency.exponent + SUB_DECIMALS)
    }
}

impl fmt::Display for SubUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for SubUnits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SubUnits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_integer(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("expected a canonical decimal integer, found {text:?}")))
    }
}

/// A sum of money with all decimals of its currency and up to six more, such as `0.00025 USD`.
///
/// # Errors
/// [`LedgerError::BadAmount`] for any other text, [`LedgerError::UnknownCurrency`], [`LedgerError::Overflow`].
pub fn parse_amount(text: &str) -> Result<(SubUnits, Currency), LedgerError> {
    let bad = |decimals| LedgerError::BadAmount { found: text.chars().take(80).collect(), decimals };
    let (number, code) = text.split_once(' ').ok_or_else(|| bad(2 + SUB_DECIMALS))?;
    let currency = Currency::of(code)?;
    let decimals = currency.exponent + SUB_DECIMALS;
    match parse_decimal(number, decimals) {
        Ok(sub_units) => Ok((SubUnits(sub_units), currency)),
        Err(DecimalFault::Form) => Err(bad(decimals)),
        Err(DecimalFault::Range) => Err(LedgerError::Overflow { what: "an amount in sub-units" }),
    }
}

/// An integer the way this crate writes it: digits only, no leading zero, within 128 bits.
pub(crate) fn parse_integer(text: &str) -> Option<u128> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if canonical && digits { text.parse().ok() } else { None }
}

/// Serde for `u128` as a decimal string.
pub(crate) mod integer_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_integer(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("expected a canonical decimal integer, found {text:?}")))
    }
}

enum DecimalFault {
    Form,
    Range,
}

fn parse_decimal(text: &str, exponent: u8) -> Result<u128, DecimalFault> {
    let (whole, fraction) = match text.split_once('.') {
        Some((_, "")) => return Err(DecimalFault::Form),
        Some(parts) => parts,
        None => (text, ""),
    };
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || fraction.len() > usize::from(exponent) {
        return Err(DecimalFault::Form);
    }
    let mut minor = 0u128;
    let padding = std::iter::repeat_n(b'0', usize::from(exponent) - fraction.len());
    for digit in whole.bytes().chain(fraction.bytes()).chain(padding) {
        let step = minor.checked_mul(10).and_then(|value| value.checked_add(u128::from(digit - b'0')));
        minor = step.ok_or(DecimalFault::Range)?;
    }
    Ok(minor)
}

/// Decimal text with exactly `decimals` decimals.
pub(crate) fn decimal(value: u128, decimals: u8) -> String {
    let decimals = usize::from(decimals);
    if decimals == 0 {
        return value.to_string();
    }
    let digits = format!("{value:0>width$}", width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    format!("{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, minor: u128, printed: &str) {
        let money: Money = text.parse().unwrap();
        assert_eq!(money.minor, minor, "{text}");
        assert_eq!(money.to_string(), printed, "{text}");
    }

    #[test]
    fn reads_and_prints() {
        check("1000.00 USD", 100_000, "1000.00 USD");
        check("1000 USD", 100_000, "1000.00 USD");
        check("0.5 USD", 50, "0.50 USD");
        check("0 USD", 0, "0.00 USD");
        check("12 JPY", 12, "12 JPY");
        check("1.234 KWD", 1234, "1.234 KWD");
        check("1.000000000000000001 ETH", 1_000_000_000_000_000_001, "1.000000000000000001 ETH");
        // Above 2^64 minor units.
        check("1000000000.0 ETH", 10u128.pow(27), "1000000000.000000000000000000 ETH");
    }

    #[test]
    fn refuses_what_is_not_an_amount() {
        for text in ["", "1.00", "USD", "1.001 USD", "1.5 JPY", "-1 USD", "+1 USD", "1,000 USD", "1. USD", ".5 USD"] {
            assert!(text.parse::<Money>().is_err(), "{text:?}");
        }
        for text in ["1e3 USD", "NaN USD", "inf USD", "0x10 USD", "1  USD", " 1 USD", "1 USD ", "１ USD", "1 usd"] {
            assert!(text.parse::<Money>().is_err(), "{text:?}");
        }
        let error = "5 XYZ".parse::<Money>().unwrap_err();
        assert!(error.to_string().starts_with("unknown currency \"XYZ\""), "{error}");
        let error = "1.001 USD".parse::<Money>().unwrap_err();
        assert!(error.to_string().contains("at most 2 decimals"), "{error}");
        let huge = format!("1{} USD", "0".repeat(38));
        assert_eq!(huge.parse::<Money>().unwrap_err(), LedgerError::Overflow { what: "an amount in minor units" });
    }

    #[test]
    fn sub_units_are_millionths() {
        let usd = Currency::of("USD").unwrap();
        let money: Money = "12.34 USD".parse().unwrap();
        let sub = money.sub_units().unwrap();
        assert_eq!(sub, SubUnits(1_234_000_000));
        assert_eq!(SubUnits(1_234_999_999).minor_floor(), 1234);
        assert_eq!(SubUnits(1_234_999_999).decimal(usd), "12.34999999");
        let most = Money { minor: u128::MAX, currency: usd };
        assert_eq!(most.sub_units(), Err(LedgerError::Overflow { what: "an amount in sub-units" }));
        assert_eq!(serde_json::to_string(&SubUnits(u128::MAX)).unwrap(), format!("\"{}\"", u128::MAX));
        assert!(serde_json::from_str::<SubUnits>("5").is_err());
        assert!(serde_json::from_str::<SubUnits>("\"05\"").is_err());
        assert!(serde_json::from_str::<SubUnits>("\"+5\"").is_err());
    }

    #[test]
    fn amounts_below_a_minor_unit() {
        let read = |text: &str| parse_amount(text).map(|(amount, currency)| (amount.0, currency.code()));
        assert_eq!(read("0.00025 USD"), Ok((25_000, "USD")));
        assert_eq!(read("1 USD"), Ok((100_000_000, "USD")));
        assert_eq!(read("12 JPY"), Ok((12_000_000, "JPY")));
        for bad in ["", "1", "-1 USD", "1. USD", ".5 USD", "0.000000001 USD", "1e3 USD", "1  USD", "NaN USD"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(read(&format!("{}0 USD", u128::MAX)), Err(LedgerError::Overflow { .. })));
    }

    proptest! {
        #[test]
        fn printing_is_the_inverse_of_reading(minor: u128, which in 0..EXPONENTS.len()) {
            let money = Money { minor, currency: Currency::of(EXPONENTS[which].0).unwrap() };
            prop_assert_eq!(money.to_string().parse::<Money>().unwrap(), money);
        }
    }
}
