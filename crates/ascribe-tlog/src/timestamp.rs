//! Time stamps of an outside authority (RFC 3161, RFC 5816) over a checkpoint: the request to send, the answer checked.
//!
//! A log proves order, not time: whoever runs it can build all of it afterwards. A token by somebody else, over the bytes
//! of a checkpoint, says that the checkpoint existed at its time.

use cms::cert::CertificateChoices;
use cms::content_info::ContentInfo;
use cms::signed_data::{SignedData, SignerIdentifier, SignerInfo};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, ID_CE_BASIC_CONSTRAINTS, ID_CE_EXT_KEY_USAGE,
    ID_EC_PUBLIC_KEY, ID_KP_TIME_STAMPING, ID_SHA_256, ID_SHA_384, ID_SHA_512, RSA_ENCRYPTION, SECP_256_R_1,
    SECP_384_R_1, SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};
use der::asn1::{Any, Null, OctetString};
use der::{Decode, Encode};
use rsa::signature::Verifier as _;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_tsp::{MessageImprint, TimeStampReq, TimeStampResp, TspVersion, TstInfo};

use crate::error::{TlogError, clip};

/// No honest token is anywhere near this.
pub const TOKEN_CAP_BYTES: usize = 64 << 10;

const ID_SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const ID_TST_INFO: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.1.4");
const ID_CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const ID_MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const ID_SIGNING_CERTIFICATE_V2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.16.2.47");

/// Certificates between the authority's and a trusted one.
const CHAIN_CAP: usize = 5;

/// What a token says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeStamp {
    /// The time, Unix seconds.
    pub unix_s: u64,
    /// Subject of the authority's certificate.
    pub authority: String,
    /// The authority's policy, an object identifier.
    pub policy: String,
    /// Serial number of the token, hexadecimal.
    pub serial: String,
}

/// A DER request for a time stamp over the SHA-256 of `message`, asking for the authority's certificate. Without a nonce:
/// the token is bound to the message, and an old answer to the same question is as good as a new one.
pub fn time_stamp_request(message: &[u8]) -> Vec<u8> {
    let hash_algorithm = AlgorithmIdentifierOwned { oid: ID_SHA_256, parameters: Some(Any::from(Null)) };
    let hashed_message = OctetString::new(Sha256::digest(message).to_vec()).expect("32 bytes are an octet string");
    let request = TimeStampReq {
        version: TspVersion::V1,
        message_imprint: MessageImprint { hash_algorithm, hashed_message },
        req_policy: None,
        nonce: None,
        cert_req: true,
        extensions: None,
    };
    request.to_der().expect("a request of fixed shape encodes")
}

/// Checks an authority's answer (or a bare token) over `message`. `trusted_pem` holds the certificates that are trusted:
/// the authority's own or one that issued it, directly or through certificates in the token.
///
/// Checked: the imprint; the content digest, content type and certificate hash among the signed attributes; the
/// signature (RSA PKCS #1 v1.5, ECDSA on P-256 and P-384; SHA-256 to SHA-512); the certificate's purpose, which must be
/// critical and time stamping alone; validity of all certificates at the stated time; the chain. Revocation lists are not.
///
/// # Errors
/// [`TlogError::TimeStamp`] naming the part that is wrong.
pub fn verify_time_stamp(answer: &[u8], message: &[u8], trusted_pem: &[u8]) -> Result<TimeStamp, TlogError> {
    if answer.len() > TOKEN_CAP_BYTES {
        return Err(refuse("length", format!("at most {TOKEN_CAP_BYTES} bytes"), answer.len()));
    }
    let trusted = Certificate::load_pem_chain(trusted_pem)
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| refuse("trusted certificates", "certificates as PEM", "none"))?;
    let (signed, content, info) = open(answer)?;
    let imprint = &info.message_imprint;
    let expected = digest(imprint.hash_algorithm.oid, message)?;
    if imprint.hashed_message.as_bytes() != expected {
        let found = hex::encode(imprint.hashed_message.as_bytes());
        return Err(refuse("imprint", hex::encode(expected), clip(&found)));
    }
    let unix_s = info.gen_time.to_unix_duration().as_secs();
    let signer = match signed.signer_infos.0.as_slice() {
        [signer] => signer,
        signers => return Err(refuse("signers", 1, signers.len())),
    };
    let carried: Vec<Certificate> = signed
        .certificates
        .iter()
        .flat_map(|set| set.0.iter())
        .filter_map(|choice| match choice {
            CertificateChoices::Certificate(certificate) => Some(certificate.clone()),
            CertificateChoices::Other(_) => None,
        })
        .collect();
    let authority = carried
        .iter()
        .chain(&trusted)
        .find(|certificate| is_signer(&signer.sid, certificate))
        .ok_or_else(|| refuse("certificate", "the authority's", "none that its signature names"))?;
    check_signer(signer, authority, &content)?;
    check_purpose(authority)?;
    check_chain(authority, &carried, &trusted, unix_s)?;
    Ok(TimeStamp {
        unix_s,
        authority: clip(&authority.tbs_certificate.subject.to_string()),
        policy: info.policy.to_string(),
        serial: hex::encode(info.serial_number.as_bytes()),
    })
}

