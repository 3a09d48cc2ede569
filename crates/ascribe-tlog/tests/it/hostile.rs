//! Readers of strangers' bytes: never a panic, and what is read is what was written.

use ascribe_tlog::{Checkpoint, NoteSigner, NoteVerifier, Receipt, SignedNote, leaf_hash};
use proptest::prelude::*;

use crate::{Log, entry};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(note) = SignedNote::parse(&bytes) {
            prop_assert_eq!(note.as_str().as_bytes(), &bytes[..]);
        }
        if let Ok(receipt) = Receipt::parse(&bytes) {
            prop_assert_eq!(Receipt::parse(receipt.to_text().as_bytes()).unwrap(), receipt);
        }
    }

    #[test]
    fn any_text(text in "([a-z0-9+/=— .]{0,40}\n){0,8}") {
        if let Ok(checkpoint) = Checkpoint::parse(&text) {
            // One checkpoint, one spelling: otherwise two texts would be one statement.
            prop_assert_eq!(checkpoint.text(), text.clone());
        }
        let _ = (NoteVerifier::parse(&text), NoteSigner::parse(&text), SignedNote::parse(text.as_bytes()));
    }

    #[test]
    fn a_damaged_receipt_proves_nothing_else(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        thread_local! {
            static TEXT: (String, NoteVerifier) = {
                let log = Log::of(77);
                (Receipt::issue(&log.tree(), &log.checkpoint(), 40).unwrap().to_text(), log.key())
            };
        }
        TEXT.with(|(text, key)| {
            let mut bytes = text.clone().into_bytes();
            let at = at.index(bytes.len());
            let changed = bytes[at] != byte;
            bytes[at] = byte;
            let leaf = leaf_hash(&entry(40));
            let verified = Receipt::parse(&bytes).ok().filter(|receipt| receipt.verify(leaf, key, &[]).is_ok());
            if let Some(receipt) = verified {
                prop_assert!(!changed || receipt.to_text() == *text, "a changed receipt passed: {:?}", receipt);
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_damaged_folder_never_passes_for_another(at in any::<prop::sample::Index>(), file in 0usize..6, byte in any::<u8>()) {
        thread_local! {
            static LOG: Log = Log::of(300);
        }
        // A copy is not made durable, which is most of a log's cost.
        let log = LOG.with(Log::copy);
        let names =
            ["checkpoint", "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"];
        let path = log.file(names[file]);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        let changed = bytes[at] != byte;
        bytes[at] = byte;
        std::fs::write(&path, bytes).unwrap();
        prop_assert_eq!(log.audit(&[]).is_err(), changed, "{} at {}", names[file], at);
    }
}
