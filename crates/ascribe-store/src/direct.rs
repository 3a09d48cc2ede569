//! Large files, written past the page cache where the file system allows.
//!
//! What is written plainly is copied into the page cache first, and its pages are new to the process, in a virtual machine to the
//! host, too: on the machine of `benches/BARS.md` that took a third of the CPU time of writing f32 rows, and at times far more than
//! the disk did. Here the disk fetches the bytes from where they lie (`O_DIRECT`): they must begin at a multiple of [`BLOCK_BYTES`]
//! in memory as in the file, and what does not is copied into a room of its own that does. The last block is filled up and the file
//! cut to its length. Where the system refuses, writing goes on plainly; the bytes are the same.
//!
//! A disk takes what it is given in turn: a few bytes behind the rows of another file wait for all of those. So a file is written in
//! two goes, each given the whole of it: first what is small, and, when the file has its turn, the rows.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};

/// Alignment that every common file system and disk is content with: a page.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Bytes that are gathered before they are written.
const ROOM_BYTES: usize = 2 << 20;
/// What is written in the second go: so many bytes, or more, that lie as they will in their file.
const LARGE_BYTES: usize = 1 << 20;
/// Files below this are written plainly: a wait for the disk is longer than the copy.
pub(crate) const DIRECT_MIN_BYTES: usize = 4 << 20;

/// Asks for a file past the page cache; nothing where the system knows no such thing.
pub(crate) fn ask(options: &mut OpenOptions) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, rustix::fs::OFlags::DIRECT.bits() as i32);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = options;
}

/// Bytes to leave free in front of rows at `room`, so that they lie as they will in their file, behind a head of `head_bytes`.
pub(crate) fn offset(room: *const u8, head_bytes: usize) -> usize {
    // A pointer to bytes can be aligned; if not, what is written is copied.
    room.align_offset(BLOCK_BYTES).wrapping_add(head_bytes) % BLOCK_BYTES
}

/// Writes what is small of one file, or what is large, given all of it from its start; the end by [`Direct::finish`].
#[derive(Debug)]
pub(crate) struct Direct<'a> {
    file: &'a File,
    is_large: bool,
    /// What waits, from where the room is aligned; never longer than it was made for, so that it stays there. Empty in the second go,
    /// which has nothing small to write.
    room: Vec<u8>,
    room_start: usize,
    n_waiting: usize,
    /// Place in the file of what waits.
    at: u64,
}

impl<'a> Direct<'a> {
    /// The first go, in front of an empty file that will have `len_bytes`, which was opened after [`ask`], or plainly.
    ///
    /// # Errors
    /// A file system without that much room says so here.
    pub fn small(file: &'a File, len_bytes: u64) -> io::Result<Self> {
        make_room(file, len_bytes)?;
        Ok(Self::new(file, false))
    }

    /// The second go.
    pub fn large(file: &'a File) -> Self {
        Self::new(file, true)
    }

    fn new(file: &'a File, is_large: bool) -> Self {
        // Not filled: clearing it, twice a shard, took a sixth of the CPU time of shards of 4 MiB.
        let mut room = Vec::with_capacity(if is_large { 0 } else { ROOM_BYTES + BLOCK_BYTES });
        let room_start = if is_large { 0 } else { offset(room.as_ptr(), 0) };
        room.resize(room_start, 0);
        Self { file, is_large, room, room_start, n_waiting: 0, at: 0 }
    }

