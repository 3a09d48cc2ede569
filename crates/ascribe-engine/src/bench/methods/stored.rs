//! Rows as a feature store keeps them: of fused modules with embedding and norms, written to a store, read back and scored.
//!
//! `rows` and `lorif` see a decoder's linear modules one by one and count codes alone. What `ascribe features --fused --embedding --norms`
//! makes is held to retraining here, with every byte of the shard files. Here never lives: the whitening (`store::whitened`, methods).

use std::path::Path;

use ascribe_core::{ExampleId, FeatureReader as _, FeatureSink as _, FeatureSpec, Progress, RowType};
use ascribe_methods::block_fisher::{Covariance, precondition};
use ascribe_methods::coded::whiten_queries;
use ascribe_methods::dot;
use ascribe_methods::rows::InMemory;
use ascribe_models::TapConfig;
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::lab::{Lab, StageRows};
use super::rows::SEED;
use super::{Timed, clocked, explained};
use crate::error::EngineError;
use crate::files::Scratch;
use crate::lab::features::SHARD_ROWS_MAX;
use crate::store::whitened::{self, WhitenRequest, Whitened};

/// How rows are made and kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSettings {
    /// Numbers kept per side of every fused module and of the embedding; gains of norms are kept as they are.
    pub k: usize,
    /// What is kept of a row.
    pub kept: Kept,
    /// How the store keeps numbers.
    pub row_type: RowType,
    /// Damping relative to the mean eigenvalue of each module, or of each of its sides.
    pub damping_rel: f64,
}

/// What is kept of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// The projected gradient; queries meet the block Fisher matrix of the rows as they were read back.
    Gradient,
    /// The projected gradient, whitened by the block Fisher matrix before it is kept.
    Whitened,
    /// Factors of this rank of matrices whitened from both sides: the store of `ascribe features --factors`.
    Factors(usize),
}

/// Influence from a store's rows.
pub(super) fn stored(lab: &dyn Lab, settings: &StoredSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let (view, mut fit) = (explained(lab)?, 0.0);
    let taps = TapConfig::all(SEED, settings.k);
    // Queries are few beside the examples: their rows count as fitting.
    let rows = clocked(&mut fit, || view.stage_rows(&taps, lab.digest()))?;
    let mut timed = of_rows(&rows, settings, progress)?;
    timed.fit += fit;
    Ok(timed)
}

fn of_rows(rows: &StageRows, settings: &StoredSettings, progress: &dyn Progress) -> Result<Timed, EngineError> {
    let StoredSettings { kept, row_type, damping_rel, .. } = *settings;
    let (mut fit, mut score) = (0.0, 0.0);
    let scratch = Scratch::new("bench")?;
    let (store, values) = match kept {
        Kept::Gradient => {
            let store = clocked(&mut fit, || written(scratch.path(), &rows.spec, rows.train.view(), row_type))?;
            let metric = clocked(&mut fit, || Ok(Covariance::fit(&store, progress)?.cholesky(damping_rel)?))?;
            let values = clocked(&mut score, || {
                let solved = precondition(&metric, rows.queries.view())?;
                Ok(dot::score(&store, solved.view(), None, progress)?.values)
            })?;
            (store, values)
        }
        Kept::Whitened => {
            let reader = InMemory::new(rows.train.view()).with_columns(rows.spec.columns.clone())?;
            let metric = clocked(&mut fit, || Ok(Covariance::fit(&reader, progress)?.cholesky(damping_rel)?))?;
            let white = clocked(&mut fit, || Ok(whiten_queries(&metric, rows.train.view())?.mapv(|x| x as f32)))?;
            let store = clocked(&mut fit, || written(scratch.path(), &rows.spec, white.view(), row_type))?;
            let values = clocked(&mut score, || {
                let asked = whiten_queries(&metric, rows.queries.view())?;
                Ok(dot::score(&store, asked.view(), None, progress)?.values)
            })?;
            (store, values)
        }
        Kept::Factors(rank) => {
            let [dense, out] = ["dense", "factors"].map(|name| scratch.path().join(name));
            let store = clocked(&mut fit, || {
                written(&dense, &rows.spec, rows.train.view(), RowType::F32)?;
                let request = WhitenRequest { store: dense, out: out.clone(), rank, damping: damping_rel, row_type };
                whitened::make(&request, progress)?;
                Ok(FeatureStore::open(&out, None)?)
            })?;
            let by = Whitened::of(&out, &store)?.expect("the store was made of whitened factors");
            let values = clocked(&mut score, || by.scores(&store, rows.queries.view(), progress))?;
            (store, values)
        }
    };
    let bytes: u64 = store.entries().iter().map(|shard| shard.bytes).sum();
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = bytes as f64 / store.n_rows().max(1) as f64;
    timed.settings = json!({ "modules": rows.spec.columns.len(), "dim": store.spec().dim });
    Ok(timed)
}

