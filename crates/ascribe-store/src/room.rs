//! Memory that a shard gathers in: large ones in large pages, and none of it zeroed anew for every shard.

use std::ops::Deref;

use rayon::prelude::*;

use crate::direct::BLOCK_BYTES;

/// A large page, on most machines.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// From here on large pages pay: the disk is told of 16 of them for every 32 MiB, not of 8,192 small ones.
const MAPPED_MIN_BYTES: usize = 4 << 20;

/// Bytes that are appended in place. Those behind them are zeros or what was there before [`Room::clear`].
#[derive(Debug, Default)]
pub(crate) struct Room {
    held: Held,
    start: usize,
    len: usize,
}

#[derive(Debug)]
enum Held {
    Plain(Vec<u8>),
    Mapped(memmap2::MmapMut),
}

impl Default for Held {
    fn default() -> Self {
        Self::Plain(Vec::new())
    }
}

impl Held {
    fn all(&mut self) -> &mut [u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

impl Room {
    /// Forgets the bytes and makes room for `n_bytes`, so that the byte behind a head of `head_bytes` begins a block in memory where
    /// it begins one in the file. Without that much memory the room grows as bytes come.
    pub fn begin(&mut self, head_bytes: usize, n_bytes: usize) {
        self.clear();
        let n_all = n_bytes.saturating_add(BLOCK_BYTES);
        if n_bytes < MAPPED_MIN_BYTES {
            return;
        }
        if self.held.all().len() < n_all || matches!(self.held, Held::Plain(_)) {
            let Ok(mut map) = memmap2::MmapMut::map_anon(n_all) else { return };
            // A system without large pages changes nothing.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            // Touched by all threads: a page that is new to a virtual machine, too, takes its host some time.
            map.par_chunks_mut(HUGE_PAGE_BYTES).for_each(|page| page[0] = 0);
            self.held = Held::Mapped(map);
        }
        // Maps begin with a page, and a page is a block or several.
        self.start = head_bytes % BLOCK_BYTES;
    }

    /// Room for `n` more bytes, whose numbers may be anything.
    pub fn more(&mut self, n: usize) -> &mut [u8] {
        let (old, end) = (self.start + self.len, self.start + self.len + n);
        if self.held.all().len() < end {
            let mut bytes = std::mem::take(&mut self.held);
            let plain = match &mut bytes {
                Held::Plain(bytes) => std::mem::take(bytes),
                Held::Mapped(bytes) => bytes.to_vec(),
            };
            self.held = Held::Plain(plain);
            if let Held::Plain(bytes) = &mut self.held {
                bytes.resize(end.max(2 * old), 0);
            }
        }
        self.len += n;
        &mut self.held.all()[old..end]
    }

    /// Forgets the bytes from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets the bytes, keeps the memory.
    pub fn clear(&mut self) {
        (self.start, self.len) = (0, 0);
    }
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.held {
            Held::Plain(bytes) => bytes,
            Held::Mapped(bytes) => bytes,
        };
        &all[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_where_they_were_put_however_little_room_was_asked_for() {
        for asked in [0, 100, MAPPED_MIN_BYTES, 3 * MAPPED_MIN_BYTES] {
            let mut room = Room::default();
            for round in 0..3u8 {
                room.begin(640, asked);
                let mut wanted = Vec::new();
                for (i, n) in [1, 0, 4095, MAPPED_MIN_BYTES / 2, MAPPED_MIN_BYTES].into_iter().enumerate() {
                    let more = room.more(n);
                    more.iter_mut().enumerate().for_each(|(j, byte)| *byte = (i + j) as u8 ^ round);
                    wanted.extend((0..n).map(|j| (i + j) as u8 ^ round));
                    assert!(*room == *wanted);
                }
            }
        }
    }

    #[test]
    fn what_is_large_lies_as_in_its_file() {
        for head_bytes in [640, 704, 4096, 5000] {
            let mut room = Room::default();
            room.begin(head_bytes, MAPPED_MIN_BYTES);
            room.more(10);
            assert_eq!(room.as_ptr() as usize % BLOCK_BYTES, head_bytes % BLOCK_BYTES);
        }
    }
}
