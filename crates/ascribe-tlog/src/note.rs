//! Signed notes (C2SP signed-note): a text and the keys that vouch for it. Also the key lines that go with them.
//!
//! ```text
//! text, any number of lines
//!                                       ← empty line
//! — name base64(key id ‖ signature)
//! ```
//!
//! Two signature types are spoken: 0x01, Ed25519 over the text, and 0x04, the timestamped cosignature of a witness.
//! Signatures by unknown keys are ignored, as the specification demands; a wrong one by a known key refuses the note.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::error::{TlogError, clip};
use crate::key::{Ed25519Key, Ed25519PublicKey, SIGNATURE_LEN_BYTES};

/// No honest note is anywhere near this.
pub const NOTE_CAP_BYTES: usize = 64 << 10;

const SIGNATURES_CAP: usize = 64;
const SECRET_PREFIX: &str = "PRIVATE+KEY+";

/// What kind of statement a signature makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureKind {
    /// 0x01: Ed25519 over the text of the note.
    Note,
    /// 0x04: a witness saw this checkpoint as the largest of its log, at a stated time.
    Cosignature,
}

impl SignatureKind {
    const fn byte(self) -> u8 {
        match self {
            Self::Note => 0x01,
            Self::Cosignature => 0x04,
        }
    }

    const fn of_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Note),
            0x04 => Some(Self::Cosignature),
            _ => None,
        }
    }
}

/// A key by which notes are checked, as one line: `name+keyid+base64(type ‖ key)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteVerifier {
    name: String,
    kind: SignatureKind,
    key: Ed25519PublicKey,
}

impl NoteVerifier {
    /// A verifier.
    ///
    /// # Errors
    /// [`TlogError::BadKey`] for a name that is empty or has spaces, control characters or `+`.
    pub fn new(name: &str, kind: SignatureKind, key: Ed25519PublicKey) -> Result<Self, TlogError> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.len() > 255 || name.contains(bad) {
            return Err(TlogError::BadKey {
                expected: "a key name of 1 to 255 bytes without spaces and plus signs",
                found: format!("{:?}", clip(name)),
            });
        }
        Ok(Self { name: name.to_owned(), kind, key })
    }

    /// Reads a verifier key line.
    ///
    /// # Errors
    /// [`TlogError::BadKey`].
    pub fn parse(line: &str) -> Result<Self, TlogError> {
        let bad = || TlogError::BadKey {
            expected: "a verifier key, name+hexkeyid+base64",
            found: format!("{:?}", clip(line)),
        };
        let line = line.trim_end_matches(['\n', '\r']);
        // Base64 has plus signs of its own, names have none.
        let mut parts = line.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else { return Err(bad()) };
        let bytes = STANDARD.decode(key).map_err(|_| bad())?;
        let (kind, key) = bytes.split_first().ok_or_else(bad)?;
        let kind = SignatureKind::of_byte(*kind).ok_or_else(bad)?;
        let key = Ed25519PublicKey::from_bytes(key.try_into().map_err(|_| bad())?)?;
        let verifier = Self::new(name, kind, key)?;
        if hex::encode(verifier.key_id()) != id {
            return Err(TlogError::BadKey {
                expected: "the key id that follows from name and key",
                found: format!("{id:?} instead of {}", hex::encode(verifier.key_id())),
            });
        }
        Ok(verifier)
    }

    /// Name of the key; a log's is its origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its signatures state.
    pub fn kind(&self) -> SignatureKind {
        self.kind
    }

    /// The key alone.
    pub fn key(&self) -> Ed25519PublicKey {
        self.key
    }

    /// First four bytes of `SHA-256(name ‖ "\n" ‖ type ‖ key)`.
    pub fn key_id(&self) -> [u8; 4] {
        let typed = [&[self.kind.byte()], &self.key.to_bytes()[..]].concat();
        let hash = Sha256::new().chain_update(&self.name).chain_update(b"\n").chain_update(typed).finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Display for NoteVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[self.kind.byte()], &self.key.to_bytes()[..]].concat());
        write!(f, "{}+{}+{key}", self.name, hex::encode(self.key_id()))
    }
}