/// The rows in a store of their own, in shards as `ascribe features` makes them.
fn written(
    dir: &Path,
    spec: &FeatureSpec,
    rows: ArrayView2<'_, f32>,
    row_type: RowType,
) -> Result<FeatureStore, EngineError> {
    let ids: Vec<ExampleId> = (0..rows.nrows() as u32).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let per_shard = SHARD_ROWS_MAX as u32;
    let mut writer = FeatureWriter::create_or_resume(dir, spec, row_type, per_shard, ids.len() as u64)?;
    writer.push(&ids, rows)?;
    Ok(writer.finish()?)
}

#[cfg(test)]
mod tests {
    use ascribe_core::{Column, Digest, NoProgress, ProjectorSpec};
    use ascribe_linalg::Stream;
    use ascribe_methods::lorif::BothSides;
    use ndarray::Array2;

    use super::*;

    const K: usize = 3;

    /// Two matrices of 3 × 3 of very different sizes, and two gains.
    fn rows(n: usize, seed: u64) -> Array2<f32> {
        let mut stream = Stream::new(seed, "stored");
        let size = |c: usize| [30.0, 0.1, 1.0][c / (K * K)] * [1.0, 0.2, 3.0][c % K];
        Array2::from_shape_fn((n, 20), |(_, c)| (stream.normal() * size(c)) as f32)
    }

    fn stage_rows() -> StageRows {
        let column = |name: &str, start, len| Column { name: name.into(), start, len };
        let columns = vec![column("a", 0, 9), column("b", 9, 9), column("norm", 18, 2)];
        let spec = FeatureSpec {
            model: Digest::of(b"m"),
            checkpoint: "final".into(),
            quantity: "gradient".into(),
            loss: "next_token_nll_sum".into(),
            normalizer: "none".into(),
            projector: ProjectorSpec::TwoSided { seed: SEED, k_in: K, k_out: K, version: 1 },
            columns,
            dim: 20,
            corpus: Digest::of(b"c"),
        };
        StageRows { spec, train: rows(40, 1), queries: rows(5, 2) }
    }

    fn scored(kept: Kept, row_type: RowType) -> Timed {
        let settings = StoredSettings { k: K, kept, row_type, damping_rel: 0.05 };
        of_rows(&stage_rows(), &settings, &NoProgress).unwrap()
    }

    fn assert_near(found: &Array2<f32>, expected: &Array2<f64>, part: f64) {
        let size = expected.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        assert!(size > 0.0 && found.dim() == expected.dim());
        for (f, e) in found.iter().zip(expected) {
            assert!((f64::from(*f) - e).abs() <= part * size, "{f} for {e}, the largest {size}");
        }
    }

