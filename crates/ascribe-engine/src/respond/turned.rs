//! Rows in a basis in which few bits are enough to rule most of them out: the companion of the certified look-up of records.
//!
//! Records are ranked by `⟨x, A⁻¹g⟩`, `A = H + λ = L·Lᵀ` block by block. Rows x and queries `A⁻¹g` live on different axes: rows are long
//! where the curvature is large, queries where it is small, and a bound by `‖x − x̂‖·‖A⁻¹g‖` multiplies the worst of both. `y = L⁻¹x` and
//! `p = L⁻¹g` have the same product and no such axes: `Σ yyᵀ ≈ n·I`, by the definition of H. A seeded rotation R (signs and a Hadamard
//! transform) then spreads a row's few large numbers over all of them, so that int8 codes lose less. So the companion holds `R·L⁻¹·x`, the
//! query is `R·L⁻¹·g`, half of the solve that is made anyway, and the bound is that of any companion ([`ascribe_index::CertifiedIndex::search_turned`]).
//!
//! Measured on the demo's 10,462 rows of 4,224 numbers: `docs/SEARCH.md`.

use std::path::Path;

use ascribe_core::{Digest, ExampleId, FeatureReader as _, FeatureSink as _, Progress, RowType};
use ascribe_linalg::Stream;
use ascribe_methods::block_fisher::{Factors, Preconditioner as _};
use ascribe_store::{FeatureStore, FeatureWriter};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::error::EngineError;

/// Rows that are turned together.
const CHUNK: usize = 128;
/// Norms below it are left to the plain scan: what f32 cannot hold of their numbers, 1e-45 each, is then more than roundings are.
const LEAST: f32 = 1e-30;
/// Largest loss of turning that is worth it: a part of what int8 loses, about 1 % of a row in general position.
const MOST: f64 = 5e-3;
/// Seed of the signs; part of the companion's name.
const SEED: u64 = 1;

/// The companion, and how queries are turned.
pub(super) struct Turned {
    /// `R·L⁻¹·x` of every row, in int8.
    pub(super) store: FeatureStore,
    /// What turning loses of a product, relative to both norms.
    pub(super) slack: f64,
    signs: Vec<f64>,
}

impl Turned {
    /// Opens the companion of `rows` under `factors` in `cache`, or makes it: `N·Σ d_m²` multiply-adds, once.
    ///
    /// None where it would prove little: rows were deleted, rows have no more than 8 bits themselves, or the curvature is so ill
    /// conditioned that roundings weigh as much as int8's.
    ///
    /// # Errors
    /// A damaged companion; the disk.
    pub(super) fn open(
        rows: &FeatureStore,
        factors: &Factors,
        cache: &Path,
        progress: &dyn Progress,
    ) -> Result<Option<Self>, EngineError> {
        let dim = rows.spec().dim;
        let lowers: Vec<Array2<f64>> = factors.to_parts().into_iter().map(|(_, lower)| lower).collect();
        let has_dead = (0..rows.n_shards()).any(|shard| rows.n_dead(shard) > 0);
        let slack = loss(factors, &lowers);
        if has_dead || rows.row_type().bits() <= RowType::Int8.bits() || slack > MOST {
            return Ok(None);
        }
        let mut key = Vec::from(rows.manifest_blake3());
        lowers.iter().flatten().for_each(|x| key.extend(x.to_le_bytes()));
        key.extend(SEED.to_le_bytes());
        let dir = cache.join(format!("turned-{}", &Digest::of(&key).to_string()[..16]));
        let stream = Stream::new(SEED, "respond/turned");
        let signs: Vec<f64> = (0..dim as u64).map(|i| if stream.at(i) >> 63 == 0 { 1.0 } else { -1.0 }).collect();
        let store = match FeatureStore::open(&dir, None) {
            Ok(store) => store,
            Err(_) => write(rows, factors, &signs, &dir, progress)?,
        };
        // Relative errors end where f32 does.
        let is_kept = |(x, y): (f32, f32)| if x == 0.0 { y == 0.0 } else { y > LEAST && y.is_finite() };
        let are_kept = rows.norms().zip(store.norms()).all(is_kept);
        Ok(are_kept.then_some(Self { store, slack, signs }))
    }

    /// `R·L⁻¹g / unit` of one whitened query `[1, dim]`; none where f32 cannot hold it.
    pub(super) fn query(&self, whitened: &Array2<f64>, unit: f64) -> Option<Array2<f32>> {
        let mut turned: Vec<f64> = whitened.iter().map(|z| z / unit).collect();
        rotate(&mut turned, &self.signs);
        let largest = turned.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let turned = Array1::from_iter(turned.into_iter().map(|x| x as f32)).insert_axis(Axis(0));
        (largest > f64::from(LEAST) && largest < 1.0 / f64::from(LEAST)).then_some(turned)
    }
}

