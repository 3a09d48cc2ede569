//! Arguments of `ascribe registry` and `ascribe licence`.

use std::path::PathBuf;

use ascribe_registry::keystore::KeyKind;
use clap::{Args, Subcommand, ValueEnum};

/// Which registry.
#[derive(Clone, Debug, Args)]
pub struct RegistryDir {
    /// Registry folder [default: the nearest one with registry.json, at or above the current folder].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Registry commands.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Make a registry: a folder with a settings file, an empty licence log and a database.
    #[command(after_help = "Example:\n  ascribe registry init registry\n  \
        ascribe registry init registry --database postgresql://user@localhost/ascribe")]
    Init {
        /// Folder, made if need be.
        dir: PathBuf,
        /// What the registry is called; its keccak256 is the salt that every signature is bound to [default: a random one].
        #[arg(long)]
        name: Option<String>,
        /// Network whose wallets sign (EIP-155 chain id).
        #[arg(long, default_value_t = 1)]
        chain_id: u64,
        /// Where the tables lie.
        #[arg(long, default_value = ascribe_registry::DEFAULT_DATABASE)]
        database: String,
        /// Secret key file of the licence log, from `ascribe log keygen`; it stays where it is [default: a new one in .secret/].
        #[arg(long, value_name = "FILE")]
        log_key: Option<PathBuf>,
    },
    /// Register a folder or file of records: JSONL, CSV, Parquet, Arrow, text, a saved Hugging Face dataset; also .gz and .zst.
    ///
    /// At a terminal it asks for what was not given.
    #[command(after_help = "Example:\n  ascribe registry add corpus/ --licence CC-BY-4.0 \
        --payee eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\n  \
        ascribe registry add news.parquet --text-field body --id-field url --licence LicenseRef-news \\\n    \
        --payee eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed=600000 \\\n    \
        --payee eip155:1:0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf=400000")]
    Add(Box<AddArgs>),
    /// What is registered, and under which licences.
    #[command(after_help = "Example:\n  ascribe registry list --format json")]
    List {
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Recompute every hash and check every signature; with a model, refuse licences newer than its training run.
    #[command(after_help = "Example:\n  ascribe registry verify registry\n  ascribe registry verify --model wren")]
    Verify {
        /// Registry folder [default: the nearest registry, or the datasets/ of the home folder].
        dir: Option<PathBuf>,
        /// Model folder under models/ whose training run the licences must precede [default for datasets/: the demo model].
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
    },
    /// Describe a dataset for others: --format croissant, rsl or ai-act (the EU summary of training content).
    #[command(after_help = "Example:\n  ascribe registry export --format croissant my-corpus --out my-corpus.json")]
    Export {
        /// Name or urn:uuid of the dataset.
        id: String,
        /// File to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Records that say the same, exactly or nearly, within and across datasets; the earliest licence first.
    #[command(after_help = "Example:\n  ascribe registry duplicates --format json\n  \
        ascribe registry duplicates --folder a.jsonl --folder b/ --jaccard 0.6")]
    Duplicates(DuplicatesArgs),
    /// Prove that a record is part of a dataset: the record and its RFC 6962 path to the content root.
    #[command(after_help = "Example:\n  ascribe registry prove my-corpus --record doc-17 --out proof.json")]
    Prove {
        /// Name or urn:uuid of the dataset.
        id: String,
        /// Id of the record.
        #[arg(long, value_name = "RECORD")]
        record: String,
        /// File to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Check a proof that a record is part of a dataset; needs no registry.
    #[command(after_help = "Example:\n  ascribe registry check-proof proof.json --root 5adb90b6...")]
    CheckProof {
        /// The proof.
        file: PathBuf,
        /// Content root that the proof must lead to [default: the one that it states].
        #[arg(long, value_name = "HEX")]
        root: Option<String>,
    },
    /// Claim that a dataset is not its contributor's; settlement waits until the dispute is closed.
    #[command(
        after_help = "Example:\n  ascribe registry dispute my-corpus --claimant 'Ann' --reason 'copied from my site'\n  \
        ascribe registry dispute --close 3 --outcome 'withdrawn'"
    )]
    Dispute {
        /// Name or urn:uuid of the dataset.
        #[arg(required_unless_present = "close")]
        id: Option<String>,
        /// Who claims.
        #[arg(long, requires = "id", required_unless_present = "close")]
        claimant: Option<String>,
        /// Why.
        #[arg(long, requires = "id", required_unless_present = "close")]
        reason: Option<String>,
        /// Close a dispute by its number.
        #[arg(long, value_name = "N", conflicts_with = "id", requires = "outcome")]
        close: Option<u64>,
        /// How it ended.
        #[arg(long)]
        outcome: Option<String>,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
}

/// A folder and what its contributor says about it.
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// Folder or file with the records.
    pub folder: PathBuf,
    /// SPDX licence expression; terms of your own are LicenseRef-NAME.
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
    /// Who is paid: an account (CAIP-10: `eip155:CHAIN:ADDRESS`), or ACCOUNT=PPM for several, whose parts per million sum to 1000000.
    #[arg(long = "payee", value_name = "CAIP10[=PPM]")]
    pub payees: Vec<String>,
    /// Name of the dataset: a-z, 0-9 and - [default: the folder's].
    #[arg(long)]
    pub name: Option<String>,
    /// Title for people [default: the name].
    #[arg(long)]
    pub title: Option<String>,
    /// Whose it is; datasets with one owner have the same payees [default: the first payee's account].
    #[arg(long)]
    pub owner: Option<String>,
    /// Language tag of the texts.
    #[arg(long, default_value = "und")]
    pub language: String,
    /// Permitted uses, RSL tokens: ai-train, ai-input, ai-index, ai-all, search.
    #[arg(long = "permit", value_name = "USE", default_value = "ai-train")]
    pub permits: Vec<String>,
    /// Prohibited uses; they win over permits.
    #[arg(long = "prohibit", value_name = "USE")]
    pub prohibits: Vec<String>,
    /// Legal text that the licence pins [default: the folder's LICENSE, or one sentence that names the licence].
    #[arg(long, value_name = "FILE")]
    pub terms: Option<PathBuf>,
    /// Where the texts were taken from.
    #[arg(long, default_value = "the contributor's own")]
    pub source: String,
    /// Version of that source.
    #[arg(long, default_value = "1")]
    pub source_version: String,
    /// What a reader should know.
    #[arg(long, default_value = "")]
    pub notes: String,
    /// Column of the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// Column of the id; records without one are called by their file and place.
    #[arg(long, value_name = "NAME", default_value = "id")]
    pub id_field: String,
    /// Leave records without text out, in place of refusing them.
    #[arg(long)]
    pub skip_empty: bool,
    /// Register the files where they lie, without a copy in the registry.
    #[arg(long)]
    pub in_place: bool,
    /// Which registry.
    #[command(flatten)]
    pub registry: RegistryDir,
}

/// What is compared, and when it is near.
#[derive(Clone, Debug, Args)]
pub struct DuplicatesArgs {
    /// Compare these folders or files in place of a registry's datasets.
    #[arg(long = "folder", value_name = "PATH")]
    pub folders: Vec<PathBuf>,
    /// Column of the text, for folders.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_field: String,
    /// Column of the id, for folders.
    #[arg(long, value_name = "NAME", default_value = "id")]
    pub id_field: String,
    /// Least Jaccard similarity of word shingles.
    #[arg(long, default_value_t = ascribe_registry::near::Thresholds::default().jaccard)]
    pub jaccard: f64,
    /// Least containment of the shorter record in the longer.
    #[arg(long, default_value_t = ascribe_registry::near::Thresholds::default().containment)]
    pub containment: f64,
    /// Which registry.
    #[command(flatten)]
    pub registry: RegistryDir,
}

/// Licence commands.
#[derive(Debug, Subcommand)]
pub enum LicenceCommand {
    /// Make a key and its keystore file.
    #[command(after_help = "Example:\n  ascribe licence new-key --out key.json --passphrase-file phrase.txt")]
    NewKey {
        /// Keystore file to write; must not be there yet.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Kind of key.
        #[arg(long, value_enum, default_value_t = Kind::Secp256k1)]
        kind: Kind,
        /// Where the passphrase comes from.
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Sign the licence of a dataset with a keystore, and register it.
    #[command(
        after_help = "Example:\n  ascribe licence sign my-corpus --keystore key.json --passphrase-file phrase.txt"
    )]
    Sign {
        /// Name or urn:uuid of the dataset.
        id: String,
        /// Keystore and passphrase.
        #[command(flatten)]
        key: KeyArgs,
        /// How long it holds.
        #[command(flatten)]
        window: WindowArgs,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Write the EIP-712 typed data of a licence or revocation, for any wallet to sign offline.
    #[command(
        after_help = "Example:\n  ascribe licence prepare my-corpus --licensor 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed \
        --out typed.json\n  ascribe licence prepare my-corpus --revoke --reason 'sold' --out typed.json"
    )]
    Prepare {
        /// Name or urn:uuid of the dataset.
        id: String,
        /// Address that will sign (EIP-55).
        #[arg(long, value_name = "ADDRESS", required_unless_present = "revoke")]
        licensor: Option<String>,
        /// Prepare the revocation of its licence.
        #[arg(long, conflicts_with = "licensor")]
        revoke: bool,
        /// Why it is revoked.
        #[arg(long, default_value = "", requires = "revoke")]
        reason: String,
        /// From when on it is revoked: Unix seconds [default: now].
        #[arg(long, value_name = "UNIX_S", requires = "revoke")]
        effective_from: Option<u64>,
        /// How long it holds.
        #[command(flatten)]
        window: WindowArgs,
        /// File to write [default: stdout].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Register a licence or revocation that was signed elsewhere.
    #[command(after_help = "Example:\n  ascribe licence submit --typed-data typed.json --signature 0x...\n  \
        ascribe licence submit --file licence.json")]
    Submit {
        /// Typed data that `prepare` wrote.
        #[arg(long, value_name = "FILE", requires = "signature", required_unless_present = "file")]
        typed_data: Option<PathBuf>,
        /// Its signature: 0x and 130 hex digits.
        #[arg(long, value_name = "HEX")]
        signature: Option<String>,
        /// A whole licence or revocation file, of either kind of key.
        #[arg(long, value_name = "FILE", conflicts_with = "typed_data")]
        file: Option<PathBuf>,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Check a dataset's licence, or a licence file: signature, domain, content, log, validity now.
    #[command(after_help = "Example:\n  ascribe licence verify my-corpus\n  ascribe licence verify licence.json")]
    Verify {
        /// Name or urn:uuid of a dataset, or a licence file.
        id: String,
        /// Moment at which it must hold, Unix seconds [default: now].
        #[arg(long, value_name = "UNIX_S")]
        at: Option<u64>,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
    /// Revoke the licence of a dataset: it no longer counts for runs that begin later.
    #[command(
        after_help = "Example:\n  ascribe licence revoke my-corpus --keystore key.json --reason 'rights were sold'"
    )]
    Revoke {
        /// Name or urn:uuid of the dataset.
        id: String,
        /// Keystore and passphrase.
        #[command(flatten)]
        key: KeyArgs,
        /// Why, for people.
        #[arg(long, default_value = "")]
        reason: String,
        /// From when on: Unix seconds [default: now].
        #[arg(long, value_name = "UNIX_S")]
        effective_from: Option<u64>,
        /// Which registry.
        #[command(flatten)]
        registry: RegistryDir,
    },
}

/// Where a passphrase comes from: never from the command line or a variable.
#[derive(Clone, Debug, Args)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase; - is stdin [default: asks at the terminal].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// A keystore and its passphrase.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// Keystore file (version 3, as Ethereum's wallets keep keys; `ascribe licence new-key` makes one).
    #[arg(long, value_name = "FILE")]
    pub keystore: PathBuf,
    /// Where the passphrase comes from.
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// When a licence holds.
#[derive(Clone, Debug, Args)]
pub struct WindowArgs {
    /// First moment of validity, Unix seconds [default: now].
    #[arg(long, value_name = "UNIX_S")]
    pub valid_from: Option<u64>,
    /// First moment after validity, Unix seconds; 0 is open.
    #[arg(long, value_name = "UNIX_S", default_value_t = 0)]
    pub valid_until: u64,
}

/// Kinds of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Ethereum's; signs EIP-712.
    Secp256k1,
    /// did:key; signs eddsa-jcs-2022.
    Ed25519,
}

impl From<Kind> for KeyKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Secp256k1 => Self::Secp256k1,
            Kind::Ed25519 => Self::Ed25519,
        }
    }
}
