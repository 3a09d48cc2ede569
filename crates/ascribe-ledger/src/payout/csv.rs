//! `payout.csv`: one line per payee. RFC 4180 with line feeds; amounts are integers beside their decimal text.

use std::io::{self, Write};
use std::str::FromStr;

use ascribe_core::Digest;

use crate::amount::{Currency, Money, SubUnits, parse_integer};
use crate::error::{LedgerError, check_canonical, check_name};
use crate::settle::PayoutRow;

/// First line of the file.
pub const PAYOUT_CSV_HEADER: &str =
    "run_id,owner,account,currency,amount_minor,amount,responses,datasets,carried_subunits";
/// Largest file that the reader accepts.
pub const PAYOUT_CSV_MAX_BYTES: usize = 256 << 20;

const FILE: &str = "payout.csv";
const COLUMNS: usize = 9;

/// The text of `payout.csv`.
///
/// Columns: run id, owner, CAIP-10 account (empty when the licence names none), currency code, amount in minor units,
/// the same as decimal text, number of responses and datasets that earned, sub-units (10⁻⁶ minor) carried. Owner names
/// come from strangers, so one that a spreadsheet would run as a formula gets a leading apostrophe. Deterministic.
pub fn write_payout_csv(run_id: &Digest, rows: &[PayoutRow]) -> String {
    let mut bytes = Vec::new();
    write_payout_rows(run_id, rows.iter(), &mut bytes).expect("a vector takes all bytes");
    String::from_utf8(bytes).expect("names and numbers are text")
}

/// The same, line by line into `out`: a million payees need no memory.
///
/// # Errors
/// The writer's.
pub fn write_payout_rows<'a>(
    run_id: &Digest,
    rows: impl Iterator<Item = &'a PayoutRow>,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "{PAYOUT_CSV_HEADER}")?;
    for row in rows {
        let account = row.account.as_ref().map_or("", |account| account.as_str());
        let amount = &row.amount;
        writeln!(
            out,
            "{run_id},{},{account},{},{},{},{},{},{}",
            field(&row.owner),
            amount.currency,
            amount.minor,
            amount.decimal(),
            row.responses,
            row.datasets,
            row.carried
        )?;
    }
    Ok(())
}

/// Reads `payout.csv` back; what it returns writes the same bytes.
///
/// # Errors
/// [`LedgerError::TooLarge`], [`LedgerError::Malformed`] with the line, [`LedgerError::Mismatch`] when a decimal text
/// disagrees with its integer or lines belong to several runs or currencies, [`LedgerError::Duplicate`] for a payee that
/// stands twice.
pub fn read_payout_csv(text: &str) -> Result<(Option<Digest>, Vec<PayoutRow>), LedgerError> {
    if text.len() > PAYOUT_CSV_MAX_BYTES {
        return Err(LedgerError::TooLarge { file: FILE, len_bytes: text.len(), max_bytes: PAYOUT_CSV_MAX_BYTES });
    }
    let mut lines = text.split('\n').enumerate().map(|(idx, line)| (idx + 1, line));
    let header = lines.next().map_or("", |(_, line)| line);
    if header != PAYOUT_CSV_HEADER {
        return Err(malformed(1, format!("expected the header {PAYOUT_CSV_HEADER:?}, found {header:?}")));
    }
    let mut run_id: Option<Digest> = None;
    let mut rows: Vec<PayoutRow> = Vec::new();
    for (line_idx, line) in lines {
        if line.is_empty() {
            // Only the end of the last line may leave an empty piece; the comparison below refuses the others.
            continue;
        }
        let (line_run, row) = read_row(line_idx, line)?;
        let run = *run_id.get_or_insert(line_run);
        if run != line_run {
            return Err(LedgerError::digests(FILE, &format!("line {line_idx}: run_id"), &run, &line_run));
        }
        if let Some(last) = rows.last() {
            check_follows(line_idx, last, &row)?;
        }
        rows.push(row);
    }
    let again = match &run_id {
        Some(run_id) => write_payout_csv(run_id, &rows),
        None => format!("{PAYOUT_CSV_HEADER}\n"),
    };
    check_canonical(FILE, text.as_bytes(), again.as_bytes())?;
    Ok((run_id, rows))
}

fn check_follows(line_idx: usize, last: &PayoutRow, row: &PayoutRow) -> Result<(), LedgerError> {
    if last.amount.currency != row.amount.currency {
        let (expected, found) = (last.amount.currency.to_string(), row.amount.currency.to_string());
        return Err(LedgerError::Mismatch { file: FILE, what: format!("line {line_idx}: currency"), expected, found });
    }
    let order = (&last.owner, &last.account).cmp(&(&row.owner, &row.account));
    if order.is_eq() {
        return Err(LedgerError::Duplicate { what: "payee", found: format!("{} on line {line_idx}", row.owner) });
    }
    if order.is_gt() {
        return Err(malformed(line_idx, "rows are not sorted by owner and account".into()));
    }
    Ok(())
}

