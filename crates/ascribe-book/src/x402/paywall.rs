//! The paywall: what is offered, whether a payment fits it, and its way through the chain into the book.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ascribe_ledger::{Currency, EvmAddress, Money};

use crate::book::Book;
use crate::error::BookError;
use crate::payments::{Credit, NewPayment, PaymentState, StoredPayment};
use crate::revenue::PayTable;
use crate::x402::authorization::TokenDomain;
use crate::x402::chain::Chain;
use crate::x402::wire::{Payment, requirements};

/// Time that a payment must still be valid for when it is sent, in seconds.
const MARGIN_S: u64 = 6;
/// Time after its end for which an authorisation may still turn up: blocks carry their own clock.
const GRACE_S: u64 = 120;
/// Between two looks for a receipt.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// In which token, to whom, on which chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The token and its EIP-712 domain.
    pub domain: TokenDomain,
    /// Who is paid.
    pub pay_to: EvmAddress,
    /// Currency of the book; its decimals are the token's.
    pub currency: Currency,
    /// How long a payer may take to answer a quote.
    pub max_timeout_s: u64,
    /// Name of the chain in version 1 of the protocol, where it has one.
    pub name_v1: Option<String>,
    /// Blocks that must stand on a payment, its own included.
    pub confirmations: u64,
    /// How long to wait for them before the payment is called pending.
    pub settle_wait: Duration,
}

impl Offer {
    /// The chain as CAIP-2.
    pub fn network(&self) -> String {
        format!("eip155:{}", self.domain.chain_id)
    }

    /// The chain's name in version 1.
    pub fn network_v1(&self) -> String {
        self.name_v1.clone().unwrap_or_else(|| self.network())
    }
}

/// A payment that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The payment.
    pub payment: Payment,
    /// Its idempotency key: network, token, payer, nonce.
    pub key: String,
}

/// How a settlement ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The money has moved and is credited.
    Settled {
        /// Hash of the transaction.
        transaction: String,
    },
    /// The chain has not said yet; nothing is credited. The same payment may be presented again.
    Pending {
        /// Hash of the transaction, once there is one.
        transaction: Option<String>,
    },
    /// It will not settle; nothing is credited.
    Failed {
        /// Why.
        why: String,
    },
}

/// A paywall over one book.
pub struct Paywall {
    offer: Offer,
    chain: Box<dyn Chain>,
    book: Mutex<Book>,
    table: Mutex<PayTable>,
    /// Keys that some request is settling now.
    in_flight: Mutex<HashSet<String>>,
}

/// What a panicking thread left is still consistent: every change of the book is a transaction.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse<T>(reason: &'static str, why: impl Into<String>) -> Result<T, BookError> {
    Err(BookError::Payment { reason, why: why.into() })
}

impl Paywall {
    /// A paywall that credits `book` by `table`.
    ///
    /// # Errors
    /// A table of another currency than the offer's.
    pub fn new(offer: Offer, chain: Box<dyn Chain>, book: Book, table: PayTable) -> Result<Self, BookError> {
        if table.currency() != offer.currency {
            let (expected, found) = (offer.currency.to_string(), table.currency().to_string());
            return Err(BookError::Field { what: "pay table: currency".into(), expected, found });
        }
        let (book, table, in_flight) = (Mutex::new(book), Mutex::new(table), Mutex::default());
        Ok(Self { offer, chain, book, table, in_flight })
    }

    /// What is offered.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The book, for one call at a time.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// The terms by which it credits.
    pub fn table(&self) -> PayTable {
        lock(&self.table).clone()
    }

    /// Replaces the terms: a licence was added or revoked.
    pub fn set_table(&self, table: PayTable) {
        *lock(&self.table) = table;
    }

