//! Writing a feature store from Python: shards are committed one by one, a killed writer resumes.

use std::path::PathBuf;
use std::sync::Mutex;

use ascribe_core::{ExampleId, FeatureSink};
use ascribe_store::FeatureWriter;
use pyo3::prelude::*;

use crate::arrays;
use crate::error::{OrRaise, StoreError};
use crate::project::parse_spec;
use crate::store::{Store, row_type};

/// Takes rows of a store that is being built or appended to.
#[pyclass(frozen, module = "ascribe")]
pub struct StoreWriter {
    writer: Mutex<Option<FeatureWriter>>,
    path: PathBuf,
}

impl StoreWriter {
    fn of(writer: FeatureWriter, path: PathBuf) -> Self {
        Self { writer: Mutex::new(Some(writer)), path }
    }

    /// The writer, which nobody has any more. Waits for a call of another thread that is under way, so not with the interpreter's
    /// lock.
    fn take(&self) -> Option<FeatureWriter> {
        self.writer.lock().ok().and_then(|mut writer| writer.take())
    }

    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut FeatureWriter) -> PyResult<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let Ok(mut writer) = self.writer.lock() else {
                return Err(StoreError::new_err(
                    "an earlier call on this writer failed half way; open it again, it resumes",
                ));
            };
            writer.as_mut().map_or_else(|| Err(StoreError::new_err("the writer is closed")), work)
        })
    }
}

#[pymethods]
impl StoreWriter {
    /// Begins the store at `path` or goes on with it; `n_rows` is what the finished store has.
    #[new]
    #[pyo3(signature = (path, spec, n_rows, row_type="f32", rows_per_shard=1024))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        spec: &str,
        n_rows: u64,
        row_type: &str,
        rows_per_shard: u32,
    ) -> PyResult<Self> {
        let (spec, rows) = (parse_spec(spec)?, self::row_type(row_type)?);
        let writer = py.detach(|| FeatureWriter::create_or_resume(&path, &spec, rows, rows_per_shard, n_rows));
        Ok(Self::of(writer.or_raise()?, path))
    }

    /// Goes on with a finished store: `n_rows` more rows, its next generation.
    #[staticmethod]
    fn append(py: Python<'_>, path: PathBuf, spec: &str, n_rows: u64) -> PyResult<Self> {
        let spec = parse_spec(spec)?;
        let writer = py.detach(|| FeatureWriter::append(&path, &spec, n_rows)).or_raise()?;
        Ok(Self::of(writer, path))
    }

    /// Rows that are durable; whoever resumes pushes those behind them.
    #[getter]
    fn n_committed(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |writer| Ok(writer.n_committed()))
    }

    /// Rows taken so far.
    #[getter]
    fn n_taken(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |writer| Ok(writer.n_taken()))
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Takes rows `[n, dim]` f32 with their ids `[n]` u64; all of them or none.
    fn push(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        let (ids, rows) = (arrays::vector::<u64>("ids", ids)?, arrays::matrix::<f32>("rows", rows)?);
        let (ids, view) = (ids.as_array(), rows.as_array());
        self.with(py, |writer| {
            let unpacked: Vec<ExampleId> = ids.iter().map(|&id| ExampleId::from_u64(id)).collect();
            writer.push(&unpacked, view).or_raise()
        })
    }

    /// Seals the store and opens it.
    fn finish(&self, py: Python<'_>) -> PyResult<Store> {
        let store = py.detach(|| match self.take() {
            Some(writer) => writer.finish().or_raise(),
            None => Err(StoreError::new_err("the writer is closed")),
        })?;
        Ok(Store::of(store, self.path.clone()))
    }

    /// Lets go of the store; what is committed stays and a later writer resumes.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}
