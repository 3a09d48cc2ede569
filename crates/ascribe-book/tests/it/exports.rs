//! What accountants get: every entry of either dialect sums to zero, and a pending transfer stands once.

use ascribe_book::SettleTerms;
use ascribe_ledger::Dialect;

use crate::fixture::{NOON, Place, line, response, table, usd};

#[test]
fn entries_balance_and_pending_stands_once() {
    let place = Place::sqlite();
    let mut book = place.open();
    let table = table(&mut book);
    book.post(&[response(&table, "req \"1\"; x", NOON, "1.00 USD", &[line(0, 1), line(1, 1)])]).unwrap();
    let terms = SettleTerms { currency: usd(), as_of_unix_s: NOON, hold_days: 0, minimum_minor: 1 };
    let settled = book.settle(&terms).unwrap();
    let text = |book: &mut ascribe_book::Book, dialect| {
        let mut bytes = Vec::new();
        book.export(dialect, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let open = text(&mut book, Dialect::Hledger);
    assert_eq!(open.matches(" ! settlement").count(), 1);
    book.resolve(&settled.id, Some("Ada"), true, NOON).unwrap();
    book.resolve(&settled.id, None, false, NOON).unwrap();
    for dialect in [Dialect::Hledger, Dialect::Beancount] {
        let text = text(&mut book, dialect);
        assert!(!text.contains(" ! ") && text.contains("2026-11-29 * "), "{text}");
        let mut n_entries = 0;
        for entry in text.split("\n\n") {
            let amounts = entry.lines().filter_map(|line| line.strip_suffix(" USD")?.rsplit(' ').next());
            let sum: i128 = amounts.filter_map(|a| a.replace('.', "").parse::<i128>().ok()).sum();
            assert_eq!(sum, 0, "{entry}");
            n_entries += usize::from(entry.contains(" * "));
        }
        assert_eq!(n_entries, 2, "{text}");
    }
    let beancount = text(&mut book, Dialect::Beancount);
    assert!(beancount.contains("2026-11-29 open Assets:Cash\n") && beancount.contains("\"response req  1   x\""));
}
