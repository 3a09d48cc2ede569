//! Which datasets exist, whose they are, on what signed terms, pinned by content root; and the records of training runs.
//!
//! Here live the strict record reader, manifests, EIP-712 licences, the licence log, training-run records, the check of
//! all of them, and what makes a dataset folder. Here never live tokens, models, scores or money.
//!
//! Layout of a registry folder, one folder per dataset, datasets in the order of their names:
//!
//! ```text
//! licences.log             one licence digest a line, in order of registration, append-only
//! NAME/manifest.json       what the dataset is and who is paid
//! NAME/licence.json        the EIP-712 message, its signature and digest
//! NAME/terms.txt           the legal text that the licence pins
//! NAME/records.jsonl       {"id", "text"} a line, what the content root pins
//! ```
//!
//! Everything that a licence says is checked against the bytes beside it, so a reader needs to trust only the licence
//! digest, and the log fixes which digests there were when a model was trained.

mod account;
pub mod content;
mod error;
mod files;
mod key;
mod licence;
mod log;
mod manifest;
pub mod prepare;
mod registry;
mod run;
mod run_wire;
pub mod select;
mod verify;
mod wire;

pub use account::{Address, check_account};
pub use content::{Record, read_records};
pub use error::RegistryError;
pub use key::LicenceKey;
pub use licence::{
    LICENCE_FORMAT_VERSION, Licence, LicenceDigest, LicenceMessage, RegistryDomain, sign_licence, verify_licence,
};
pub use log::{LicenceLog, LogHead};
pub use manifest::{MANIFEST_FORMAT_VERSION, Manifest, Payee, Source, dataset_uuid};
pub use registry::{Dataset, Owner, Owners, Registry};
pub use run::{DatasetUse, RunRecord, Subject};
pub use verify::{DatasetReport, VerifyReport};
