//! The copy of a dataset's records on its way to the disk, past the page cache where the system lets it: pages that nobody reads
//! again soon cost up to half of what hashing does to be made, and a wait for all of them at the end would cost the rest.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes that the disk is given at once.
const PIECE_BYTES: usize = 4 << 20;

/// Pieces in all: one is filled, one is written, one waits.
const N_PIECES: usize = 3;

/// What direct writes must begin at and be multiples of, in memory and in the file. No disk asks for more.
const ALIGN_BYTES: usize = 4096;

/// Bytes after which a file behind the page cache is written out.
const FLUSH_BYTES: u64 = 32 << 20;

/// A new file that a thread of its own writes while its end is still made. Dropping it waits for the thread.
pub(super) struct CopyOut {
    piece: Piece,
    full: Option<SyncSender<Piece>>,
    free: Receiver<Piece>,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl CopyOut {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut out = Out::create(path)?;
        let (full, taken) = sync_channel::<Piece>(N_PIECES);
        let (back, free) = sync_channel(N_PIECES);
        for _ in 1..N_PIECES {
            let _ = back.send(Piece::new());
        }
        let write = move || {
            for mut piece in taken {
                out.put(&mut piece)?;
                piece.len = 0;
                // Nobody waits for it once all is told.
                let _ = back.send(piece);
            }
            out.finish()
        };
        let writer = std::thread::Builder::new().name("copy of records".to_owned()).spawn(write)?;
        Ok(Self { piece: Piece::new(), full: Some(full), free, writer: Some(writer) })
    }

    /// Waits until all of it is on the disk.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.piece.len > 0 {
            self.pass_on()?;
        }
        self.end()
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let passed = self.free.recv().ok().is_some_and(|next| {
            let piece = std::mem::replace(&mut self.piece, next);
            self.full.as_ref().is_some_and(|full| full.send(piece).is_ok())
        });
        if passed {
            return Ok(());
        }
        // The writer has ended before its time: what it met is the error.
        self.end().and(Err(io::Error::other("the thread that writes the copy ended")))
    }

    fn end(&mut self) -> io::Result<()> {
        self.full = None;
        let ended = self.writer.take().map(JoinHandle::join);
        ended.unwrap_or(Ok(Ok(()))).map_err(|_| io::Error::other("the thread that writes the copy ended"))?
    }
}

impl Write for CopyOut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.piece.take(bytes);
        if self.piece.len == PIECE_BYTES {
            self.pass_on()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for CopyOut {
    fn drop(&mut self) {
        // After `finish` there is nothing to wait for; without it the copy was given up, and its folder is about to be removed.
        let _ = self.end();
    }
}

/// Bytes on their way, at an aligned place.
struct Piece {
    room: Vec<u8>,
    start: usize,
    len: usize,
}

impl Piece {
    fn new() -> Self {
        let room = vec![0; PIECE_BYTES + ALIGN_BYTES];
        let start = room.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Self { room, start, len: 0 }
    }

    /// Takes the beginning of `bytes`, as much as fits; returns how much.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(PIECE_BYTES - self.len);
        let at = self.start + self.len;
        self.room[at..at + n].copy_from_slice(&bytes[..n]);
        self.len += n;
        n
    }

    /// The bytes, and zeros behind them up to the next multiple of the alignment.
    fn padded(&mut self) -> &[u8] {
        let len = self.len.next_multiple_of(ALIGN_BYTES);
        self.room[self.start + self.len..self.start + len].fill(0);
        &self.room[self.start..self.start + len]
    }
}

/// The file.
struct Out {
    path: PathBuf,
    file: File,
    direct: bool,
    len: u64,
    unflushed: u64,
}

impl Out {
    fn create(path: &Path) -> io::Result<Self> {
        let new = |options: &mut OpenOptions| options.write(true).create(true).truncate(true).open(path);
        let (file, direct) = match new(&mut direct_options()) {
            Ok(file) => (file, cfg!(target_os = "linux")),
            Err(_) => (new(&mut OpenOptions::new())?, false),
        };
        Ok(Self { path: path.to_owned(), file, direct, len: 0, unflushed: 0 })
    }

    /// Writes a piece behind the others. Only the last may be no multiple of the alignment.
    fn put(&mut self, piece: &mut Piece) -> io::Result<()> {
        if self.direct {
            match self.file.write_all_at(piece.padded(), self.len) {
                // A file system that takes the flag and not the write.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    (self.file, self.direct) = (OpenOptions::new().write(true).open(&self.path)?, false);
                }
                written => {
                    self.len += piece.len as u64;
                    return written;
                }
            }
        }
        self.file.write_all_at(&piece.room[piece.start..piece.start + piece.len], self.len)?;
        self.len += piece.len as u64;
        self.unflushed += piece.len as u64;
        if self.unflushed >= FLUSH_BYTES {
            self.unflushed = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Cuts off the padding, and waits until all of it is on the disk.
    fn finish(self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.sync_all()
    }
}

#[cfg(target_os = "linux")]
fn direct_options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
    options
}

#[cfg(not(target_os = "linux"))]
fn direct_options() -> OpenOptions {
    OpenOptions::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every length around the borders of blocks and pieces, in writes that match none of them, direct and not.
    #[test]
    fn a_copy_has_the_bytes_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let bytes: Vec<u8> =
            (0..3 * PIECE_BYTES as u32 + 7).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for len in [0, 1, ALIGN_BYTES - 1, ALIGN_BYTES, PIECE_BYTES, PIECE_BYTES + 1, bytes.len()] {
            let mut out = CopyOut::create(&path).unwrap();
            for part in bytes[..len].chunks(99_991) {
                out.write_all(part).unwrap();
            }
            out.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes[..len], "{len} bytes");
            let mut plain = Out { file: File::create(&path).unwrap(), direct: false, ..Out::create(&path).unwrap() };
            for part in bytes[..len].chunks(PIECE_BYTES) {
                let mut piece = Piece::new();
                assert_eq!(piece.take(part), part.len());
                plain.put(&mut piece).unwrap();
            }
            plain.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes[..len], "{len} bytes, through the page cache");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_error_of_the_disk_is_the_one_that_is_told() {
        // A device that is always full.
        let mut out = CopyOut::create(Path::new("/dev/full")).unwrap();
        let bytes = vec![1; PIECE_BYTES];
        let error = (0..8).find_map(|_| out.write_all(&bytes).err()).unwrap_or_else(|| out.finish().unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    }
}
