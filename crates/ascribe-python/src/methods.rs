//! Fit and score: block-Fisher curvature, example and dataset scores, score files.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use ascribe_core::{Digest, ExampleId, FeatureReader, QueryId};
use ascribe_methods::block_fisher::{self, Covariance, Factors, Preconditioner};
use ascribe_methods::lorif::Layout;
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::{dot, rows};
use ascribe_store::{
    DatasetScoresView, FactorData, FactorFile, FeatureStore, ScoreFileMeta, ScoreTableView, ScoreWriter,
};
use ndarray::Array2;
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::prelude::*;

use crate::arrays;
use crate::error::{OrRaise, SpecMismatchError, value_error};
use crate::layout::{self, Rows};
use crate::progress::Listener;
use crate::project::parse_spec;
use crate::store::Store;
use crate::table::{Column, Table};

/// Kind of the factor files that [`BlockFisher::save`] writes.
const KIND: &str = "python_block_fisher";

/// Ids of rows, and their scores.
type Scored<'py> = (Bound<'py, PyArray1<u64>>, Bound<'py, PyArray2<f32>>);

/// Damped block-Fisher curvature of one store's rows, factored. Of factored rows (LoRIF) it is that of the rows multiplied out.
#[pyclass(frozen, module = "ascribe")]
pub struct BlockFisher {
    factors: Factors,
    layout: Option<Layout>,
    spec: Digest,
    damping_rel: f64,
    n_rows: usize,
}

#[pymethods]
impl BlockFisher {
    #[getter]
    fn damping_rel(&self) -> f64 {
        self.damping_rel
    }

    #[getter]
    fn n_rows(&self) -> usize {
        self.n_rows
    }

    #[getter]
    fn spec_sha256(&self) -> String {
        self.spec.to_string()
    }

    /// `(H + λ)⁻¹ q` of every query `[Q, dim]` f32, in f64.
    fn precondition<'py>(&self, py: Python<'py>, queries: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<f64>>> {
        let queries = arrays::matrix::<f32>("queries", queries)?;
        let view = queries.as_array();
        let solved = py.detach(|| {
            let queries = layout::queries(self.layout.as_ref(), view)?;
            block_fisher::precondition(&self.factors, queries.view())
        });
        Ok(solved.or_raise()?.into_pyarray(py))
    }

    /// `gᵀ(H + λ)⁻¹g` of every row of a store.
    #[pyo3(signature = (store, progress=None))]
    fn self_influence<'py>(
        &self,
        py: Python<'py>,
        store: &Store,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        self.check(store)?;
        let listener = Listener::new(progress);
        let values = py.detach(|| {
            let rows = Rows::new(&store.store, self.layout.as_ref())?;
            block_fisher::self_influence(&rows, &self.factors, &listener)
        });
        Ok(listener.settle(values.or_raise())?.into_pyarray(py))
    }

    /// Writes the factors as a factor file.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let mut file = FactorFile::new(KIND, self.spec);
            for (name, lower) in self.factors.to_parts() {
                file.tensors.insert(name, FactorData::F64(lower.into_dyn()));
            }
            file.metadata.insert("damping_rel".into(), format!("{:?}", self.damping_rel));
            file.metadata.insert("n_rows".into(), self.n_rows.to_string());
            file.write(&path)
        })
        .or_raise()
    }

    /// Reads what [`BlockFisher::save`] wrote, for rows of `store`.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf, store: &Store) -> PyResult<Self> {
        let spec = store.store.spec();
        let file = py.detach(|| FactorFile::read(&path, Some(spec.hash()))).or_raise()?;
        let text = |key: &str| file.metadata.get(key).cloned().unwrap_or_default();
        let parse = |key: &str| value_error("factor file", format!("a number {key}"), text(key));
        let damping_rel = text("damping_rel").parse().map_err(|_| parse("damping_rel"))?;
        let n_rows = text("n_rows").parse().map_err(|_| parse("n_rows"))?;
        let part = |name: &String| -> PyResult<Array2<f64>> {
            let found = file.tensors.get(name).and_then(FactorData::as_f64).cloned();
            let square = found.and_then(|tensor| tensor.into_dimensionality().ok());
            square.ok_or_else(|| value_error("factor file", format!("a matrix {name}"), "none"))
        };
        py.detach(|| {
            let layout = store.layout()?;
            let columns = layout.as_ref().map_or_else(|| spec.columns.clone(), Layout::dense_columns);
            let parts: PyResult<Vec<_>> = columns.iter().map(|column| part(&column.name)).collect();
            let factors = Factors::from_parts(columns, parts?).or_raise()?;
            Ok(Self { factors, layout, spec: spec.hash(), damping_rel, n_rows })
        })
    }
}

