//! LoRIF of matrices that were whitened from both sides: a store of few factors in few bits, made of one of two-sided projections.
//!
//! `score(q, g) = ⟨W q, F⟩` with `W` the inverse root of the curvature on either side ([`BothSides`]) and `F` the best factors of
//! `W g`: the inverse curvature is in the rows, so a search multiplies out and needs no other. `whitening.safetensors` beside the rows
//! has `W` and by what each half of a module's factors was divided (a row has one scale for its codes); the spec's `normalizer` names its
//! SHA-256, so rows and queries of another whitening are rows of another spec, and whoever does not know of it refuses the factors.

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, FeatureReader, FeatureSink as _, FeatureSpec, Progress, ProjectorSpec, RowType};
use ascribe_index::{Effort, ExactIndex, Filter, Hit, VectorIndex as _};
use ascribe_methods::coded::whiten_queries;
use ascribe_methods::dot;
use ascribe_methods::lorif::{BothSides, Expanded, Layout, WHITENED_BY};
use ascribe_store::{FactorData, FactorFile, FeatureStore, FeatureWriter, StoreError};
use ndarray::{Array2, ArrayView2, s};

use super::{Made, notes};
use crate::error::EngineError;
use crate::files;

/// Name of the file beside the rows.
pub const WHITENING_FILE: &str = "whitening.safetensors";
const METHOD: &str = "both_sides";
/// Metadata keys.
const RANK_KEY: &str = "rank";
const DAMPING_KEY: &str = "damping_rel";
/// Numbers of the rows that are factored between two looks at the stop flag.
const CHUNK_NUMBERS: usize = 4 << 20;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct WhitenRequest {
    /// A store of two-sided projections.
    pub store: PathBuf,
    /// Folder of the new store.
    pub out: PathBuf,
    /// Columns of the factors.
    pub rank: usize,
    /// Damping of each side, relative to its mean eigenvalue.
    pub damping: f64,
    /// How the new store keeps numbers.
    pub row_type: RowType,
}

/// Makes the store. Resumes; same rows, same bytes. Cost: three passes over the rows, two of them with an eigendecomposition for each
/// row and module.
///
/// # Errors
/// Rows of another projection; a rank of 0 or above a side; those of reading, fitting and writing; [`EngineError::Stopped`].
pub fn make(request: &WhitenRequest, progress: &dyn Progress) -> Result<Made, EngineError> {
    let WhitenRequest { store: dir, out, rank, damping, row_type } = request;
    let store = FeatureStore::open(dir, None)?;
    let spec = store.spec();
    let ProjectorSpec::TwoSided { seed, k_in, k_out, version } = spec.projector else {
        let (expected, found) = ("a store of two-sided projections".to_owned(), format!("{:?}", spec.projector));
        return Err(EngineError::Setting { setting: "--factors", expected, found });
    };
    if *rank == 0 || *rank > k_in.min(k_out) {
        let expected = format!("a rank from 1 to {}", k_in.min(k_out));
        return Err(EngineError::Setting { setting: "--factors", expected, found: rank.to_string() });
    }
    let shapes: Vec<_> = spec.columns.iter().map(|c| (c.len == k_in * k_out).then_some([k_out, k_in])).collect();
    let by = BothSides::fit(&store, &shapes, *damping, progress)?;
    let columns = by.stored_columns(*rank);
    let layout = Layout::new(&columns, &shapes, *rank)?;
    let sizes = sizes(&store, &by, &layout, progress)?;
    std::fs::create_dir_all(out).map_err(|error| EngineError::io(out, error))?;
    let path = out.join(WHITENING_FILE);
    file(&by, &sizes, *rank, *damping, spec.hash()).write(&path)?;
    let digest = files::digest(&path)?;
    let dim = layout.stored_dim();
    let projector = ProjectorSpec::Factored { seed, k_in, k_out, rank: *rank, version };
    let normalizer = format!("{}{WHITENED_BY}{digest}", spec.normalizer);
    let spec = FeatureSpec { projector, normalizer, columns, dim, ..spec.clone() };
    let per_shard = store.header().rows_per_shard;
    let writer = FeatureWriter::create_or_resume(out, &spec, *row_type, per_shard, store.n_rows())?;
    let mut writer = writer.with_terms(store.terms().iter().cloned().collect());
    let mut skip = writer.n_committed() as usize;
    progress.start("factors", store.n_rows(), "rows");
    progress.advance(skip as u64);
    for block in 0..store.n_blocks() {
        let found = store.block(block)?;
        let done = skip.min(found.ids.len());
        skip -= done;
        let per_chunk = (CHUNK_NUMBERS / store.spec().dim).max(1);
        for start in (done..found.ids.len()).step_by(per_chunk) {
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
            let part = start..(start + per_chunk).min(found.ids.len());
            let mut rows = by.factor(found.rows.slice(s![part.clone(), ..]), *rank)?;
            for ([left, right], half) in sizes.iter().zip(halves(&layout)) {
                rows.slice_mut(s![.., half[0]..half[1]]).mapv_inplace(|x| (f64::from(x) / left) as f32);
                rows.slice_mut(s![.., half[1]..half[2]]).mapv_inplace(|x| (f64::from(x) / right) as f32);
            }
            progress.advance(part.len() as u64);
            writer.push(&found.ids[part], rows.view())?;
        }
    }
    let made = writer.finish()?;
    notes::carry(dir, &store, out)?;
    progress.finish(&format!("{} rows of {dim} numbers", made.n_rows()));
    Ok(Made::of(out, &made))
}