    /// Checks that a payment is exactly what was asked for: scheme, network, token, payee, amount, window of time, signature, a
    /// nonce that neither the book nor the token has seen, and a balance that covers it.
    ///
    /// # Errors
    /// [`BookError::Payment`] with the protocol's word for it; [`BookError::Chain`] when the chain does not answer.
    pub fn verify(&self, payment: Payment, amount: u128, now_unix_s: u64) -> Result<Verified, BookError> {
        let (offer, asked) = (&self.offer, &payment.authorization);
        let expected = if payment.version == 1 { offer.network_v1() } else { offer.network() };
        if payment.network != expected && payment.network != offer.network() {
            return refuse("network_mismatch", format!("expected {expected}, found {:?}", payment.network));
        }
        if let Some(accepted) = &payment.accepted {
            let ours = requirements(offer, amount);
            let differs = |name: &&&str| accepted.get(**name).map(lower) != ours.get(**name).map(lower);
            if let Some(name) = ["scheme", "network", "amount", "asset", "payTo"].iter().find(differs) {
                return refuse("invalid_payment_requirements", format!("accepted.{name} is not what was offered"));
            }
        }
        if asked.to != offer.pay_to {
            let why = format!("expected the payee {}, found {}", offer.pay_to, asked.to);
            return refuse("invalid_exact_evm_payload_recipient_mismatch", why);
        }
        if asked.value != amount {
            let why = format!("expected {amount}, found {}", asked.value);
            return refuse("invalid_exact_evm_payload_authorization_value_mismatch", why);
        }
        if asked.valid_after >= now_unix_s {
            let why = format!("valid after {}, now {now_unix_s}", asked.valid_after);
            return refuse("invalid_exact_evm_payload_authorization_valid_after", why);
        }
        if asked.valid_before <= now_unix_s + MARGIN_S {
            let why = format!("valid before {}, now {now_unix_s} and {MARGIN_S} s to settle", asked.valid_before);
            return refuse("invalid_exact_evm_payload_authorization_valid_before", why);
        }
        asked.check_signature(&offer.domain, &payment.signature)?;
        let key = self.key(&payment);
        let known = self.book().payment(&key)?;
        if known.as_ref().is_some_and(|known| matches!(known.state, PaymentState::Settled | PaymentState::Failed)) {
            return refuse("invalid_exact_evm_nonce_already_used", "this authorisation was presented before");
        }
        let token = offer.domain.token;
        // One that we have sent ourselves may well be used.
        if known.is_none() {
            if self.chain.is_used(token, asked.from, &asked.nonce)? {
                return refuse("invalid_exact_evm_nonce_already_used", "the token has seen this authorisation");
            }
            if self.chain.balance(token, asked.from)? < amount {
                return refuse(
                    "invalid_exact_evm_insufficient_balance",
                    format!("{} holds less than {amount}", asked.from),
                );
            }
        }
        Ok(Verified { payment, key })
    }

    fn key(&self, payment: &Payment) -> String {
        let (network, token) = (self.offer.network(), self.offer.domain.token);
        format!("x402/{network}/{token}/{}/0x{}", payment.authorization.from, hex::encode(payment.authorization.nonce))
    }

    /// Sends a verified payment to the chain, waits for its receipt and credits it. The authorisation's nonce is the idempotency
    /// key: whatever is retried, it is credited once, and only after the receipt.
    ///
    /// # Errors
    /// [`BookError::Payment`] when the nonce was used for another request, or is being settled by another one; the database's.
    pub fn settle(
        &self,
        verified: &Verified,
        request: &str,
        credit: Credit,
        now: &dyn Fn() -> u64,
    ) -> Result<Settlement, BookError> {
        if !lock(&self.in_flight).insert(verified.key.clone()) {
            return refuse("invalid_exact_evm_nonce_already_used", "another request is settling this authorisation");
        }
        let settled = self.settle_alone(verified, request, credit, now);
        lock(&self.in_flight).remove(&verified.key);
        settled
    }

    fn settle_alone(
        &self,
        verified: &Verified,
        request: &str,
        credit: Credit,
        now: &dyn Fn() -> u64,
    ) -> Result<Settlement, BookError> {
        let Verified { payment, key } = verified;
        let amount = Money { minor: payment.authorization.value, currency: self.offer.currency };
        let new = NewPayment {
            key: key.clone(),
            request: request.to_owned(),
            amount,
            authorization_json: payment.to_json(),
            credit,
        };
        let known = self.book().begin_payment(&new, now())?;
        let transaction = match known {
            None => None,
            Some(StoredPayment { state: PaymentState::Settled | PaymentState::Failed, .. }) => {
                return refuse("invalid_exact_evm_nonce_already_used", "this authorisation was presented before");
            }
            Some(known) if known.payment.request != request => {
                return refuse("invalid_exact_evm_nonce_already_used", "this authorisation pays for another request");
            }
            Some(known) => known.transaction,
        };
        self.advance(key, payment, transaction, self.offer.settle_wait, now)
    }

