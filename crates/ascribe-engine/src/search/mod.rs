//! Searching a store from outside: which rows, of which datasets, have the largest inner product with a query.
//!
//! Here lives what a request means: which companion is scanned, which index is opened or built, which datasets an owner or a
//! licence stands for. How rows are found is the index's.

pub mod bench;
mod cold;

pub use cold::ColdFigure;

use std::collections::BTreeSet;
use std::path::PathBuf;

use ascribe_core::{FeatureReader, Progress, RowType};
use ascribe_index::{
    CertifiedIndex, Effort, Filter, Hit, HnswIndex, HnswParams, RecallCurve, VectorIndex, refuse_factors,
};
use ascribe_models::vision::data::read_matrix;
use ascribe_pgvector::{PgParams, PgVectorIndex};
use ascribe_registry::Registry;
use ascribe_store::features::DatasetTerms;
use ascribe_store::{FeatureStore, StoreError};
use ndarray::{Array2, ArrayView2};
use serde::Serialize;

use crate::error::EngineError;
use crate::store::whitened::Whitened;

/// Folder of the index beside a store's other files.
pub const INDEX_FOLDER: &str = "hnsw";
/// Companions in the order in which they are looked for: the fewest bytes whose bound still rules most rows out come first.
const COMPANIONS: [RowType; 4] = [RowType::Int8, RowType::Bf16, RowType::F16, RowType::Int4];

/// How rows are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every row, from the precise store.
    Exact,
    /// Every row, from a companion; survivors again from the precise store. Same hits.
    Certified,
    /// An HNSW index, with the recall that was measured for it.
    Ann,
}

/// A search.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    /// The store.
    pub store: PathBuf,
    /// Queries `[Q, dim]`, `.npy`.
    pub queries: PathBuf,
    /// Rows per query.
    pub k: usize,
    /// Score by the columns of these modules only, named as [`FeatureStore::modules`] has them; all of them if none is named.
    pub modules: Vec<String>,
    /// How.
    pub mode: Mode,
    /// Scan this companion; without it, the first there is (and before it, for a few queries, that of int4 rows).
    pub companion: Option<RowType>,
    /// Folder of the index [default: `hnsw` in the store's folder]; built if there is none.
    pub index: Option<PathBuf>,
    /// Address of a PostgreSQL with pgvector that holds the index in the place of a folder; built there if there is none.
    pub backend: Option<String>,
    /// Recall@10 that an approximate search aims at.
    pub recall: f64,
    /// Keep to these datasets, by ordinal.
    pub datasets: Vec<u32>,
    /// Folder of registered datasets, for the two below; without it they are those that the store was told.
    pub registry: Option<PathBuf>,
    /// Keep to the datasets of this owner.
    pub owner: Option<String>,
    /// Keep to the datasets under this licence (SPDX).
    pub licence: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct SearchReport {
    /// How rows were found. `exact` for an approximate search whose index never reached the recall that was asked for.
    pub mode: Mode,
    /// Rows asked for per query.
    pub k: usize,
    /// Modules that were scored by; none where all were.
    pub modules: Option<Vec<String>>,
    /// Rows of the store.
    pub rows: u64,
    /// The store's generation.
    pub generation: u64,
    /// BLAKE3 of the generation's manifest: it pins every row.
    pub manifest_blake3: String,
    /// How the rows that were scanned are kept; none for an approximate search.
    pub scanned: Option<&'static str>,
    /// Who nominated the rows of an approximate search: `hnsw` or `pgvector`.
    pub nominated_by: Option<&'static str>,
    /// True if the hits are proven to be the best; false where only recall was measured.
    pub proven: bool,
    /// Recall that was measured for this effort when the index was built, over all rows; approximate searches only. A filter's own
    /// recall is not measured.
    pub recall: Option<f64>,
    /// By query.
    pub queries: Vec<QueryHits>,
}

