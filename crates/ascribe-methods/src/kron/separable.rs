//! Influence of pairs where every layer sees one position: then a gradient is `δ xᵀ`, and an inverse `M` of eigenvalues that is a short
//! sum `Σ_r u_r v_rᵀ` gives `Σ_r (Σ_a u_ra δ̃_a δ̃'_a)(Σ_b v_rb x̃_b x̃'_b)` in the curvature's basis: no gradient is formed. K-FAC's
//! `1/(λ_S,a·λ_A,b + λ)` is one, of some ten to twenty terms; measured eigenvalues are not. Here never lives: the products themselves
//! (see `captured`).

use ascribe_core::Progress;
use ndarray::Array2;

use super::factors::LayerFactors;
use super::inverse::Inverted;
use crate::captured::{self, Scales};
use crate::error::MethodError;
use crate::projected::{Basis, Projected};
use crate::source::{CaptureSource, Labels};

/// What a sum may leave over of an entry, weighted as [`weights`] says, in parts of the largest one.
const LEFT: f64 = 1e-8;

/// Terms of a layer at most.
const MOST: usize = 64;

impl Inverted<'_> {
    /// `⟨q, (H + λ)⁻¹g⟩` of every query with every example, `[Q, N]`, where every layer sees one position per example and the inverse is
    /// a short sum of products; `None` elsewhere, and where forming gradients is cheaper ([`captured::score`]).
    ///
    /// Equal to the scores of solved queries but for rounding in f32 and a hundred-millionth of the inverse. Cost: a pass of both
    /// sources, `2(n_in² + n_out²)` per example and layer, `2R(n_in + n_out)` per pair for `R` terms. Bytes depend neither on
    /// threads nor on other queries or examples.
    ///
    /// # Errors
    /// Sources of other layers than those of the fit; the sources'; a score that is not finite; a request to stop.
    pub fn pair_scores(
        &self,
        queries: &dyn CaptureSource,
        train: &dyn CaptureSource,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Option<Array2<f32>>, MethodError> {
        if !captured::one_position(train, labels)? {
            return Ok(None);
        }
        let layers = self.factors().layers();
        let terms: Vec<Vec<Scales>> =
            layers.iter().zip(self.inverses()).map(|(l, m)| separate(m, weights(l))).collect();
        let cost = |(l, terms): (&LayerFactors, &Vec<Scales>)| terms.len() * (l.layer.n_in + l.layer.n_out);
        let whole: usize = layers.iter().map(|l| l.layer.len()).sum();
        let short = terms.iter().all(|terms| terms.len() < MOST);
        if !short || 2 * layers.iter().zip(&terms).map(cost).sum::<usize>() > whole {
            return Ok(None);
        }
        let bases: Vec<Basis> = layers.iter().map(|l| l.basis.clone()).collect();
        let (queries, train) = (Projected::new(queries, &bases)?, Projected::new(train, &bases)?);
        captured::scaled_pair_scores(&queries, &train, &terms, labels, progress)
    }
}

/// Roots of the eigenvalues of both sides, by which an entry is weighted: a direction counts by how far gradients move along it. The
/// root and not the eigenvalue, so that what a single example has in a direction that is rare is right too.
fn weights(layer: &LayerFactors) -> [Vec<f64>; 2] {
    let roots = |values: &[f64]| {
        let largest = values.iter().fold(f64::MIN_POSITIVE, |m, &v| m.max(v));
        values.iter().map(|&v| (v / largest).max(1e-12).sqrt()).collect()
    };
    [roots(&layer.output_values), roots(&layer.input_values)]
}

/// `M ≈ Σ_r u_r v_rᵀ` by elimination with the largest weighted entry as pivot, in f64: after every term what is left over is known
/// exactly. Stops at [`LEFT`] or [`MOST`] terms.
fn separate(m: &Array2<f64>, [rows, columns]: [Vec<f64>; 2]) -> Vec<Scales> {
    let mut left = m.clone();
    let weighted = |left: &Array2<f64>| {
        let mut largest = (0.0, (0, 0));
        for ((a, row), &by) in left.rows().into_iter().enumerate().zip(&rows) {
            for ((b, v), &weight) in row.iter().enumerate().zip(&columns) {
                let size = v.abs() * by * weight;
                if size > largest.0 {
                    largest = (size, (a, b));
                }
            }
        }
        largest
    };
    let (first, mut pivot) = weighted(&left);
    let (mut size, mut terms) = (first, Vec::new());
    while size > LEFT * first && terms.len() < MOST {
        let (output, input) = (left.column(pivot.1).to_owned(), left.row(pivot.0).mapv(|v| v / left[pivot]));
        for (mut row, &u) in left.rows_mut().into_iter().zip(&output) {
            row.zip_mut_with(&input, |left, &v| *left -= u * v);
        }
        terms.push(Scales { input: input.to_vec(), output: output.to_vec() });
        (size, pivot) = weighted(&left);
    }
    terms
}