/// The signed data, the bytes that are signed, and what they say.
fn open(answer: &[u8]) -> Result<(SignedData, Vec<u8>, TstInfo), TlogError> {
    let token = match TimeStampResp::from_der(answer) {
        Ok(response) => {
            let status = response.status.status as u8;
            // 0 granted, 1 granted with changes.
            if status > 1 {
                return Err(refuse("status", "granted", status));
            }
            response.time_stamp_token.ok_or_else(|| refuse("token", "one", "none"))?
        }
        Err(_) => ContentInfo::from_der(answer).map_err(|error| refuse("form", "an answer or token as DER", error))?,
    };
    if token.content_type != ID_SIGNED_DATA {
        return Err(refuse("content type", ID_SIGNED_DATA, token.content_type));
    }
    let signed: SignedData = token.content.decode_as().map_err(|error| refuse("form", "signed data", error))?;
    let wrapped = &signed.encap_content_info;
    if wrapped.econtent_type != ID_TST_INFO {
        return Err(refuse("content type", ID_TST_INFO, wrapped.econtent_type));
    }
    let content: Option<OctetString> = wrapped.econtent.as_ref().and_then(|content| content.decode_as().ok());
    let content = content.ok_or_else(|| refuse("content", "time stamp information", "none"))?.into_bytes();
    let info = TstInfo::from_der(&content).map_err(|error| refuse("form", "time stamp information", error))?;
    Ok((signed, content, info))
}

fn is_signer(id: &SignerIdentifier, certificate: &Certificate) -> bool {
    match id {
        SignerIdentifier::IssuerAndSerialNumber(named) => {
            let certificate = &certificate.tbs_certificate;
            named.issuer == certificate.issuer && named.serial_number == certificate.serial_number
        }
        SignerIdentifier::SubjectKeyIdentifier(named) => certificate
            .tbs_certificate
            .get::<x509_cert::ext::pkix::SubjectKeyIdentifier>()
            .is_ok_and(|found| found.is_some_and(|(_, key)| key == *named)),
    }
}

/// Signed attributes bind content and certificate; the signature binds the attributes.
fn check_signer(signer: &SignerInfo, authority: &Certificate, content: &[u8]) -> Result<(), TlogError> {
    let attributes = signer.signed_attrs.as_ref().ok_or_else(|| refuse("signed attributes", "some", "none"))?;
    let value = |oid: ObjectIdentifier| {
        let mut found = attributes.iter().filter(|attribute| attribute.oid == oid);
        match (found.next().map(|attribute| attribute.values.as_slice()), found.next()) {
            (Some([value]), None) => Ok(value.clone()),
            _ => Err(refuse("signed attributes", format!("one value of {oid}"), "none or several")),
        }
    };
    let kind: ObjectIdentifier =
        value(ID_CONTENT_TYPE)?.decode_as().map_err(|error| refuse("content type", ID_TST_INFO, error))?;
    if kind != ID_TST_INFO {
        return Err(refuse("content type", ID_TST_INFO, kind));
    }
    let stated: OctetString =
        value(ID_MESSAGE_DIGEST)?.decode_as().map_err(|error| refuse("message digest", "bytes", error))?;
    let expected = digest(signer.digest_alg.oid, content)?;
    if stated.as_bytes() != expected {
        return Err(refuse("message digest", hex::encode(expected), clip(&hex::encode(stated.as_bytes()))));
    }
    check_certificate_hash(&value(ID_SIGNING_CERTIFICATE_V2)?, authority)?;
    let signed = attributes.to_der().map_err(|error| refuse("signed attributes", "DER", error))?;
    verify_signature(
        &authority.tbs_certificate.subject_public_key_info,
        signer.signature_algorithm.oid,
        signer.digest_alg.oid,
        &signed,
        signer.signature.as_bytes(),
    )
}