fn read_row(line_idx: usize, line: &str) -> Result<(Digest, PayoutRow), LedgerError> {
    let fields = split_fields(line).ok_or_else(|| malformed(line_idx, "broken quotation marks".into()))?;
    if fields.len() != COLUMNS {
        return Err(malformed(line_idx, format!("expected {COLUMNS} fields, found {}", fields.len())));
    }
    let run_id = Digest::from_str(&fields[0]).map_err(|error| malformed(line_idx, format!("run_id: {error}")))?;
    let owner = unguard(&fields[1]).to_owned();
    check_name("owner", &owner)?;
    let account = if fields[2].is_empty() { None } else { Some(fields[2].parse()?) };
    let integer = |idx: usize, name: &str| {
        parse_integer(&fields[idx])
            .ok_or_else(|| malformed(line_idx, format!("{name}: not an integer: {:?}", fields[idx])))
    };
    let count = |idx: usize, name: &str| {
        let value = integer(idx, name)?;
        u32::try_from(value).map_err(|_| malformed(line_idx, format!("{name}: {value} is more than 2^32")))
    };
    let amount = Money { currency: Currency::of(&fields[3])?, minor: integer(4, "amount_minor")? };
    if amount.decimal() != fields[5] {
        let what = format!("line {line_idx}: amount");
        return Err(LedgerError::Mismatch { file: FILE, what, expected: amount.decimal(), found: fields[5].clone() });
    }
    let (responses, datasets) = (count(6, "responses")?, count(7, "datasets")?);
    let carried = SubUnits(integer(8, "carried_subunits")?);
    Ok((run_id, PayoutRow { owner, account, amount, responses, datasets, carried }))
}

fn malformed(line: usize, why: String) -> LedgerError {
    LedgerError::Malformed { file: FILE, line, why }
}

/// A first character that spreadsheets take for a formula, and the guard itself, so that guarding can be undone.
const GUARDED: [char; 5] = ['=', '+', '-', '@', '\''];

/// A field for a CSV line: quoted where it must be, and guarded where a spreadsheet would run it.
pub fn field(text: &str) -> String {
    let guard = if text.starts_with(GUARDED) { "'" } else { "" };
    if text.contains(['"', ',']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

fn unguard(text: &str) -> &str {
    text.strip_prefix('\'').filter(|rest| rest.starts_with(GUARDED)).unwrap_or(text)
}

/// Fields of one RFC 4180 line; names hold no line breaks, so neither do fields.
fn split_fields(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (value, after) = match rest.strip_prefix('"') {
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
            Some(quoted) => split_quoted(quoted)?,
        };
        if value.contains('"') && !rest.starts_with('"') {
            return None;
        }
        fields.push(value);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => return after.is_empty().then_some(fields),
        }
    }
}

/// The value up to the closing mark, and what follows it.
fn split_quoted(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = quoted;
    loop {
        let at = rest.find('"')?;
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                value.push('"');
                rest = next;
            }
            None => return Some((value, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(owner: &str, minor: u128) -> PayoutRow {
        let amount = Money { minor, currency: Currency::of("USD").unwrap() };
        let account = Some("eip155:1:0xde709f2102306220921060314715629080e2fb77".parse().unwrap());
        PayoutRow { owner: owner.into(), account, amount, responses: 3, datasets: 1, carried: SubUnits(42) }
    }

    #[test]
    fn one_line_by_hand() {
        let run_id = Digest::of(b"run");
        let text = write_payout_csv(&run_id, &[row("Ada, \"Countess\"", 1234)]);
        let expected = format!(
            "{PAYOUT_CSV_HEADER}\n{run_id},\"Ada, \"\"Countess\"\"\",eip155:1:0xde709f2102306220921060314715629080e2fb77,\
             USD,1234,12.34,3,1,42\n"
        );
        assert_eq!(text, expected);
        assert_eq!(read_payout_csv(&text).unwrap(), (Some(run_id), vec![row("Ada, \"Countess\"", 1234)]));
        let empty = write_payout_csv(&run_id, &[]);
        assert_eq!(read_payout_csv(&empty).unwrap(), (None, vec![]));
    }

    #[test]
    fn formulas_do_not_run() {
        let text = write_payout_csv(&Digest::of(b"run"), &[row("=HYPERLINK(1)", 1)]);
        assert!(text.contains(",'=HYPERLINK(1),"), "{text}");
        assert_eq!(read_payout_csv(&text).unwrap().1[0].owner, "=HYPERLINK(1)");
    }

    #[test]
    fn refuses_changed_files() {
        let text = write_payout_csv(&Digest::of(b"run"), &[row("Ada", 1234), row("Bob", 5)]);
        let check = |from: &str, to: &str, hint: &str| {
            assert!(text.contains(from), "{from}");
            let error = read_payout_csv(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(hint), "{from} -> {to}: {error}");
        };
        check("1234,12.34", "1235,12.34", "line 2: amount: expected 12.35, found 12.34");
        check("1234,12.34", "1234,12.340", "expected 12.34");
        check("1234,12.34", "01234,12.34", "amount_minor: not an integer");
        check("USD", "EUR", "line 3: currency: expected EUR, found USD");
        check("USD", "XXX", "unknown currency \"XXX\"");
        check("Ada", "Bob", "duplicate payee Bob");
        check("Ada", "Zoe", "not sorted");
        check("Ada", "\"Ada\"", "spelling from byte");
        check("Ada", "\"Ada", "broken quotation marks");
        check("Ada", "", "bad owner");
        check(",42\n", "\n", "expected 9 fields, found 8");
        check(",42\n", ",42\n\n", "spelling from byte");
        check("run_id", "run", "expected the header");
        check("0xde", "0xDe", "EIP-55");
        check(",3,1,", ",99999999999,1,", "more than 2^32");
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(owner in "[ -~]{1,30}", minor: u128, carried: u128, responses: u32) {
            let owner = owner.trim();
            prop_assume!(!owner.is_empty());
            let rows = [PayoutRow { carried: SubUnits(carried), responses, ..row(owner, minor) }];
            let run_id = Digest::of(b"run");
            prop_assert_eq!(read_payout_csv(&write_payout_csv(&run_id, &rows)).unwrap(), (Some(run_id), rows.to_vec()));
        }

        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = read_payout_csv(&text);
            let _ = read_payout_csv(&format!("{PAYOUT_CSV_HEADER}\n{text}\n"));
        }
    }
}
