//! Approximate search by a server: PostgreSQL with pgvector nominates rows, the store decides.
//!
//! Here lives one [`ascribe_index::VectorIndex`] over a table of points and its HNSW graph (`halfvec_ip_ops`). Here never lives: the
//! rows themselves (a server with wrong points can only miss rows, never misstate a score), and a client of PostgreSQL, which
//! is `ascribe-sql`'s.
//!
//! 1. **Points are what fits.** pgvector indexes `halfvec`s of at most 4,000 numbers. Rows that are no longer are kept as they
//!    are, longer ones by a seeded projection to 2,000; all are divided by the largest norm, so that half precision holds them.
//!    Inner products keep their order under one common factor.
//! 2. **Nominees are scored again**, exactly, from the store, by the function that every index uses.
//! 3. **Small sets are sorted by the server without the graph**: where a filter leaves at most [`PgParams::scan_rows`] rows or no
//!    more than are wanted anyway, and where the graph came back with too few.
//! 4. **Recall is measured when the index is built** and kept in the database: [`PgVectorIndex::effort_for`] reads from it.
//!    pgvector draws levels at random without a seed, so two builds may differ in what they miss.
//! 5. **An index belongs to examples**: rows that the store lost since are skipped; new ones, while they are at most 5 %, are
//!    scored in every search; deletions are marks in the table, which a new build leaves out.
//!
//! A build is one transaction: until it commits, searches see the index before it.

mod build;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_index::backend::{Blocks, Projection};
use ascribe_index::{Effort, IndexError, RecallCurve};
use ascribe_sql::{Database, SqlError};

pub use search::Plan;

/// Version of the tables.
pub const PGVECTOR_TABLES_VERSION: u32 = 1;
/// Longest `halfvec` that pgvector indexes.
pub const POINT_DIM_MAX: usize = 4000;
/// Numbers that longer rows are projected to.
pub const POINT_DIM_PROJECTED: usize = 2000;

/// How the graph is built and when it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PgParams {
    /// Edges of a point and layer (`m`), 2 to 100.
    pub n_neighbours: usize,
    /// Candidates while building (`ef_construction`), at least twice as many, at most 1,000.
    pub ef_construction: usize,
    /// Seed of the projection and of the queries that recall is measured with.
    pub seed: u64,
    /// Sets of so many rows are sorted by the server instead.
    pub scan_rows: u64,
}

impl Default for PgParams {
    fn default() -> Self {
        Self { n_neighbours: 16, ef_construction: 128, seed: 0, scan_rows: 2000 }
    }
}

/// An index on a server over the rows of a reader, which stays at hand for exact scores.
pub struct PgVectorIndex<'r, R> {
    reader: &'r R,
    database: Mutex<Database>,
    address: String,
    name: String,
    params: PgParams,
    blocks: Blocks,
    projection: Projection,
    /// Row of each example of the server that the reader has, by example.
    rows: Vec<(u64, u64)>,
    /// Points of each dataset that are not deleted, whether the reader still has them or not.
    per_dataset: BTreeMap<u32, u64>,
    /// Points whose rows the reader has lost.
    n_gone: u64,
    /// Rows that the server does not know, ascending: nominees of every search.
    unknown: Vec<u64>,
    /// Examples that were deleted from the index.
    deleted: BTreeSet<ExampleId>,
    curve: RecallCurve,
}

impl<R: FeatureReader> PgVectorIndex<'_, R> {
    /// How it was built.
    pub fn params(&self) -> &PgParams {
        &self.params
    }

    /// Numbers of a point on the server.
    pub fn point_dim(&self) -> usize {
        self.projection.point_dim
    }

    /// What was measured when it was built.
    pub fn curve(&self) -> &RecallCurve {
        &self.curve
    }

    /// The least effort whose measured recall is at least `recall`; none if no measured one was: then search exactly.
    pub fn effort_for(&self, recall: f64) -> Option<Effort> {
        self.curve.effort_for(recall)
    }

    /// Rows that the server does not know; they are candidates of every search.
    pub fn unknown(&self) -> &[u64] {
        &self.unknown
    }

    /// Examples that were deleted, ascending.
    pub fn deleted(&self) -> impl Iterator<Item = ExampleId> + '_ {
        self.deleted.iter().copied()
    }

    /// Takes examples out of every later search, also of those who open the index later.
    ///
    /// # Errors
    /// [`IndexError::Backend`].
    pub fn delete(&mut self, ids: impl IntoIterator<Item = ExampleId>) -> Result<(), IndexError> {
        let fresh: Vec<ExampleId> = ids.into_iter().filter(|id| !self.deleted.contains(id)).collect();
        let sql = format!("UPDATE {} SET deleted = 1 WHERE example = ?1 AND deleted = 0", points_table(&self.name));
        let mut database = self.database();
        let changed = database.transaction(|tx| {
            let mut changed = Vec::with_capacity(fresh.len());
            for id in &fresh {
                changed.push(tx.execute(&sql, &[packed(*id).into()])?);
            }
            Ok::<_, SqlError>(changed)
        });
        drop(database);
        let changed = changed.map_err(|error| self.failed(&error))?;
        for (id, n) in fresh.into_iter().zip(changed) {
            if let Some(count) = self.per_dataset.get_mut(&id.dataset) {
                *count -= n.min(*count);
            }
            self.deleted.insert(id);
        }
        Ok(())
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        // A panic while the lock was held leaves a connection that answers or refuses; its state is the server's.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &SqlError) -> IndexError {
        IndexError::Backend { address: self.address.clone(), reason: error.to_string() }
    }
}

impl<R> std::fmt::Debug for PgVectorIndex<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgVectorIndex")
            .field("address", &self.address)
            .field("name", &self.name)
            .field("params", &self.params)
            .field("n_points", &self.rows.len())
            .finish_non_exhaustive()
    }
}

/// The table of an index's points. The name was checked to be plain.
fn points_table(name: &str) -> String {
    format!("ascribe_points_{name}")
}

/// An example as a `BIGINT`: the same 64 bits.
fn packed(id: ExampleId) -> i64 {
    id.to_u64().cast_signed()
}

/// A point as pgvector reads it. Five digits are more than half precision keeps.
fn text_of(point: impl Iterator<Item = f32>) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("[");
    for (i, x) in point.enumerate() {
        if i > 0 {
            text.push(',');
        }
        // Nothing that goes into a `String` fails.
        let _ = write!(text, "{x:.4e}");
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_text() {
        assert_eq!(text_of([0.5f32, -1e-7, 0.0].into_iter()), "[5.0000e-1,-1.0000e-7,0.0000e0]");
        assert_eq!(text_of(std::iter::empty()), "[]");
        assert_eq!(packed(ExampleId { dataset: u32::MAX, idx: u32::MAX }), -1);
    }
}