/// Writes the companion, with the shards of `rows`.
fn write(
    rows: &FeatureStore,
    factors: &Factors,
    signs: &[f64],
    dir: &Path,
    progress: &dyn Progress,
) -> Result<FeatureStore, EngineError> {
    // Nobody may take these for gradients: another quantity is another spec.
    let mut spec = rows.spec().clone();
    spec.quantity = format!("{}_whitened", spec.quantity);
    let per_shard = rows.header().rows_per_shard;
    let mut writer = FeatureWriter::create_or_resume(dir, &spec, RowType::Int8, per_shard, rows.n_rows())?;
    progress.start("rows in the curvature's metric", rows.n_rows(), "rows");
    let mut skip = usize::try_from(writer.n_committed()).unwrap_or(usize::MAX);
    for block in 0..rows.n_blocks() {
        let block = rows.block(block)?;
        let done = skip.min(block.ids.len());
        skip -= done;
        let (ids, left) = (&block.ids[done..], block.rows.slice(s![done.., ..]));
        let parts: Vec<(&[ExampleId], Array2<f32>)> = ids
            .par_chunks(CHUNK)
            .enumerate()
            .map(|(at, ids)| (ids, turned(left.slice(s![at * CHUNK..at * CHUNK + ids.len(), ..]), factors, signs)))
            .collect();
        for (ids, part) in parts {
            writer.push(ids, part.view())?;
            progress.advance(ids.len() as u64);
        }
    }
    let store = writer.finish()?;
    progress.finish(&format!("{} rows", store.n_rows()));
    Ok(store)
}

/// `R·L⁻¹·x` of some rows, in f64 to the last step.
fn turned(rows: ArrayView2<'_, f32>, factors: &Factors, signs: &[f64]) -> Array2<f32> {
    let mut wide = rows.mapv(f64::from);
    for (module, column) in factors.columns().iter().enumerate() {
        factors.whiten(module, wide.slice_mut(s![.., column.start..column.start + column.len]));
    }
    wide.rows_mut().into_iter().for_each(|mut row| rotate(row.as_slice_mut().expect("in standard layout"), signs));
    wide.mapv(|x| x as f32)
}

/// Signs, then Hadamard transforms scaled by `1/√n` over pieces whose lengths are the powers of two that make up the row's: orthogonal.
fn rotate(x: &mut [f64], signs: &[f64]) {
    x.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
    let mut rest = x;
    while !rest.is_empty() {
        let (piece, others) = rest.split_at_mut(1 << rest.len().ilog2());
        let mut half = 1;
        while half < piece.len() {
            for pair in piece.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
            }
            half *= 2;
        }
        let scale = 1.0 / (piece.len() as f64).sqrt();
        piece.iter_mut().for_each(|x| *x *= scale);
        rest = others;
    }
}

/// How far `⟨x, q⟩` and `⟨y, p⟩` may be apart, relative to the norms of y and p, with q = A⁻¹g, y = L⁻¹x and p = L⁻¹g, all as they are kept.
///
/// `⟨x, q⟩ = ⟨L⁻¹x, Lᵀq⟩`, and `‖Lᵀq − p‖ ≤ (u + 4γ)·‖L‖·‖L⁻¹‖·‖p‖` in Frobenius norms: u for q in f32, γ for triangular solves in f64
/// (Higham, Accuracy and Stability of Numerical Algorithms, §8.1: `|L̂ − L| ≤ γ|L|`; doubled for sums in another order). y and p are
/// rounded to f32 once each, after a solve and at most 64 stages of a transform. Twice all of it for what is of second order.
fn loss(factors: &Factors, lowers: &[Array2<f64>]) -> f64 {
    let norm = |m: &Array2<f64>| m.iter().map(|x| x * x).sum::<f64>().sqrt();
    let u = f64::from(f32::EPSILON) / 2.0;
    let of = |(module, lower): (usize, &Array2<f64>)| -> f64 {
        let n = lower.nrows();
        let mut inverse = Array2::eye(n);
        factors.whiten(module, inverse.view_mut());
        let gamma = 2.0 * (n + 2) as f64 * f64::EPSILON;
        (u + 4.0 * gamma) * norm(lower) * norm(&inverse)
    };
    let solves = lowers.par_iter().enumerate().filter(|(_, l)| !l.is_empty()).map(of).reduce(|| 0.0, f64::max);
    2.0 * (solves + 2.0 * u + 256.0 * f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_products_of_any_length() {
        for n in [1, 2, 3, 17, 128, 4_224] {
            let stream = Stream::new(3, "turned/rotate");
            let number = |i: usize| (stream.at(i as u64) >> 40) as f64 / 1e6 - 8.0;
            let signs: Vec<f64> = (0..n).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
            let (mut x, mut y): (Vec<f64>, Vec<f64>) = (0..n).map(|i| (number(i), number(n + i))).unzip();
            let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
            let (before, scale) = (product(&x, &y), (product(&x, &x) * product(&y, &y)).sqrt());
            rotate(&mut x, &signs);
            rotate(&mut y, &signs);
            assert!((product(&x, &y) - before).abs() <= 1e-13 * scale, "{n}");
        }
        // One large number goes to all places alike.
        let mut peak = vec![0.0; 256];
        peak[3] = 16.0;
        rotate(&mut peak, &[1.0; 256]);
        assert!(peak.iter().all(|x| x.abs() == 1.0));
    }
}
