//! `pain001.xml`: ISO 20022 customer credit transfer initiation, pain.001.001.09, what a bank is given.
//!
//! Accounts of the form `iban:CC:IBAN` are paid by IBAN. For any other account the bank's file carries an identifier of
//! 34 characters, derived from the CAIP-10 account, which stands in full in the remittance information; whoever pays such
//! a file maps it. No clock is read: creation and execution dates are the period's last day.

use std::io::{self, Write};

use ascribe_core::Digest;

use crate::account::Caip10;
use crate::error::LedgerError;
use crate::run::Period;
use crate::settle::PayoutRow;

/// Namespace of the message.
pub const PAIN001_NAMESPACE: &str = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09";
/// Most digits of an amount that the schema allows.
const TOTAL_DIGITS: usize = 18;
/// Most decimals of an amount that the schema allows.
const FRACTION_DIGITS: u8 = 5;
/// Longest name and remittance line.
const TEXT_MAX: usize = 140;

/// Who pays, as the bank knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debtor {
    /// Name.
    pub name: String,
    /// IBAN; without one the file says `NOTPROVIDED` and the bank's software asks.
    pub iban: Option<String>,
}

/// Checks an IBAN: country, two check digits, at most 34 letters and digits, remainder 1 modulo 97 (ISO 13616).
///
/// # Errors
/// [`LedgerError::BadAccount`].
pub fn check_iban(text: &str) -> Result<(), LedgerError> {
    let bad = |why| Err(LedgerError::BadAccount { found: text.chars().take(40).collect(), why });
    let bytes = text.as_bytes();
    let form = (15..=34).contains(&bytes.len())
        && bytes[..2].iter().all(u8::is_ascii_uppercase)
        && bytes[2..4].iter().all(u8::is_ascii_digit)
        && bytes.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if !form {
        return bad("an IBAN has a country, two check digits and 15 to 34 capital letters and digits in all");
    }
    let rotated = bytes[4..].iter().chain(&bytes[..4]);
    let rem = rotated.fold(0u32, |rem, b| match b {
        b'0'..=b'9' => (rem * 10 + u32::from(b - b'0')) % 97,
        _ => (rem * 100 + u32::from(b - b'A') + 10) % 97,
    });
    if rem == 1 { Ok(()) } else { bad("the IBAN's check digits are wrong: a character was mistyped") }
}

/// Writes the message: one credit transfer per paid row, in the order of the rows.
///
/// # Errors
/// [`LedgerError::NoBankFile`] when no row is paid, the currency is no ISO 4217 code or an amount has more digits than the
/// schema allows; a debtor's bad IBAN; the writer's, as [`LedgerError::Unwritable`].
pub fn write_pain001<'a>(
    run_id: &Digest,
    period: &Period,
    debtor: &Debtor,
    rows: impl Iterator<Item = &'a PayoutRow> + Clone,
    out: &mut dyn Write,
) -> Result<(), LedgerError> {
    let paid = rows.filter(|row| row.amount.minor > 0);
    let no = |why: &str| LedgerError::NoBankFile { why: why.into() };
    let first = paid.clone().next().ok_or_else(|| no("no payee can be paid"))?;
    let currency = first.amount.currency;
    if !currency.is_iso() || currency.exponent() > FRACTION_DIGITS {
        return Err(no(&format!("{currency} is not a currency that banks transfer")));
    }
    if let Some(iban) = &debtor.iban {
        check_iban(iban)?;
    }
    let (mut count, mut sum) = (0u64, 0u128);
    for row in paid.clone() {
        count += 1;
        sum = sum.checked_add(row.amount.minor).ok_or(LedgerError::Overflow { what: "the control sum" })?;
    }
    let total = crate::Money { minor: sum, currency }.decimal();
    if total.bytes().filter(u8::is_ascii_digit).count() > TOTAL_DIGITS {
        return Err(no(&format!("the sum {total} has more than the {TOTAL_DIGITS} digits that the schema allows")));
    }
    let run = &run_id.to_string()[..20];
    let head = Head { run, period, debtor, count, total: &total };
    let written = head.write(out).and_then(|()| {
        for (n, row) in (1u64..).zip(paid) {
            put_transfer(out, run, n, row)?;
        }
        out.write_all(b"    </PmtInf>\n  </CstmrCdtTrfInitn>\n</Document>\n")
    });
    written.map_err(|error| LedgerError::Unwritable { file: "pain001.xml", why: error.to_string() })
}

struct Head<'a> {
    run: &'a str,
    period: &'a Period,
    debtor: &'a Debtor,
    count: u64,
    total: &'a str,
}