/// Hits of one query, best first.
#[derive(Clone, Debug, Serialize)]
pub struct QueryHits {
    /// Examples, as the store's `example_id` has them: dataset ordinal · 2³² + position.
    pub ids: Vec<u64>,
    /// Ordinals of their datasets.
    pub datasets: Vec<u32>,
    /// Who owns these; only of a store that was told, none where it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owners: Option<Vec<Option<String>>>,
    /// Their rows.
    pub rows: Vec<u64>,
    /// Inner products with the precise rows.
    pub scores: Vec<f64>,
    /// Rows that were scored from the precise store; certified searches only.
    pub rows_rescored: Option<u64>,
}

impl QueryHits {
    fn new(hits: &[Hit], rows_rescored: Option<u64>) -> Self {
        Self {
            ids: hits.iter().map(|hit| hit.id.to_u64()).collect(),
            datasets: hits.iter().map(|hit| hit.id.dataset).collect(),
            owners: None,
            rows: hits.iter().map(|hit| hit.row).collect(),
            scores: hits.iter().map(|hit| hit.score).collect(),
            rows_rescored,
        }
    }
}

impl SearchReport {
    /// Of a search that looks at every precise row, nothing found yet.
    fn new(request: &SearchRequest, store: &FeatureStore, modules: Option<Vec<String>>) -> Self {
        Self {
            mode: request.mode,
            k: request.k,
            modules,
            rows: store.n_rows(),
            generation: store.generation().generation,
            manifest_blake3: store.manifest_blake3().to_owned(),
            scanned: Some(store.row_type().name()),
            nominated_by: None,
            proven: true,
            recall: None,
            queries: Vec::new(),
        }
    }
}

/// Searches a store. Hits do not depend on threads.
///
/// # Errors
/// Files that are missing, damaged or of another shape; a name that is not registered; those of the search.
pub fn run(request: &SearchRequest, progress: &dyn Progress) -> Result<SearchReport, EngineError> {
    let store = FeatureStore::open(&request.store, None)?;
    if let Some(whitened) = Whitened::of(&request.store, &store)? {
        return by_factors(request, &store, &whitened);
    }
    refuse_factors(store.spec())?;
    let (queries, modules) = of_modules(&store, &request.modules, read_matrix(&request.queries)?)?;
    let filter = filter(request, &store)?;
    let mut report = SearchReport::new(request, &store, modules);
    match request.mode {
        Mode::Exact => {
            report.queries = every_row(&store, queries.view(), request.k, &filter)?;
        }
        Mode::Certified => {
            let companion = companion(&store, request.companion)?;
            let coarse = coarse(&store, request.companion, companion.as_ref())?;
            let index = CertifiedIndex::new(&store, companion.as_ref())?.with_coarse(coarse.as_ref())?;
            let (hits, certificate) = index.search_certified(queries.view(), request.k, &filter)?;
            report.scanned = Some(certificate.scanned.name());
            let with_counts = hits.iter().zip(certificate.rescored);
            report.queries = with_counts.map(|(hits, n)| QueryHits::new(hits, Some(n))).collect();
        }
        Mode::Ann => {
            let (index, curve, name) = open_or_build(request, &store, progress)?;
            match curve.effort_for(request.recall) {
                Some(effort) => {
                    let point = curve.points.iter().find(|point| point.ef == effort.ef);
                    (report.recall, report.proven, report.scanned) = (point.map(|point| point.recall), false, None);
                    report.nominated_by = Some(name);
                    let hits = index.search_filtered(queries.view(), request.k, effort, &filter)?;
                    report.queries = hits.iter().map(|hits| QueryHits::new(hits, None)).collect();
                }
                None => {
                    report.mode = Mode::Exact;
                    report.queries = every_row(&store, queries.view(), request.k, &filter)?;
                }
            }
        }
    }
    name_owners(&store, &mut report);
    Ok(report)
}

