//! The state of a licence at a moment: what payouts, servers and auditors ask of one dataset.
//!
//! Revocation acts forward only: a run that began while the licence was in force goes on counting, so a reader asks for the
//! state at the moment that matters to it (the start of a run, the time of a response), never for the state now.

use serde::Serialize;

use crate::licence::{LicenceDigest, LicenceMessage};
use crate::manifest::{Manifest, permits_usage};
use crate::registry::{Dataset, Registry};
use crate::revocation::Revocation;
use crate::signed::SignedLicence;

/// A licence at a moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LicenceStatus {
    /// It counts.
    InForce,
    /// It stands in no line of the licence log: nobody registered it.
    NotRegistered,
    /// Its window begins later.
    NotYetValid {
        /// First moment of validity, Unix seconds.
        valid_from: u64,
    },
    /// Its window is over.
    Expired {
        /// First moment after validity, Unix seconds.
        valid_until: u64,
    },
    /// Its licensor has revoked it.
    Revoked {
        /// First moment at which it no longer counts, Unix seconds.
        effective_from: u64,
        /// Why, in the licensor's words.
        reason: String,
    },
}

impl LicenceStatus {
    /// True when the licence counts.
    pub const fn in_force(&self) -> bool {
        matches!(self, Self::InForce)
    }

    /// The state at `unix_s` of a licence that is registered. A revocation is named before a window that is over.
    pub(crate) fn of(message: &LicenceMessage<String>, revocation: Option<&Revocation>, unix_s: u64) -> Self {
        if let Some(revoked) = revocation.filter(|revoked| revoked.message.effective_from <= unix_s) {
            let message = &revoked.message;
            return Self::Revoked { effective_from: message.effective_from, reason: message.reason.clone() };
        }
        let LicenceMessage { valid_from, valid_until, .. } = *message;
        if valid_from > unix_s {
            Self::NotYetValid { valid_from }
        } else if valid_until != 0 && valid_until <= unix_s {
            Self::Expired { valid_until }
        } else {
            Self::InForce
        }
    }
}

/// A licence that some run relied on: the current one of a dataset, or one that was replaced since.
#[derive(Clone, Copy)]
pub(crate) struct Relied<'a> {
    pub(crate) name: &'a str,
    pub(crate) manifest: &'a Manifest,
    pub(crate) licence: &'a SignedLicence,
    pub(crate) revocation: Option<&'a Revocation>,
}

impl<'a> Relied<'a> {
    pub(crate) fn current(dataset: &'a Dataset) -> Self {
        let Dataset { manifest, licence, revocation, .. } = dataset;
        Self { name: &manifest.name, manifest, licence, revocation: revocation.as_ref() }
    }

    /// True when the terms grant a use and do not take it away.
    pub(crate) fn permits(&self, usage: &str) -> bool {
        let message = self.licence.message();
        permits_usage(&message.permits, &message.prohibits, usage)
    }

    pub(crate) fn status_at(&self, unix_s: u64) -> LicenceStatus {
        LicenceStatus::of(&self.licence.message(), self.revocation, unix_s)
    }
}

impl Registry {
    /// The state at `unix_s` of a dataset's current licence.
    ///
    /// Reads what is open already and checks no signature: [`Registry::verify`] does. Cost: a look-up.
    pub fn licence_status_at(&self, dataset: &Dataset, unix_s: u64) -> LicenceStatus {
        match self.log().index_of(dataset.licence.digest()) {
            Some(_) => Relied::current(dataset).status_at(unix_s),
            None => LicenceStatus::NotRegistered,
        }
    }

    /// The same of the licence with a digest, current or replaced: what a run that names the digest relied on. A licence that
    /// was replaced has the state that it would have without its successor: runs before keep it. `None` when no dataset has it.
    pub fn licence_status_of(&self, digest: LicenceDigest, unix_s: u64) -> Option<LicenceStatus> {
        let relied = self.relied().find(|relied| relied.licence.digest() == digest)?;
        Some(match self.log().index_of(digest) {
            Some(_) => relied.status_at(unix_s),
            None => LicenceStatus::NotRegistered,
        })
    }

    /// Every licence of the folder: current ones, replaced ones, and those of datasets whose newest version has none yet.
    pub(crate) fn relied(&self) -> impl Iterator<Item = Relied<'_>> {
        let past = self.datasets.iter().flat_map(|dataset| &dataset.history).chain(&self.lapsed);
        let past = past.map(|past| Relied {
            name: &past.manifest.name,
            manifest: &past.manifest,
            licence: &past.licence,
            revocation: past.revocation.as_ref(),
        });
        self.datasets.iter().map(Relied::current).chain(past)
    }
}