/// `SigningCertificateV2 ::= { certs { { hashAlgorithm DEFAULT sha256, certHash, … }, … }, … }` (RFC 5035): the first is
/// the signer's.
fn check_certificate_hash(attribute: &Any, authority: &Certificate) -> Result<(), TlogError> {
    let bad = |error: der::Error| refuse("signing certificate", "RFC 5035's form", error);
    let first = |any: &Any| -> Result<Vec<Any>, der::Error> { any.decode_as::<Vec<Any>>() };
    let outer = first(attribute).map_err(bad)?;
    let certs = outer.first().map(first).transpose().map_err(bad)?.unwrap_or_default();
    let id = certs.first().map(first).transpose().map_err(bad)?.unwrap_or_default();
    let (oid, hash) = match id.as_slice() {
        [hash, ..] if hash.decode_as::<OctetString>().is_ok() => (ID_SHA_256, hash),
        [algorithm, hash, ..] => (algorithm.decode_as::<AlgorithmIdentifierOwned>().map_err(bad)?.oid, hash),
        _ => return Err(refuse("signing certificate", "a hash", "none")),
    };
    let hash: OctetString = hash.decode_as().map_err(bad)?;
    let expected = digest(oid, &authority.to_der().map_err(bad)?)?;
    if hash.as_bytes() != expected {
        return Err(refuse("signing certificate", hex::encode(expected), clip(&hex::encode(hash.as_bytes()))));
    }
    Ok(())
}

/// RFC 3161 §2.3: the extended key usage is critical and names time stamping only.
fn check_purpose(authority: &Certificate) -> Result<(), TlogError> {
    let extensions = authority.tbs_certificate.extensions.iter().flatten();
    let usage = extensions.into_iter().find(|extension| extension.extn_id == ID_CE_EXT_KEY_USAGE);
    let alone = usage.filter(|usage| usage.critical).and_then(|usage| {
        let purposes = ExtendedKeyUsage::from_der(usage.extn_value.as_bytes()).ok()?;
        (purposes.0 == [ID_KP_TIME_STAMPING]).then_some(())
    });
    alone.ok_or_else(|| refuse("certificate", "critical use for time stamping alone", "another use"))
}

/// From the authority up to a trusted certificate; what is trusted is trusted as it is.
fn check_chain(
    authority: &Certificate,
    carried: &[Certificate],
    trusted: &[Certificate],
    unix_s: u64,
) -> Result<(), TlogError> {
    let mut at = authority;
    for _ in 0..CHAIN_CAP {
        check_validity(at, unix_s)?;
        if trusted.contains(at) {
            return Ok(());
        }
        let issuer = trusted.iter().chain(carried).find(|candidate| {
            *candidate != at && candidate.tbs_certificate.subject == at.tbs_certificate.issuer && issued(candidate, at)
        });
        let none = || clip(&at.tbs_certificate.issuer.to_string());
        at = issuer.ok_or_else(|| refuse("chain", "a trusted certificate that issued it", none()))?;
    }
    Err(refuse("chain", format!("at most {CHAIN_CAP} certificates"), "more"))
}

fn issued(issuer: &Certificate, child: &Certificate) -> bool {
    let extensions = issuer.tbs_certificate.extensions.iter().flatten();
    let mut constraints = extensions.into_iter().filter(|extension| extension.extn_id == ID_CE_BASIC_CONSTRAINTS);
    let is_ca = constraints.next().is_some_and(|extension| {
        BasicConstraints::from_der(extension.extn_value.as_bytes()).is_ok_and(|constraints| constraints.ca)
    });
    let key = &issuer.tbs_certificate.subject_public_key_info;
    let signed = child.tbs_certificate.to_der().ok().zip(child.signature.as_bytes());
    is_ca
        && signed.is_some_and(|(signed, signature)| {
            verify_signature(key, child.signature_algorithm.oid, child.signature_algorithm.oid, &signed, signature)
                .is_ok()
        })
}