impl Head<'_> {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { run, period, debtor, count, total } = self;
        let (date, name) = (period.end(), text(&debtor.name));
        let account = match &debtor.iban {
            Some(iban) => format!("<IBAN>{iban}</IBAN>"),
            None => "<Othr><Id>NOTPROVIDED</Id></Othr>".to_owned(),
        };
        write!(
            out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Document xmlns=\"{PAIN001_NAMESPACE}\">\n  <CstmrCdtTrfInitn>\n    \
             <GrpHdr>\n      <MsgId>{run}</MsgId>\n      <CreDtTm>{date}T00:00:00</CreDtTm>\n      <NbOfTxs>{count}</NbOfTxs>\n      \
             <CtrlSum>{total}</CtrlSum>\n      <InitgPty><Nm>{name}</Nm></InitgPty>\n    </GrpHdr>\n    <PmtInf>\n      \
             <PmtInfId>{run}-1</PmtInfId>\n      <PmtMtd>TRF</PmtMtd>\n      <NbOfTxs>{count}</NbOfTxs>\n      \
             <CtrlSum>{total}</CtrlSum>\n      <ReqdExctnDt><Dt>{date}</Dt></ReqdExctnDt>\n      <Dbtr><Nm>{name}</Nm></Dbtr>\n      \
             <DbtrAcct><Id>{account}</Id></DbtrAcct>\n      \
             <DbtrAgt><FinInstnId><Othr><Id>NOTPROVIDED</Id></Othr></FinInstnId></DbtrAgt>\n",
        )
    }
}

fn put_transfer(out: &mut dyn Write, run: &str, n: u64, row: &PayoutRow) -> io::Result<()> {
    let account = row.account.as_ref();
    let id = match account.and_then(Caip10::iban) {
        Some(iban) => format!("<IBAN>{iban}</IBAN>"),
        None => format!("<Othr><Id>{}</Id></Othr>", reference(account.map_or("", Caip10::as_str))),
    };
    let (amount, currency, name) = (row.amount.decimal(), row.amount.currency, text(&row.owner));
    let remittance = text(account.map_or("", Caip10::as_str));
    writeln!(
        out,
        "      <CdtTrfTxInf><PmtId><EndToEndId>{run}-{n}</EndToEndId></PmtId>\
         <Amt><InstdAmt Ccy=\"{currency}\">{amount}</InstdAmt></Amt><Cdtr><Nm>{name}</Nm></Cdtr>\
         <CdtrAcct><Id>{id}</Id></CdtrAcct><RmtInf><Ustrd>{remittance}</Ustrd></RmtInf></CdtTrfTxInf>"
    )
}

/// 34 characters that stand for an account no bank knows: `C` and 33 hex digits of its SHA-256.
fn reference(account: &str) -> String {
    format!("C{}", &Digest::of(account.as_bytes()).to_string()[..33])
}

/// Text for an element: cut to the schema's length, then escaped.
fn text(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars().take(TEXT_MAX) {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            // XML 1.0 has no name for these; owner names hold none, a debtor's might.
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push(' '),
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(owner: &str, account: &str, amount: &str) -> PayoutRow {
        PayoutRow {
            owner: owner.into(),
            account: Some(account.parse().unwrap()),
            amount: amount.parse().unwrap(),
            responses: 1,
            datasets: 1,
            carried: crate::SubUnits(0),
        }
    }

    fn write(rows: &[PayoutRow]) -> Result<String, LedgerError> {
        let mut bytes = Vec::new();
        let (period, debtor) = ("2026-11-01/2026-11-30".parse().unwrap(), Debtor { name: "A & B".into(), iban: None });
        write_pain001(&Digest::of(b"run"), &period, &debtor, rows.iter(), &mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn ibans() {
        for good in ["DE89370400440532013000", "GB82WEST12345698765432", "NO9386011117947"] {
            check_iban(good).unwrap();
        }
        for bad in
            ["DE88370400440532013000", "DE8937040044053201300", "de89370400440532013000", "DE", "89DE0400440532013000"]
        {
            assert!(check_iban(bad).is_err(), "{bad}");
        }
        let account: Caip10 = "iban:DE:DE89370400440532013000".parse().unwrap();
        assert_eq!(account.iban(), Some("DE89370400440532013000"));
        assert!("iban:DE:DE88370400440532013000".parse::<Caip10>().is_err());
        assert!("iban:FR:DE89370400440532013000".parse::<Caip10>().is_err());
    }

    #[test]
    fn two_transfers_by_hand() {
        let wallet = "eip155:1:0xde709f2102306220921060314715629080e2fb77";
        let rows = [row("Ada <x>", "iban:DE:DE89370400440532013000", "12.05 EUR"), row("Bob", wallet, "0.95 EUR")];
        let text = write(&rows).unwrap();
        for piece in [
            "<NbOfTxs>2</NbOfTxs>",
            "<CtrlSum>13.00</CtrlSum>",
            "<Nm>A &amp; B</Nm>",
            "<Nm>Ada &lt;x&gt;</Nm>",
            "<InstdAmt Ccy=\"EUR\">12.05</InstdAmt>",
            "<IBAN>DE89370400440532013000</IBAN>",
            "-2</EndToEndId>",
            wallet,
            "2026-11-30T00:00:00",
        ] {
            assert!(text.contains(piece), "{piece} in {text}");
        }
        assert_eq!(reference(wallet).len(), 34);
    }

    #[test]
    fn what_no_bank_transfers() {
        let wallet = "eip155:1:0xde709f2102306220921060314715629080e2fb77";
        let why = |rows: &[PayoutRow]| write(rows).unwrap_err().to_string();
        assert!(why(&[]).contains("no payee can be paid"));
        assert!(why(&[row("Ada", wallet, "1.00 USDC")]).contains("USDC is not a currency"));
        assert!(why(&[row("Ada", wallet, "1.00 ETH")]).contains("ETH is not a currency"));
        assert!(why(&[row("Ada", wallet, "12345678901234567.00 USD")]).contains("18 digits"));
    }
}
