//! The blocking seam between the feature store and object stores: four operations, each waited for on the caller's thread, over
//! whatever implements `object_store` ([`Bucket`]), speaks S3 ([`S3`]), or is Azure's ([`Azure`]) or Google's ([`Google`]).
//!
//! Here lives the translation of keys, conditions and errors. Here never lives: what is stored under which name
//! (`ascribe_store::features`), and a runtime: in-memory and local stores need none; a client over the network needs the caller to
//! stand in the context of a runtime of several threads (tokio's `Handle::enter`), which then drives its sockets.
//!
//! "Create if absent" is `PutMode::Create`: one step on a local file system (a hard link), in memory, and on S3-compatible stores
//! (`If-None-Match: *`), Google's (`x-goog-if-generation-match: 0`) and Azure's. It is the whole commit, so two writers cannot both commit.

mod azure;
mod base64;
mod google;
mod s3;
mod sign;
mod web;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ascribe_store::StoreError;
use ascribe_store::features::{FolderObjects, Objects};
use futures_executor::block_on;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

pub use azure::Azure;
pub use google::Google;
pub use s3::S3;

/// True for the address of an object store, false for a path.
pub fn is_address(location: &str) -> bool {
    ["s3://", "az://", "gs://"].iter().any(|scheme| location.starts_with(scheme))
}

/// The objects at `location`: `s3://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `gs://BUCKET/PREFIX` ([`S3::new`], [`Azure::new`] and
/// [`Google::new`] say what they ask `lookup` for), or a folder.
///
/// # Errors
/// An address that is none.
pub fn open(location: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Box<dyn Objects>, StoreError> {
    match location.split_once("://") {
        Some(("s3", _)) => Ok(Box::new(S3::new(location, lookup)?)),
        Some(("az", _)) => Ok(Box::new(Azure::new(location, lookup)?)),
        Some(("gs", _)) => Ok(Box::new(Google::new(location, lookup)?)),
        Some((scheme, _)) => {
            let (path, expected) = (PathBuf::from(location), "s3://, az:// or gs://BUCKET/PREFIX, or a folder");
            Err(StoreError::malformed(&path, "address", expected, format!("{scheme}://")))
        }
        None => Ok(Box::new(FolderObjects::new(std::path::Path::new(location)))),
    }
}

/// A prefix of an object store.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Bucket {
    /// Objects below `prefix` (empty for all of the store).
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self { store, prefix: Path::from(prefix) }
    }

    fn key(&self, key: &str) -> Path {
        key.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn failed(&self, action: &'static str, key: &Path, error: Error) -> StoreError {
        StoreError::io(action, &PathBuf::from(format!("{}/{key}", self.store)), io::Error::other(error))
    }

    fn write(&self, key: &str, bytes: &[u8], mode: PutMode) -> Result<bool, StoreError> {
        let key = self.key(key);
        let options = PutOptions { mode, ..PutOptions::default() };
        match block_on(self.store.put_opts(&key, PutPayload::from(bytes.to_vec()), options)) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.failed("write", &key, error)),
        }
    }
}

impl Objects for Bucket {
    fn name(&self) -> String {
        format!("{}/{}", self.store, self.prefix)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.key(key);
        let read = async { self.store.get(&key).await?.bytes().await };
        match block_on(read) {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", &key, error)),
        }
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let key = self.key(key);
        match block_on(self.store.head(&key)) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("measure", &key, error)),
        }
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(key, bytes, PutMode::Overwrite).map(drop)
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        self.write(key, bytes, PutMode::Create)
    }
}
