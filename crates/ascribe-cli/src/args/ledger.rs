//! Arguments of `ascribe ledger`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// Where the book is.
#[derive(Clone, Debug, Args)]
pub struct BookArgs {
    /// The book: sqlite:PATH or postgresql://USER@HOST/NAME.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ASCRIBE_LEDGER",
        hide_env_values = true,
        default_value = "sqlite:ledger.db"
    )]
    pub ledger: String,
}

/// When something happened.
#[derive(Clone, Debug, Args)]
pub struct MomentArgs {
    /// When, as RFC 3339 such as 2026-11-29T12:00:00Z [default: now].
    #[arg(long, value_name = "MOMENT")]
    pub at: Option<String>,
}

/// Whose balance is meant.
#[derive(Clone, Debug, Args)]
pub struct PayeeArgs {
    /// Owner, as the registry names them.
    #[arg(long)]
    pub owner: String,
    /// Their account (CAIP-10: `eip155:CHAIN:ADDRESS`), as the licence names it; without it, the balance that has none.
    #[arg(long, value_name = "CAIP10")]
    pub account: Option<String>,
}

/// Commands of the ledger.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Make a book, or bring its tables up to date.
    #[command(after_help = "Example:\n  ascribe ledger init --ledger sqlite:ledger.db")]
    Init {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
    },
    /// Book responses that were paid for, the receipts of a usage log, or a payout run. What is there already changes nothing.
    ///
    /// Of a usage log (DIR/usage of a server's state folder) everything is verified first; then each receipt with revenue is a response,
    /// covered as far as its weights go.
    ///
    /// Each line of EVENTS is a JSON object: id, at (RFC 3339), revenue (such as "0.0012 USD"), shares ([{"dataset", "weight"}]), and
    /// optionally coverage_ppm and customer, whose prepaid balance is debited.
    #[command(
        after_help = "Example:\n  ascribe ledger accrue --events responses.jsonl --registry datasets --operator-ppm 150000\n  \
        ascribe ledger accrue --usage state/usage --key usage.vkey --registry datasets --operator-ppm 150000\n  \
        ascribe ledger accrue --run payout"
    )]
    Accrue(AccrueArgs),
    /// Credit a customer's prepaid balance with money that has settled.
    #[command(
        after_help = "Example:\n  ascribe ledger top-up --customer acme --amount \"100.00 USD\" --reference \"bank 2026-11-29/7\""
    )]
    TopUp {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
        /// The customer.
        #[arg(long)]
        customer: String,
        /// How much.
        #[arg(long)]
        amount: String,
        /// What settled: the same reference is credited once.
        #[arg(long)]
        reference: String,
        /// When.
        #[command(flatten)]
        moment: MomentArgs,
    },
    /// Reserve what payees may have now, or book what became of a settlement's payments.
    #[command(
        after_help = "Example:\n  ascribe ledger settle --currency USD --as-of 2026-12-01T00:00:00Z --minimum \"5.00 USD\" --hold-days 30\n  \
        ascribe ledger settle --post ID\n  ascribe ledger settle --void ID --owner \"Ada\""
    )]
    Settle(SettleArgs),
    /// What every account holds.
    #[command(after_help = "Example:\n  ascribe ledger balance --format json")]
    Balance {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
    },
    /// Open, end and list disputes.
    #[command(
        subcommand,
        after_help = "Example:\n  ascribe ledger dispute open case-7 --owner Ada --currency USD --reason \"copied from Bob\"\n  \
        ascribe ledger dispute end case-7 --upheld"
    )]
    Dispute(DisputeCommand),
    /// Take money back: from the balance, and from what is earned next.
    #[command(
        after_help = "Example:\n  ascribe ledger clawback --owner Ada --account eip155:1:0xde70… --amount \"12.50 USD\" \
        --reference \"case 7\" --return-pending"
    )]
    Clawback {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
        /// From whom.
        #[command(flatten)]
        payee: PayeeArgs,
        /// How much.
        #[arg(long)]
        amount: String,
        /// Why: the same reference takes once.
        #[arg(long)]
        reference: String,
        /// Return payments that are on their way first.
        #[arg(long)]
        return_pending: bool,
        /// When.
        #[command(flatten)]
        moment: MomentArgs,
    },
    /// What an owner earned by which dataset, was paid, owes and has.
    #[command(after_help = "Example:\n  ascribe ledger statement --owner Ada --format json")]
    Statement {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
        /// The owner.
        #[arg(long)]
        owner: String,
    },
    /// Add every balance up again from the transfers, hash every entry again, apply every rule again.
    #[command(after_help = "Example:\n  ascribe ledger verify --ledger sqlite:ledger.db")]
    Verify {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
    },
    /// Write the whole book as a journal for hledger or beancount.
    #[command(after_help = "Example:\n  ascribe ledger export --to hledger --out ledger.journal")]
    Export {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
        /// For which program.
        #[arg(long, value_enum, default_value_t = Journal::Hledger)]
        to: Journal,
        /// The file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Programs of accountants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Journal {
    /// hledger and ledger.
    Hledger,
    /// beancount.
    Beancount,
}