impl BlockFisher {
    fn check(&self, store: &Store) -> PyResult<()> {
        let found = store.store.spec().hash();
        if found != self.spec {
            let text = format!(
                "curvature was fitted to rows of spec {}, the store has {found}; hint: fit it to this store",
                self.spec
            );
            return Err(SpecMismatchError::new_err(text));
        }
        Ok(())
    }
}

/// Fits the block-Fisher curvature of a store's rows. `damping` is relative to each block's mean eigenvalue.
#[pyfunction]
#[pyo3(signature = (store, damping=0.1, progress=None))]
pub fn fit(py: Python<'_>, store: &Store, damping: f64, progress: Option<Py<PyAny>>) -> PyResult<BlockFisher> {
    let (listener, layout) = (Listener::new(progress), py.detach(|| store.layout())?);
    let fitted: Result<_, ascribe_methods::MethodError> = py.detach(|| {
        let covariance = Covariance::fit(&Rows::new(&store.store, layout.as_ref())?, &listener)?;
        Ok((covariance.cholesky(damping)?, covariance.n_rows()))
    });
    let (factors, n_rows) = listener.settle(fitted.or_raise())?;
    Ok(BlockFisher { factors, layout, spec: store.store.spec().hash(), damping_rel: damping, n_rows })
}

fn normalisation(name: &str) -> PyResult<Normalisation> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).map_err(|_| {
        let expected = "none, unit_query, unit_train, cosine, relat_if or distance";
        value_error("normalisation", expected, format!("{name:?}"))
    })
}

fn metric<'a>(factors: Option<&'a BlockFisher>, store: &Store) -> PyResult<Option<&'a dyn Preconditioner>> {
    factors.map(|factors| factors.check(store).map(|()| &factors.factors as &dyn Preconditioner)).transpose()
}

/// Scores of every row against every query: ids `[N]` u64 and values `[Q, N]` f32, positive = proponent.
#[pyfunction]
#[pyo3(signature = (store, queries, factors=None, normalise="none", progress=None))]
pub fn score<'py>(
    py: Python<'py>,
    store: &Store,
    queries: &Bound<'py, PyAny>,
    factors: Option<PyRef<'py, BlockFisher>>,
    normalise: &str,
    progress: Option<Py<PyAny>>,
) -> PyResult<Scored<'py>> {
    let queries = arrays::matrix::<f32>("queries", queries)?;
    let (view, by) = (queries.as_array(), normalisation(normalise)?);
    let (listener, layout) = (Listener::new(progress), py.detach(|| store.layout())?);
    let metric = metric(factors.as_deref(), store)?;
    let scores: Result<_, ascribe_methods::MethodError> = py.detach(|| {
        let queries = layout::queries(layout.as_ref(), view)?;
        let reader = Rows::new(&store.store, layout.as_ref())?;
        let scores = rows::score(&reader, queries.view(), metric, by, &listener)?;
        let ids: Vec<u64> = scores.examples.iter().map(|id| id.to_u64()).collect();
        Ok((ids, scores.values))
    });
    let (ids, values) = listener.settle(scores.or_raise())?;
    Ok((ids.into_pyarray(py), values.into_pyarray(py)))
}

/// Exact influence of whole datasets, `[Q, K]` f64: sums of the example scores, from the store's sums of rows.
#[pyfunction]
#[pyo3(signature = (store, queries, factors=None))]
pub fn dataset_scores<'py>(
    py: Python<'py>,
    store: &Store,
    queries: &Bound<'py, PyAny>,
    factors: Option<PyRef<'py, BlockFisher>>,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let queries = arrays::matrix::<f32>("queries", queries)?;
    let (view, layout) = (queries.as_array(), py.detach(|| store.layout())?);
    let queries = py.detach(|| layout::queries(layout.as_ref(), view)).or_raise()?;
    let dim = layout.as_ref().map_or(store.store.spec().dim, Layout::dense_dim);
    if queries.ncols() != dim {
        return Err(value_error("columns of the queries", dim, queries.ncols()));
    }
    let metric = metric(factors.as_deref(), store)?;
    let sums = match &layout {
        Some(layout) => py.detach(|| expanded_sums(&store.store, layout))?,
        None => py.detach(|| store.store.dataset_sums().map(|sums| sums.sums())).or_raise()?,
    };
    let scores = py.detach(|| {
        let queries = match metric {
            Some(by) => block_fisher::precondition(by, queries.view())?,
            None => queries.mapv(f64::from),
        };
        dot::dataset_scores(queries.view(), sums.view())
    });
    Ok(scores.or_raise()?.into_pyarray(py))
}