fn check_validity(certificate: &Certificate, unix_s: u64) -> Result<(), TlogError> {
    let validity = &certificate.tbs_certificate.validity;
    let (from, until) =
        (validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs());
    if (from..=until).contains(&unix_s) {
        return Ok(());
    }
    Err(refuse("certificate", format!("one in force at {unix_s}"), format!("{from} to {until}")))
}

fn digest(algorithm: ObjectIdentifier, bytes: &[u8]) -> Result<Vec<u8>, TlogError> {
    match algorithm {
        ID_SHA_256 => Ok(Sha256::digest(bytes).to_vec()),
        ID_SHA_384 => Ok(Sha384::digest(bytes).to_vec()),
        ID_SHA_512 => Ok(Sha512::digest(bytes).to_vec()),
        other => Err(refuse("hash", "SHA-256, SHA-384 or SHA-512", other)),
    }
}

/// The hash that a signature algorithm names; plain `rsaEncryption` leaves it to the digest algorithm.
fn hash_of(algorithm: ObjectIdentifier, fallback: ObjectIdentifier) -> Result<ObjectIdentifier, TlogError> {
    match algorithm {
        SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => Ok(ID_SHA_256),
        SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => Ok(ID_SHA_384),
        SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => Ok(ID_SHA_512),
        RSA_ENCRYPTION => Ok(fallback),
        other => Err(refuse("signature algorithm", "RSA PKCS #1 v1.5 or ECDSA with SHA-2", other)),
    }
}

fn verify_signature(
    key: &SubjectPublicKeyInfoOwned,
    algorithm: ObjectIdentifier,
    fallback: ObjectIdentifier,
    message: &[u8],
    signature: &[u8],
) -> Result<(), TlogError> {
    use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
    use rsa::pkcs8::DecodePublicKey as _;

    let hash = hash_of(algorithm, fallback)?;
    let der = key.to_der().map_err(|error| refuse("certificate", "a public key", error))?;
    let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
    let holds = match (key.algorithm.oid, curve) {
        (RSA_ENCRYPTION, _) => {
            let key = rsa::RsaPublicKey::from_public_key_der(&der).ok();
            key.zip(rsa::pkcs1v15::Signature::try_from(signature).ok()).is_some_and(|(key, signature)| match hash {
                ID_SHA_256 => rsa::pkcs1v15::VerifyingKey::<Sha256>::new(key).verify(message, &signature).is_ok(),
                ID_SHA_384 => rsa::pkcs1v15::VerifyingKey::<Sha384>::new(key).verify(message, &signature).is_ok(),
                _ => rsa::pkcs1v15::VerifyingKey::<Sha512>::new(key).verify(message, &signature).is_ok(),
            })
        }
        (ID_EC_PUBLIC_KEY, Some(SECP_256_R_1)) => {
            let prehash = digest(hash, message)?;
            let key = p256::ecdsa::VerifyingKey::from_public_key_der(&der).ok();
            let signature = p256::ecdsa::DerSignature::try_from(signature).ok();
            key.zip(signature).is_some_and(|(key, signature)| key.verify_prehash(&prehash, &signature).is_ok())
        }
        (ID_EC_PUBLIC_KEY, Some(SECP_384_R_1)) => {
            let prehash = digest(hash, message)?;
            let key = p384::ecdsa::VerifyingKey::from_public_key_der(&der).ok();
            let signature = p384::ecdsa::DerSignature::try_from(signature).ok();
            key.zip(signature).is_some_and(|(key, signature)| key.verify_prehash(&prehash, &signature).is_ok())
        }
        (other, _) => return Err(refuse("certificate", "an RSA, P-256 or P-384 key", other)),
    };
    if holds { Ok(()) } else { Err(refuse("signature", "one by the authority", "another")) }
}

fn refuse(field: &'static str, expected: impl ToString, found: impl ToString) -> TlogError {
    TlogError::TimeStamp { field, expected: expected.to_string(), found: found.to_string() }
}