    /// Writes what waits and, the first time, gives the file its length.
    pub fn finish(mut self) -> io::Result<()> {
        if self.is_large {
            return Ok(());
        }
        self.room.resize(self.room_start + self.n_waiting.next_multiple_of(BLOCK_BYTES), 0);
        put(self.file, &self.room[self.room_start..], self.at)?;
        self.file.set_len(self.at + self.n_waiting as u64)
    }
}

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.n_waiting == 0 && bytes.len() >= BLOCK_BYTES && offset(bytes.as_ptr(), 0) == 0 {
            let n = bytes.len() / BLOCK_BYTES * BLOCK_BYTES;
            if self.is_large == (n >= LARGE_BYTES) {
                put(self.file, &bytes[..n], self.at)?;
            }
            self.at += n as u64;
            return Ok(n);
        }
        // No more than what the block wants if the bytes behind it can then be written where they lie.
        let missing = (BLOCK_BYTES - self.n_waiting % BLOCK_BYTES) % BLOCK_BYTES;
        let ends_well = bytes.len() > missing + ROOM_BYTES && offset(bytes[missing..].as_ptr(), 0) == 0;
        let n = if ends_well { missing } else { bytes.len() }.min(ROOM_BYTES - self.n_waiting);
        if !self.is_large {
            self.room.extend_from_slice(&bytes[..n]);
        }
        self.n_waiting += n;
        if self.n_waiting == ROOM_BYTES || ends_well {
            if !self.is_large {
                put(self.file, &self.room[self.room_start..], self.at)?;
                self.room.truncate(self.room_start);
            }
            self.at += self.n_waiting as u64;
            self.n_waiting = 0;
        }
        Ok(n)
    }

    /// Nothing: what does not fill a block waits for [`Direct::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes the blocks of a file at once: a file that grows with every write waits for the journal with every write.
fn make_room(file: &File, len_bytes: u64) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if len_bytes > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        // Not every file system can; it is none the worse for it.
        if let Err(error) = fallocate(file, FallocateFlags::empty(), 0, len_bytes).map_err(io::Error::from)
            && matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
            )
        {
            return Err(error);
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, len_bytes);
    Ok(())
}

/// Writes all of `bytes` at a place, plainly from the moment that the system finds them ill placed.
fn put(mut file: &File, mut bytes: &[u8], at: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && go_on_plainly(file) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// True if the file was written past the page cache and no longer is.
fn go_on_plainly(file: &File) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        fcntl_getfl(file)
            .is_ok_and(|flags| flags.contains(OFlags::DIRECT) && fcntl_setfl(file, flags - OFlags::DIRECT).is_ok())
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = file;
        false
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        ask(&mut options);
        options.open(path).unwrap()
    }

    #[test]
    fn the_bytes_are_those_that_were_written_whatever_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut bytes: Vec<u8> = (0..3 * ROOM_BYTES + 5 * BLOCK_BYTES).map(|i| ((i * 31) >> 7) as u8).collect();
        let aligned = offset(bytes.as_ptr(), 0);
        bytes.rotate_right(aligned);
        for (head, at, len) in [
            (0, 0, 0),
            (0, 1, 1),
            (640, 640, 3 * ROOM_BYTES + 17),  // rows that lie as in their file
            (640, 641, 3 * ROOM_BYTES + 17),  // and that do not
            (640, 640, BLOCK_BYTES - 640),    // a whole block and nothing else
            (0, 0, ROOM_BYTES + BLOCK_BYTES), // whole blocks
            (ROOM_BYTES, 3, ROOM_BYTES),
            (BLOCK_BYTES + 64, 64, 2 * ROOM_BYTES),
        ] {
            let rows = &bytes[aligned + at..aligned + at + len];
            let (head, tail) = (vec![0xA5; head], [7u8; 100]);
            let file = open(&path);
            let first = Direct::small(&file, (head.len() + len + tail.len()) as u64).unwrap();
            for mut out in [first, Direct::large(&file)] {
                for part in [&head[..], rows, &tail] {
                    out.write_all(part).unwrap();
                }
                out.finish().unwrap();
            }
            assert!(std::fs::read(&path).unwrap() == [&head[..], rows, &tail].concat(), "{} {at} {len}", head.len());
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_whose_bytes_are_ill_placed_is_written_plainly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = open(&path);
        // Odd in length: no block. Where the file system knows no direct writing this is written plainly from the start.
        put(&file, b"odd", 0).unwrap();
        put(&file, b"ly placed", 3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"oddly placed");
        assert!(!go_on_plainly(&file), "it is written plainly already");
    }
}
