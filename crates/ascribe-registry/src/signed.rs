//! A signed licence of either kind, and its file.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::did::DidLicence;
use crate::error::RegistryError;
use crate::files;
use crate::licence::{Licence, LicenceDigest, LicenceMessage, RegistryDomain, verify_licence};
use crate::manifest::Manifest;
use crate::revocation::Revocation;

/// A licence as it was signed.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SignedLicence {
    /// By an address, EIP-712.
    Eip712(Licence),
    /// By a `did:key`, `eddsa-jcs-2022`.
    Did(Box<DidLicence>),
}

impl<'de> Deserialize<'de> for SignedLicence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A credential has a proof, the other kind has none; so errors speak of the right kind.
        let value = serde_json::Value::deserialize(deserializer)?;
        let parsed = if value.get("proof").is_some() {
            serde_json::from_value(value).map(|licence| Self::Did(Box::new(licence)))
        } else {
            serde_json::from_value(value).map(Self::Eip712)
        };
        parsed.map_err(serde::de::Error::custom)
    }
}

impl SignedLicence {
    /// Its only key.
    pub fn digest(&self) -> LicenceDigest {
        match self {
            Self::Eip712(licence) => licence.digest,
            Self::Did(licence) => licence.digest(),
        }
    }

    /// Who grants: an EIP-55 address or a `did:key`.
    pub fn licensor(&self) -> String {
        self.message().licensor
    }

    /// What it says.
    pub fn message(&self) -> LicenceMessage<String> {
        match self {
            Self::Eip712(licence) => licence.message.named(),
            Self::Did(licence) => licence.message().named(),
        }
    }

    /// True when the signature is one by a public demo key.
    pub fn demo_key(&self) -> bool {
        matches!(self, Self::Eip712(licence) if licence.demo_key)
    }

    /// The kind, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Eip712(_) => "eip712",
            Self::Did(_) => "eddsa-jcs-2022",
        }
    }

    /// The domain that it was signed in.
    pub fn domain(&self) -> &RegistryDomain {
        match self {
            Self::Eip712(licence) => &licence.domain,
            Self::Did(licence) => licence.domain(),
        }
    }

    /// Checks the licence by itself.
    ///
    /// # Errors
    /// As [`Licence::check_signed`] and [`DidLicence::check_signed`].
    pub fn check_signed(&self, path: &Path, domain: &RegistryDomain) -> Result<(), RegistryError> {
        match self {
            Self::Eip712(licence) => licence.check_signed(path, domain),
            Self::Did(licence) => licence.check_signed(path, domain),
        }
    }

    /// Checks the licence against the registry's domain, its manifest and its legal text.
    ///
    /// # Errors
    /// As [`verify_licence`]. In the demo domain only demo keys sign, so a `did:key` is refused there.
    pub fn verify(
        &self,
        path: &Path,
        domain: &RegistryDomain,
        manifest: &Manifest,
        terms: &[u8],
    ) -> Result<(), RegistryError> {
        match self {
            Self::Eip712(licence) => verify_licence(path, licence, domain, manifest, terms),
            Self::Did(licence) if *domain == RegistryDomain::demo() => Err(RegistryError::WrongSigner {
                path: path.to_owned(),
                expected: format!("the demo key of {:?}", manifest.owner),
                found: licence.message().licensor.to_string(),
            }),
            Self::Did(licence) => {
                licence.message().check_against(path, manifest, terms)?;
                licence.check_signed(path, domain)
            }
        }
    }
}

/// A signed message of either sort, as somebody hands it in.
#[expect(clippy::large_enum_variant, reason = "one exists at a time")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewSigned {
    /// A licence.
    Licence(SignedLicence),
    /// A revocation.
    Revocation(Revocation),
}

impl NewSigned {
    /// Reads a licence or revocation file. Checks its form alone.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::Json`].
    pub fn read(path: &Path) -> Result<Self, RegistryError> {
        let bytes = files::read_small(path, "licence or revocation")?;
        let value: serde_json::Value = files::parse_json(path, &bytes)?;
        if value.get("licensor").is_some() {
            files::parse_json(path, &bytes).map(Self::Revocation)
        } else {
            files::parse_json(path, &bytes).map(Self::Licence)
        }
    }
}
