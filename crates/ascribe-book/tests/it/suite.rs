//! The promises of the book, each over any engine.

use ascribe_book::{
    BookError, Claimed, Entry, EntryId, Kind, Leg, Outcome, Phase, Purpose, RevenueSplit, SettleStatus, SettleTerms,
    Why,
};
use ascribe_ledger::{Currency, SubUnits};
use ascribe_sql::Database;

use crate::fixture::{DAY, NOON, Place, address, amount, holds, line, payable, response, table, terms, usd};

pub fn an_empty_book_verifies(place: &Place) {
    let report = place.open().verify().unwrap();
    assert_eq!((report.entries, report.transfers, report.accounts), (0, 0, 0));
    assert!(place.open().balances().unwrap().is_empty());
}

/// One dollar: 20 cents operator, 5 reserve; of 75, 7.5 outside coverage; 67.5 by weights 3 : 5 : 1 : 1.
pub fn a_response_pays_its_contributors(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    let lines = [line(3, 1), line(1, 5), line(0, 3), line(2, 1)];
    let entry = response(&table, "req-1", NOON, "1.00 USD", &lines);
    assert_eq!(book.post(&[entry]).unwrap(), [Outcome::Posted]);
    let cent = |n: u128| n * 1_000_000;
    assert_eq!(holds(&mut book, Purpose::Cash), cent(100));
    assert_eq!(holds(&mut book, Purpose::Operator), cent(20));
    assert_eq!(holds(&mut book, Purpose::Reserve), cent(5));
    assert_eq!(holds(&mut book, payable("Ada", 1)), 20_250_000);
    assert_eq!(holds(&mut book, payable("Bob", 11)), 23_625_000);
    assert_eq!(holds(&mut book, payable("Bob", 12)), 10_125_000);
    // 7.5 not covered, 6.75 of nobody's, 6.75 under embargo.
    assert_eq!(holds(&mut book, Purpose::Unattributed), 21_000_000);
    assert_eq!(holds(&mut book, Purpose::Dust), 0);
    let report = book.verify().unwrap();
    assert_eq!(report.currencies[0].assets_subunits, cent(100).to_string());
    let statement = book.statement("Bob").unwrap();
    assert_eq!(statement.lines.len(), 2);
    assert_eq!(statement.lines[0].amount, "0.23625000 USD");
    assert_eq!(statement.lines[0].dataset.as_deref(), Some("urn:uuid:1"));
    assert!(book.statement("Nobody").unwrap_err().to_string().contains("no owner \"Nobody\""));
}

pub fn an_entry_stands_once(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    let entry = response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)]);
    let again = [entry.clone(), response(&table, "req-2", NOON, "1.00 USD", &[line(0, 1)]), entry.clone()];
    assert_eq!(book.post(&again).unwrap(), [Outcome::Posted, Outcome::Posted, Outcome::AlreadyThere]);
    let head = book.head().unwrap();
    assert_eq!(place.open().post(&again).unwrap(), [Outcome::AlreadyThere; 3]);
    assert_eq!(book.head().unwrap(), head);
    assert_eq!(head.0, 2);
    // The order of lines is no content.
    let turned = response(&table, "req-3", NOON, "0.01 USD", &[line(0, 1), line(1, 2)]);
    book.post(&[turned]).unwrap();
    let turned = response(&table, "req-3", NOON, "0.01 USD", &[line(1, 2), line(0, 1)]);
    assert_eq!(book.post(&[turned]).unwrap(), [Outcome::AlreadyThere]);
    for other in [
        response(&table, "req-1", NOON, "1.01 USD", &[line(0, 1)]),
        response(&table, "req-1", NOON + 1, "1.00 USD", &[line(0, 1)]),
        response(&table, "req-1", NOON, "1.00 USD", &[line(1, 1)]),
    ] {
        let error = book.post(&[other]).unwrap_err();
        assert!(matches!(error, BookError::Reused { .. }), "{error}");
        assert!(error.to_string().contains("response req-1 is in the book with other contents"), "{error}");
    }
    assert_eq!(holds(&mut book, Purpose::Cash), 201_000_000);
    book.verify().unwrap();
}

