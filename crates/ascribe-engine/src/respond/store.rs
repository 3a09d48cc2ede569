//! A feature store without a model: rows come as vectors, datasets are its ordinals, or those of a registry.

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, FeatureReader as _, Progress, RowType};
use ascribe_index::{
    CertifiedIndex, Effort, GraphBuilder, Hit, HnswIndex, HnswParams, VectorIndex as _, refuse_factors,
};
use ascribe_linalg::Bf16Rows;
use ascribe_registry::Registry;
use ascribe_store::FeatureStore;
use ndarray::{ArrayView1, ArrayView2, Axis};

use super::answer::{Answer, Approx, Ask, Found, Input, RespondError};
use super::catalog::Catalog;
use super::material::Opened;
use super::responder::{MAX_K, check_vector, rows_of};
use crate::error::EngineError;
use crate::search::INDEX_FOLDER;
use crate::walk::intervals::ShareInterval;

/// Name of the method: inner products with rows and with sums of rows.
pub const DOT: &str = "dot";
/// The same over every row, with the proof.
pub const CERTIFIED: &str = "dot_certified";
/// Recall@10 that look-ups aim at.
const RECALL: f64 = 0.99;
/// Bytes of sums from which on another thread takes a part of the product: waking it costs some 50 µs, reading these about as much.
const BYTES_PER_THREAD: usize = 1 << 20;

/// A store, opened.
pub struct StoreMaterial {
    /// Datasets.
    pub catalog: Catalog,
    /// What stands behind the answers.
    pub opened: Opened,
    store: FeatureStore,
    companion: Option<FeatureStore>,
    index_dir: PathBuf,
    sums: Sums,
}

/// The datasets' sums of rows in bfloat16, in parts for as many threads.
struct Sums {
    parts: Vec<Bf16Rows>,
    rows_per_part: usize,
    n_rows: usize,
}

impl Sums {
    fn new(sums: ArrayView2<'_, f64>) -> Self {
        let n_rows = sums.nrows();
        let n_parts = (2 * sums.len() / BYTES_PER_THREAD).clamp(1, rayon::current_num_threads());
        let rows_per_part = n_rows.div_ceil(n_parts).max(1);
        let parts = sums.axis_chunks_iter(Axis(0), rows_per_part).map(Bf16Rows::new).collect();
        Self { parts, rows_per_part, n_rows }
    }

    /// `⟨sum_k, vector⟩` of every dataset, the first part on this thread. The bits do not depend on the number of parts.
    fn multiply(&self, vector: &[f32]) -> Vec<f32> {
        let mut scores = vec![0.0f32; self.n_rows];
        rayon::in_place_scope(|scope| {
            let mut work = self.parts.iter().zip(scores.chunks_mut(self.rows_per_part));
            let first = work.next();
            work.for_each(|(part, out)| scope.spawn(move |_| part.multiply(vector, out)));
            if let Some((part, out)) = first {
                part.multiply(vector, out);
            }
        });
        scores
    }
}

