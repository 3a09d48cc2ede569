//! Money that comes in: prepaid balances, and payments by way of a chain that the tests play themselves. A real chain and the
//! published clients are in tests/conformance/x402.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ascribe_book::x402::authorization::address_of;
use ascribe_book::x402::{
    Authorization, Chain, Offer, Payment, Paywall, Receipt, Resource, Settlement, TokenDomain, wire,
};
use ascribe_book::{
    Book, BookError, Credit, NamedWeight, Outcome, PaidResponse, PaymentState, Purpose, RevenueSplit, Source,
};
use ascribe_ledger::{Currency, EvmAddress};
use base64::Engine as _;
use k256::ecdsa::SigningKey;
use serde_json::json;

use crate::fixture::{NOON, Place, amount, holds, line, payable, table, terms, usd};

pub fn prepaid_balances_are_spent_once(place: &Place) {
    let mut book = place.open();
    let table = table(&mut book);
    book.open_customer("acme", b"secret").unwrap();
    book.open_customer("acme", b"secret").unwrap();
    assert!(matches!(book.open_customer("acme", b"other"), Err(BookError::Reused { .. })));
    assert!(book.is_customer("acme", b"secret").unwrap());
    assert!(!book.is_customer("acme", b"secres").unwrap() && !book.is_customer("nobody", b"secret").unwrap());
    let one = amount("1.00 USD");
    assert_eq!(book.top_up("acme", one, usd(), "bank 7", NOON).unwrap(), Outcome::Posted);
    assert_eq!(book.top_up("acme", one, usd(), "bank 7", NOON + 1).unwrap(), Outcome::AlreadyThere);
    assert!(matches!(book.top_up("acme", amount("2.00 USD"), usd(), "bank 7", NOON), Err(BookError::Reused { .. })));
    let lines = [line(0, 1)];
    let response = |request, revenue| PaidResponse {
        request,
        at_unix_s: NOON,
        revenue,
        source: Source::Cash,
        coverage_ppm: 1_000_000,
        lines: &lines,
        unknown_weight: 0,
    };
    let charged = book.charge(&table, "acme", &response("req-1", amount("0.60 USD"))).unwrap();
    assert_eq!((charged.balance.as_str(), charged.already_done), ("0.40000000 USD", false));
    let later = PaidResponse { at_unix_s: NOON + 9, ..response("req-1", amount("0.60 USD")) };
    assert!(book.charge(&table, "acme", &later).unwrap().already_done);
    let other = book.charge(&table, "acme", &response("req-1", amount("0.61 USD")));
    assert!(matches!(other, Err(BookError::Reused { .. })));
    let error = book.charge(&table, "acme", &response("req-2", amount("0.41 USD"))).unwrap_err();
    let words = "prepaid balance of acme: needs 0.41000000 USD, holds 0.40000000 USD; hint: top up first";
    assert_eq!(error.to_string(), words);
    book.charge(&table, "acme", &response("req-3", amount("0.40 USD"))).unwrap();
    assert_eq!(book.prepaid("acme", usd()).unwrap().0, 0);
    // Three quarters of a dollar are contributors', and they are those of the responses.
    assert_eq!(holds(&mut book, payable("Ada", 1)), 75_000_000);
    // Two at once want the last cents: one gets them.
    book.top_up("acme", amount("0.10 USD"), usd(), "bank 8", NOON).unwrap();
    let done: Vec<bool> = std::thread::scope(|scope| {
        let race = |n: usize| {
            scope.spawn(move || {
                let mut book = place.open();
                let table = crate::fixture::table(&mut book);
                let lines = [line(0, 1)];
                let request = format!("race-{n}");
                let revenue = amount("0.10 USD");
                let (at_unix_s, source, coverage_ppm, unknown_weight) = (NOON, Source::Cash, 1_000_000, 0);
                let request = request.as_str();
                let lines = &lines;
                let response =
                    PaidResponse { request, at_unix_s, revenue, source, coverage_ppm, lines, unknown_weight };
                book.charge(&table, "acme", &response).is_ok()
            })
        };
        let racers: Vec<_> = (0..3).map(race).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(done.iter().filter(|ok| **ok).count(), 1);
    assert_eq!(book.prepaid("acme", usd()).unwrap().0, 0);
    book.verify().unwrap();
}

/// What a chain of the tests does with transactions.
#[derive(Default)]
struct Ledger {
    used: HashSet<(EvmAddress, [u8; 32])>,
    balances: HashMap<EvmAddress, u128>,
    transactions: HashMap<String, (Authorization, bool)>,
    sent: u64,
    /// Transactions stay out of blocks.
    slow: bool,
    /// Every transaction is reverted.
    reverts: bool,
    /// The node dies after it has taken a transaction.
    dies: bool,
    /// Somebody else sends the authorisation first.
    overtaken: bool,
    /// Logs say another amount than the authorisation.
    lies: bool,
    /// The node does not answer.
    away: bool,
    /// The token refuses for now.
    refuses: bool,
}

#[derive(Clone, Default)]
struct Toy(Arc<Mutex<Ledger>>);

impl Toy {
    fn set(&self, change: impl FnOnce(&mut Ledger)) {
        change(&mut self.0.lock().unwrap());
    }

    fn sent(&self) -> u64 {
        self.0.lock().unwrap().sent
    }
}

fn away(ledger: &Ledger) -> Result<(), BookError> {
    if ledger.away { Err(BookError::Chain("no answer".into())) } else { Ok(()) }
}

impl Ledger {
    fn take(&mut self, what: &Authorization, by: &str) -> String {
        let hash = format!("0x{by}{}", self.transactions.len());
        let fresh = !self.reverts && self.used.insert((what.from, what.nonce));
        if fresh {
            *self.balances.entry(what.from).or_default() -= what.value;
            *self.balances.entry(what.to).or_default() += what.value;
        }
        self.transactions.insert(hash.clone(), (*what, fresh));
        hash
    }
}

impl Chain for Toy {
    fn is_used(&self, _: EvmAddress, payer: EvmAddress, nonce: &[u8; 32]) -> Result<bool, BookError> {
        let ledger = self.0.lock().unwrap();
        away(&ledger).map(|()| ledger.used.contains(&(payer, *nonce)))
    }

    fn balance(&self, _: EvmAddress, holder: EvmAddress) -> Result<u128, BookError> {
        let ledger = self.0.lock().unwrap();
        away(&ledger).map(|()| ledger.balances.get(&holder).copied().unwrap_or(0))
    }

    fn send(&self, _: EvmAddress, what: &Authorization, _: &[u8; 65]) -> Result<String, BookError> {
        let mut ledger = self.0.lock().unwrap();
        away(&ledger)?;
        if ledger.refuses {
            return Err(BookError::Chain("execution reverted: used".into()));
        }
        ledger.sent += 1;
        if ledger.overtaken {
            ledger.take(what, "other");
        }
        let hash = ledger.take(what, "ours");
        if ledger.dies {
            return Err(BookError::Chain("connection reset".into()));
        }
        Ok(hash)
    }

    fn find(&self, _: EvmAddress, what: &Authorization) -> Result<Option<String>, BookError> {
        let ledger = self.0.lock().unwrap();
        away(&ledger)?;
        let found = ledger.transactions.iter().find(|(_, (sent, done))| *done && sent == what);
        Ok(found.map(|(hash, _)| hash.clone()))
    }

    fn receipt(&self, _: EvmAddress, _: &Authorization, transaction: &str) -> Result<Option<Receipt>, BookError> {
        let ledger = self.0.lock().unwrap();
        away(&ledger)?;
        if ledger.slow {
            return Ok(None);
        }
        let found = ledger.transactions.get(transaction);
        Ok(found.map(|(_, success)| Receipt { success: *success, confirmations: 1, moved: *success && !ledger.lies }))
    }
}

struct Shop {
    wall: Paywall,
    chain: Toy,
    payer: SigningKey,
}

fn usdc() -> Currency {
    Currency::of("USDC").unwrap()
}

fn offer() -> Offer {
    let domain = TokenDomain { name: "Toy".into(), version: "1".into(), chain_id: 31337, token: EvmAddress([8; 20]) };
    Offer {
        domain,
        pay_to: EvmAddress([5; 20]),
        currency: usdc(),
        max_timeout_s: 60,
        name_v1: None,
        confirmations: 1,
        settle_wait: Duration::from_millis(1),
    }
}

fn shop(place: &Place, chain: &Toy) -> Shop {
    let mut book = place.open();
    let list = terms(&[("Ada", &[1_000_000]), ("Bob", &[700_000, 300_000])]);
    let table = book.pay_table(usdc(), &list, &[None, None], RevenueSplit::default()).unwrap();
    let payer = SigningKey::from_slice(&[7; 32]).unwrap();
    chain.set(|ledger| {
        ledger.balances.entry(address_of(payer.verifying_key())).or_insert(1_000_000);
    });
    let wall = Paywall::new(offer(), Box::new(chain.clone()), book, table).unwrap();
    Shop { wall, chain: chain.clone(), payer }
}

impl Shop {
    fn authorization(&self, nonce: u8, value: u128) -> Authorization {
        let from = address_of(self.payer.verifying_key());
        let (to, nonce) = (offer().pay_to, [nonce; 32]);
        Authorization { from, to, value, valid_after: 0, valid_before: NOON + 60, nonce }
    }

    fn signed(&self, version: u8, what: &Authorization) -> Payment {
        let digest = what.digest(&offer().domain);
        let (signature, recovery) = self.payer.sign_prehash_recoverable(&digest).unwrap();
        let signature = format!("{}{:02x}", hex::encode(signature.to_bytes()), 27 + recovery.to_byte());
        let payload = json!({
            "signature": format!("0x{signature}"),
            "authorization": {
                "from": what.from.to_string(), "to": what.to.to_string(), "value": what.value.to_string(),
                "validAfter": what.valid_after.to_string(), "validBefore": what.valid_before.to_string(),
                "nonce": format!("0x{}", hex::encode(what.nonce)),
            },
        });
        let value = match version {
            1 => json!({"x402Version": 1, "scheme": "exact", "network": "eip155:31337", "payload": payload}),
            _ => json!({"x402Version": 2, "accepted": wire::requirements(&offer(), what.value), "payload": payload}),
        };
        Payment::read(&base64::engine::general_purpose::STANDARD.encode(value.to_string())).unwrap()
    }

    /// Pays 0.01 USDC for a response of Ada's and Bob's.
    fn pay(&self, nonce: u8, request: &str) -> Result<Settlement, BookError> {
        let verified = self.wall.verify(self.signed(2, &self.authorization(nonce, 10_000)), 10_000, NOON)?;
        let weight = |dataset: &str, weight| NamedWeight { dataset: dataset.into(), weight };
        let weights = vec![weight("urn:uuid:0", 3), weight("urn:uuid:1", 1), weight("urn:uuid:nobody", 1)];
        self.wall.settle(&verified, request, Credit::Response { coverage_ppm: 1_000_000, weights }, &|| NOON)
    }

    fn cash(&self) -> u128 {
        let mut book = self.wall.book();
        let account = book.account(usdc(), Purpose::Cash).unwrap();
        book.available(account).unwrap().0
    }

    fn ada(&self) -> u128 {
        let mut book = self.wall.book();
        let account = book.account(usdc(), payable("Ada", 1)).unwrap();
        book.available(account).unwrap().0
    }
}

fn reason(result: Result<impl std::fmt::Debug, BookError>) -> String {
    match result.unwrap_err() {
        BookError::Payment { reason, .. } => reason.to_owned(),
        other => panic!("expected a refused payment, found {other}"),
    }
}

pub fn payments_are_credited_on_settlement_only(place: &Place) {
    let chain = Toy::default();
    let shop = shop(place, &chain);
    // Slow: pending credits nothing, and the same payment comes back later.
    chain.set(|ledger| ledger.slow = true);
    assert!(matches!(shop.pay(1, "req-1").unwrap(), Settlement::Pending { .. }));
    assert_eq!((shop.cash(), chain.sent()), (0, 1));
    assert_eq!(shop.wall.recover(&|| NOON).unwrap(), 0);
    assert_eq!(reason(shop.pay(1, "req-2")), "invalid_exact_evm_nonce_already_used");
    chain.set(|ledger| ledger.slow = false);
    assert!(matches!(shop.pay(1, "req-1").unwrap(), Settlement::Settled { .. }));
    assert_eq!((shop.cash(), shop.ada(), chain.sent()), (10_000_000_000, 6_000_000_000, 1));
    // Replay, for the same request and another.
    for request in ["req-1", "req-3"] {
        assert_eq!(reason(shop.pay(1, request)), "invalid_exact_evm_nonce_already_used");
    }
    // A top-up is credited to the customer.
    let verified = shop.wall.verify(shop.signed(1, &shop.authorization(2, 500)), 500, NOON).unwrap();
    let credit = Credit::TopUp { customer: "acme".into() };
    shop.wall.settle(&verified, "top-up", credit, &|| NOON).unwrap();
    assert_eq!(shop.wall.book().prepaid("acme", usdc()).unwrap().0, 500_000_000);
    // Everything that is not exactly what was asked for.
    let good = shop.authorization(3, 10_000);
    let verify = |what: &Authorization, now| shop.wall.verify(shop.signed(2, what), 10_000, now);
    for (what, now, word) in [
        (Authorization { to: EvmAddress([6; 20]), ..good }, NOON, "recipient_mismatch"),
        (Authorization { value: 9_999, ..good }, NOON, "invalid_payment_requirements"),
        (Authorization { valid_after: NOON, ..good }, NOON, "authorization_valid_after"),
        (good, NOON + 54, "authorization_valid_before"),
        (Authorization { from: EvmAddress([1; 20]), ..good }, NOON, "payload_signature"),
        (Authorization { nonce: [2; 32], ..good }, NOON, "nonce_already_used"),
    ] {
        let found = reason(verify(&what, now));
        assert!(found.contains(word), "{word}: {found}");
    }
    let less = shop.wall.verify(shop.signed(1, &Authorization { value: 9_999, ..good }), 10_000, NOON);
    assert_eq!(reason(less), "invalid_exact_evm_payload_authorization_value_mismatch");
    let poor = shop.wall.verify(shop.signed(1, &Authorization { value: 1 << 70, ..good }), 1 << 70, NOON);
    assert_eq!(reason(poor), "invalid_exact_evm_insufficient_balance");
    assert_eq!(
        reason(shop.wall.verify(Payment { network: "eip155:1".into(), ..shop.signed(1, &good) }, 10_000, NOON)),
        "network_mismatch"
    );
    assert_eq!(shop.chain.sent(), 2);
    shop.wall.book().verify().unwrap();
}

pub fn a_crash_between_sending_and_crediting(place: &Place) {
    let chain = Toy::default();
    // The node took the transaction and died, or this program did before it wrote the hash down.
    let first = shop(place, &chain);
    chain.set(|ledger| ledger.dies = true);
    assert!(matches!(first.pay(1, "req-1").unwrap(), Settlement::Settled { .. }));
    // It is sent and slow; then this program dies, and another one opens the book.
    chain.set(|ledger| (ledger.dies, ledger.slow) = (false, true));
    assert!(matches!(first.pay(2, "req-2").unwrap(), Settlement::Pending { .. }));
    drop(first);
    chain.set(|ledger| ledger.slow = false);
    let second = shop(place, &chain);
    assert_eq!(second.cash(), 10_000_000_000);
    assert_eq!(second.wall.recover(&|| NOON).unwrap(), 1);
    assert_eq!((second.cash(), second.ada()), (20_000_000_000, 12_000_000_000));
    assert_eq!(second.wall.recover(&|| NOON).unwrap(), 0);
    assert_eq!(reason(second.pay(2, "req-2")), "invalid_exact_evm_nonce_already_used");
    // Written down, never sent, and run out.
    let verified = second.wall.verify(second.signed(2, &second.authorization(3, 10_000)), 10_000, NOON).unwrap();
    let new = ascribe_book::NewPayment {
        key: verified.key.clone(),
        request: "req-3".into(),
        amount: "0.01 USDC".parse().unwrap(),
        authorization_json: authorization_json(&verified.payment),
        credit: Credit::TopUp { customer: "acme".into() },
    };
    assert!(second.wall.book().begin_payment(&new, NOON).unwrap().is_none());
    assert_eq!(second.wall.recover(&|| NOON).unwrap(), 0);
    assert_eq!(second.wall.book().unsettled_payments().unwrap().len(), 1);
    second.wall.recover(&|| NOON + 180).unwrap();
    assert_eq!(second.wall.book().payment(&verified.key).unwrap().unwrap().state, PaymentState::Failed);
    second.wall.book().verify().unwrap();
}

/// As the paywall writes it.
fn authorization_json(payment: &Payment) -> String {
    let a = &payment.authorization;
    json!({
        "x402Version": payment.version, "network": payment.network, "accepted": payment.accepted,
        "payload": {
            "signature": format!("0x{}", hex::encode(payment.signature)),
            "authorization": {
                "from": a.from.to_string(), "to": a.to.to_string(), "value": a.value.to_string(),
                "validAfter": a.valid_after.to_string(), "validBefore": a.valid_before.to_string(),
                "nonce": format!("0x{}", hex::encode(a.nonce)),
            },
        },
    })
    .to_string()
}

pub fn what_a_chain_may_do_to_a_payment(place: &Place) {
    let chain = Toy::default();
    let shop = shop(place, &chain);
    // Reverted: nothing is credited; until it has expired somebody else may still send it, then it is closed.
    chain.set(|ledger| ledger.reverts = true);
    for _ in 0..2 {
        assert!(matches!(shop.pay(1, "req-1").unwrap(), Settlement::Failed { .. }));
    }
    assert_eq!(
        (shop.wall.recover(&|| NOON + 61).unwrap(), shop.wall.book().unsettled_payments().unwrap().len()),
        (0, 1)
    );
    assert_eq!(
        (shop.wall.recover(&|| NOON + 180).unwrap(), shop.wall.book().unsettled_payments().unwrap().len()),
        (0, 0)
    );
    assert_eq!(reason(shop.pay(1, "req-1")), "invalid_exact_evm_nonce_already_used");
    // Overtaken: somebody else sent the very authorisation, so ours was reverted and the money is here.
    chain.set(|ledger| (ledger.reverts, ledger.overtaken) = (false, true));
    match shop.pay(2, "req-2").unwrap() {
        Settlement::Settled { transaction } => assert!(transaction.starts_with("0xother"), "{transaction}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(shop.cash(), 10_000_000_000);
    // A token that logs something else has not moved what was asked for.
    chain.set(|ledger| (ledger.overtaken, ledger.lies) = (false, true));
    assert!(matches!(shop.pay(3, "req-3").unwrap(), Settlement::Failed { .. }));
    // A node that is away: no payment is taken, none is lost.
    chain.set(|ledger| (ledger.lies, ledger.away) = (false, true));
    assert!(matches!(shop.pay(4, "req-4"), Err(BookError::Chain(_))));
    chain.set(|ledger| ledger.away = false);
    // A token that refuses for now: the payment stays open, and a stranger's transaction settles it.
    chain.set(|ledger| ledger.refuses = true);
    assert_eq!(shop.pay(6, "req-6").unwrap(), Settlement::Pending { transaction: None });
    chain.set(|ledger| {
        ledger.refuses = false;
        let what = shop.authorization(6, 10_000);
        ledger.take(&what, "other");
    });
    assert_eq!((shop.wall.recover(&|| NOON + 300).unwrap(), shop.cash()), (1, 20_000_000_000));
    assert!(matches!(shop.pay(4, "req-4").unwrap(), Settlement::Settled { .. }));
    // One authorisation, many requests at once: one is served.
    let served: usize = std::thread::scope(|scope| {
        let shop = &shop;
        let pay = |n: usize| {
            scope
                .spawn(move || usize::from(matches!(shop.pay(5, &format!("race-{n}")), Ok(Settlement::Settled { .. }))))
        };
        let racers: Vec<_> = (0..4).map(pay).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!((served, shop.cash()), (1, 40_000_000_000));
    shop.wall.book().verify().unwrap();
}

/// Headers of either version, and what is none.
#[test]
fn headers() {
    let resource =
        Resource { url: "http://x/y".into(), description: "an answer".into(), mime_type: "application/json".into() };
    let header = wire::required_header(&offer(), &resource, 10_000, "payment required");
    let engine = base64::engine::general_purpose::STANDARD;
    let quote: serde_json::Value = serde_json::from_slice(&engine.decode(header).unwrap()).unwrap();
    assert_eq!(quote["accepts"][0]["network"], "eip155:31337");
    assert_eq!(quote["accepts"][0]["amount"], "10000");
    assert_eq!(quote["resource"]["mimeType"], "application/json");
    let body = wire::required_body(&offer(), &resource, 10_000, "payment required");
    assert_eq!((&body["x402Version"], &body["accepts"][0]["maxAmountRequired"]), (&json!(1), &json!("10000")));
    for bad in ["", "!", "e30=", "bnVsbA==", &engine.encode("{\"x402Version\":2,\"payload\":{}}"), &"A".repeat(20_000)]
    {
        assert_eq!(reason(Payment::read(bad)), "invalid_payload", "{bad:.40}");
    }
}

#[test]
fn a_table_of_another_currency_is_refused() {
    let place = Place::sqlite();
    let mut book: Book = place.open();
    let table = table(&mut book);
    let error = Paywall::new(offer(), Box::new(Toy::default()), book, table).err().unwrap();
    assert_eq!(error.to_string(), "pay table: currency: expected USDC, found USD");
}