pub fn a_batch_is_all_or_nothing(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    let good = response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)]);
    let pool = book.account(usd(), Purpose::Pool).unwrap();
    let cash = book.account(usd(), Purpose::Cash).unwrap();
    let overdraws = Entry { legs: vec![Leg::posted(pool, cash, 1, Why::Fund)], ..good.clone() };
    let overdraws = Entry { id: EntryId([9; 16]), ..overdraws };
    assert!(matches!(book.post(&[good.clone(), overdraws]), Err(BookError::Overdrawn { .. })));
    assert_eq!(book.head().unwrap().0, 0);
    assert_eq!(holds(&mut book, payable("Ada", 1)), 0);
    book.post(&[good]).unwrap();
    book.verify().unwrap();
}

pub fn no_account_falls_below_zero(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    book.post(&[response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    let ada = book.account(usd(), payable("Ada", 1)).unwrap();
    let cash = book.account(usd(), Purpose::Cash).unwrap();
    let entry = |n: u8, leg: Leg| {
        let (id, memo) = (EntryId([n; 16]), format!("test {n}"));
        Entry { id, kind: Kind::Settlement, at_unix_s: NOON, memo, legs: vec![leg] }
    };
    let all = book.available(ada).unwrap().0;
    let much = Leg::posted(ada, cash, all + 1, Why::Settlement);
    let error = book.post(&[entry(1, much)]).unwrap_err();
    assert!(error.to_string().contains(&format!("holds {all} sub-units, needs {}", all + 1)), "{error}");
    // What is reserved is gone, too.
    let reserve = Leg { phase: Phase::Pending, ..Leg::posted(ada, cash, all - 5, Why::Settlement) };
    book.post(&[entry(2, reserve)]).unwrap();
    let six = Leg::posted(ada, cash, 6, Why::Settlement);
    assert!(matches!(book.post(&[entry(3, six)]), Err(BookError::Overdrawn { .. })));
    book.post(&[entry(4, Leg::posted(ada, cash, 5, Why::Settlement))]).unwrap();
    for bad in [Leg::posted(ada, ada, 5, Why::Settlement), Leg::posted(ada, cash, 0, Why::Settlement)] {
        assert!(matches!(book.post(&[entry(5, bad)]), Err(BookError::Field { .. })));
    }
    book.verify().unwrap();
}

pub fn pending_is_resolved_once(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    book.post(&[response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    let ada = book.account(usd(), payable("Ada", 1)).unwrap();
    let cash = book.account(usd(), Purpose::Cash).unwrap();
    let entry = |n: u8, amount: u128, phase: Phase| {
        let legs = vec![Leg { phase, ..Leg::posted(ada, cash, amount, Why::Settlement) }];
        Entry { id: EntryId([n; 16]), kind: Kind::Paid, at_unix_s: NOON, memo: format!("test {n}"), legs }
    };
    book.post(&[entry(1, 10, Phase::Pending)]).unwrap();
    // The second entry, its first leg.
    let at = 2 << 20;
    for (wrong, phase) in [(9, Phase::Post(at)), (10, Phase::Post(at + 1)), (10, Phase::Void(1 << 20))] {
        let error = book.post(&[entry(2, wrong, phase)]).unwrap_err();
        assert!(matches!(error, BookError::State { .. }), "{error}");
    }
    // Not twice in one batch either.
    let both = [entry(2, 10, Phase::Post(at)), entry(3, 10, Phase::Void(at))];
    assert!(matches!(book.post(&both), Err(BookError::State { .. })));
    book.post(&both[..1]).unwrap();
    assert_eq!(book.post(&both[..1]).unwrap(), [Outcome::AlreadyThere]);
    for phase in [Phase::Post(at), Phase::Void(at)] {
        let error = book.post(&[entry(4, 10, phase)]).unwrap_err();
        assert!(error.to_string().contains("resolved before"), "{error}");
    }
    assert_eq!(book.verify().unwrap().open_pending, 0);
}

pub fn currencies_never_meet(place: &Place) {
    let mut book = place.open();
    let dollars = table(&mut book);
    let list = terms(&[("Ada", &[1_000_000])]);
    let euro = Currency::of("EUR").unwrap();
    let euros = book.pay_table(euro, &list, &[None], RevenueSplit::default()).unwrap();
    book.post(&[
        response(&dollars, "req-1", NOON, "1.00 USD", &[line(0, 1)]),
        response(&euros, "req-2", NOON, "3.00 EUR", &[line(0, 1)]),
    ])
    .unwrap();
    let (from, to) = (book.account(usd(), Purpose::Cash).unwrap(), book.account(euro, Purpose::Pool).unwrap());
    let legs = vec![Leg::posted(from, to, 1, Why::Fund)];
    let mixed = Entry { id: EntryId([1; 16]), kind: Kind::Fund, at_unix_s: NOON, memo: "mixed".into(), legs };
    assert!(book.post(&[mixed]).unwrap_err().to_string().contains("expected one currency, found USD and EUR"));
    let report = book.verify().unwrap();
    let sums: Vec<_> =
        report.currencies.iter().map(|sum| (sum.currency.as_str(), sum.assets_subunits.as_str())).collect();
    assert_eq!(sums, [("EUR", "300000000"), ("USD", "100000000")]);
    let settle = |currency| SettleTerms { currency, as_of_unix_s: NOON, hold_days: 0, minimum_minor: 1 };
    let settled = book.settle(&settle(euro)).unwrap();
    assert_eq!((settled.rows.len(), settled.total.as_str()), (1, "2.70 EUR"));
}

pub fn amounts_of_128_bits(place: &Place) {
    let mut book = place.open();
    let ether = Currency::of("ETH").unwrap();
    let list = terms(&[("Ada", &[1_000_000]), ("Bob", &[1_000_000])]);
    let table = book.pay_table(ether, &list, &[None, None], RevenueSplit::default()).unwrap();
    // Ten million ether: 10^31 sub-units, far above 2^64.
    let entry = response(&table, "req-1", NOON, "10000000.0 ETH", &[line(0, u64::MAX), line(1, u64::MAX)]);
    book.post(&[entry]).unwrap();
    let ada = book.account(ether, payable("Ada", 1)).unwrap();
    assert_eq!(book.available(ada).unwrap().0, 45 * 10u128.pow(29));
    assert_eq!(place.open().verify().unwrap().currencies[0].assets_subunits, 10u128.pow(31).to_string());
    let cash = book.account(ether, Purpose::Cash).unwrap();
    let pool = book.account(ether, Purpose::Pool).unwrap();
    let legs = vec![Leg::posted(cash, pool, u128::MAX, Why::Fund)];
    let most = Entry { id: EntryId([1; 16]), kind: Kind::Fund, at_unix_s: NOON, memo: "most".into(), legs };
    assert!(book.post(&[most]).unwrap_err().to_string().contains("overflow"));
    book.verify().unwrap();
}

fn settle_terms(days_later: u64, hold_days: u32, minimum_minor: u128) -> SettleTerms {
    SettleTerms { currency: usd(), as_of_unix_s: NOON + days_later * DAY, hold_days, minimum_minor }
}

pub fn settlement_holds_carries_and_repeats(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    // Ada earns 0.675 dollars today and as much in three days; Bob 0.4725 and 0.2025 today.
    book.post(&[
        response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)]),
        response(&table, "req-2", NOON + 3 * DAY, "1.00 USD", &[line(0, 1)]),
        response(&table, "req-3", NOON, "1.00 USD", &[line(1, 1)]),
    ])
    .unwrap();
    let first = book.settle(&settle_terms(3, 2, 25)).unwrap();
    let rows: Vec<_> =
        first.rows.iter().map(|r| (r.owner.as_str(), r.pays.as_str(), r.carried_subunits.as_str(), r.status)).collect();
    use SettleStatus::{BelowMinimum, Reserved};
    let expected = [
        ("Ada", "0.67", "68000000", Reserved),
        ("Bob", "0.47", "250000", Reserved),
        ("Bob", "0.00", "20250000", BelowMinimum),
    ];
    assert_eq!(rows, expected);
    assert_eq!((first.total.as_str(), first.already_done), ("1.14 USD", false));
    // The same again is the same payments; others find nothing.
    let head = book.head().unwrap();
    let again = place.open().settle(&settle_terms(3, 2, 25)).unwrap();
    assert_eq!((again.already_done, again.total.as_str(), again.id.as_str()), (true, "1.14 USD", first.id.as_str()));
    assert_eq!(again.rows.iter().map(|r| r.pays.as_str()).collect::<Vec<_>>(), ["0.67", "0.47"]);
    assert_eq!(book.head().unwrap(), head);
    let held = book.settle(&settle_terms(4, 2, 25)).unwrap();
    assert_eq!((held.total.as_str(), held.rows[0].status), ("0.00 USD", SettleStatus::Held));
    let later = book.settle(&settle_terms(5, 2, 25)).unwrap();
    assert_eq!((later.total.as_str(), later.rows[0].pays.as_str()), ("0.68 USD", "0.68"));
    book.verify().unwrap();
}

pub fn payments_come_back_or_are_paid(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    book.post(&[response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1), line(1, 1)])]).unwrap();
    let settled = book.settle(&settle_terms(0, 0, 1)).unwrap();
    assert_eq!(settled.rows.len(), 3);
    assert_eq!(book.verify().unwrap().open_pending, 3);
    assert_eq!(book.resolve(&settled.id, Some("Bob"), false, NOON).unwrap(), 2);
    assert_eq!(book.resolve(&settled.id, Some("Bob"), true, NOON).unwrap(), 0);
    assert_eq!(book.resolve(&settled.id, None, true, NOON).unwrap(), 1);
    assert_eq!(book.resolve(&settled.id, None, true, NOON).unwrap(), 0);
    assert_eq!(holds(&mut book, payable("Bob", 11)), 23_625_000);
    assert_eq!(holds(&mut book, payable("Ada", 1)), 750_000);
    assert_eq!(holds(&mut book, Purpose::Cash), 67_000_000);
    assert!(matches!(book.resolve("ff", None, true, NOON), Err(BookError::Unknown { .. })));
    assert_eq!(book.verify().unwrap().open_pending, 0);
    let statement = book.statement("Bob").unwrap();
    assert!(statement.lines.iter().all(|line| line.direction == "in"), "{statement:?}");
}