/// A named secret key that signs notes.
pub struct NoteSigner {
    verifier: NoteVerifier,
    key: Ed25519Key,
}

impl NoteSigner {
    /// A signer.
    ///
    /// # Errors
    /// As [`NoteVerifier::new`].
    pub fn new(name: &str, kind: SignatureKind, key: Ed25519Key) -> Result<Self, TlogError> {
        Ok(Self { verifier: NoteVerifier::new(name, kind, key.public())?, key })
    }

    /// Reads a secret key line, `PRIVATE+KEY+name+keyid+base64(type ‖ seed)`, the form that Go's `note` package writes.
    ///
    /// # Errors
    /// [`TlogError::BadKey`], which never repeats the line.
    pub fn parse(line: &str) -> Result<Self, TlogError> {
        let bad = || TlogError::BadKey {
            expected: "a secret key, PRIVATE+KEY+name+hexkeyid+base64",
            found: format!("{} bytes that are none", line.len()),
        };
        let rest = line.trim_end_matches(['\n', '\r']).strip_prefix(SECRET_PREFIX).ok_or_else(bad)?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else { return Err(bad()) };
        let bytes = Zeroizing::new(STANDARD.decode(key).map_err(|_| bad())?);
        let (kind, seed) = bytes.split_first().ok_or_else(bad)?;
        let kind = SignatureKind::of_byte(*kind).ok_or_else(bad)?;
        let signer = Self::new(name, kind, Ed25519Key::from_seed(seed.try_into().map_err(|_| bad())?))?;
        if hex::encode(signer.verifier.key_id()) != id {
            return Err(bad());
        }
        Ok(signer)
    }

    /// The line that [`NoteSigner::parse`] reads. It is the secret: wipe it, write it to a file of mode 0600 only.
    pub fn secret_line(&self) -> Zeroizing<String> {
        let typed = Zeroizing::new([&[self.verifier.kind.byte()], &self.key.seed()[..]].concat());
        let key = Zeroizing::new(STANDARD.encode(&typed[..]));
        let id = hex::encode(self.verifier.key_id());
        Zeroizing::new(format!("{SECRET_PREFIX}{}+{id}+{}\n", self.verifier.name, key.as_str()))
    }

    /// The public half, as one line when printed.
    pub fn verifier(&self) -> &NoteVerifier {
        &self.verifier
    }

    /// The key alone, for other signatures of the same operator.
    pub fn key(&self) -> &Ed25519Key {
        &self.key
    }

    /// The signature line over `text`. A cosignature is one as of `unix_s`; a plain signature has no time.
    pub(crate) fn sign(&self, text: &str, unix_s: u64) -> String {
        let bytes = match self.verifier.kind {
            SignatureKind::Note => self.key.sign(text.as_bytes()).to_vec(),
            SignatureKind::Cosignature => {
                [&unix_s.to_be_bytes()[..], &self.key.sign(cosigned(text, unix_s).as_bytes())].concat()
            }
        };
        let signature = STANDARD.encode([&self.verifier.key_id()[..], &bytes].concat());
        format!("— {} {signature}\n", self.verifier.name)
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({})", self.verifier)
    }
}

fn cosigned(text: &str, unix_s: u64) -> String {
    format!("cosignature/v1\ntime {unix_s}\n{text}")
}

/// One signature line, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SignatureLine {
    name: String,
    key_id: [u8; 4],
    bytes: Vec<u8>,
}

/// A signature that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSignature {
    /// Name of the key.
    pub name: String,
    /// What it states.
    pub kind: SignatureKind,
    /// The time that a cosignature states, Unix seconds.
    pub unix_s: Option<u64>,
}

/// A note as read: text, and signatures that nobody has checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedNote {
    /// The signed text, with its final newline.
    pub text: String,
    signatures: Vec<SignatureLine>,
    raw: String,
}