/// Sums per dataset of rows multiplied out, `[K, dense]`, in f64 and the order of the rows: the sums that a store keeps of factored
/// rows are those of their factors. One pass over the rows.
fn expanded_sums(store: &FeatureStore, layout: &Layout) -> PyResult<Array2<f64>> {
    let rows = Rows::new(store, Some(layout)).or_raise()?;
    let mut sums = Array2::<f64>::zeros((store.generation().n_datasets as usize, layout.dense_dim()));
    for block in 0..rows.n_blocks() {
        let features = rows.block(block).or_raise()?;
        for (id, row) in features.ids.iter().zip(features.rows.rows()) {
            let mut sum = sums.row_mut(id.dataset as usize);
            sum.iter_mut().zip(row).for_each(|(sum, &number)| *sum += f64::from(number));
        }
    }
    Ok(sums)
}

/// Writes a score file (Parquet, sealed) of one method: the `top_k` best examples of each query, and the datasets if there are
/// any. Ids, scores and datasets are read where they lie: what is taken beside them is eight bytes per example, and a batch of rows.
#[pyfunction]
#[pyo3(signature = (path, spec, method, ids, scores, top_k=None, datasets=None))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub fn write_scores(
    py: Python<'_>,
    path: PathBuf,
    spec: &str,
    method: &str,
    ids: &Bound<'_, PyAny>,
    scores: &Bound<'_, PyAny>,
    top_k: Option<usize>,
    datasets: Option<&Bound<'_, PyAny>>,
) -> PyResult<u64> {
    let (ids, scores) = (arrays::vector::<u64>("ids", ids)?, arrays::matrix::<f32>("scores", scores)?);
    let datasets = datasets.map(|d| arrays::matrix::<f64>("datasets", d)).transpose()?;
    let (ids, scores, datasets) = (ids.as_array(), scores.as_array(), datasets.as_ref().map(|d| d.as_array()));
    if scores.ncols() != ids.len() {
        return Err(value_error("ids", format!("{}, one per column of the scores", scores.ncols()), ids.len()));
    }
    let spec = parse_spec(spec)?;
    let written = py.detach(|| {
        let hash = spec.hash();
        let methods = BTreeMap::from([(method.to_owned(), hash)]);
        let meta = ScoreFileMeta { spec: hash, corpus: spec.corpus, methods };
        let numbered = |n: usize| (0..n as u32).map(QueryId).collect::<Vec<_>>();
        let mut writer = ScoreWriter::create(&path, &meta)?;
        let queries = &numbered(scores.nrows());
        let example_of = &|n: usize| ExampleId::from_u64(ids[n]);
        let table = ScoreTableView { method, spec: hash, queries, values: scores, example_of };
        writer.push_examples_view(&table, top_k, &|_| None)?;
        if let Some(values) = datasets {
            let queries = &numbered(values.nrows());
            writer.push_datasets_view(DatasetScoresView { method, spec: hash, queries, values })?;
        }
        writer.finish()
    });
    Ok(written.or_raise()?.n_rows)
}

/// Reads a score file: a table (method, level, query, id, dataset, score) of everything in it.
#[pyfunction]
pub fn read_scores(py: Python<'_>, path: PathBuf) -> PyResult<(Table, HashMap<&'static str, String>)> {
    py.detach(|| {
        let file = ascribe_store::read_scores(&path).or_raise()?;
        let names: Vec<&str> = file.meta.method_names().collect();
        let rows = &file.rows;
        let method = |row: &ascribe_store::ScoreRow| names.get(row.method as usize).copied().unwrap_or_default();
        let example = |row: &ascribe_store::ScoreRow| row.example().map_or(u64::MAX, ExampleId::to_u64);
        let table = Table::of(vec![
            ("method", Column::text(rows.iter().map(method))?),
            ("level", Column::text(rows.iter().map(|row| row.level.as_str()))?),
            ("query", Column::U32(rows.iter().map(|row| row.query.0).collect())),
            ("dataset", Column::U32(rows.iter().map(|row| row.dataset).collect())),
            ("example", Column::U64(rows.iter().map(example).collect())),
            ("score", Column::F64(rows.iter().map(|row| row.score).collect())),
        ]);
        let meta = HashMap::from([("spec", file.meta.spec.to_string()), ("corpus", file.meta.corpus.to_string())]);
        Ok((table, meta))
    })
}
