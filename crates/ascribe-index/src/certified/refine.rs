//! Narrower intervals for candidates of a coarse pass, from the rows of the finer companion: a quarter of a precise row's bytes.

use ascribe_linalg::scan::{Bounds, Queries, Scores};
use ascribe_store::FeatureStore;
use ascribe_store::features::{Beside, RowCopies};
use ndarray::s;
use rayon::prelude::*;

use super::rescore::COPIED_BYTES;
use super::scan::{Aligned, Pass};
use super::thresholds::{Candidate, Candidates};
use crate::error::IndexError;

/// Fewer candidates than this are scored precisely at once.
const REFINE_MIN: usize = 256;
/// Rows of one task, which are copied out of one shard.
const TASK_ROWS: usize = 512;

/// Memory of a thread.
#[derive(Default)]
struct Memory {
    copies: RowCopies,
    scores: Scores,
}

impl Pass<'_, '_, '_> {
    /// Narrows the intervals of all candidates by the finer companion's rows, if this pass went over the coarse one and many are
    /// left, and drops those that are ruled out.
    pub(super) fn refine(&self, found: &mut [Candidates]) -> Result<(), IndexError> {
        let fine = self.index.companion.filter(|fine| !std::ptr::eq(*fine, self.scanned));
        let Some(fine) = fine.filter(|_| found.iter().map(|all| all.all().len()).sum::<usize>() >= REFINE_MIN) else {
            return Ok(());
        };
        for (query, all) in found.iter_mut().enumerate() {
            let prepared = Queries::new(fine.row_type(), self.queries.slice(s![query..query + 1, ..]));
            let bounds = Bounds::new(&prepared);
            let mut wanted = all.all().to_vec();
            wanted.sort_unstable_by_key(Candidate::place);
            let of_shard = |group| <[Candidate]>::chunks(group, TASK_ROWS);
            let tasks: Vec<&[Candidate]> = wanted.chunk_by(|a, b| a.shard == b.shard).flat_map(of_shard).collect();
            let narrowed: Vec<Vec<Candidate>> = tasks
                .into_par_iter()
                .map_init(Memory::default, |memory, task| narrowed(fine, &prepared, &bounds, task, memory))
                .collect::<Result<_, IndexError>>()?;
            all.replace(narrowed.concat());
            all.thin();
        }
        self.sharpen(found)
    }
}

/// Candidates of one query in one shard, known to lie within the intervals of the finer rows too.
fn narrowed(
    fine: &FeatureStore,
    query: &Queries,
    bounds: &Bounds,
    task: &[Candidate],
    Memory { copies, scores }: &mut Memory,
) -> Result<Vec<Candidate>, IndexError> {
    let mut narrowed = Vec::with_capacity(task.len());
    for some in task.chunks((COPIED_BYTES / fine.header().stride().max(1)).max(1)) {
        let rows: Vec<u32> = some.iter().map(|candidate| candidate.row).collect();
        fine.copy_rows(some[0].shard as usize, &rows, Beside::Bounds, copies).map_err(IndexError::reader)?;
        let view = copies.view();
        scores.multiply(&Aligned::new(&view, 0..some.len()).block(), query);
        narrowed.extend(some.iter().enumerate().map(|(i, candidate)| {
            let scale = view.scale.map_or(1.0, |scale| f64::from(scale[i])) * query.scale(0);
            let value = scores.at(i, 0, view.row_type) * scale;
            let bound = bounds.of(0, view.error.map_or(0.0, |error| error[i]), view.norm[i]);
            candidate.within(value - bound, value + bound)
        }));
    }
    Ok(narrowed)
}