/// Searches whitened factors: every row is multiplied out, with the inverse curvature in it.
fn by_factors(request: &SearchRequest, store: &FeatureStore, whitened: &Whitened) -> Result<SearchReport, EngineError> {
    let refuse = |setting, found: &str| {
        let expected = "--mode exact by all modules: whitened factors are multiplied out row by row".to_owned();
        Err(EngineError::Setting { setting, expected, found: found.to_owned() })
    };
    match request.mode {
        Mode::Exact if request.modules.is_empty() => {}
        Mode::Exact => return refuse("--modules", &request.modules.join(", ")),
        Mode::Certified => return refuse("--mode", "certified"),
        Mode::Ann => return refuse("--mode", "ann"),
    }
    let queries = read_matrix(&request.queries)?;
    let hits = whitened.search(store, queries.view(), request.k, &filter(request, store)?)?;
    let mut report = SearchReport::new(request, store, None);
    report.queries = hits.iter().map(|hits| QueryHits::new(hits, None)).collect();
    name_owners(store, &mut report);
    Ok(report)
}

/// Says whose each hit is, where the store was told.
fn name_owners(store: &FeatureStore, report: &mut SearchReport) {
    if store.terms().is_empty() {
        return;
    }
    let owner = |dataset: &u32| store.terms().of_dataset(*dataset).and_then(|terms| terms.owner.clone());
    for query in &mut report.queries {
        query.owners = Some(query.datasets.iter().map(owner).collect());
    }
}

