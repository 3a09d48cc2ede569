//! Certified exact search: scan rows in few bits, look again at those that may matter, and prove that none was missed.
//!
//! A companion keeps every row of a store in fewer bits and says how far each is from the precise row. So a product of
//! codes is an interval that holds the true score ([`ascribe_linalg::scan::Bounds`]: the row's error, the query's own
//! rounding and the arithmetic, all counted in). The k-th largest lower end is a threshold that k rows are known to reach;
//! a row whose upper end lies below it is not among the k best, whatever its precise score. All others are scored again from
//! the precise rows, in f64 and in one order ([`ascribe_linalg::sum::dot`]), and ranked by score, then example.
//!
//! After every wave of the scan the rows with the k highest lower ends are scored: as points they lift the threshold by about
//! half an interval. So the hits are those of scoring every precise row, at the price of reading a quarter (int8) or an eighth
//! (int4) of its bytes. How many rows were scored again is reported: it depends on how far apart scores are, against the bound. For rows in
//! general position the bound of int8 is about 1.4 % of `‖x‖·‖q‖`, while cosines spread by `1/√dim`: at 1,024 numbers some
//! hundred rows of a million survive, at 16,384 most do, and a bf16 or f16 companion (bound 0.3 %, 0.03 %) is the better one.
//!
//! For a few queries, which a scan answers at the speed of memory whatever it computes, a second and coarser companion may be
//! scanned first ([`CertifiedIndex::with_coarse`]): int4 rows are half of int8's bytes. Their bound is about 11 %, which rules
//! out nearly all rows where the best are far above the rest, as near copies and rows of the query's own topic are, and none
//! where they are not. So the pass is given up as soon as one row in 32 stays a candidate, and the finer companion is scanned
//! as ever. What it leaves is narrowed by the finer rows at the same places before precise ones are looked at.
//!
//! Without a companion the store itself is scanned; then the bound is that of the arithmetic, and of nothing for codes.
//!
//! Determinism: rows are cut into parts of fixed size, a part starts from the threshold of the parts before its wave, so
//! hits *and* the count of rows scored again do not depend on threads. Memory: some MiB per thread, mapped pages, and candidates,
//! which are scored and thinned out when they get many. Of what is scanned first at most [`KEPT_MAX_BYTES`] stay mapped from query
//! to query, its first shards: to map a page anew may cost more than to read it. The others, and larger stores that are scanned after
//! it, are dropped behind the scan, 48 MiB at a time, and read ahead of it where they come from a disk. Rows that are looked at again are
//! read, not mapped.

mod ahead;
mod refine;
mod rescore;
mod scan;
mod thresholds;

use ascribe_core::{FeatureReader, RowType};
use ascribe_linalg::scan::{FEW, MAX_CODED_DIM};
use ascribe_store::FeatureStore;
use ascribe_store::features::ShardEntry;
use ndarray::{ArrayView2, s};

use crate::error::IndexError;
use crate::{Effort, ExactIndex, Filter, Hit, VectorIndex, check_queries};

/// What is scanned first keeps as many bytes mapped.
pub const KEPT_MAX_BYTES: u64 = 384 << 20;
/// A store larger than this that is looked at after it is not kept mapped. A companion that comes first is at most half as large.
const MAPPED_MAX_BYTES: u64 = 256 << 20;
/// Queries of one pass: the products of a part of the rows stay in the second cache.
const QUERY_GROUP: usize = 64;

/// What a certified search proves, query by query.
#[derive(Clone, PartialEq, Debug)]
pub struct Certificate {
    /// Rows that were scanned, each against every query.
    pub rows: u64,
    /// How the scanned rows are kept.
    pub scanned: RowType,
    /// Rows that were scored again, precisely. All others are proven to lie below the k-th hit.
    pub rescored: Vec<u64>,
}

/// Certified exact search over a store, through a companion or by itself.
#[derive(Debug)]
pub struct CertifiedIndex<'s> {
    precise: &'s FeatureStore,
    companion: Option<&'s FeatureStore>,
    /// Scanned first for a few queries.
    coarse: Option<&'s FeatureStore>,
    /// Live rows before each shard, and in all.
    firsts: Vec<u64>,
    /// Shards of what is scanned first that stay mapped.
    n_kept: usize,
}

