//! Feature stores: open, read, sum, search, verify, change.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use ascribe_core::{ExampleId, FeatureReader, RowType};
use ascribe_index::{CertifiedIndex, Filter, Hit};
use ascribe_methods::lorif::Layout;
use ascribe_store::FeatureStore;
use ascribe_store::features::{self, Deletion};
use ndarray::{ArrayView2, ShapeBuilder, s};
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays;
use crate::error::{OrRaise, value_error};
use crate::layout;
use crate::progress::Listener;
use crate::project::parse_spec;
use crate::table::{Column, Table, read_only};

/// One generation of a finished store, open for reading from any number of threads.
#[pyclass(frozen, module = "ascribe")]
pub struct Store {
    pub(crate) store: Arc<FeatureStore>,
    path: PathBuf,
}

/// Sums of rows per dataset, and rows of each.
type Sums<'py> = (Bound<'py, PyArray2<f64>>, Bound<'py, PyArray1<u64>>);

/// A row type by its name.
///
/// # Errors
/// `ValueError` naming those that there are.
pub fn row_type(name: &str) -> PyResult<RowType> {
    RowType::ALL
        .into_iter()
        .find(|t| t.name() == name)
        .ok_or_else(|| value_error("row type", "one of f32, bf16, f16, int8, int4", format!("{name:?}")))
}

impl Store {
    /// Wraps an open store.
    pub fn of(store: FeatureStore, path: PathBuf) -> Self {
        Self { store: Arc::new(store), path }
    }

    /// How factored rows are laid out; none where rows are no factors.
    ///
    /// # Errors
    /// A layout file that does not fit.
    pub fn layout(&self) -> PyResult<Option<Layout>> {
        layout::of(self.store.spec(), &self.path)
    }

    fn block_of(&self, row: u64) -> PyResult<(usize, u64)> {
        let mut first = 0;
        for block in 0..self.store.n_blocks() {
            let n = self.store.block_ids(block).or_raise()?.len() as u64;
            if row < first + n {
                return Ok((block, first));
            }
            first += n;
        }
        Err(value_error("row", format!("below {first}"), row))
    }
}

#[pymethods]
impl Store {
    /// Opens the newest generation; with `spec` (JSON) only if it is of that spec.
    #[new]
    #[pyo3(signature = (path, spec=None))]
    fn new(py: Python<'_>, path: PathBuf, spec: Option<&str>) -> PyResult<Self> {
        let spec = spec.map(parse_spec).transpose()?;
        let store = py.detach(|| FeatureStore::open(&path, spec.as_ref())).or_raise()?;
        Ok(Self::of(store, path))
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    #[getter]
    fn n_rows(&self) -> u64 {
        self.store.n_rows()
    }

    #[getter]
    fn dim(&self) -> usize {
        self.store.spec().dim
    }

    #[getter]
    fn n_datasets(&self) -> u32 {
        self.store.generation().n_datasets
    }

    #[getter]
    fn n_shards(&self) -> usize {
        self.store.n_shards()
    }

    #[getter]
    fn generation(&self) -> u64 {
        self.store.generation().generation
    }

    #[getter]
    fn row_type(&self) -> &'static str {
        self.store.row_type().name()
    }

    #[getter]
    fn spec_json(&self) -> PyResult<String> {
        serde_json::to_string(self.store.spec()).or_raise()
    }

    #[getter]
    fn spec_sha256(&self) -> String {
        self.store.spec().hash().to_string()
    }

    #[getter]
    fn len_bytes(&self) -> u64 {
        self.store.len_bytes()
    }

    #[getter]
    fn manifest_blake3(&self) -> String {
        self.store.manifest_blake3().to_owned()
    }

    fn __len__(&self) -> usize {
        self.store.n_rows() as usize
    }