fn claimed(owner: &str, n: u8) -> Claimed {
    Claimed { currency: usd(), owner: owner.into(), account: Some(address(n).parse().unwrap()) }
}

pub fn disputes_freeze(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    book.post(&[response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    let ada = claimed("Ada", 1);
    // 50 of 67.5 cents are frozen.
    let opened = book.open_dispute("d-1", &ada, Some(amount("0.50 USD")), "copied from Bob", NOON).unwrap();
    assert_eq!(opened.frozen_subunits.as_deref(), Some("50000000"));
    assert_eq!(book.open_dispute("d-1", &ada, Some(amount("0.50 USD")), "copied from Bob", NOON).unwrap(), opened);
    let other = book.open_dispute("d-1", &ada, Some(amount("0.51 USD")), "copied from Bob", NOON);
    assert!(matches!(other, Err(BookError::Reused { .. })));
    let much = book.open_dispute("d-2", &ada, Some(amount("0.50 USD")), "again", NOON);
    assert!(matches!(much, Err(BookError::Overdrawn { .. })));
    assert!(book.dispute("d-2").unwrap().is_none());
    assert_eq!(book.settle(&settle_terms(1, 0, 1)).unwrap().total, "0.17 USD");
    // A dispute over everything lets nothing out.
    book.open_dispute("d-3", &ada, None, "who are you?", NOON).unwrap();
    book.post(&[response(&table, "req-2", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    let frozen = book.settle(&settle_terms(2, 0, 1)).unwrap();
    assert_eq!((frozen.total.as_str(), frozen.rows[0].status), ("0.00 USD", SettleStatus::Disputed));
    assert_eq!(book.end_dispute("d-3", false, NOON).unwrap().outcome.as_deref(), Some("rejected"));
    assert_eq!(book.settle(&settle_terms(3, 0, 1)).unwrap().total, "0.68 USD");
    // Upheld: the frozen half dollar stays unattributed.
    let before = holds(&mut book, Purpose::Unattributed);
    book.end_dispute("d-1", true, NOON).unwrap();
    assert_eq!(book.end_dispute("d-1", true, NOON).unwrap().outcome.as_deref(), Some("upheld"));
    assert!(matches!(book.end_dispute("d-1", false, NOON), Err(BookError::State { .. })));
    assert_eq!(holds(&mut book, Purpose::Unattributed), before + 50_000_000);
    assert_eq!(book.disputes().unwrap().len(), 2);
    assert!(matches!(book.end_dispute("d-9", true, NOON), Err(BookError::Unknown { .. })));
    book.verify().unwrap();
}

pub fn clawbacks_set_off(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    let ada = claimed("Ada", 1);
    book.post(&[response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    // 67 cents are paid out, half a cent stays; a dollar is taken back: half a cent now, the rest is owed.
    let settled = book.settle(&settle_terms(0, 0, 1)).unwrap();
    book.resolve(&settled.id, None, true, NOON).unwrap();
    let first = book.clawback("c-1", &ada, amount("1.00 USD"), false, NOON).unwrap();
    assert_eq!((first.taken_subunits.as_str(), first.owed_subunits.as_str()), ("500000", "99500000"));
    let again = book.clawback("c-1", &ada, amount("1.00 USD"), false, NOON).unwrap();
    assert_eq!((again.already_done, again.owed_subunits), (true, first.owed_subunits));
    assert!(matches!(book.clawback("c-1", &ada, amount("2.00 USD"), false, NOON), Err(BookError::Reused { .. })));
    // The next two earnings of 67.5 pay the debt of 99.5 first.
    book.post(&[response(&table, "req-2", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    let second = book.settle(&settle_terms(1, 0, 1)).unwrap();
    assert_eq!((second.rows[0].set_off_subunits.as_str(), second.rows[0].pays.as_str()), ("67500000", "0.00"));
    book.post(&[response(&table, "req-3", NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
    let third = book.settle(&settle_terms(2, 0, 1)).unwrap();
    assert_eq!((third.rows[0].set_off_subunits.as_str(), third.rows[0].pays.as_str()), ("32000000", "0.35"));
    assert_eq!(holds(&mut book, Purpose::Recoverable { owner: "Ada".into(), address: address(1) }), 0);
    // What is still on its way is returned and then taken.
    let fourth = book.clawback("c-2", &ada, amount("0.30 USD"), true, NOON).unwrap();
    assert_eq!((fourth.returned_payments, fourth.taken_subunits.as_str()), (1, "30000000"));
    assert!(matches!(book.clawback("c-3", &ada, SubUnits(0), false, NOON), Err(BookError::Field { .. })));
    book.verify().unwrap();
}

pub fn two_writers_lose_nothing(place: &Place) {
    let mut book = place.open();
    table(&mut book);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            scope.spawn(move || {
                let mut book = place.open();
                let table = table(&mut book);
                for n in 0..15 {
                    // Every request is tried by all writers; each is booked once. New names meet, too.
                    let name = format!("customer {}", (n + writer) % 15);
                    book.account(usd(), Purpose::Prepaid { customer: name }).unwrap();
                    book.post(&[response(&table, &format!("req-{n}"), NOON, "1.00 USD", &[line(0, 1)])]).unwrap();
                    let own = format!("req-{writer}-{n}");
                    book.post(&[response(&table, &own, NOON, "0.10 USD", &[line(1, 1)])]).unwrap();
                }
            });
        }
    });
    assert_eq!(book.head().unwrap().0, 15 + 45);
    assert_eq!(holds(&mut book, Purpose::Cash), 15 * 100_000_000 + 45 * 10_000_000);
    book.verify().unwrap();
}

/// Changes from outside that leave every table readable.
pub fn a_changed_book_is_found_out(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    book.post(&[
        response(&table, "req-1", NOON, "1.00 USD", &[line(0, 1)]),
        response(&table, "req-2", NOON, "2.00 USD", &[line(0, 1), line(1, 1)]),
    ])
    .unwrap();
    let settled = book.settle(&settle_terms(0, 0, 1)).unwrap();
    book.resolve(&settled.id, Some("Ada"), true, NOON).unwrap();
    book.verify().unwrap();
    let mut db = Database::open(&place.address).unwrap();
    let ten = [ascribe_sql::Value::Amount(10)];
    for (change, back, params) in [
        (
            "UPDATE book_entries SET memo = 'req-9' WHERE seq = 1",
            "UPDATE book_entries SET memo = 'req-1' WHERE seq = 1",
            0,
        ),
        (
            "UPDATE book_entries SET at_unix_s = at_unix_s + 1 WHERE seq = 2",
            "UPDATE book_entries SET at_unix_s = at_unix_s - 1 WHERE seq = 2",
            0,
        ),
        (
            "UPDATE book_accounts SET name = 'Eve' WHERE name = 'Ada'",
            "UPDATE book_accounts SET name = 'Ada' WHERE name = 'Eve'",
            0,
        ),
        ("UPDATE book_head SET entries = entries - 1", "UPDATE book_head SET entries = entries + 1", 0),
        ("UPDATE book_head SET chain = upper(chain)", "UPDATE book_head SET chain = lower(chain)", 0),
        ("UPDATE book_maturity SET day = day + 1", "UPDATE book_maturity SET day = day - 1", 0),
        (
            "UPDATE book_resolutions SET by_place = by_place - 1048576",
            "UPDATE book_resolutions SET by_place = by_place + 1048576",
            0,
        ),
        (
            "UPDATE book_balances SET debits_pending = ?1 WHERE account = 1",
            "UPDATE book_balances SET debits_pending = ?1 WHERE account = 1",
            1,
        ),
    ] {
        db.execute(change, &ten[..params]).unwrap();
        let error = place.open().verify().unwrap_err();
        assert!(matches!(error, BookError::Damaged { .. } | BookError::Overdrawn { .. }), "{change}: {error}");
        db.execute(back, &[ascribe_sql::Value::Amount(0)][..params]).unwrap();
    }
    // Not reversible: last.
    db.execute("UPDATE book_transfers SET amount = ?1 WHERE place = 1048576", &ten).unwrap();
    let error = place.open().verify().unwrap_err().to_string();
    assert!(error.contains("entry 1 (req-1): its fields hash to"), "{error}");
}

/// More accounts than one list of a statement holds.
pub fn many_payees_settle(place: &Place) {
    let mut book = place.open();
    let payee = |n: u32| ascribe_ledger::PayeeShare {
        account: Some(format!("eip155:1:{}", ascribe_ledger::EvmAddress([(n % 251) as u8 + 1; 20])).parse().unwrap()),
        share_ppm: 1_000_000,
    };
    let list: Vec<_> = (0..1_500)
        .map(|n| ascribe_ledger::Terms {
            dataset: format!("urn:uuid:{n}"),
            owner: format!("owner {n:04}"),
            payees: vec![payee(n)],
        })
        .collect();
    let table = book.pay_table(usd(), &list, &vec![None; list.len()], RevenueSplit::default()).unwrap();
    let lines: Vec<_> = (0..1_500).map(|n| line(n, 1)).collect();
    let entries: Vec<Entry> =
        (0..3).map(|n| response(&table, &format!("req-{n}"), NOON, "1000.00 USD", &lines)).collect();
    book.post(&entries).unwrap();
    let settled = book.settle(&settle_terms(0, 0, 1)).unwrap();
    assert_eq!((settled.rows.len(), settled.total.as_str()), (1_500, "2700.00 USD"));
    assert_eq!(book.resolve(&settled.id, None, true, NOON).unwrap(), 1_500);
    let report = book.verify().unwrap();
    assert_eq!((report.open_pending, report.transfers), (0, 3 * 1_501 + 3_000));
}

pub fn a_payout_run_is_taken_in_once(place: &Place) {
    use ascribe_book::{PayoutRun, RunRow};
    use ascribe_ledger::{Payee, UnattributedReason};
    let mut book = place.open();
    let payee = |owner: &str, n| Payee { owner: owner.into(), account: Some(address(n).parse().unwrap()) };
    let row = |owner, n, earned, paid_minor| RunRow { payee: payee(owner, n), earned: SubUnits(earned), paid_minor };
    let first = PayoutRun {
        run_id: ascribe_core::Digest::of(b"one"),
        at_unix_s: NOON,
        pool: "0.99 USD".parse().unwrap(),
        pool_rest: SubUnits(1_000_000),
        dust_in: SubUnits(0),
        rows: vec![row("Ada", 1, 60_500_000, 60), row("Bob", 11, 29_499_990, 0)],
        unattributed: vec![(UnattributedReason::Coverage, SubUnits(10_000_000))],
        dust: SubUnits(10),
    };
    let imported = book.import(&first).unwrap();
    assert_eq!((imported.payees, imported.payments, imported.already_done), (2, 1, false));
    assert!(place.open().import(&first).unwrap().already_done);
    let changed = PayoutRun { dust: SubUnits(9), ..first.clone() };
    assert!(matches!(book.import(&changed), Err(BookError::Reused { .. })));
    let id = first.run_id.to_string();
    assert_eq!(book.resolve(&id, None, true, NOON).unwrap(), 1);
    // The next run pays what was carried, and its pool begins with the dust.
    let second = PayoutRun {
        run_id: ascribe_core::Digest::of(b"two"),
        dust_in: SubUnits(10),
        rows: vec![row("Ada", 1, 500_000, 1), row("Bob", 11, 99_500_010, 129)],
        unattributed: Vec::new(),
        dust: SubUnits(0),
        ..first.clone()
    };
    let much = PayoutRun { dust_in: SubUnits(9), ..second.clone() };
    assert!(book.import(&much).unwrap_err().to_string().contains("what it splits"));
    book.import(&second).unwrap();
    assert_eq!(holds(&mut book, payable("Ada", 1)), 0);
    assert_eq!(holds(&mut book, payable("Bob", 11)), 0);
    assert_eq!(holds(&mut book, Purpose::Dust), 0);
    assert_eq!(book.verify().unwrap().open_pending, 2);
    let alone = Place::sqlite();
    assert!(matches!(alone.open().import(&second), Err(BookError::Overdrawn { .. })));
}
