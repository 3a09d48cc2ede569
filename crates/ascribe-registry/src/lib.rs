//! Which datasets exist, whose they are, on what signed terms, pinned by content root; and the records of training runs.
//!
//! Here live the strict record reader, manifests, EIP-712 licences, the licence log, training-run records and their signed
//! envelopes, signatures of model folders, usage receipts and their log, the check of all of them, and what makes a dataset
//! folder. Here never live tokens, scores or payouts.
//!
//! Layout of a registry folder, one folder per dataset, datasets in the order of their names:
//!
//! ```text
//! licences.log             one licence digest a line, in order of registration, append-only
//! licences.tlog/           the same entries as a transparency log with signed checkpoints, for tools that are not ours
//! NAME/manifest.json       what the dataset is and who is paid
//! NAME/licence.json        the EIP-712 message, its signature and digest
//! NAME/terms.txt           the legal text that the licence pins
//! NAME/records.jsonl       {"id", "text"} a line, what the content root pins
//! ```
//!
//! Everything that a licence says is checked against the bytes beside it, so a reader needs to trust only the licence
//! digest, and the log fixes which digests there were when a model was trained.

// The official context of Croissant is one JSON literal.
#![recursion_limit = "512"]

mod account;
pub mod content;
mod did;
mod dsse;
mod error;
pub mod export;
mod files;
mod history;
mod ids;
mod ingest;
mod key;
pub mod keystore;
mod licence;
mod log;
mod manifest;
mod membership;
mod model_signing;
pub mod near;
pub mod prepare;
mod reference;
pub mod registrar;
mod registry;
mod revocation;
mod run;
mod run_check;
mod run_record;
mod run_signed;
mod run_wire;
pub mod select;
mod settings;
mod signed;
mod signer;
mod sorter;
mod source;
mod spdx_terms;
mod status;
pub mod tiles;
pub mod typed_data;
mod usage;
mod usage_each;
mod usage_log;
mod usage_run;
mod verify;
mod wire;

pub use account::{Address, check_account};
pub use content::{Record, read_records};
pub use did::{Did, DidKey, DidLicence};
pub use dsse::{Envelope, IN_TOTO_PAYLOAD};
pub use error::RegistryError;
pub use history::Past;
pub use ingest::{CanonicalRecord, Ingest};
pub use key::LicenceKey;
pub use licence::{
    LICENCE_FORMAT_VERSION, Licence, LicenceDigest, LicenceMessage, Licensor, RegistryDomain, sign_licence,
    verify_licence,
};
pub use log::{LicenceLog, LogHead};
pub use manifest::{MANIFEST_FORMAT_VERSION, Manifest, Payee, Source, check_name, dataset_uuid};
pub use membership::{MembershipProof, PROOF_FORMAT_VERSION};
pub use model_signing::{MODEL_SIGNATURE_FILE, ModelKey, ModelManifest, sign_model, verify_model};
pub use reference::SOURCES_FORMAT_VERSION;
pub use registry::{Dataset, Owner, Owners, Registry};
pub use revocation::{REVOCATION_FORMAT_VERSION, Revocation, RevocationMessage};
pub use run::{DatasetUse, RunDetail, RunRecord, Subject};
pub use run_check::{RunFault, RunFinding, RunPolicy, RunTrust, StartProof, check_run_start};
pub use run_record::{ListedDataset, RunFacts, StartEvidence, finish_run, plan_run, read_dataset_list};
pub use run_signed::{RUN_ENVELOPE_FILE, SignedRun, check_subjects, open_run, sign_run};
pub use run_wire::parse_moment;
pub use settings::{DEFAULT_DATABASE, SETTINGS_FORMAT_VERSION, Settings};
pub use signed::{NewSigned, SignedLicence};
pub use signer::Signer;
pub use source::{EXPANSION_CAP, Fields, SourceFormat, SourceSet};
pub use spdx_terms::normalise as normalise_licence;
pub use status::LicenceStatus;
pub use usage::{
    SealedUsage, SettledRevenue, SignedUsage, USAGE_FORMAT_VERSION, Usage, UsageError, UsageReceipt, UsageShare,
    salted_hash,
};
pub use usage_each::each_usage_receipt;
pub use usage_log::{UsageAudit, UsageLog, usage_checkpoint, verify_usage_log, verify_usage_proof};
pub use usage_run::{
    DEMO_USAGE_ORIGIN, PaidResponse, PaidShares, Settled, SharesDigest, UsageRun, UsageSalts, check_usage_run,
    demo_usage_signer, even_minor, read_usage_key, request_id, usage_signer,
};
pub use verify::{DatasetReport, VerifyReport};