    /// Ids of all rows: dataset in the high half, position in the low.
    fn ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        py.detach(|| self.store.ids().map(ExampleId::to_u64).collect::<Vec<_>>()).into_pyarray(py)
    }

    /// Norms of all rows as stored.
    fn norms<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        py.detach(|| self.store.norms().collect::<Vec<_>>()).into_pyarray(py)
    }

    /// Rows of shard `shard` without a copy: a read-only view into the mapped file that keeps the store open. Only where numbers
    /// are f32 and no row of the shard is deleted.
    fn shard_rows<'py>(slf: &Bound<'py, Self>, shard: usize) -> PyResult<Bound<'py, PyAny>> {
        let (py, store) = (slf.py(), &slf.get().store);
        let view = py.detach(|| store.shard_view(shard)).or_raise()?;
        if view.row_type != RowType::F32 || !view.dead.is_empty() {
            let found = format!("{} rows, {} of them deleted", view.row_type.name(), view.dead.len());
            return Err(value_error("shard", "f32 rows, none deleted; hint: rows() copies any", found));
        }
        let numbers: &[f32] = bytemuck::cast_slice(view.rows);
        let shape = (view.n_rows, view.dim).strides((view.stride_bytes / 4, 1));
        let rows = ArrayView2::from_shape(shape, numbers).map_err(|e| value_error("shard", "rows of one stride", e))?;
        // SAFETY: the numbers lie in a map that the store keeps and that never changes; the array holds the store.
        let array = unsafe { PyArray2::borrow_from_array(&rows, slf.clone().into_any()) };
        read_only(array.into_any())
    }

    /// Rows `start .. stop` as f32, `[n, dim]`, a copy.
    #[pyo3(signature = (start=0, stop=None))]
    fn rows<'py>(&self, py: Python<'py>, start: u64, stop: Option<u64>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let n_rows = self.store.n_rows();
        let stop = stop.unwrap_or(n_rows).min(n_rows);
        let start = start.min(stop);
        let dim = self.store.spec().dim;
        let mut numbers = Vec::new();
        let n = (stop - start) as usize;
        let total = n.checked_mul(dim).filter(|total| numbers.try_reserve_exact(*total).is_ok());
        if total.is_none() {
            return Err(pyo3::exceptions::PyMemoryError::new_err(format!(
                "{n} rows of {dim} numbers do not fit in memory"
            )));
        }
        if n > 0 {
            let read: PyResult<()> = py.detach(|| {
                let (mut block, mut first) = self.block_of(start)?;
                while first < stop {
                    let features = self.store.block(block).or_raise()?;
                    let len = features.ids.len() as u64;
                    let (from, to) = (start.saturating_sub(first), (stop - first).min(len));
                    for row in features.rows.slice(s![from as usize..to as usize, ..]).rows() {
                        numbers.extend(row);
                    }
                    (block, first) = (block + 1, first + len);
                }
                Ok(())
            });
            read?;
        }
        let rows = ndarray::Array2::from_shape_vec((n, dim), numbers);
        Ok(rows.map_err(|error| value_error("rows", "whole rows", error))?.into_pyarray(py))
    }

    /// Factored rows `[n, dim]` f32 multiplied out, `[n, dense]`: what inner products are taken of. Only of a store of factors.
    fn expand<'py>(&self, py: Python<'py>, rows: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = arrays::matrix::<f32>("rows", rows)?;
        let view = rows.as_array();
        let Some(layout) = py.detach(|| self.layout())? else {
            return Err(value_error("store", "factored rows (LoRIF)", "rows that are no factors"));
        };
        Ok(py.detach(|| layout.expand_rows(view)).or_raise()?.into_pyarray(py))
    }

    /// Exact sums per dataset `[K, dim]` f64, and rows of each `[K]`. Refused for factors: a sum of factors is no factor of a sum.
    fn dataset_sums<'py>(&self, py: Python<'py>) -> PyResult<Sums<'py>> {
        layout::refuse_factors("dataset_sums", self.store.spec())?;
        let (sums, counts) =
            py.detach(|| self.store.dataset_sums().map(|sums| (sums.sums(), sums.counts.clone()))).or_raise()?;
        Ok((sums.into_pyarray(py), counts.into_pyarray(py)))
    }

    /// The `k` best rows for each query `[Q, dim]` f32, proven equal to scoring every row in f64: the table (query, rank, row, id,
    /// dataset, position, score) and a dict with the certificate.
    #[pyo3(signature = (queries, k, companion=None, datasets=None, exclude=None))]
    fn search<'py>(
        &self,
        py: Python<'py>,
        queries: &Bound<'py, PyAny>,
        k: usize,
        companion: Option<&str>,
        datasets: Option<Vec<u32>>,
        exclude: Option<Vec<u64>>,
    ) -> PyResult<(Table, Bound<'py, PyDict>)> {
        let queries = arrays::matrix::<f32>("queries", queries)?;
        let view = queries.as_array();
        layout::refuse_factors("search", self.store.spec())?;
        let companion = companion.map(row_type).transpose()?;
        let store = &self.store;
        let companion = py.detach(|| companion.map(|t| store.companion(t)).transpose()).or_raise()?;
        let found: Result<_, ascribe_index::IndexError> = py.detach(|| {
            let filter = filter_of(datasets, exclude);
            let index = CertifiedIndex::new(store, companion.as_ref())?;
            let (hits, certificate) = index.search_certified(view, k, &filter)?;
            Ok((hits_table(&hits), certificate))
        });
        let (table, certificate) = found.or_raise()?;
        let proof = PyDict::new(py);
        proof.set_item("rows", certificate.rows)?;
        proof.set_item("scanned", certificate.scanned.name())?;
        proof.set_item("rescored", certificate.rescored)?;
        Ok((table, proof))
    }

    /// Hashes every byte of every file and adds the rows up again; raises if one is not the committed one.
    fn verify<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = py.detach(|| self.store.verify()).or_raise()?;
        let found = PyDict::new(py);
        found.set_item("n_rows", report.n_rows)?;
        found.set_item("n_dead", report.n_dead)?;
        found.set_item("n_shards", report.n_shards)?;
        found.set_item("len_bytes", report.len_bytes)?;
        Ok(found)
    }

    /// Withdraws rows: of `datasets`, and of `ids`. Makes the next generation and opens it.
    #[pyo3(signature = (datasets=None, ids=None))]
    fn delete(&self, py: Python<'_>, datasets: Option<Vec<u32>>, ids: Option<Vec<u64>>) -> PyResult<Self> {
        let opened = py.detach(|| {
            let examples: BTreeSet<ExampleId> = ids.unwrap_or_default().into_iter().map(ExampleId::from_u64).collect();
            let what = Deletion { examples, datasets: datasets.unwrap_or_default().into_iter().collect() };
            features::delete(&self.path, &what)?;
            FeatureStore::open(&self.path, None)
        });
        Ok(Self::of(opened.or_raise()?, self.path.clone()))
    }
}