/// First column, middle and end of each module in a stored row; one that is kept whole has no second half.
fn halves(layout: &Layout) -> impl Iterator<Item = [usize; 3]> + '_ {
    layout.modules().iter().map(|module| {
        let (start, end) = (module.stored.start, module.stored.start + module.stored.len);
        [start, module.shape.map_or(end, |[o, _]| start + o * layout.rank()), end]
    })
}

/// Root mean square of each half of each module's factors over all rows; 1 for a half of zeros.
fn sizes(
    store: &FeatureStore,
    by: &BothSides,
    layout: &Layout,
    progress: &dyn Progress,
) -> Result<Vec<[f64; 2]>, EngineError> {
    let mut squares = vec![[0.0f64; 2]; layout.modules().len()];
    progress.start("sizes of the factors", store.n_rows(), "rows");
    for block in 0..store.n_blocks() {
        let found = store.block(block)?;
        for start in (0..found.ids.len()).step_by((CHUNK_NUMBERS / store.spec().dim).max(1)) {
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
            let end = (start + (CHUNK_NUMBERS / store.spec().dim).max(1)).min(found.ids.len());
            let rows = by.factor(found.rows.slice(s![start..end, ..]), layout.rank())?;
            for (sums, half) in squares.iter_mut().zip(halves(layout)) {
                for (sum, range) in sums.iter_mut().zip([half[0]..half[1], half[1]..half[2]]) {
                    // In the order of the rows, whatever the chunks.
                    rows.slice(s![.., range]).iter().for_each(|&x| *sum += f64::from(x).powi(2));
                }
            }
            progress.advance((end - start) as u64);
        }
    }
    progress.finish("sizes known");
    let n = store.n_rows().max(1) as f64;
    let root = |sum: f64, len: usize| if sum > 0.0 { (sum / (n * len as f64)).sqrt() } else { 1.0 };
    let of = |([a, b], half): ([f64; 2], [usize; 3])| [root(a, half[1] - half[0]), root(b, half[2] - half[1])];
    Ok(squares.into_iter().zip(halves(layout)).map(of).collect())
}

fn file(by: &BothSides, sizes: &[[f64; 2]], rank: usize, damping: f64, spec: Digest) -> FactorFile {
    let mut file = FactorFile::new(METHOD, spec);
    file.metadata.insert(RANK_KEY.to_owned(), rank.to_string());
    file.metadata.insert(DAMPING_KEY.to_owned(), damping.to_string());
    for ((column, is_matrix, left, right), &[a, b]) in by.parts().zip(sizes) {
        let mut put = |part: &str, data: FactorData| file.tensors.insert(format!("{}/{part}", column.name), data);
        put("left", FactorData::F64(left.clone().into_dyn()));
        put("right", FactorData::F64(right.clone().into_dyn()));
        put("sizes", FactorData::F64(ndarray::arr1(&[a, b, f64::from(u8::from(is_matrix))]).into_dyn()));
    }
    file
}

/// The whitening of a store's rows, read back.
pub struct Whitened {
    by: BothSides,
    sizes: Vec<[f64; 2]>,
    layout: Layout,
    damping: f64,
}