    /// Brings one payment as far as the chain lets it within `wait`.
    ///
    /// An authorisation can be used by anybody until it expires, so nothing that happens before then is final but a receipt: a
    /// payment that was refused or reverted stays open, and [`Paywall::recover`] closes it.
    fn advance(
        &self,
        key: &str,
        payment: &Payment,
        transaction: Option<String>,
        wait: Duration,
        now: &dyn Fn() -> u64,
    ) -> Result<Settlement, BookError> {
        let (token, what, until) = (self.offer.domain.token, &payment.authorization, Instant::now() + wait);
        let mut transaction = transaction;
        loop {
            if transaction.is_none() {
                transaction = self.sent(token, payment);
                if let Some(sent) = &transaction {
                    self.book().payment_sent(key, sent, now())?;
                }
            }
            let receipt = transaction.as_ref().map(|sent| self.chain.receipt(token, what, sent));
            match (receipt, &transaction) {
                (Some(Ok(Some(found))), Some(sent)) if found.success && !found.moved => {
                    let why = format!("transaction {sent} moved something else");
                    self.book().payment_failed(key, &why, now())?;
                    return Ok(Settlement::Failed { why });
                }
                (Some(Ok(Some(found))), Some(sent))
                    if found.success && found.confirmations >= self.offer.confirmations =>
                {
                    let table = self.table();
                    self.book().payment_settled(key, &table, now())?;
                    return Ok(Settlement::Settled { transaction: sent.clone() });
                }
                // Somebody else sent it first: then ours was reverted, and the money has moved all the same.
                (Some(Ok(Some(found))), Some(sent)) if !found.success => match self.chain.find(token, what)? {
                    Some(other) if other != *sent => {
                        self.book().payment_sent(key, &other, now())?;
                        transaction = Some(other);
                        continue;
                    }
                    _ => return Ok(Settlement::Failed { why: format!("transaction {sent} was reverted") }),
                },
                // Not sent, not in a block yet, too few blocks on it, or a node that does not answer: look again.
                _ => {}
            }
            if Instant::now() >= until {
                return Ok(Settlement::Pending { transaction });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The transaction that carries a payment: the one that did already, or a new one. Nothing when neither can be had now, because
    /// the node is away, or because a transaction that no block has taken yet uses the authorisation.
    fn sent(&self, token: EvmAddress, payment: &Payment) -> Option<String> {
        let what = &payment.authorization;
        let found = || self.chain.find(token, what).ok().flatten();
        found().or_else(|| self.chain.send(token, what, &payment.signature).ok()).or_else(found)
    }

    /// Asks the chain about every payment that a crash or a slow chain left open, and credits those that have settled. Returns
    /// how many did.
    ///
    /// # Errors
    /// The database's and the chain's.
    pub fn recover(&self, now: &dyn Fn() -> u64) -> Result<usize, BookError> {
        let open = self.book().unsettled_payments()?;
        let mut n_settled = 0;
        for StoredPayment { payment: new, transaction, .. } in open {
            let payment = Payment::of_json(&new.authorization_json)?;
            if self.key(&payment) != new.key || !lock(&self.in_flight).insert(new.key.clone()) {
                continue;
            }
            let outcome = self.reconsider(&new, &payment, transaction, now);
            lock(&self.in_flight).remove(&new.key);
            n_settled += usize::from(outcome?);
        }
        Ok(n_settled)
    }

    /// True when the payment has settled. Nobody waits for its answer any more, so it is not sent again; once it has expired unused
    /// it is closed.
    fn reconsider(
        &self,
        new: &NewPayment,
        payment: &Payment,
        transaction: Option<String>,
        now: &dyn Fn() -> u64,
    ) -> Result<bool, BookError> {
        let what = &payment.authorization;
        let used = self.chain.find(self.offer.domain.token, what)?;
        if used.is_none() && what.valid_before + GRACE_S <= now() {
            self.book().payment_failed(&new.key, "it expired unused", now())?;
            return Ok(false);
        }
        let Some(known) = used.or(transaction) else { return Ok(false) };
        let outcome = self.advance(&new.key, payment, Some(known), Duration::ZERO, now)?;
        Ok(matches!(outcome, Settlement::Settled { .. }))
    }
}

/// Addresses are compared without their checksum's letters.
fn lower(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_ascii_lowercase()
}
