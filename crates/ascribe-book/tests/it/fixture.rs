//! Places for books, and the small world that the tests pay.

use ascribe_book::{Book, Entry, PaidResponse, PayTable, Purpose, RevenueSplit, Source, parse_amount};
use ascribe_ledger::{Currency, EvmAddress, Line, PayeeShare, SubUnits, Terms, UnattributedReason};
use ascribe_sql::Database;
use tempfile::TempDir;

/// A moment: 2026-11-29, noon.
pub const NOON: u64 = 1_795_953_600;
/// Seconds of a day.
pub const DAY: u64 = 86_400;

/// A book that several connections can open, alone in its engine.
pub struct Place {
    pub address: String,
    _dir: Option<TempDir>,
}

impl Place {
    pub fn sqlite() -> Self {
        let dir = TempDir::new().unwrap();
        Self { address: format!("sqlite:{}", dir.path().join("book.db").display()), _dir: Some(dir) }
    }

    /// A new database on the server.
    pub fn postgres(name: &str) -> Self {
        let server = std::env::var("ASCRIBE_TEST_POSTGRES");
        let server = server.expect("ASCRIBE_TEST_POSTGRES holds the address of a server");
        let database = format!("book_{}_{}", std::process::id(), &name[..name.len().min(40)]);
        let mut db = Database::open(&server).unwrap();
        db.execute(&format!("CREATE DATABASE {database}"), &[]).unwrap();
        Self { address: server.replace("/postgres?", &format!("/{database}?")), _dir: None }
    }

    pub fn open(&self) -> Book {
        Book::open(&self.address).unwrap()
    }
}

pub fn usd() -> Currency {
    Currency::of("USD").unwrap()
}

/// Account number `n` on chain 1.
pub fn address(n: u8) -> String {
    format!("eip155:1:{}", EvmAddress([n; 20]))
}

/// Owners and the shares of their payees, on accounts 1, 2, … of each dataset's own tens.
pub fn terms(list: &[(&str, &[u32])]) -> Vec<Terms> {
    let one = |(number, (owner, shares)): (u8, &(&str, &[u32]))| Terms {
        dataset: format!("urn:uuid:{number}"),
        owner: (*owner).into(),
        payees: (1u8..)
            .zip(*shares)
            .map(|(n, &share_ppm)| PayeeShare { account: Some(address(number * 10 + n).parse().unwrap()), share_ppm })
            .collect(),
    };
    (0u8..).zip(list).map(one).collect()
}

/// Ada alone; Bob shares with his agent; nobody is licensed for the third; the fourth is under embargo.
pub fn table(book: &mut Book) -> PayTable {
    let terms = terms(&[("Ada", &[1_000_000]), ("Bob", &[700_000, 300_000]), ("Cy", &[]), ("Dee", &[1_000_000])]);
    let blocked = [None, None, None, Some(UnattributedReason::Embargo)];
    book.pay_table(usd(), &terms, &blocked, RevenueSplit { operator_ppm: 200_000, reserve_ppm: 50_000 }).unwrap()
}

pub fn line(dataset: u32, weight: u64) -> Line {
    Line { dataset, weight }
}

pub fn amount(text: &str) -> SubUnits {
    parse_amount(text).unwrap().0
}

/// A response that brought in `revenue` of cash.
pub fn response(table: &PayTable, request: &str, at_unix_s: u64, revenue: &str, lines: &[Line]) -> Entry {
    let (revenue, source, coverage_ppm, unknown_weight) = (amount(revenue), Source::Cash, 900_000, 0);
    table.entry(&PaidResponse { request, at_unix_s, revenue, source, coverage_ppm, lines, unknown_weight }).unwrap()
}

pub fn payable(owner: &str, n: u8) -> Purpose {
    Purpose::Payable { owner: owner.into(), address: address(n) }
}

/// Available sub-units of an account in dollars.
pub fn holds(book: &mut Book, purpose: Purpose) -> u128 {
    let account = book.account(usd(), purpose).unwrap();
    book.available(account).unwrap().0
}
