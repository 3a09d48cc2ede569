//! Narrower intervals for candidates of a coarse pass, from the rows of the finer companion: a quarter of a precise row's bytes.

use ascribe_linalg::scan::{Bounds, Queries, Scores};
use ascribe_store::mmap::Advice;
use rayon::prelude::*;

use super::scan::{Aligned, Pass};
use super::thresholds::{Candidate, Candidates};
use crate::error::IndexError;

/// Fewer candidates than this are scored precisely at once.
const REFINE_MIN: usize = 256;

impl Pass<'_, '_, '_> {
    /// Narrows the intervals of all candidates by the finer companion's rows, if this pass went over the coarse one and many are
    /// left, and drops those that are ruled out.
    pub(super) fn refine(&self, found: &mut [Candidates]) -> Result<(), IndexError> {
        let fine = self.index.companion.filter(|fine| !std::ptr::eq(*fine, self.scanned));
        let Some(fine) = fine.filter(|_| found.iter().map(|all| all.all().len()).sum::<usize>() >= REFINE_MIN) else {
            return Ok(());
        };
        let prepared = Queries::new(fine.row_type(), self.queries);
        let bounds = Bounds::new(&prepared);
        for (query, all) in found.iter_mut().enumerate() {
            let mut wanted = all.all().to_vec();
            wanted.sort_unstable_by_key(Candidate::place);
            let by_shard: Vec<&[Candidate]> = wanted.chunk_by(|a, b| a.shard == b.shard).collect();
            let narrowed: Vec<Vec<Candidate>> = by_shard
                .into_par_iter()
                .map_init(Scores::new, |scores, group| {
                    let shard = group[0].shard as usize;
                    let rows = group.iter().map(|c| c.row as usize..c.row as usize + 1);
                    let view = fine.shard_rows(shard, rows).map_err(IndexError::reader)?;
                    let narrow = |&candidate: &Candidate| {
                        let row = candidate.row as usize;
                        scores.multiply(&Aligned::new(&view, row..row + 1).block(), &prepared);
                        let scale = view.scale.map_or(1.0, |scale| f64::from(scale[row])) * prepared.scale(query);
                        let value = scores.at(0, query, view.row_type) * scale;
                        let bound = bounds.of(query, view.error.map_or(0.0, |error| error[row]), view.norm[row]);
                        candidate.within(value - bound, value + bound)
                    };
                    let narrowed = group.iter().map(narrow).collect();
                    if self.index.is_dropped(fine, shard) {
                        fine.advise(shard, Advice::DontNeed);
                    }
                    Ok(narrowed)
                })
                .collect::<Result<_, IndexError>>()?;
            all.replace(narrowed.concat());
            all.thin();
        }
        self.sharpen(found)
    }
}
