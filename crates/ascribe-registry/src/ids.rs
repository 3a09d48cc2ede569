//! Which ids were seen before, of any number of records in bounded memory.
//!
//! An id is kept as the first 16 bytes of its SHA-256 with its place, sorted outside of memory; equal neighbours are one id
//! twice. Two different ids share 16 bytes with odds of about n²/2¹²⁹: for a billion records 10⁻²¹.

use std::io;

use ascribe_core::Digest;

use crate::sorter::Sorter;

/// First bytes of the SHA-256 of an id.
pub(crate) type IdHash = [u8; 16];

/// The hash that an id is kept as.
pub(crate) fn id_hash(id: &str) -> IdHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&Digest::of(id.as_bytes()).0[..16]);
    hash
}

/// The ids of a dataset.
pub(crate) struct IdSet(Sorter<24>);

impl IdSet {
    pub(crate) fn new() -> Self {
        Self(Sorter::new())
    }

    /// Notes the id of the record at `place`.
    pub(crate) fn insert(&mut self, hash: IdHash, place: u64) -> io::Result<()> {
        let mut entry = [0; 24];
        entry[..16].copy_from_slice(&hash);
        // Big-endian: of one id the earlier place comes first.
        entry[16..].copy_from_slice(&place.to_be_bytes());
        self.0.push(entry)
    }

    /// The first two places of an id that stands twice; of several such ids the one whose second place is earliest.
    pub(crate) fn finish(self) -> io::Result<Option<(u64, u64)>> {
        let mut first: Option<(IdHash, u64)> = None;
        let mut found: Option<(u64, u64)> = None;
        self.0.finish(|entry| {
            let (mut hash, mut place) = ([0; 16], [0; 8]);
            hash.copy_from_slice(&entry[..16]);
            place.copy_from_slice(&entry[16..]);
            let place = u64::from_be_bytes(place);
            match first {
                Some((same, at)) if same == hash => {
                    if found.is_none_or(|(_, second)| place < second) {
                        found = Some((at, place));
                    }
                }
                _ => first = Some((hash, place)),
            }
            Ok(())
        })?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_repeated_id_is_found(ids in prop::collection::vec(0u32..60, 0..80), block in 1usize..20) {
            let mut first = std::collections::HashMap::new();
            let expected = ids.iter().enumerate().find_map(|(place, id)| {
                match first.entry(id) {
                    std::collections::hash_map::Entry::Occupied(at) => Some((*at.get(), place as u64)),
                    std::collections::hash_map::Entry::Vacant(free) => { free.insert(place as u64); None }
                }
            });
            let mut set = IdSet(Sorter::with_block(block));
            for (place, id) in ids.iter().enumerate() {
                set.insert(id_hash(&id.to_string()), place as u64).unwrap();
            }
            prop_assert_eq!(set.finish().unwrap(), expected);
        }
    }
}
