//! Files by path or URL: `s3://`, `gs://`, `az://`, `http://` beside folders, for DataFusion's scans and for our own reading.
//!
//! Keys come from each process's environment by their usual names (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
//! `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`, and what `object_store` reads beside them; `GOOGLE_…`, `AZURE_…`), never from a statement: a plan
//! that travels holds addresses and no secret. Only S3 has been tried (`tests/cluster/run --objects`).
//!
//! All requests run on threads of their own: an executor of one task has one thread for plans, and it waits in `row_scores` for the
//! very bytes that it would have to receive.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use ascribe_objects::Bucket;
use ascribe_store::StoreError;
use ascribe_store::features::{FolderObjects, Objects};
use datafusion::common::DataFusionError;
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::SpawnedReqwestConnector;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use tokio::runtime::Runtime;
use url::{Position, Url};

/// Threads for requests: they wait, most of the time.
const NETWORK_THREADS: usize = 2;
/// A whole request with its body may take so long: a shard of 256 MiB at 1 MB/s.
const WAIT: &str = "300 seconds";
/// Tries of a request after the first, and the time after which none is begun.
const RETRIES: (usize, Duration) = (5, Duration::from_secs(60));
/// What says that somebody gave S3 keys, in one of the ways that its client knows.
const S3_KEYS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

static NETWORK: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().worker_threads(NETWORK_THREADS).thread_name("objects");
    builder.build().expect("a process may start threads")
});
static STORES: LazyLock<Mutex<HashMap<String, Arc<dyn ObjectStore>>>> = LazyLock::new(Mutex::default);

/// True for an address, false for a path.
pub fn is_url(location: &str) -> bool {
    location.contains("://")
}

/// A location as every node must see it: an address as it is, a path from the root.
///
/// # Errors
/// A path that is not there, or not in UTF-8.
pub fn shared(location: &str) -> Result<String> {
    if is_url(location) {
        return Ok(location.trim_end_matches('/').to_owned());
    }
    let path = Path::new(location).canonicalize().with_context(|| format!("{location} cannot be opened"))?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("expected a path in UTF-8, found {path:?}"))
}

/// The objects below a location.
///
/// # Errors
/// An address of no known kind; keys that are missing.
pub fn folder(location: &str) -> Result<Box<dyn Objects>> {
    if is_url(location) {
        Ok(Box::new(Remote::open(location)?))
    } else {
        Ok(Box::new(FolderObjects::new(Path::new(location))))
    }
}

/// Reads a file whole.
///
/// # Errors
/// One that is not there; the medium's.
pub fn read(location: &str) -> Result<Vec<u8>> {
    let (objects, name) = split(location)?;
    objects.get(name)?.with_context(|| format!("{location}: expected a file, found none"))
}

/// Writes a file whole or not at all.
///
/// # Errors
/// The medium's.
pub fn write(location: &str, bytes: &[u8]) -> Result<()> {
    let (objects, name) = split(location)?;
    Ok(objects.put(name, bytes)?)
}

fn split(location: &str) -> Result<(Box<dyn Objects>, &str)> {
    let (parent, name) = location.rsplit_once('/').unwrap_or((".", location));
    ensure!(!name.is_empty() && !parent.ends_with(":/"), "{location}: expected the name of a file");
    Ok((folder(if parent.is_empty() { "/" } else { parent })?, name))
}

/// A prefix of an object store, asked from wherever.
#[derive(Debug)]
pub struct Remote(Bucket);

impl Remote {
    /// Objects below an address.
    ///
    /// # Errors
    /// As [`folder`].
    pub fn open(location: &str) -> Result<Self> {
        let url = Url::parse(location).with_context(|| format!("{location}: expected an address"))?;
        let (_, prefix) = location.split_once("://").and_then(|(_, rest)| rest.split_once('/')).unwrap_or_default();
        Ok(Self(Bucket::new(store_of(&url)?, prefix)))
    }
}

impl Objects for Remote {
    fn name(&self) -> String {
        self.0.name()
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        apart(|| self.0.get(key))
    }

