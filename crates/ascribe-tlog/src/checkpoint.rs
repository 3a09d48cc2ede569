//! Checkpoints (C2SP tlog-checkpoint): origin, size and root of a log as the text of a signed note.

use ascribe_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::{TlogError, clip};
use crate::note::{NoteSigner, NoteVerifier, SignatureKind, SignedNote, VerifiedSignature, sign_note};
use crate::root::TreeHead;

/// What a log says of itself at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Who: the unique name of the log.
    pub origin: String,
    /// Size and root.
    pub head: TreeHead,
    /// Lines after the root: opaque, rarely used.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.head.size, STANDARD.encode(self.head.root.0));
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Reads the text of a note.
    ///
    /// # Errors
    /// [`TlogError::BadNote`].
    pub fn parse(text: &str) -> Result<Self, TlogError> {
        let bad =
            |expected: &'static str, found: &str| TlogError::BadNote { expected, found: format!("{:?}", clip(found)) };
        let body = text.strip_suffix('\n').ok_or_else(|| bad("a checkpoint that ends with a newline", text))?;
        let mut lines = body.split('\n');
        let mut next = || lines.next().filter(|line| !line.is_empty());
        let origin = next().ok_or_else(|| bad("a checkpoint's origin", text))?;
        let size = next().unwrap_or_default();
        let size = parse_decimal(size).ok_or_else(|| bad("a checkpoint's size, a plain decimal", size))?;
        let root = next().unwrap_or_default();
        let root = decode_hash(root).ok_or_else(|| bad("a checkpoint's root, 32 bytes as base64", root))?;
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(bad("no empty line in a checkpoint", text));
        }
        Ok(Self { origin: origin.to_owned(), head: TreeHead { size, root }, extensions })
    }

    /// Signs the checkpoint under the log's own key, whose name is the origin.
    ///
    /// # Errors
    /// [`TlogError::BadKey`] if the key has another name or is a witness's; [`TlogError::BadNote`].
    pub fn sign(&self, signer: &NoteSigner) -> Result<SignedNote, TlogError> {
        let verifier = signer.verifier();
        if verifier.name() != self.origin || verifier.kind() != SignatureKind::Note {
            return Err(TlogError::BadKey {
                expected: "the log's own key, named like its origin",
                found: format!("{:?} for the log {:?}", verifier.name(), clip(&self.origin)),
            });
        }
        sign_note(&self.text(), signer)
    }
}

/// A checkpoint whose signatures were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    /// What it states.
    pub checkpoint: Checkpoint,
    /// Signatures by known keys, all of which hold.
    pub signatures: Vec<VerifiedSignature>,
    /// The note, verbatim.
    pub note: SignedNote,
}

impl SignedCheckpoint {
    /// Reads a checkpoint and demands the log's own signature; cosignatures by known witnesses are checked too.
    ///
    /// # Errors
    /// [`TlogError::BadNote`], [`TlogError::BadSignature`], [`TlogError::Unsigned`].
    pub fn open(bytes: &[u8], log: &NoteVerifier, witnesses: &[NoteVerifier]) -> Result<Self, TlogError> {
        let note = SignedNote::parse(bytes)?;
        let checkpoint = Checkpoint::parse(&note.text)?;
        let known: Vec<NoteVerifier> = std::iter::once(log).chain(witnesses).cloned().collect();
        let signatures = note.verify(&known)?;
        let own = signatures.iter().any(|s| s.name == log.name() && s.kind == SignatureKind::Note);
        if !own || checkpoint.origin != log.name() {
            return Err(TlogError::Unsigned {
                expected: format!("the log {}", log.name()),
                found: format!("a checkpoint of {:?} without one", clip(&checkpoint.origin)),
            });
        }
        Ok(Self { checkpoint, signatures, note })
    }

    /// Size and root.
    pub fn head(&self) -> TreeHead {
        self.checkpoint.head
    }

    /// The latest time at which a known witness saw this checkpoint, Unix seconds.
    pub fn witnessed_unix_s(&self) -> Option<u64> {
        self.signatures.iter().filter_map(|s| s.unix_s).max()
    }
}

/// Digits without a leading zero.
pub(crate) fn parse_decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// 32 bytes in base64.
pub(crate) fn decode_hash(text: &str) -> Option<Digest> {
    STANDARD.decode(text).ok()?.try_into().ok().map(Digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Ed25519Key;

    const TEXT: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn the_example_of_the_specification_reads_back() {
        let checkpoint = Checkpoint::parse(TEXT).unwrap();
        assert_eq!((checkpoint.origin.as_str(), checkpoint.head.size), ("example.com/behind-the-sofa", 20_852_163));
        assert_eq!(checkpoint.text(), TEXT);
        let extended = format!("{TEXT}extension\n");
        assert_eq!(Checkpoint::parse(&extended).unwrap().text(), extended);
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        for bad in [
            "",
            "a\n1\n",
            "a\n01\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
            "a\n-1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
            "a\n18446744073709551616\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
            "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I\n",
            "\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
            "a\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\nb\n",
        ] {
            assert!(Checkpoint::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_checkpoint_needs_its_logs_own_signature() {
        let signer = |name: &str, kind| NoteSigner::new(name, kind, Ed25519Key::demo(name)).unwrap();
        let log = signer("example.com/behind-the-sofa", SignatureKind::Note);
        let other = signer("example.com/other", SignatureKind::Note);
        let witness = signer("w.example", SignatureKind::Cosignature);
        let checkpoint = Checkpoint::parse(TEXT).unwrap();
        assert!(checkpoint.sign(&other).is_err());
        let note = checkpoint.sign(&log).unwrap().with_signature(&witness, 99).unwrap();
        let open = |note: &SignedNote, key: &NoteSigner| {
            SignedCheckpoint::open(note.as_str().as_bytes(), key.verifier(), &[witness.verifier().clone()])
        };
        assert_eq!(open(&note, &log).unwrap().witnessed_unix_s(), Some(99));
        assert!(matches!(open(&note, &other), Err(TlogError::Unsigned { .. })));
        // A cosignature alone does not make a checkpoint.
        let cosigned_only = SignedNote::parse(format!("{TEXT}\n{}", witness.sign(TEXT, 5)).as_bytes()).unwrap();
        assert!(matches!(open(&cosigned_only, &log), Err(TlogError::Unsigned { .. })));
    }
}