/// What to book.
#[derive(Clone, Debug, Args)]
pub struct AccrueArgs {
    /// The book.
    #[command(flatten)]
    pub book: BookArgs,
    /// Responses, a JSON object a line; - is stdin.
    #[arg(long, value_name = "FILE", requires = "registry", required_unless_present_any = ["run", "usage"])]
    pub events: Option<PathBuf>,
    /// A usage log's folder, as `ascribe serve` keeps it: its receipts with revenue are booked.
    #[arg(long, value_name = "DIR", requires = "registry", conflicts_with_all = ["events", "run"])]
    pub usage: Option<PathBuf>,
    /// Verifier key of the usage log: a file or the line itself [default: the log's own log.vkey, which proves nothing about who signed].
    #[arg(long, value_name = "VKEY", requires = "usage")]
    pub key: Option<String>,
    /// Registry folder, for the terms of the datasets.
    #[arg(long, value_name = "DIR")]
    pub registry: Option<PathBuf>,
    /// A payout run's folder, which is verified first.
    #[arg(long, value_name = "DIR", conflicts_with = "events")]
    pub run: Option<PathBuf>,
    /// The operator's part of revenue, in parts per million: 150000 is 15 %.
    #[arg(long, value_name = "PPM", default_value_t = 0)]
    pub operator_ppm: u32,
    /// Part of revenue that is kept back for corrections, in parts per million.
    #[arg(long, value_name = "PPM", default_value_t = 0)]
    pub reserve_ppm: u32,
    /// Responses in one durable transaction.
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch: u32,
}

/// What to settle.
#[derive(Clone, Debug, Args)]
pub struct SettleArgs {
    /// The book.
    #[command(flatten)]
    pub book: BookArgs,
    /// Currency to settle.
    #[arg(long, value_name = "CODE", required_unless_present_any = ["post", "void"])]
    pub currency: Option<String>,
    /// Moment of the settlement, RFC 3339. The same terms are the same settlement.
    #[arg(long, value_name = "MOMENT", required_unless_present_any = ["post", "void"])]
    pub as_of: Option<String>,
    /// Smaller balances are carried, such as "5.00 USD" [default: one minor unit].
    #[arg(long, value_name = "AMOUNT")]
    pub minimum: Option<String>,
    /// Days that earnings are held before they may be paid.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub hold_days: u32,
    /// The payments of this settlement, or payout run, were made.
    #[arg(long, value_name = "ID", conflicts_with_all = ["void", "currency"])]
    pub post: Option<String>,
    /// The payments of this settlement, or payout run, were not made: they are owed again.
    #[arg(long, value_name = "ID", conflicts_with = "currency")]
    pub void: Option<String>,
    /// Only this owner's.
    #[arg(long)]
    pub owner: Option<String>,
    /// When they were made or came back.
    #[command(flatten)]
    pub moment: MomentArgs,
}

/// Commands for disputes.
#[derive(Debug, Subcommand)]
pub enum DisputeCommand {
    /// Freeze an amount of a payee's balance, or without one keep the payee from being paid.
    #[command(
        after_help = "Example:\n  ascribe ledger dispute open case-7 --owner Ada --account eip155:1:0xde70… --currency USD \
        --reason \"copied from Bob\""
    )]
    Open {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
        /// Name of the dispute.
        id: String,
        /// Over whose balance.
        #[command(flatten)]
        payee: PayeeArgs,
        /// Currency of the balance.
        #[arg(long, value_name = "CODE")]
        currency: String,
        /// Freeze this much, such as "12.50 USD" [default: everything].
        #[arg(long)]
        amount: Option<String>,
        /// Why.
        #[arg(long)]
        reason: String,
        /// When.
        #[command(flatten)]
        moment: MomentArgs,
    },
    /// End a dispute: upheld, the frozen amount is taken; otherwise it is the payee's again.
    #[command(after_help = "Example:\n  ascribe ledger dispute end case-7 --upheld")]
    End {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
        /// Name of the dispute.
        id: String,
        /// The claim was right.
        #[arg(long)]
        upheld: bool,
        /// When.
        #[command(flatten)]
        moment: MomentArgs,
    },
    /// All disputes.
    #[command(after_help = "Example:\n  ascribe ledger dispute list --format json")]
    List {
        /// The book.
        #[command(flatten)]
        book: BookArgs,
    },
}