impl SignedNote {
    /// Splits a note; checks no signature.
    ///
    /// # Errors
    /// [`TlogError::BadNote`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogError> {
        let bad = |expected: &'static str, found: String| TlogError::BadNote { expected, found };
        if bytes.len() > NOTE_CAP_BYTES {
            return Err(bad("a note of at most 65536 bytes", format!("{} bytes", bytes.len())));
        }
        let raw = std::str::from_utf8(bytes).map_err(|error| bad("UTF-8", error.to_string()))?;
        if let Some(control) = raw.chars().find(|c| (*c as u32) < 0x20 && *c != '\n') {
            return Err(bad("no control characters but newlines", format!("{control:?}")));
        }
        let Some((text, tail)) = raw.rsplit_once("\n\n") else {
            return Err(bad("an empty line between text and signatures", format!("{:?}", clip(raw))));
        };
        let tail = tail.strip_suffix('\n').ok_or_else(|| bad("a final newline", format!("{:?}", clip(tail))))?;
        let lines: Vec<&str> = tail.split('\n').collect();
        if lines.len() > SIGNATURES_CAP {
            return Err(bad("at most 64 signatures", lines.len().to_string()));
        }
        let signatures = lines.into_iter().map(parse_line).collect::<Result<_, _>>()?;
        Ok(Self { text: format!("{text}\n"), signatures, raw: raw.to_owned() })
    }

    /// The whole note, verbatim.
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// Checks the signatures of the given keys; others are ignored.
    ///
    /// # Errors
    /// [`TlogError::BadSignature`] if one by a known key does not hold.
    pub fn verify(&self, verifiers: &[NoteVerifier]) -> Result<Vec<VerifiedSignature>, TlogError> {
        let mut verified = Vec::new();
        for line in &self.signatures {
            let known = verifiers.iter().find(|v| v.name == line.name && v.key_id() == line.key_id);
            let Some(verifier) = known else { continue };
            let unix_s = check_line(&self.text, verifier, &line.bytes)?;
            verified.push(VerifiedSignature { name: verifier.name.clone(), kind: verifier.kind, unix_s });
        }
        Ok(verified)
    }

    /// The note with one more signature line. One by the same key is replaced.
    pub fn with_signature(&self, signer: &NoteSigner, unix_s: u64) -> Result<Self, TlogError> {
        let own = |line: &SignatureLine| line.name == signer.verifier.name && line.key_id == signer.verifier.key_id();
        let kept: String = self.signatures.iter().filter(|line| !own(line)).map(SignatureLine::spell).collect();
        Self::parse(format!("{}\n{kept}{}", self.text, signer.sign(&self.text, unix_s)).as_bytes())
    }
}

/// A new note over `text`.
///
/// # Errors
/// [`TlogError::BadNote`] for a text that no note can hold.
pub fn sign_note(text: &str, signer: &NoteSigner) -> Result<SignedNote, TlogError> {
    SignedNote::parse(format!("{text}\n{}", signer.sign(text, 0)).as_bytes())
}

impl SignatureLine {
    fn spell(&self) -> String {
        format!("— {} {}\n", self.name, STANDARD.encode([&self.key_id[..], &self.bytes].concat()))
    }
}

fn parse_line(line: &str) -> Result<SignatureLine, TlogError> {
    let bad =
        || TlogError::BadNote { expected: "a signature line, — name base64", found: format!("{:?}", clip(line)) };
    let (name, signature) = line.strip_prefix("— ").and_then(|rest| rest.split_once(' ')).ok_or_else(bad)?;
    let bytes = STANDARD.decode(signature).map_err(|_| bad())?;
    let (key_id, bytes) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    if name.is_empty() || bytes.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '+') {
        return Err(bad());
    }
    Ok(SignatureLine { name: name.to_owned(), key_id: *key_id, bytes: bytes.to_vec() })
}