/// What a search may find: rows of some datasets, without some.
pub fn filter_of(datasets: Option<Vec<u32>>, exclude: Option<Vec<u64>>) -> Filter {
    let filter = datasets.map_or_else(Filter::default, Filter::datasets);
    match exclude {
        Some(ids) => filter.without(ids.into_iter().map(ExampleId::from_u64)),
        None => filter,
    }
}

/// Hits as a table.
pub fn hits_table(hits: &[Vec<Hit>]) -> Table {
    let n = hits.iter().map(Vec::len).sum();
    let (mut query, mut rank) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for (q, best) in (0u32..).zip(hits) {
        for r in 0..best.len() as u32 {
            query.push(q);
            rank.push(r);
        }
    }
    let all = || hits.iter().flatten();
    Table::of(vec![
        ("query", Column::U32(query)),
        ("rank", Column::U32(rank)),
        ("row", Column::U64(all().map(|hit| hit.row).collect())),
        ("id", Column::U64(all().map(|hit| hit.id.to_u64()).collect())),
        ("dataset", Column::U32(all().map(|hit| hit.id.dataset).collect())),
        ("position", Column::U32(all().map(|hit| hit.id.idx).collect())),
        ("score", Column::F64(all().map(|hit| hit.score).collect())),
    ])
}

/// Joins finished stores of one spec into a new one.
#[pyfunction]
#[pyo3(signature = (inputs, out, progress=None))]
pub fn merge(py: Python<'_>, inputs: Vec<PathBuf>, out: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<Store> {
    let listener = Listener::new(progress);
    let merged = py.detach(|| {
        let opened: Result<Vec<_>, _> = inputs.iter().map(|path| FeatureStore::open(path, None)).collect();
        features::merge(&opened?, &out, &listener)
    });
    let merged = listener.settle(merged.or_raise())?;
    py.detach(|| inputs.first().map_or(Ok(()), |first| layout::carry(first, &out)))?;
    Ok(Store::of(merged, out))
}

/// Writes the rows of a store in another row type into a new store.
#[pyfunction]
#[pyo3(signature = (store, out, rows, progress=None))]
pub fn convert(
    py: Python<'_>,
    store: &Store,
    out: PathBuf,
    rows: &str,
    progress: Option<Py<PyAny>>,
) -> PyResult<Store> {
    let (rows, listener) = (row_type(rows)?, Listener::new(progress));
    let converted = py.detach(|| features::convert(&store.store, &out, rows, &listener));
    let converted = listener.settle(converted.or_raise())?;
    py.detach(|| layout::carry(&store.path, &out))?;
    Ok(Store::of(converted, out))
}

/// Makes the companion of a store in fewer bits, for faster search.
#[pyfunction]
#[pyo3(signature = (store, rows, progress=None))]
pub fn make_companion(py: Python<'_>, store: &Store, rows: &str, progress: Option<Py<PyAny>>) -> PyResult<()> {
    let (rows, listener) = (row_type(rows)?, Listener::new(progress));
    let made = py.detach(|| features::make_companion(&store.store, rows, &listener).map(drop));
    listener.settle(made.or_raise())
}
