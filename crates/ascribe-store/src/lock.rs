//! The right to write to a folder: a lock of the operating system on an empty file.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;

use crate::error::StoreError;

/// The right to write, held until drop; the system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock on the file at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another writer holds it; those of the file system.
    pub fn take(path: PathBuf) -> Result<Self, StoreError> {
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|source| StoreError::io("lock", &path, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &path, source)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is being started just now holds a copy of the handle until it
        // runs its own program, and would hold the lock with it.
        let _ = self.0.unlock();
    }
}