impl StoreMaterial {
    /// Opens the store in `dir`; its index stands beside it, or is built in `cache`. Datasets are described by `registry` where
    /// there is one, else by what the store was told.
    ///
    /// # Errors
    /// A damaged store or index; rows that are factors; a registry with fewer datasets than the store.
    pub fn open(
        dir: &Path,
        registry: Option<&Path>,
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, EngineError> {
        let store = FeatureStore::open(dir, None)?;
        refuse_factors(store.spec())?;
        let sums = store.dataset_sums()?.sums();
        let registry = registry.map(Registry::open).transpose()?;
        let catalog = match &registry {
            Some(registry) => Catalog::of(registry),
            None => told(&store, sums.nrows()),
        };
        if catalog.datasets.len() < sums.nrows() {
            let expected = format!("a registry of the store's {} datasets", sums.nrows());
            return Err(EngineError::Setting {
                setting: "--datasets",
                expected,
                found: catalog.datasets.len().to_string(),
            });
        }
        let index_dir = index_dir(&store, dir, cache, progress)?;
        let companion = [RowType::Int8, RowType::Bf16].into_iter().find_map(|t| store.companion(t).ok());
        let opened = opened(&store, &catalog, registry.as_ref());
        Ok(Self { sums: Sums::new(sums.view()), catalog, opened, store, companion, index_dir })
    }
}

/// Numbered datasets with the names, owners and licences that the store was told.
fn told(store: &FeatureStore, n_datasets: usize) -> Catalog {
    let mut catalog = Catalog::numbered(n_datasets);
    for terms in store.terms().iter() {
        let Some(dataset) = catalog.datasets.get_mut(terms.dataset as usize) else { continue };
        let texts = [
            (&mut dataset.name, &terms.name),
            (&mut dataset.owner, &terms.owner),
            (&mut dataset.licence, &terms.licence),
        ];
        for (text, told) in texts {
            told.as_ref().into_iter().for_each(|told| text.clone_from(told));
        }
    }
    catalog
}

/// The index beside the store, or one in the cache, built if it is not there.
fn index_dir(store: &FeatureStore, dir: &Path, cache: &Path, progress: &dyn Progress) -> Result<PathBuf, EngineError> {
    let beside = dir.join(INDEX_FOLDER);
    if beside.exists() {
        return Ok(beside);
    }
    let kept = cache.join(format!("index-{}", &store.manifest_blake3()[..16]));
    if !kept.exists() {
        progress.start("index", 0, "");
        let point_dim = store.spec().dim.next_multiple_of(8).min(HnswParams::default().point_dim);
        let params = HnswParams { point_dim, n_graphs: 1, builder: GraphBuilder::Batches, ..HnswParams::default() };
        HnswIndex::build(store, params)?.save(&kept)?;
        progress.finish(&format!("HNSW over {} rows", store.n_rows()));
    }
    Ok(kept)
}

fn opened(store: &FeatureStore, catalog: &Catalog, registry: Option<&Registry>) -> Opened {
    let registry = registry.map_or(Digest([0; 32]), Registry::digest);
    let generation = Digest::of_json(&(store.manifest_blake3(), registry)).expect("strings always serialise");
    Opened {
        generation: generation.to_string()[..16].to_owned(),
        model: "none".into(),
        model_sha256: store.spec().model,
        run_id: format!("store:{}", store.header().uuid),
        spec_hash: store.spec().hash(),
        registry,
        corpus: store.spec().corpus,
        rows_blake3: store.manifest_blake3().to_owned(),
        rows: store.n_rows(),
        dim: store.spec().dim,
        embedding_dim: store.spec().dim,
        datasets: catalog.datasets.len(),
        methods: vec![DOT.to_owned(), CERTIFIED.to_owned()],
        examples: 0,
    }
}

/// Answers over a store. May be used by several threads at once.
pub struct StoreResponder<'m> {
    material: &'m StoreMaterial,
    certified: CertifiedIndex<'m>,
    index: HnswIndex<'m, FeatureStore>,
    effort: Effort,
    recall: f64,
}

impl<'m> StoreResponder<'m> {
    /// Opens the index.
    ///
    /// # Errors
    /// A damaged index; an empty store.
    pub fn new(material: &'m StoreMaterial) -> Result<Self, EngineError> {
        let index = HnswIndex::open(&material.store, &material.index_dir)?;
        let effort = index.effort_for(RECALL).unwrap_or(Effort::new(256));
        let recall = index.curve().points.iter().rev().find(|p| p.ef <= effort.ef).map_or(0.0, |p| p.recall);
        let certified = CertifiedIndex::new(&material.store, material.companion.as_ref())?;
        Ok(Self { material, certified, index, effort, recall })
    }

