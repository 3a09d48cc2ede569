//! What every inverse says about an example alone: self-influence and how far it moves the parameters. How scores are
//! divided by these is in [`crate::normalise`].

use ascribe_core::Progress;
use ndarray::ArrayView2;

use super::{InverseCurvature, rows};
use crate::captured;
use crate::error::MethodError;
use crate::source::{CaptureSource, Labels, dim};

/// Gradients per solve, in bytes.
const CHUNK_BYTES: usize = 64 << 20;

/// Fewest and most gradients per solve.
const FEWEST: usize = 8;
const MOST: usize = 256;

/// `g_iᵀ(H + λ)⁻¹g_i` for every example of a source, `[N]`, and `rows::moved_norms` from the same solves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnInfluence {
    /// `g_iᵀ(H + λ)⁻¹g_i`.
    pub self_influence: Vec<f64>,
    /// `‖(H + λ)⁻¹g_i‖`.
    pub moved: Vec<f64>,
}

/// Self-influence of every example, and how far each moves the parameters, by solving for every gradient: exact as far as the
/// inverse is. Cost: `N` solves in blocks, and a pass of the source; memory about 200 MB besides the inverse's.
///
/// Large self-influence marks examples that the model fits alone (mislabelled, rare, memorised).
///
/// # Errors
/// The source's and the inverse's; NaN with its example and layer; a request to stop.
pub fn own_influence(
    inverse: &dyn InverseCurvature,
    source: &dyn CaptureSource,
    labels: Labels,
    progress: &dyn Progress,
) -> Result<OwnInfluence, MethodError> {
    let all: Vec<u32> = (0..source.len() as u32).collect();
    let height = (CHUNK_BYTES / (4 * dim(source.layers())).max(1)).clamp(FEWEST, MOST);
    let mut own = OwnInfluence::default();
    progress.start("self-influence", all.len() as u64, "examples");
    for ids in all.chunks(height) {
        if progress.stop_requested() {
            return Err(MethodError::Stopped);
        }
        let gradients = captured::gradients(source, ids, labels)?;
        let part = own_influence_rows(inverse, gradients.view())?;
        own.self_influence.extend(part.self_influence);
        own.moved.extend(part.moved);
        progress.advance(ids.len() as u64);
    }
    progress.finish("examples solved for");
    Ok(own)
}

/// [`own_influence`] of rows in memory, `[n, P]`: of queries, for a cosine.
///
/// # Errors
/// Shapes; NaN; the inverse's.
pub fn own_influence_rows(
    inverse: &dyn InverseCurvature,
    gradients: ArrayView2<'_, f32>,
) -> Result<OwnInfluence, MethodError> {
    let solved = inverse.solve(gradients)?;
    if solved.dim() != gradients.dim() {
        return Err(MethodError::shape("solved gradients", gradients.dim(), solved.dim()));
    }
    let pairs = || gradients.rows().into_iter().zip(solved.rows());
    Ok(OwnInfluence {
        self_influence: pairs().map(|(g, x)| rows::dot32(g, x)).collect(),
        moved: pairs().map(|(_, x)| rows::norm32(x)).collect(),
    })
}
