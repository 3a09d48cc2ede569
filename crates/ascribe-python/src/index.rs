//! The approximate index over a store.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_index::hnsw::Metric;
use ascribe_index::{Effort, HnswIndex, HnswParams, RecallCurve, VectorIndex};
use ascribe_store::FeatureStore;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays;
use crate::error::{OrRaise, value_error};
use crate::layout;
use crate::store::{Store, filter_of, hits_table};
use crate::table::{Column, Table};

/// Graphs over the rows of one open store. The lock is taken only while the interpreter's is let go, so the two never wait for
/// each other.
#[pyclass(frozen, module = "ascribe")]
pub struct Index {
    // Dropped before the store that it borrows.
    index: RwLock<HnswIndex<'static, FeatureStore>>,
    store: Arc<FeatureStore>,
}

/// Rows asked for, queries, and the points by rising effort (ef, n_exact, recall, worst).
type Curve = (usize, usize, Table);

impl Index {
    fn with(
        store: &Store,
        make: impl FnOnce(&'static FeatureStore) -> Result<HnswIndex<'static, FeatureStore>, ascribe_index::IndexError>,
    ) -> Result<Self, ascribe_index::IndexError> {
        let store = Arc::clone(&store.store);
        // SAFETY: the reference goes into `index` alone, which never hands it on; `index` is dropped before `store`, which
        // keeps the store where it is on the heap.
        let index = make(unsafe { &*Arc::as_ptr(&store) })?;
        Ok(Self { index: RwLock::new(index), store })
    }

    /// Works on the index without the interpreter's lock. A panic elsewhere leaves an index that is whole: its tombstones and its
    /// curve change in one step.
    fn read<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&HnswIndex<'static, FeatureStore>) -> T + Send) -> T {
        py.detach(|| work(&self.index.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn metric(name: &str) -> PyResult<Metric> {
    match name {
        "inner_product" => Ok(Metric::InnerProduct),
        "cosine" => Ok(Metric::Cosine),
        _ => Err(value_error("metric", "inner_product or cosine", format!("{name:?}"))),
    }
}

fn columns(curve: &RecallCurve) -> Curve {
    let points = &curve.points;
    let table = Table::of(vec![
        ("ef", Column::U64(points.iter().map(|point| point.ef as u64).collect())),
        ("n_exact", Column::U64(points.iter().map(|point| point.n_exact as u64).collect())),
        ("recall", Column::F64(points.iter().map(|point| point.recall).collect())),
        ("worst", Column::F64(points.iter().map(|point| point.worst).collect())),
    ]);
    (curve.k, curve.n_queries, table)
}

#[pymethods]
impl Index {
    /// Builds graphs over all rows and measures what they find. Without `point_dim` rows are kept whole up to 1,024 numbers.
    #[staticmethod]
    #[pyo3(signature = (store, metric="inner_product", n_neighbours=16, ef_construction=100, point_dim=None, n_graphs=64, seed=0))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn build(
        py: Python<'_>,
        store: &Store,
        metric: &str,
        n_neighbours: usize,
        ef_construction: usize,
        point_dim: Option<usize>,
        n_graphs: usize,
        seed: u64,
    ) -> PyResult<Self> {
        let whole = store.store.spec().dim.next_multiple_of(8).min(HnswParams::default().point_dim);
        let point_dim = point_dim.unwrap_or(whole);
        let metric = self::metric(metric)?;
        layout::refuse_factors("search", store.store.spec())?;
        let params =
            HnswParams { n_neighbours, ef_construction, point_dim, n_graphs, seed, metric, ..HnswParams::default() };
        py.detach(|| Self::with(store, |reader| HnswIndex::build(reader, params))).or_raise()
    }

    /// Opens the index in a folder over a store of the spec that it was built for.
    #[staticmethod]
    fn open(py: Python<'_>, store: &Store, path: PathBuf) -> PyResult<Self> {
        py.detach(|| Self::with(store, |reader| HnswIndex::open(reader, &path))).or_raise()
    }

    /// Keeps the index in a folder, in place of one that is there.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        self.read(py, |index| index.save(&path)).or_raise()
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
    fn n_graphs(&self, py: Python<'_>) -> usize {
        self.read(py, |index| index.n_graphs())
    }

    /// Rows that no graph leads to and that every search looks at.
    #[getter]
    fn n_orphans(&self, py: Python<'_>) -> usize {
        self.read(py, |index| index.orphans().len())
    }

    /// How it was built.
    #[getter]
    fn params<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let params = self.read(py, |index| *index.params());
        let found = PyDict::new(py);
        let metric = if params.metric == Metric::Cosine { "cosine" } else { "inner_product" };
        found.set_item("metric", metric)?;
        found.set_item("n_neighbours", params.n_neighbours)?;
        found.set_item("ef_construction", params.ef_construction)?;
        found.set_item("point_dim", params.point_dim)?;
        found.set_item("n_graphs", params.n_graphs)?;
        found.set_item("seed", params.seed)?;
        Ok(found)
    }

    /// Recall that was measured, by rising effort.
    fn curve(&self, py: Python<'_>) -> Curve {
        self.read(py, |index| columns(index.curve()))
    }

    /// Recall for these queries `[Q, dim]`; with `keep` it takes the place of the curve.
    #[pyo3(signature = (queries, keep=false))]
    fn measure(&self, py: Python<'_>, queries: &Bound<'_, PyAny>, keep: bool) -> PyResult<Curve> {
        let queries = arrays::matrix::<f32>("queries", queries)?;
        let view = queries.as_array();
        let curve = self.read(py, |index| index.measure_with(view)).or_raise()?;
        let found = columns(&curve);
        if keep {
            py.detach(|| self.index.write().unwrap_or_else(PoisonError::into_inner).set_curve(curve));
        }
        Ok(found)
    }

    /// `(ef, n_exact)` of the least effort whose measured recall is at least `recall`; none if no measured one was.
    fn effort_for(&self, py: Python<'_>, recall: f64) -> Option<(usize, usize)> {
        self.read(py, |index| index.effort_for(recall)).map(|effort| (effort.ef, effort.n_exact))
    }

    /// Takes examples out of every later search.
    fn delete(&self, py: Python<'_>, ids: Vec<u64>) {
        let ids = ids.into_iter().map(ExampleId::from_u64);
        py.detach(|| self.index.write().unwrap_or_else(PoisonError::into_inner).delete(ids));
    }

    /// Examples that were taken out, ascending.
    #[getter]
    fn deleted(&self, py: Python<'_>) -> Vec<u64> {
        self.read(py, |index| index.deleted().map(ExampleId::to_u64).collect())
    }

    /// The `k` best rows that graphs nominate for each query `[Q, dim]`, scored exactly: the table of hits.
    #[pyo3(signature = (queries, k, ef, n_exact, datasets=None, exclude=None))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn search(
        &self,
        py: Python<'_>,
        queries: &Bound<'_, PyAny>,
        k: usize,
        ef: usize,
        n_exact: usize,
        datasets: Option<Vec<u32>>,
        exclude: Option<Vec<u64>>,
    ) -> PyResult<Table> {
        let queries = arrays::matrix::<f32>("queries", queries)?;
        let view = queries.as_array();
        // More than all rows are no more than all rows.
        let most = usize::try_from(self.store.n_rows()).unwrap_or(usize::MAX);
        let effort = Effort { ef: ef.min(most), n_exact: n_exact.min(most) };
        let found: Result<_, ascribe_index::IndexError> = self.read(py, |index| {
            let hits = index.search_filtered(view, k, effort, &filter_of(datasets, exclude))?;
            Ok(hits_table(&hits))
        });
        found.or_raise()
    }
}