impl Whitened {
    /// The whitening that the rows of `store` were made with; none if they are of another kind.
    ///
    /// # Errors
    /// A file that is missing, damaged, or not the one that the spec names.
    pub fn of(dir: &Path, store: &FeatureStore) -> Result<Option<Self>, EngineError> {
        let spec = store.spec();
        let (ProjectorSpec::Factored { k_in, k_out, rank, .. }, Some((_, expected))) =
            (&spec.projector, spec.normalizer.rsplit_once(WHITENED_BY))
        else {
            return Ok(None);
        };
        let path = dir.join(WHITENING_FILE);
        if !path.exists() {
            let hint = "the rows cannot be scored without it; restore it, or convert the dense store again";
            return Err(StoreError::Missing { path, hint }.into());
        }
        let found = files::digest(&path)?.to_string();
        if found != expected {
            return Err(StoreError::WrongChecksum { path, expected: expected.to_owned(), found }.into());
        }
        let file = FactorFile::read(&path, None)?;
        let refused = |what: String| EngineError::Content { path: path.clone(), expected: what, found: "none".into() };
        let tensor = |name: String| {
            file.tensors
                .get(&name)
                .and_then(FactorData::as_f64)
                .cloned()
                .ok_or_else(|| refused(format!("f64 `{name}`")))
        };
        let (mut parts, mut sizes, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        for column in &spec.columns {
            let matrix = |part: &str| -> Result<Array2<f64>, EngineError> {
                let name = format!("{}/{part}", column.name);
                tensor(name.clone())?.into_dimensionality().map_err(|_| refused(format!("a matrix `{name}`")))
            };
            let size = tensor(format!("{}/sizes", column.name))?;
            let [a, b, is_matrix] = size.as_slice().and_then(|s| s.first_chunk::<3>().copied()).unwrap_or([1.0; 3]);
            shapes.push((is_matrix > 0.0).then_some([*k_out, *k_in]));
            parts.push((column.name.clone(), is_matrix > 0.0, matrix("left")?, matrix("right")?));
            sizes.push([a, b]);
        }
        let damping = file.metadata.get(DAMPING_KEY).and_then(|text| text.parse().ok());
        let damping = damping.ok_or_else(|| refused(format!("a number `{DAMPING_KEY}`")))?;
        let layout = Layout::new(&spec.columns, &shapes, *rank)?;
        Ok(Some(Self { by: BothSides::from_parts(parts, damping)?, sizes, layout, damping }))
    }

    /// Columns of the factors.
    pub fn rank(&self) -> usize {
        self.layout.rank()
    }

    /// Damping of each side, relative to its mean eigenvalue.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Numbers of a query: those of a dense row.
    pub fn dense_dim(&self) -> usize {
        self.layout.dense_dim()
    }

    /// The best `k` rows of each dense query `[Q, dense]`, by the whole inverse curvature; every row is multiplied out and looked at.
    ///
    /// # Errors
    /// Queries of another width; those of the search.
    pub fn search(
        &self,
        store: &FeatureStore,
        queries: ArrayView2<'_, f32>,
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, EngineError> {
        let white = self.asked(queries)?.mapv(|x| x as f32);
        let expanded = Expanded::new(store, &self.layout)?;
        Ok(ExactIndex::new(&expanded)?.search_filtered(white.view(), k, Effort::default(), filter)?)
    }

    /// Scores of every row for each dense query `[Q, dense]`, in the order of the rows: `[Q, N]`.
    ///
    /// # Errors
    /// Queries of another width; those of reading.
    pub fn scores(
        &self,
        store: &FeatureStore,
        queries: ArrayView2<'_, f32>,
        progress: &dyn Progress,
    ) -> Result<Array2<f32>, EngineError> {
        let asked = self.asked(queries)?;
        Ok(dot::score(&Expanded::new(store, &self.layout)?, asked.view(), None, progress)?.values)
    }

    /// Queries whose product with a row that was multiplied out is the score.
    fn asked(&self, queries: ArrayView2<'_, f32>) -> Result<Array2<f64>, EngineError> {
        if queries.ncols() != self.dense_dim() {
            let expected = format!("{} numbers a query, as rows before they were factored", self.dense_dim());
            let found = queries.ncols().to_string();
            return Err(EngineError::Setting { setting: "--queries", expected, found });
        }
        let mut white = whiten_queries(&self.by, queries)?;
        for (module, [left, right]) in self.layout.modules().iter().zip(&self.sizes) {
            let to = &module.dense;
            let size = if module.shape.is_some() { left * right } else { *left };
            white.slice_mut(s![.., to.start..to.start + to.len]).mapv_inplace(|x| x * size);
        }
        Ok(white)
    }
}