    /// `q (H_m + λ_m)⁻¹ g` of every module by Gaussian elimination, in f64.
    fn by_elimination(rows: &StageRows, damping_rel: f64) -> Array2<f64> {
        let (n, wide) = (rows.train.nrows() as f64, |a: &Array2<f32>| a.mapv(f64::from));
        let mut out = Array2::zeros((rows.queries.nrows(), rows.train.nrows()));
        for c in &rows.spec.columns {
            let cut = ndarray::s![.., c.start..c.start + c.len];
            let (train, queries) = (wide(&rows.train).slice(cut).to_owned(), wide(&rows.queries).slice(cut).to_owned());
            let mut h = train.t().dot(&train) / n;
            let damping = damping_rel * h.diag().sum() / c.len as f64;
            h.diag_mut().mapv_inplace(|x| x + damping);
            let mut solved = train.t().to_owned();
            for i in 0..c.len {
                for j in (0..c.len).filter(|&j| j != i) {
                    let factor = h[(j, i)] / h[(i, i)];
                    let (above, right) = (h.row(i).to_owned(), solved.row(i).to_owned());
                    h.row_mut(j).scaled_add(-factor, &above);
                    solved.row_mut(j).scaled_add(-factor, &right);
                }
            }
            for i in 0..c.len {
                let pivot = h[(i, i)];
                solved.row_mut(i).mapv_inplace(|x| x / pivot);
            }
            out += &queries.dot(&solved);
        }
        out
    }

    #[test]
    fn rows_of_a_store_are_scored_by_the_block_fisher_matrix() {
        let expected = by_elimination(&stage_rows(), 0.05);
        for (kept, row_type, part) in [
            (Kept::Gradient, RowType::F32, 1e-5),
            (Kept::Whitened, RowType::F32, 1e-5),
            // A whitened number is some 1, a row's scale its largest over 127 or 7, half of which is lost in each of 20 numbers.
            (Kept::Whitened, RowType::Int8, 0.02),
            (Kept::Whitened, RowType::Int4, 0.3),
        ] {
            assert_near(&scored(kept, row_type).values, &expected, part);
        }
    }

    #[test]
    fn factors_of_full_rank_are_the_matrices_whitened_from_both_sides() {
        let rows = stage_rows();
        let shapes = [Some([K, K]), Some([K, K]), None];
        let reader = InMemory::new(rows.train.view()).with_columns(rows.spec.columns.clone()).unwrap();
        let by = BothSides::fit(&reader, &shapes, 0.05, &NoProgress).unwrap();
        let white = |rows: &Array2<f32>| whiten_queries(&by, rows.view()).unwrap();
        let expected = white(&rows.queries).dot(&white(&rows.train).t());
        assert_near(&scored(Kept::Factors(K), RowType::F32).values, &expected, 1e-5);
        assert_near(&scored(Kept::Factors(K), RowType::Int8).values, &expected, 0.05);
        // A rank less is another matrix, in fewer bytes.
        let [less, more] = [2, K].map(|rank| scored(Kept::Factors(rank), RowType::F32));
        assert!(less.bytes < more.bytes && less.values != more.values);
    }

    #[test]
    fn bytes_are_those_of_the_shard_files_and_the_folder_goes() {
        let settings = StoredSettings { k: K, kept: Kept::Gradient, row_type: RowType::F32, damping_rel: 0.05 };
        let dir = tempfile::tempdir().unwrap();
        let rows = stage_rows();
        let store = written(dir.path(), &rows.spec, rows.train.view(), RowType::F32).unwrap();
        let files: u64 = crate::files::list(dir.path())
            .unwrap()
            .iter()
            .filter(|path| path.starts_with("shards/"))
            .map(|path| std::fs::metadata(dir.path().join(path)).unwrap().len())
            .sum();
        let found = of_rows(&rows, &settings, &NoProgress).unwrap().bytes;
        assert!(
            files > 40 * 20 * 4 && (found - files as f64 / store.n_rows() as f64).abs() < 1e-9,
            "{found} of {files}"
        );
        let scratch = Scratch::new("bench").unwrap();
        let path = scratch.path().to_owned();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
    }
}