fn check_line(text: &str, verifier: &NoteVerifier, bytes: &[u8]) -> Result<Option<u64>, TlogError> {
    let refused = || TlogError::BadSignature { key: verifier.name.clone() };
    match verifier.kind {
        SignatureKind::Note => {
            verifier.key.verify(text.as_bytes(), bytes).map_err(|_| refused())?;
            Ok(None)
        }
        SignatureKind::Cosignature => {
            let (time, signature) = bytes.split_first_chunk::<8>().ok_or_else(refused)?;
            let unix_s = u64::from_be_bytes(*time);
            if signature.len() != SIGNATURE_LEN_BYTES || unix_s > i64::MAX as u64 {
                return Err(refused());
            }
            verifier.key.verify(cosigned(text, unix_s).as_bytes(), signature).map_err(|_| refused())?;
            Ok(Some(unix_s))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    const EXAMPLE_KEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    const EXAMPLE: &str = "This is an example message.\n\n— example.com/foo \
        Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

    #[test]
    fn the_example_of_the_specification_verifies() {
        let verifier = NoteVerifier::parse(EXAMPLE_KEY).unwrap();
        assert_eq!(verifier.to_string(), EXAMPLE_KEY);
        let note = SignedNote::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!(note.verify(std::slice::from_ref(&verifier)).unwrap().len(), 1);
        let forged = SignedNote::parse(EXAMPLE.replace("example message", "exemple message").as_bytes()).unwrap();
        assert!(forged.verify(&[verifier]).is_err());
    }

    /// The cosigned checkpoint of the tlog-cosignature text: the key line of its witness is not given there, so only the
    /// shape of its lines is read.
    #[test]
    fn cosignatures_state_their_time() {
        let log = NoteSigner::new("log.example", SignatureKind::Note, Ed25519Key::demo("log")).unwrap();
        let witness = NoteSigner::new("w.example/1", SignatureKind::Cosignature, Ed25519Key::demo("w")).unwrap();
        let note = sign_note("log.example\n0\nx\n", &log).unwrap();
        let twice = note.with_signature(&witness, 7).unwrap().with_signature(&witness, 8).unwrap();
        let keys = [log.verifier().clone(), witness.verifier().clone()];
        let verified = twice.verify(&keys).unwrap();
        assert_eq!(verified.iter().map(|v| v.unix_s).collect::<Vec<_>>(), [None, Some(8)]);
        // A time that was moved is a time that was not signed.
        let mut moved = twice.clone();
        moved.signatures[1].bytes[7] = 9;
        assert!(moved.verify(&keys).is_err());
        // Unknown keys are ignored.
        assert_eq!(twice.verify(&[]).unwrap(), []);
    }

    #[test]
    fn keys_read_back_and_secrets_stay_secret() {
        let signer = NoteSigner::new("log.example", SignatureKind::Note, Ed25519Key::demo("log")).unwrap();
        let line = signer.secret_line();
        let read = NoteSigner::parse(&line).unwrap();
        assert_eq!(read.verifier(), signer.verifier());
        let message = NoteSigner::parse(&line.replace("PRIVATE", "PUBLIC")).unwrap_err().to_string();
        assert!(!message.contains(line.split('+').next_back().unwrap().trim()), "{message}");
        assert!(NoteVerifier::parse(&EXAMPLE_KEY.replace("530d903a", "530d903b")).is_err());
        for name in ["", "a b", "a+b", "a\nb"] {
            assert!(NoteVerifier::new(name, SignatureKind::Note, signer.verifier().key()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_note_is_refused() {
        for bad in ["", "text\n", "text\n\n", "text\n\nno dash\n", "text\n\n— name !!\n", "te\rxt\n\n— a AAAAAAA=\n"]
        {
            assert!(SignedNote::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(SignedNote::parse(EXAMPLE.trim_end().as_bytes()).is_err());
        assert!(SignedNote::parse(&vec![b'a'; NOTE_CAP_BYTES + 1]).is_err());
        assert!(SignedNote::parse(b"\xff\n\n- a b\n").is_err());
    }
}