impl<'s> CertifiedIndex<'s> {
    /// Over `precise`, scanning `companion` if there is one ([`FeatureStore::companion`] ties the two together).
    ///
    /// # Errors
    /// [`IndexError::EmptyStore`]; [`IndexError::NoCompanion`] for a store that keeps no error of its rows or has other rows.
    pub fn new(precise: &'s FeatureStore, companion: Option<&'s FeatureStore>) -> Result<Self, IndexError> {
        if precise.n_rows() == 0 {
            return Err(IndexError::EmptyStore);
        }
        let index = Self { precise, companion, coarse: None, firsts: live(precise), n_kept: 0 };
        index.check(companion)?;
        Ok(index.keeping())
    }

    /// The same with another companion in still fewer bits (`None` changes nothing). Up to four queries are answered through it
    /// where it rules enough rows out; the hits are the same.
    ///
    /// # Errors
    /// [`IndexError::NoCompanion`] as [`CertifiedIndex::new`].
    pub fn with_coarse(self, coarse: Option<&'s FeatureStore>) -> Result<Self, IndexError> {
        self.check(coarse)?;
        Ok(Self { coarse, ..self }.keeping())
    }

    /// With the shards that stay mapped counted.
    fn keeping(self) -> Self {
        let fits = |kept: &mut u64, entry: &ShardEntry| {
            *kept += entry.bytes + entry.side_bytes;
            (*kept <= KEPT_MAX_BYTES).then_some(())
        };
        let n_kept = self.scanned_first().entries().iter().scan(0, fits).count();
        Self { n_kept, ..self }
    }

