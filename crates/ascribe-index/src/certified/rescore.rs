//! Precise scores of candidates: shard by shard, in f64 and in one order.

use ascribe_core::{FeatureReader, RowType};
use ascribe_linalg::sum;
use ascribe_store::features::{Beside, RowCopies};
use rayon::prelude::*;

use super::scan::Pass;
use super::thresholds::{Candidate, Candidates};
use crate::Hit;
use crate::error::IndexError;

/// Fewer rows than this are scored on the thread that asks.
const ALONE: usize = 32;
/// Bytes of rows that are copied at once: they stay in the second cache.
pub(super) const COPIED_BYTES: usize = 256 << 10;

/// A candidate of a query with its precise score.
struct Scored {
    query: usize,
    candidate: Candidate,
    hit: Hit,
}

impl Scored {
    /// What is left of the interval.
    fn point(&self) -> Candidate {
        Candidate { lower: self.hit.score, upper: self.hit.score, is_exact: true, ..self.candidate }
    }
}

impl Pass<'_, '_, '_> {
    /// Scores all candidates of a query precisely and keeps the best: what is left are points, not intervals.
    pub(super) fn settle(&self, query: usize, all: &mut Candidates) -> Result<(), IndexError> {
        let mut scored = self.score(all.all().iter().map(|&candidate| (query, candidate)).collect())?;
        all.rescored += n_new(all.all());
        scored.sort_unstable_by(|a, b| a.hit.rank(&b.hit));
        scored.truncate(self.k);
        all.replace(scored.iter().map(Scored::point).collect());
        Ok(())
    }

    /// Scores the rows with the k highest lower ends precisely. They are the likeliest hits, and as points they lift the
    /// threshold by the width of an interval, so that others need not be looked at.
    pub(super) fn sharpen(&self, found: &mut [Candidates]) -> Result<(), IndexError> {
        let of_query = |(query, all): (usize, &Candidates)| all.vague().into_iter().map(move |c| (query, c));
        let mut scored = self.score(found.iter().enumerate().flat_map(of_query).collect())?;
        scored.sort_unstable_by_key(|s| (s.query, s.candidate.place()));
        for of_query in scored.chunk_by(|a, b| a.query == b.query) {
            let all = &mut found[of_query[0].query];
            all.rescored += of_query.len() as u64;
            let narrowed = all.all().iter().map(|&candidate| {
                match of_query.binary_search_by_key(&candidate.place(), |s| s.candidate.place()) {
                    Ok(i) => of_query[i].point(),
                    Err(_) => candidate,
                }
            });
            all.replace(narrowed.collect());
            all.thin();
        }
        Ok(())
    }

    /// The hits of every query from what is left of all rows, and how many rows were scored for it.
    pub(super) fn finish(&self, found: Vec<Candidates>) -> Result<Vec<(Vec<Hit>, u64)>, IndexError> {
        let of_query = |(query, all): (usize, &Candidates)| -> Vec<(usize, Candidate)> {
            all.all().iter().map(|&candidate| (query, candidate)).collect()
        };
        let scored = self.score(found.iter().enumerate().flat_map(of_query).collect())?;
        let counts = found.iter().map(|all| all.rescored + n_new(all.all()));
        let mut hits: Vec<(Vec<Hit>, u64)> = counts.map(|count| (Vec::new(), count)).collect();
        scored.into_iter().for_each(|s| hits[s.query].0.push(s.hit));
        for (best, _) in &mut hits {
            best.sort_unstable_by(Hit::rank);
            best.truncate(self.k);
        }
        Ok(hits)
    }

    /// Scores in the order of the rows, so that a page is visited once; shards in parallel.
    fn score(&self, mut wanted: Vec<(usize, Candidate)>) -> Result<Vec<Scored>, IndexError> {
        wanted.sort_unstable_by_key(|(query, c)| (c.place(), *query));
        let by_shard: Vec<&[(usize, Candidate)]> = wanted.chunk_by(|a, b| a.1.shard == b.1.shard).collect();
        let one = |memory: &mut Memory, group: &[(usize, Candidate)]| self.score_shard(memory, group);
        let scored: Vec<Vec<Scored>> = if wanted.len() < ALONE {
            // Sooner done here than handed to another thread.
            let mut memory = Memory::default();
            by_shard.into_iter().map(|group| one(&mut memory, group)).collect::<Result<_, _>>()?
        } else {
            by_shard.into_par_iter().map_init(Memory::default, one).collect::<Result<_, _>>()?
        };
        Ok(scored.into_iter().flatten().collect())
    }

    fn score_shard(&self, memory: &mut Memory, group: &[(usize, Candidate)]) -> Result<Vec<Scored>, IndexError> {
        let store = self.index.precise;
        let shard = group[0].1.shard as usize;
        let Memory { copies, wide } = memory;
        wide.resize(store.spec().dim, 0.0);
        let mut scored = Vec::with_capacity(group.len());
        let by_row: Vec<&[(usize, Candidate)]> = group.chunk_by(|a, b| a.1.row == b.1.row).collect();
        let at_once = (COPIED_BYTES / store.header().stride().max(1)).max(1);
        for some in by_row.chunks(at_once) {
            let rows: Vec<u32> = some.iter().map(|of_row| of_row[0].1.row).collect();
            store.copy_rows(shard, &rows, Beside::Ids, copies).map_err(IndexError::reader)?;
            let view = copies.view();
            for (i, of_row) in some.iter().enumerate() {
                let precise: &[f32] = match bytemuck::try_cast_slice::<u8, f32>(view.row(i)) {
                    Ok(numbers) if view.row_type == RowType::F32 => &numbers[..view.dim],
                    _ => {
                        view.widen(i, wide);
                        wide
                    }
                };
                // Its place among the rows that are shown.
                let place = self.index.firsts[shard] + (rows[i] as usize - store.n_dead_before(shard, rows[i])) as u64;
                for &(query, candidate) in *of_row {
                    let numbers = self.queries.row(query).to_slice().expect("queries are in standard layout");
                    let hit = Hit { row: place, id: view.id(i), score: sum::dot(numbers, precise) };
                    scored.push(Scored { query, candidate, hit });
                }
            }
        }
        Ok(scored)
    }
}

/// What a thread keeps from shard to shard.
#[derive(Default)]
struct Memory {
    copies: RowCopies,
    wide: Vec<f32>,
}

/// Candidates that were not scored before.
fn n_new(candidates: &[Candidate]) -> u64 {
    candidates.iter().filter(|candidate| !candidate.is_exact).count() as u64
}
