//! The journal as a plain-text accounting file that `ledger` and `hledger` read: the accountant's second opinion.
//! Export only; what is read back is `journal.json`.

use std::fmt::Write as _;

use ascribe_core::Digest;

use crate::journal::Journal;
use crate::transfer::{Account, Memo, Payee, Phase, Transfer};

impl Journal {
    /// The text journal. Debits are positive, credits negative; pending transfers carry the mark `!`, done ones `*`.
    ///
    /// A posted or voided pending transfer stands once, in its final state. Owner names are reduced to letters, digits
    /// and dashes because the format gives colons and double spaces a meaning; a reduced name carries a piece of its
    /// hash, so two owners never fall together. Deterministic.
    pub fn to_text(&self) -> String {
        let mut out = format!("; run {}\n; period {}\n", self.run_id(), self.run().period);
        for transfer in self.transfers() {
            let state = match transfer.phase {
                Phase::Posted | Phase::PostPending { .. } => '*',
                Phase::Pending if !self.is_resolved(&transfer.id) => '!',
                Phase::Pending | Phase::VoidPending { .. } => continue,
            };
            self.put_transfer(&mut out, transfer, state);
        }
        out
    }

    fn put_transfer(&self, out: &mut String, transfer: &Transfer, state: char) {
        let date = self.run().period.end();
        let amount = transfer.amount.decimal(self.currency());
        let code = self.currency();
        let memo = describe(&transfer.memo);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "\n{date} {state} {memo}  ; id:{}\n    {}  {amount} {code}\n    {}  -{amount} {code}\n",
            transfer.id,
            account_text(&transfer.debit),
            account_text(&transfer.credit),
        );
    }
}

fn describe(memo: &Memo) -> String {
    match memo {
        Memo::Fund => "fund".into(),
        Memo::Accrual { response, dataset } => format!("response {response} by {dataset}"),
        Memo::Unattributed { response, reason } => format!("response {response} unattributed {reason:?}"),
        Memo::EventDust { response } => format!("response {response} dust"),
        Memo::PoolDust => "pool dust".into(),
        Memo::Settlement => "settlement".into(),
    }
}

fn account_text(account: &Account) -> String {
    match account {
        Account::Payable(Payee { owner, account: Some(account) }) => {
            format!("Liabilities:Payable:{}:{}", plain(owner), account.as_str().replace(':', "-"))
        }
        Account::Payable(Payee { owner, account: None }) => format!("Liabilities:Payable:{}:no-account", plain(owner)),
        other => other.to_string(),
    }
}

fn plain(owner: &str) -> String {
    let reduced: String = owner.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    if reduced == owner {
        return reduced;
    }
    let hash = Digest::of(owner.as_bytes()).to_string();
    format!("{reduced}-{}", &hash[..8])
}