    /// What a query looks at before anything else.
    fn scanned_first(&self) -> &'s FeatureStore {
        self.coarse.unwrap_or_else(|| self.scanned_store())
    }

    /// Whether pages of a shard are dropped once it has been looked at.
    fn is_dropped(&self, store: &FeatureStore, shard: usize) -> bool {
        match std::ptr::eq(store, self.scanned_first()) {
            true => shard >= self.n_kept,
            false => store.len_bytes() > MAPPED_MAX_BYTES,
        }
    }

    /// Refuses a companion of other rows, or one that certifies nothing.
    fn check(&self, companion: Option<&FeatureStore>) -> Result<(), IndexError> {
        let Some(companion) = companion else { return Ok(()) };
        if live(companion) != self.firsts || companion.spec().dim != self.precise.spec().dim {
            return Err(IndexError::NoCompanion { expected: "the same rows", found: "others".to_owned() });
        }
        if companion.shard_rows(0, []).map_err(IndexError::reader)?.error.is_none() {
            let found = format!("rows of {} without", companion.row_type().name());
            return Err(IndexError::NoCompanion { expected: "an error of each row", found });
        }
        Ok(())
    }

    /// How the rows that a search scans are kept.
    pub fn scanned(&self) -> RowType {
        self.scanned_store().row_type()
    }

    /// What is read row by row: rows of codes that are too long for sums of 32 bits are left aside.
    fn scanned_store(&self) -> &'s FeatureStore {
        self.companion.filter(|_| self.precise.spec().dim <= MAX_CODED_DIM).unwrap_or(self.precise)
    }

    /// The `k` best rows that `filter` allows for each query `[Q, dim]`, and the proof.
    ///
    /// # Errors
    /// Those of [`VectorIndex::search_filtered`].
    pub fn search_certified(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        filter: &Filter,
    ) -> Result<(Vec<Vec<Hit>>, Certificate), IndexError> {
        check_queries(queries, k, self.n_rows(), self.dim())?;
        self.search_by(queries, None, k, filter)
    }

    /// The same where the companion keeps rows in another basis: `W x` in few bits, W invertible.
    ///
    /// `⟨x, q⟩ = ⟨W x, W⁻ᵀ q⟩`, so `turned` holds `W⁻ᵀ q` of every query `[Q, dim]`, and the proof is that of
    /// [`CertifiedIndex::search_certified`] with the companion's errors and norms, which are of `W x`. A basis in which rows spread evenly
    /// has a smaller bound: for curvature `A = L·Lᵀ` and queries `A⁻¹g` the rows `L⁻¹x` do, and `turned` is `L⁻¹g`. Hits and scores are
    /// those of the precise rows with `queries`, bit for bit.
    ///
    /// The caller answers for what turning lost: `|⟨x, q⟩ − ⟨y, p⟩| ≤ slack · ‖y‖ · ‖p‖` for the row y that the companion was made of and p
    /// in `turned`. A coarse companion is not looked at.
    ///
    /// # Errors
    /// Those of [`VectorIndex::search_filtered`], for both sides; [`IndexError::NoCompanion`].
    pub fn search_turned(
        &self,
        queries: ArrayView2<'_, f32>,
        turned: ArrayView2<'_, f32>,
        slack: f64,
        k: usize,
        filter: &Filter,
    ) -> Result<(Vec<Vec<Hit>>, Certificate), IndexError> {
        check_queries(queries, k, self.n_rows(), self.dim())?;
        check_queries(turned, k, self.n_rows(), self.dim())?;
        if self.companion.is_none() || turned.nrows() != queries.nrows() {
            let found = format!("{} for {} queries", turned.nrows(), queries.nrows());
            return Err(IndexError::NoCompanion { expected: "a companion, and a turned query for each", found });
        }
        self.search_by(queries, Some(scan::Turned { queries: turned, slack }), k, filter)
    }

    fn search_by(
        &self,
        queries: ArrayView2<'_, f32>,
        turned: Option<scan::Turned<'_>>,
        k: usize,
        filter: &Filter,
    ) -> Result<(Vec<Vec<Hit>>, Certificate), IndexError> {
        if self.scanned().has_scale() && self.dim() > MAX_CODED_DIM {
            // Sums of their codes do not fit 32 bits: every row is looked at widened.
            let hits = ExactIndex::new(self.precise)?.search_filtered(queries, k, Effort::default(), filter)?;
            let rescored = vec![self.n_rows(); queries.nrows()];
            return Ok((hits, Certificate { rows: self.n_rows(), scanned: self.scanned(), rescored }));
        }
        let (mut hits, mut rescored) = (Vec::with_capacity(queries.nrows()), Vec::new());
        let queries = queries.as_standard_layout();
        let few = turned.is_none() && queries.nrows() <= FEW && self.dim() <= MAX_CODED_DIM;
        if let Some(coarse) = self.coarse.filter(|_| few)
            && let Some(found) = scan::Pass::new(self, coarse, queries.view(), None, k, filter).run_coarse()?
        {
            let (hits, rescored) = found.into_iter().unzip();
            return Ok((hits, Certificate { rows: self.n_rows(), scanned: coarse.row_type(), rescored }));
        }
        for start in (0..queries.nrows()).step_by(QUERY_GROUP) {
            let group = start..(start + QUERY_GROUP).min(queries.nrows());
            let turned = turned.as_ref().map(|turned| turned.slice(group.clone()));
            let group = queries.slice(s![group, ..]);
            let found = scan::Pass::new(self, self.scanned_store(), group, turned, k, filter).run()?;
            for (best, n_rescored) in found {
                hits.push(best);
                rescored.push(n_rescored);
            }
        }
        Ok((hits, Certificate { rows: self.n_rows(), scanned: self.scanned(), rescored }))
    }
}

/// Live rows before each shard of a store, and in all.
fn live(store: &FeatureStore) -> Vec<u64> {
    let mut firsts = vec![0];
    for (shard, entry) in store.entries().iter().enumerate() {
        firsts.push(firsts[shard] + u64::from(entry.rows) - store.n_dead(shard) as u64);
    }
    firsts
}

impl VectorIndex for CertifiedIndex<'_> {
    fn n_rows(&self) -> u64 {
        self.precise.n_rows()
    }

    fn dim(&self) -> usize {
        self.precise.spec().dim
    }

    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        _effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        Ok(self.search_certified(queries, k, filter)?.0)
    }
}