/// Queries with zeros in the columns of all modules but those named, and which modules these are. Rows are scanned whole: the products
/// with zeros are zero, and the bounds hold for whatever query.
fn of_modules(
    store: &FeatureStore,
    names: &[String],
    queries: Array2<f32>,
) -> Result<(Array2<f32>, Option<Vec<String>>), EngineError> {
    // Queries of another width are the search's to refuse.
    if names.is_empty() || queries.ncols() != store.spec().dim {
        return Ok((queries, None));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let modules = store.modules(&names)?;
    let used = modules.spec().columns.iter().map(|column| column.name.clone()).collect();
    Ok((modules.mask(queries.view()), Some(used)))
}

/// The companion that is asked for, or the first that is there and fresh; a stale one is passed over.
fn companion(store: &FeatureStore, wanted: Option<RowType>) -> Result<Option<FeatureStore>, EngineError> {
    if let Some(row_type) = wanted {
        return Ok(Some(store.companion(row_type)?));
    }
    for row_type in COMPANIONS.into_iter().filter(|row_type| row_type.bits() < store.row_type().bits()) {
        if let Some(companion) = fresh(store, row_type)? {
            return Ok(Some(companion));
        }
    }
    Ok(None)
}

/// The int4 companion beside a finer one, to be scanned first for a few queries; none if the request names its companion.
fn coarse(
    store: &FeatureStore,
    wanted: Option<RowType>,
    finer: Option<&FeatureStore>,
) -> Result<Option<FeatureStore>, EngineError> {
    match finer {
        Some(finer) if wanted.is_none() && finer.row_type() != RowType::Int4 => fresh(store, RowType::Int4),
        _ => Ok(None),
    }
}

/// A companion that is there and was made of these rows.
fn fresh(store: &FeatureStore, row_type: RowType) -> Result<Option<FeatureStore>, EngineError> {
    match store.companion(row_type) {
        Ok(companion) => Ok(Some(companion)),
        Err(StoreError::Missing { .. } | StoreError::Stale { .. } | StoreError::Unfinished { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The best of all rows from the precise store alone. The certified scan without a companion: the same hits as
/// [`ascribe_index::ExactIndex`] gives, but each page is let go after it was read, so a store of any size needs little memory.
fn every_row(
    store: &FeatureStore,
    queries: ArrayView2<'_, f32>,
    k: usize,
    filter: &Filter,
) -> Result<Vec<QueryHits>, EngineError> {
    let hits = CertifiedIndex::new(store, None)?.search_filtered(queries, k, Effort::default(), filter)?;
    Ok(hits.iter().map(|hits| QueryHits::new(hits, None)).collect())
}

/// An index, what was measured of it, and whose it is.
type Opened<'s> = (Box<dyn VectorIndex + 's>, RecallCurve, &'static str);

/// The index of a store; built and kept if there is none.
fn open_or_build<'s>(
    request: &SearchRequest,
    store: &'s FeatureStore,
    progress: &dyn Progress,
) -> Result<Opened<'s>, EngineError> {
    if let Some(address) = &request.backend {
        // The store's name, whatever folder it lies in.
        let name = format!("s{}", store.header().uuid.replace('-', ""));
        let index = match PgVectorIndex::open(store, address, &name)? {
            Some(index) => index,
            None => {
                progress.start("index", 0, "");
                let index = PgVectorIndex::build(store, address, &name, PgParams::default())?;
                progress.finish(&format!("pgvector over {} rows", store.n_rows()));
                index
            }
        };
        let curve = index.curve().clone();
        return Ok((Box::new(index), curve, "pgvector"));
    }
    let dir = request.index.clone().unwrap_or_else(|| request.store.join(INDEX_FOLDER));
    if !HnswIndex::<FeatureStore>::is_kept(&dir) {
        progress.start("index", 0, "");
        let index = HnswIndex::build(store, HnswParams::default())?;
        index.save(&dir)?;
        progress.finish(&format!("HNSW over {} rows", store.n_rows()));
    }
    let index = HnswIndex::open(store, &dir)?;
    let curve = index.curve().clone();
    Ok((Box::new(index), curve, "hnsw"))
}

/// The datasets that a request keeps to.
fn filter(request: &SearchRequest, store: &FeatureStore) -> Result<Filter, EngineError> {
    let mut allowed: Option<Vec<u32>> = (!request.datasets.is_empty()).then(|| request.datasets.clone());
    let mut keep = |ordinals: Vec<u32>| {
        allowed = Some(match allowed.take() {
            None => ordinals,
            Some(before) => before.into_iter().filter(|ordinal| ordinals.contains(ordinal)).collect(),
        });
    };
    if request.owner.is_some() || request.licence.is_some() {
        let known = known(request, store)?;
        if let Some(name) = &request.owner {
            let of = known.iter().filter(|terms| terms.owner.as_ref() == Some(name)).map(|terms| terms.dataset);
            let ordinals: Vec<u32> = of.collect();
            if ordinals.is_empty() {
                let owners: BTreeSet<&str> = known.iter().filter_map(|terms| terms.owner.as_deref()).collect();
                let expected = format!("one of {}", owners.into_iter().collect::<Vec<_>>().join(", "));
                return Err(EngineError::Setting { setting: "--owner", expected, found: name.clone() });
            }
            keep(ordinals);
        }
        if let Some(licence) = &request.licence {
            let of = known.iter().filter(|terms| terms.licence.as_ref() == Some(licence)).map(|terms| terms.dataset);
            let ordinals: Vec<u32> = of.collect();
            if ordinals.is_empty() {
                let expected = "the SPDX name of a licence of these datasets".to_owned();
                return Err(EngineError::Setting { setting: "--licence", expected, found: licence.clone() });
            }
            keep(ordinals);
        }
    }
    Ok(allowed.map_or_else(Filter::default, Filter::datasets))
}

/// Owners and licences of the datasets: the registry's, or what the store was told.
fn known(request: &SearchRequest, store: &FeatureStore) -> Result<Vec<DatasetTerms>, EngineError> {
    if let Some(dir) = &request.registry {
        let terms = |d: &ascribe_registry::Dataset| DatasetTerms {
            dataset: d.ordinal,
            name: Some(d.name().to_owned()),
            owner: Some(d.manifest.owner.clone()),
            licence: Some(d.manifest.licence.clone()),
            corpus: None,
        };
        return Ok(Registry::open(dir)?.datasets().iter().map(terms).collect());
    }
    if store.terms().is_empty() {
        let expected = "--registry, or a store that knows them (`ascribe store relicense`)".to_owned();
        return Err(EngineError::Setting { setting: "--owner or --licence", expected, found: "none".to_owned() });
    }
    Ok(store.terms().iter().cloned().collect())
}