    fn len(&self, key: &str) -> Result<Option<u64>, StoreError> {
        apart(|| self.0.len(key))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        apart(|| self.0.put(key, bytes))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        apart(|| self.0.put_new(key, bytes))
    }
}

/// Does a request on a thread that belongs to no task. Tasks of tokio have a budget of steps; who waits in one whose budget is used up
/// is woken only when the task returns, which is what it waits for.
fn apart<T: Send>(request: impl FnOnce() -> T + Send) -> T {
    let on_network = || {
        let _network = NETWORK.enter();
        request()
    };
    let done = std::thread::scope(|scope| scope.spawn(on_network).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The store of a bucket, one a process, so that its connections are kept.
fn store_of(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let bucket = url[..Position::BeforePath].to_owned();
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = stores.get(&bucket) {
        return Ok(found.clone());
    }
    let store = build(url, &bucket).with_context(|| format!("{bucket} cannot be opened"))?;
    stores.insert(bucket, store.clone());
    Ok(store)
}

macro_rules! builder {
    ($builder:ty, $bucket:expr, $prefix:expr) => {{
        let retry = RetryConfig { max_retries: RETRIES.0, retry_timeout: RETRIES.1, ..RetryConfig::default() };
        let connector = SpawnedReqwestConnector::new(NETWORK.handle().clone());
        let builder = <$builder>::new().with_url($bucket).with_retry(retry).with_http_connector(connector);
        let set = settings($prefix, $bucket).into_iter().fold(builder, |builder, (key, value)| match key.parse() {
            Ok(key) => builder.with_config(key, value),
            Err(_) => builder,
        });
        Arc::new(set.build()?) as Arc<dyn ObjectStore>
    }};
}

fn build(url: &Url, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let (scheme, _) = ObjectStoreScheme::parse(url)?;
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let given = S3_KEYS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
            ensure!(given, "expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, found none");
            builder!(AmazonS3Builder, bucket, "AWS_")
        }
        ObjectStoreScheme::GoogleCloudStorage => builder!(GoogleCloudStorageBuilder, bucket, "GOOGLE_"),
        ObjectStoreScheme::MicrosoftAzure => builder!(MicrosoftAzureBuilder, bucket, "AZURE_"),
        ObjectStoreScheme::Http => builder!(HttpBuilder, bucket, "HTTP_STORE_"),
        other => bail!("expected s3://, gs://, az:// or http://, found {other:?}"),
    })
}

/// What the environment says under names with this prefix, in the small letters that builders read.
fn settings(prefix: &str, bucket: &str) -> Vec<(String, String)> {
    let named = std::env::vars().filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
    let mut all: Vec<_> = named.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    all.push(("timeout".to_owned(), WAIT.to_owned()));
    // In the clear only to this machine, or where it was said.
    let is_here = |address: &str| {
        ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|here| address.starts_with(here))
    };
    if is_here(bucket) || all.iter().any(|(name, value)| name.contains("endpoint") && is_here(value)) {
        all.push(("allow_http".to_owned(), "true".to_owned()));
    }
    all
}

/// What a scan asks for the store of an address.
#[derive(Debug, Default)]
struct Registry(DefaultObjectStoreRegistry);

impl ObjectStoreRegistry for Registry {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.0.register_store(url, store)
    }

    fn get_store(&self, url: &Url) -> datafusion::error::Result<Arc<dyn ObjectStore>> {
        match url.scheme() {
            "" | "file" => self.0.get_store(url),
            _ => store_of(url).map_err(|error| DataFusionError::External(error.into())),
        }
    }
}

/// What DataFusion runs on: as usual, and with our object stores. `temporary` is the folder for what does not fit in memory.
///
/// # Errors
/// Those of DataFusion.
pub fn runtime(temporary: Option<&Path>) -> datafusion::error::Result<Arc<RuntimeEnv>> {
    let builder = RuntimeEnvBuilder::new().with_object_store_registry(Arc::new(Registry::default()));
    match temporary {
        Some(folder) => builder.with_temp_file_path(folder).build_arc(),
        None => builder.build_arc(),
    }
}
