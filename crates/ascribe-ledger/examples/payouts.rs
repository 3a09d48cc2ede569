//! Payout folders for the outside checks in `tests/conformance/payouts`.
//!
//! `payouts DIR N…` writes, for every N, the files of a run of N payees: amounts of every size, wallets and IBANs, names that
//! XML, CSV and the accountants' formats must quote.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::path::Path;

use ascribe_core::Digest;
use ascribe_ledger::{
    Accruals, BatchRules, BatchTerms, BookHead, BookNames, ChainAmounts, Debtor, Dialect, EvmAddress, Line, PayeeShare,
    SubUnits, Terms, UniswapTree, settle_batch, write_books, write_pain001, write_payout_csv, write_safe_csv,
    write_splits_v2,
};
use sha3::{Digest as _, Keccak256};

const NAMES: [&str; 5] = ["Ada & Sons <x>", "=cmd()", "o\"brien, Bob", "李白", "plain"];
const IBANS: [&str; 2] = ["iban:DE:DE89370400440532013000", "iban:GB:GB82WEST12345698765432"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("expected DIR N…")?;
    for n in args {
        write(&Path::new(&root).join(format!("toy{n}")), n.parse()?)?;
    }
    Ok(())
}

fn write(dir: &Path, n: u32) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(dir)?;
    let run_id = Digest::of(&n.to_be_bytes());
    let terms: Vec<Terms> = (0..n).map(terms).collect::<Result<_, _>>()?;
    let terms = BatchTerms::new(&terms, vec![None; terms.len()])?;
    let mut accruals = Accruals::new(&terms);
    let mut lines: Vec<Line> = (0..n).map(|d| Line { dataset: d, weight: 1 << (d * 7 % 40) }).collect();
    lines.sort_by_key(|line| (terms.owner_of_dataset()[line.dataset as usize], line.dataset));
    let pool = ascribe_ledger::Money::to_owned(&"1234567890123.45 EUR".parse()?);
    accruals.event(&terms, pool.sub_units()?.0, 900_000, &lines, 0)?;
    let (dust_in, carried_in) = (SubUnits(0), BTreeMap::new());
    let statement =
        settle_batch(&terms, accruals, &BatchRules { pool, dust_in, minimum_minor: 1, cap_ppm: None, carried_in })?;
    let period = "2026-11-01/2026-11-30".parse()?;
    let rows = || statement.rows.iter().map(|row| &row.row);
    let create = |name: &str| File::create(dir.join(name)).map(std::io::BufWriter::new);
    let debtor = Debtor { name: "A & B".into(), iban: Some("DE89370400440532013000".into()) };
    write_pain001(&run_id, &period, &debtor, rows(), &mut create("pain001.xml")?)?;
    let head = BookHead { run_id: &run_id, period: &period, currency: pool.currency };
    let names = BookNames::of(&statement);
    write_books(Dialect::Hledger, &head, &statement, &names, &mut create("run.journal")?)?;
    write_books(Dialect::Beancount, &head, &statement, &names, &mut create("run.beancount")?)?;
    let plain: Vec<_> = rows().cloned().collect();
    fs::write(dir.join("payout.csv"), write_payout_csv(&run_id, &plain))?;
    // 18 decimals: amounts far above 2^64.
    let amounts = ChainAmounts::of_rows(rows(), 31337, EvmAddress([0x22; 20]), 18)?;
    let tree = amounts.tree(None)?;
    tree.write(&mut create("merkle.json")?)?;
    tree.write(&mut create("cumulative.json")?)?;
    UniswapTree::build(&amounts)?.write(&mut create("uniswap.json")?)?;
    write_splits_v2(&amounts, &mut create("splits-v2.json")?)?;
    write_safe_csv(&amounts, &mut create("safe.csv")?)?;
    Ok(())
}

/// Every seventh payee has an IBAN, every eleventh no account; names repeat with a number.
fn terms(n: u32) -> Result<Terms, Box<dyn Error>> {
    let hash = Keccak256::digest(n.to_be_bytes());
    let mut address = [0u8; 20];
    address.copy_from_slice(&hash[..20]);
    let account = match n {
        _ if n % 7 == 5 => Some(IBANS[n as usize % 2].parse()?),
        _ if n % 11 == 10 => None,
        _ => Some(format!("eip155:31337:{}", EvmAddress(address)).parse()?),
    };
    let owner = format!("{} {n}", NAMES[n as usize % NAMES.len()]);
    Ok(Terms { dataset: format!("d{n}"), owner, payees: vec![PayeeShare { account, share_ppm: 1_000_000 }] })
}