    /// What stands behind the answers.
    pub fn material(&self) -> &'m StoreMaterial {
        self.material
    }

    /// Answers one question. Shares are proportional to what is positive of the products with the sums (in bfloat16, for speed):
    /// raw, so they cover nothing.
    ///
    /// # Errors
    /// [`RespondError::Refused`] naming the field; faults of store and index.
    pub fn respond(&self, ask: &Ask) -> Result<Answer, RespondError> {
        let m = self.material;
        let vector = match &ask.input {
            Input::Features(v) | Input::Embedding(v) => v,
            _ => return Err(RespondError::refuse("prompt", "`embedding` or `features`: no model is served", "a text")),
        };
        if ask.tokens || ask.verbatim {
            return Err(RespondError::refuse("tokens", "a model, for tokens or verbatim runs", "a store alone"));
        }
        if ask.k > MAX_K {
            return Err(RespondError::refuse("k", format!("at most {MAX_K}"), ask.k));
        }
        check_vector("embedding", vector, m.opened.dim)?;
        let allowed = m.catalog.allowed(&ask.filter)?;
        let method = ask.method.as_deref().unwrap_or(DOT);
        let (hits, approx) = self.nearest(ask, vector, method, &allowed)?;
        let mut scores: Vec<f64> = m.sums.multiply(vector).into_iter().map(f64::from).collect();
        scores.resize(m.catalog.datasets.len(), 0.0);
        let positive: f64 = scores.iter().map(|s| s.max(0.0)).sum();
        let share = |s: &f64| {
            let share = if positive > 0.0 { s.max(0.0) / positive } else { 0.0 };
            ShareInterval { share, std_error: 1.0, low: 0.0, high: 1.0 }
        };
        let above = |hit: &&Hit| ask.min_score.is_none_or(|least| hit.score >= least);
        let found = |hit: &Hit| Found { example: hit.id, score: hit.score, record: None };
        Ok(Answer {
            method: method.to_owned(),
            spec: m.opened.spec_hash,
            shares: scores.iter().map(share).collect(),
            scores,
            allowed,
            coverage: 0.0,
            verdict: None,
            hits: hits.iter().filter(above).map(found).collect(),
            approx,
            n_tokens: 0,
            tokens: None,
            verbatim: None,
        })
    }

    fn nearest(
        &self,
        ask: &Ask,
        vector: &[f32],
        method: &str,
        allowed: &[bool],
    ) -> Result<(Vec<Hit>, Approx), RespondError> {
        let query = ArrayView1::from(vector).insert_axis(Axis(0));
        let (k, filter) = (ask.k.min(self.material.store.n_rows() as usize), rows_of(allowed));
        match method {
            DOT if k == 0 => Ok((Vec::new(), Approx { mode: "ann", recall: self.recall, rescored: None })),
            DOT => {
                let hits = self.index.search_filtered(query, k, self.effort, &filter)?;
                let approx = Approx { mode: "ann", recall: self.recall, rescored: None };
                Ok((hits.into_iter().next().unwrap_or_default(), approx))
            }
            CERTIFIED => {
                let (hits, certificate) = self.certified.search_certified(query, k, &filter)?;
                let rescored = certificate.rescored.first().copied();
                let approx = Approx { mode: "certified", recall: 1.0, rescored };
                Ok((hits.into_iter().next().unwrap_or_default(), approx))
            }
            other => Err(RespondError::refuse("method", format!("{DOT} or {CERTIFIED}"), other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn parts_change_no_bit() {
        let sums = Array2::from_shape_fn((37, 65_536), |(k, i)| ((k * 31 + i * 7) % 101) as f64 - 50.0);
        let vector: Vec<f32> = (0..65_536).map(|i| (i % 13) as f32 * 0.37 - 2.0).collect();
        let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let one = threads(1).install(|| Sums::new(sums.view()));
        let three = threads(3).install(|| Sums::new(sums.view()));
        assert_eq!((one.parts.len(), three.parts.len()), (1, 3));
        assert_eq!(one.multiply(&vector), three.multiply(&vector));
        assert_eq!(Sums::new(Array2::zeros((0, 8)).view()).multiply(&[1.0; 8]), [0.0f32; 0]);
        assert_eq!(Sums::new(Array2::ones((3, 2)).view()).multiply(&[1.0, 2.0]), [3.0f32; 3]);
    }
}
