//! Accounts of the book: what each holds, and its name in the tables.

use std::fmt;

use ascribe_ledger::error::NAME_MAX;
use ascribe_ledger::{Caip10, Currency, Payee};

use crate::error::BookError;

/// What an account is for. Assets hold money or claims, liabilities say whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Asset: settled money.
    Cash,
    /// Asset: what a payee was paid and has to give back; taken out of what they earn next.
    Recoverable {
        /// The owner.
        owner: String,
        /// The account that was paid; empty when the licence named none.
        address: String,
    },
    /// Liability: the operator's part of revenue.
    Operator,
    /// Liability: kept back for corrections.
    Reserve,
    /// Liability: revenue that no response has claimed yet.
    Pool,
    /// Liability: what evidence does not cover, and what was taken back.
    Unattributed,
    /// Liability: what floors left over.
    Dust,
    /// Liability: owed to a payee.
    Payable {
        /// The owner.
        owner: String,
        /// Where to pay; empty when the licence names nothing.
        address: String,
    },
    /// Liability: paid in advance by a customer.
    Prepaid {
        /// The customer.
        customer: String,
    },
}

impl Purpose {
    /// Owed to `payee`.
    pub fn payable(payee: &Payee) -> Self {
        Self::Payable {
            owner: payee.owner.clone(),
            address: payee.account.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// True for assets: their balance is debits less credits.
    pub const fn is_asset(&self) -> bool {
        matches!(self, Self::Cash | Self::Recoverable { .. })
    }

    /// Kind, name and address as the tables keep them.
    pub(crate) fn columns(&self) -> (&'static str, &str, &str) {
        match self {
            Self::Cash => ("cash", "", ""),
            Self::Recoverable { owner, address } => ("recoverable", owner, address),
            Self::Operator => ("operator", "", ""),
            Self::Reserve => ("reserve", "", ""),
            Self::Pool => ("pool", "", ""),
            Self::Unattributed => ("unattributed", "", ""),
            Self::Dust => ("dust", "", ""),
            Self::Payable { owner, address } => ("payable", owner, address),
            Self::Prepaid { customer } => ("prepaid", customer, ""),
        }
    }

    pub(crate) fn of_columns(kind: &str, name: &str, address: &str) -> Result<Self, BookError> {
        let (owner, address) = (name.to_owned(), address.to_owned());
        Ok(match kind {
            "cash" => Self::Cash,
            "recoverable" => Self::Recoverable { owner, address },
            "operator" => Self::Operator,
            "reserve" => Self::Reserve,
            "pool" => Self::Pool,
            "unattributed" => Self::Unattributed,
            "dust" => Self::Dust,
            "payable" => Self::Payable { owner, address },
            "prepaid" => Self::Prepaid { customer: owner },
            other => return Err(BookError::damaged("book_accounts", format!("unknown kind {other:?}"))),
        })
    }

    /// Refuses names that would garble the books, and addresses that are no CAIP-10.
    pub(crate) fn check(&self) -> Result<(), BookError> {
        let (_, name, address) = self.columns();
        let named = matches!(self, Self::Recoverable { .. } | Self::Payable { .. } | Self::Prepaid { .. });
        let n_chars = name.chars().count();
        if named && (n_chars == 0 || n_chars > NAME_MAX || name.chars().any(char::is_control) || name.trim() != name) {
            return Err(BookError::Field {
                what: "name".into(),
                expected: format!("1 to {NAME_MAX} characters without control characters or space around them"),
                found: format!("{:?}", name.chars().take(80).collect::<String>()),
            });
        }
        if !address.is_empty() {
            let canonical: Caip10 = address.parse()?;
            if canonical.as_str() != address {
                let expected = format!("the canonical form {canonical}");
                return Err(BookError::Field { what: "account".into(), expected, found: address.to_owned() });
            }
        }
        Ok(())
    }
}

/// An account: its purpose in one currency. Currencies never meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BookAccount {
    /// Code of the currency.
    pub currency: &'static str,
    /// What it is for.
    pub purpose: Purpose,
}

impl BookAccount {
    /// The account of `purpose` in `currency`.
    pub fn new(currency: Currency, purpose: Purpose) -> Self {
        Self { currency: currency.code(), purpose }
    }
}

impl fmt::Display for BookAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name, address) = self.purpose.columns();
        let side = if self.purpose.is_asset() { "Assets" } else { "Liabilities" };
        let (first, rest) = kind.split_at(1);
        write!(f, "{side}:{}{rest}", first.to_ascii_uppercase())?;
        for part in [name, address].into_iter().filter(|part| !part.is_empty()) {
            write!(f, ":{part}")?;
        }
        write!(f, " ({})", self.currency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_columns() {
        let owner = || "Ada: Lovelace".to_owned();
        let address = || "eip155:1:0xde709f2102306220921060314715629080e2fb77".to_owned();
        for purpose in [
            Purpose::Cash,
            Purpose::Recoverable { owner: owner(), address: address() },
            Purpose::Operator,
            Purpose::Reserve,
            Purpose::Pool,
            Purpose::Unattributed,
            Purpose::Dust,
            Purpose::Payable { owner: owner(), address: String::new() },
            Purpose::Prepaid { customer: owner() },
        ] {
            let (kind, name, place) = purpose.columns();
            assert_eq!(Purpose::of_columns(kind, name, place).unwrap(), purpose);
            purpose.check().unwrap();
        }
        for bad in ["", " a", "a\nb"] {
            assert!(Purpose::Prepaid { customer: bad.into() }.check().is_err(), "{bad:?}");
        }
        assert!(Purpose::Payable { owner: owner(), address: "nowhere".into() }.check().is_err());
        assert!(Purpose::of_columns("luck", "", "").is_err());
        let usd = Currency::of("USD").unwrap();
        let shown = BookAccount::new(usd, Purpose::Prepaid { customer: "acme".into() }).to_string();
        assert_eq!(shown, "Liabilities:Prepaid:acme (USD)");
    }
}
