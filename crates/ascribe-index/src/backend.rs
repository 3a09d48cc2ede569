//! What an index in another crate stands on: a back end only nominates rows, everything else is the same for all.
//!
//! A back end projects rows and queries with [`Projection`], asks its server for nominees, hands them to [`rerank`], and measures
//! itself with [`drawn_queries`] and [`measure`]. Its tests are `tests/contract`, taken in by `#[path]`.

use ndarray::ArrayView2;

use crate::error::IndexError;
use crate::hnsw::{RecallCurve, RecallPoint};
use crate::recall::mean_and_least;
use crate::{Effort, Hit, VectorIndex};

pub use crate::candidates::{Blocks, norms, rerank};
pub use crate::check_queries;
pub use crate::hnsw::curve::drawn_queries;
pub use crate::hnsw::points::Projection;

/// Efforts that are tried, until one finds everything.
const EFS: [usize; 8] = [10, 16, 32, 64, 128, 256, 512, 1024];
/// Recall beyond which more effort is not tried.
const ENOUGH: f64 = 0.9995;

/// Rows asked for when recall is measured.
pub const RECALL_K: usize = 10;

/// Recall of `index` at rising efforts for `queries` `[Q, dim]`, whose true hits are `truth`.
///
/// # Errors
/// Those of a search.
pub fn measure(
    index: &dyn VectorIndex,
    queries: ArrayView2<'_, f32>,
    truth: &[Vec<Hit>],
) -> Result<RecallCurve, IndexError> {
    let k = truth.first().map_or(0, Vec::len);
    let mut points: Vec<RecallPoint> = Vec::new();
    for ef in EFS {
        let effort = Effort { ef, n_exact: ef.max(4 * k) };
        let found = index.search_many(queries, k, effort)?;
        let (recall, worst) = mean_and_least(truth, &found);
        points.push(RecallPoint { ef, n_exact: effort.n_exact, recall, worst });
        if recall >= ENOUGH {
            break;
        }
    }
    Ok(RecallCurve { k, n_queries: queries.nrows(), points })
}
