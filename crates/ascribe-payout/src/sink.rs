//! Where the files of a run go: to disk, or only through their digest when a run is verified. Several are made side by side.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use ascribe_core::{Digest, DigestStream};
use ascribe_ledger::LedgerError;
use rayon::prelude::*;

use crate::error::PayError;
use crate::files::Soon;

/// Writes the bytes of one file; a pure function of what was computed.
pub(crate) type Draw<'a> = Box<dyn Fn(&mut dyn Write) -> Result<(), LedgerError> + Sync + Send + 'a>;

/// Files written, and files that this run cannot have.
pub(crate) struct Sink<'a> {
    pub(crate) out: Option<&'a Path>,
    pub(crate) files: BTreeMap<String, Digest>,
    pub(crate) skipped: BTreeMap<String, String>,
}

impl Sink<'_> {
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        self.skipped.insert(name.to_owned(), why.to_owned());
    }

    /// Writes files on all threads, or notes why one cannot be. Bytes do not depend on who writes what when.
    pub(crate) fn put_all(&mut self, files: Vec<(String, Draw<'_>)>) -> Result<(), PayError> {
        let out = self.out;
        let made: Vec<(String, Result<Digest, PayError>)> = files
            .into_par_iter()
            .map(|(name, draw)| {
                let made = make(out, &name, &draw);
                (name, made)
            })
            .collect();
        for (name, made) in made {
            match made {
                Err(PayError::Ledger(LedgerError::NoBankFile { why })) => self.skip(&name, &why),
                Err(error) => return Err(error),
                Ok(digest) => drop(self.files.insert(name, digest)),
            }
        }
        Ok(())
    }
}

fn make(out: Option<&Path>, name: &str, draw: &Draw<'_>) -> Result<Digest, PayError> {
    let mut digest = DigestStream::default();
    let Some(out) = out else {
        let mut to = BufWriter::with_capacity(1 << 16, Hashed { digest: &mut digest, inner: io::sink() });
        draw(&mut to)?;
        to.flush().map_err(|e| PayError::io(name, e))?;
        drop(to);
        return Ok(digest.finish());
    };
    let path = out.join(name);
    let mut to = BufWriter::with_capacity(1 << 16, Hashed { digest: &mut digest, inner: Soon::create(&path)? });
    draw(&mut to)?;
    to.into_inner().map_err(|e| PayError::io(&path, e.into_error()))?.inner.commit()?;
    Ok(digest.finish())
}

struct Hashed<'a, W: Write> {
    digest: &'a mut DigestStream,
    inner: W,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.digest.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
