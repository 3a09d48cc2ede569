//! Exact sums of the stored rows per dataset: what makes dataset-level influence a single small product.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::ExampleId;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use safetensors::tensor::Dtype;

use super::FEATURES_FORMAT_VERSION;
use super::generation::{Generation, Part};
use super::layout::{Paths, StoreHeader};
use super::sum_rows;
use super::view::ShardView;
use crate::atomic::write_atomic;
use crate::error::StoreError;
use crate::mmap::Map;
use crate::tensors::{self, Table, Tensor};
use crate::wide::wide;

/// Columns of a dataset that one task adds up: a row of them stays in the first cache, and a store of one dataset has work for
/// several threads. Even, since two int4 codes share a byte.
const TASK_COLUMNS: usize = sum_rows::COLUMNS_MAX;

/// `G_k = Σ_{i in dataset k} g_i` over the rows as stored, each number as an f64 and what that f64 lost (compensated
/// summation, Ogita, Rump and Oishi, SIAM J. Sci. Comput. 26, 2005, algorithm Sum2): as if summed with 106 bits.
///
/// So a row can be taken out again, and rows may come in any order: two ways to the same rows differ by at most
/// `2n²·2⁻¹⁰⁶·Σ|x|` per number, far below the last bit of [`DatasetSums::sums`]. Rows that are added in the order of the
/// store give the bits of a rebuild.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct DatasetSums {
    dim: usize,
    /// `[K, dim]`, sums as f64 arithmetic gives them.
    main: Vec<f64>,
    /// `[K, dim]`, what the roundings of `main` lost.
    rest: Vec<f64>,
    /// Rows of each dataset, `[K]`.
    pub counts: Vec<u64>,
}

impl DatasetSums {
    /// Sums of nothing.
    pub fn new(dim: usize) -> Self {
        Self { dim, ..Self::default() }
    }

    /// `[K, dim]`, rounded once; row k is the dataset with ordinal k, zero for one without rows.
    pub fn sums(&self) -> Array2<f64> {
        let numbers = self.main.iter().zip(&self.rest).map(|(s, r)| s + r).collect();
        Array2::from_shape_vec((self.counts.len(), self.dim), numbers).expect("sums have K rows of dim numbers")
    }

    /// Makes room for datasets below `n_datasets`.
    pub fn grow(&mut self, n_datasets: usize) {
        if n_datasets > self.counts.len() {
            self.counts.resize(n_datasets, 0);
            self.main.resize(n_datasets * self.dim, 0.0);
            self.rest.resize(n_datasets * self.dim, 0.0);
        }
    }

    /// Adds rows `[n, dim]`, in their order.
    pub fn add(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>) {
        self.change(ids, rows, 1.0);
        ids.iter().for_each(|id| self.counts[id.dataset as usize] += 1);
    }

    /// Adds the live rows of a shard as stored, in their order, on all threads: every number of a sum is one thread's. The bits are those
    /// of [`DatasetSums::add`], but that coded rows of a dataset are added up without rounding before they come to its sum: where that
    /// has more than 53 digits, what `main` and `rest` each hold can differ, by far less than the bound above.
    pub(crate) fn add_stored(&mut self, view: &ShardView<'_>) {
        let mut live: Vec<u32> = (0..view.n_rows as u32).filter(|&row| view.is_live(row as usize)).collect();
        // Stable: the rows of a dataset stay in their order.
        live.sort_by_key(|&row| view.dataset(row as usize));
        self.grow(live.last().map_or(0, |&row| view.dataset(row as usize) as usize + 1));
        let (mut tasks, mut next) = (Vec::new(), 0);
        let (mut main, mut rest) = (&mut self.main[..], &mut self.rest[..]);
        for rows in live.chunk_by(|&a, &b| view.dataset(a as usize) == view.dataset(b as usize)) {
            let dataset = view.dataset(rows[0] as usize) as usize;
            self.counts[dataset] += rows.len() as u64;
            let skipped = (dataset - next) * self.dim;
            let (own_main, own_rest);
            (own_main, main) = main[skipped..].split_at_mut(self.dim);
            (own_rest, rest) = rest[skipped..].split_at_mut(self.dim);
            next = dataset + 1;
            let columns = own_main.chunks_mut(TASK_COLUMNS).zip(own_rest.chunks_mut(TASK_COLUMNS)).enumerate();
            tasks.extend(columns.map(|(i, (main, rest))| (i * TASK_COLUMNS, main, rest, rows)));
        }
        let run = |(start, main, rest, rows): (usize, &mut [f64], &mut [f64], &[u32])| {
            sum_rows::add(view, rows, start, main, rest);
        };
        if live.len() * self.dim < TASK_COLUMNS * TASK_COLUMNS / 8 {
            tasks.into_iter().for_each(run);
        } else {
            tasks.into_par_iter().for_each(run);
        }
    }

    /// Takes rows out again; a dataset without rows has sums of exactly zero.
    ///
    /// # Panics
    /// If more rows are taken out than were put in.
    pub fn subtract(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>) {
        self.change(ids, rows, -1.0);
        for id in ids {
            let count = &mut self.counts[id.dataset as usize];
            *count = count.checked_sub(1).expect("a row is taken out after it was put in");
            if *count == 0 {
                self.clear(id.dataset);
            }
        }
    }

    /// Withdraws a dataset: its sums are exactly zero, no row is looked at.
    pub fn clear(&mut self, dataset: u32) {
        let k = dataset as usize;
        if k < self.counts.len() {
            self.counts[k] = 0;
            self.main[k * self.dim..(k + 1) * self.dim].fill(0.0);
            self.rest[k * self.dim..(k + 1) * self.dim].fill(0.0);
        }
    }

    /// Adds the sums of disjoint rows of one spec.
    pub fn merge(&mut self, other: &Self) {
        self.grow(other.counts.len());
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        for ((s, r), (x, y)) in self.main.iter_mut().zip(&mut self.rest).zip(other.main.iter().zip(&other.rest)) {
            add_to(s, r, *x);
            *r += y;
        }
    }

    /// Sums per owner: `owner_of[k]` is the owner of dataset k, below `n_owners`; one without, or beyond its end, belongs to nobody.
    /// Relicensing is another `owner_of`. Datasets are added in their order, so the bits depend on these sums and on `owner_of` alone.
    pub fn by_owner(&self, owner_of: &[Option<u32>], n_owners: usize) -> Self {
        let mut owners = Self::new(self.dim);
        owners.grow(n_owners);
        for (k, owner) in owner_of.iter().enumerate().take(self.counts.len()) {
            let Some(owner) = *owner else { continue };
            owners.counts[owner as usize] += self.counts[k];
            let (from, to) = (k * self.dim, owner as usize * self.dim);
            for j in 0..self.dim {
                add_to(&mut owners.main[to + j], &mut owners.rest[to + j], self.main[from + j]);
                owners.rest[to + j] += self.rest[from + j];
            }
        }
        owners
    }

    /// Largest difference to `other`, relative to the largest number of the row where it is; infinite for other counts.
    pub fn distance(&self, other: &Self) -> f64 {
        if self.counts != other.counts || self.dim != other.dim {
            return f64::INFINITY;
        }
        let mut worst = 0.0f64;
        for k in 0..self.counts.len() {
            let row = k * self.dim..(k + 1) * self.dim;
            let largest = self.main[row.clone()].iter().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
            for j in row {
                let gap = (self.main[j] - other.main[j]) + (self.rest[j] - other.rest[j]);
                worst = worst.max(gap.abs() / largest);
            }
        }
        worst
    }

    fn change(&mut self, ids: &[ExampleId], rows: ArrayView2<'_, f32>, sign: f64) {
        let needed = ids.iter().map(|id| id.dataset as usize + 1).max().unwrap_or(0);
        self.grow(needed);
        for (id, row) in ids.iter().zip(rows.rows()) {
            let at = id.dataset as usize * self.dim..(id.dataset as usize + 1) * self.dim;
            let (main, rest) = (&mut self.main[at.clone()], &mut self.rest[at]);
            match row.as_slice() {
                Some(row) => add_row(main, rest, row, sign),
                None => main.iter_mut().zip(rest).zip(row).for_each(|((s, r), &x)| add_to(s, r, sign * f64::from(x))),
            }
        }
    }

    /// Writes the file of generation `number`.
    pub(crate) fn write(&self, paths: &Paths, header: &StoreHeader, number: u64) -> Result<Part, StoreError> {
        self.write_as("dataset_sums", paths, header, number)
    }

    /// The same under another name.
    pub(crate) fn write_as(
        &self,
        name: &str,
        paths: &Paths,
        header: &StoreHeader,
        number: u64,
    ) -> Result<Part, StoreError> {
        let file = format!("{name}-{number:06}.safetensors");
        let path = paths.root.join(&file);
        let shape = [self.counts.len(), self.dim];
        let tensors = [
            Tensor::new("sum", Dtype::F64, &shape, bytemuck::cast_slice::<f64, u8>(&self.main)),
            Tensor::new("rest", Dtype::F64, &shape, bytemuck::cast_slice::<f64, u8>(&self.rest)),
            Tensor::new("count", Dtype::U64, &shape[..1], bytemuck::cast_slice::<u64, u8>(&self.counts)),
        ];
        let metadata = BTreeMap::from([
            ("ascribe.format_version".to_owned(), FEATURES_FORMAT_VERSION.to_string()),
            ("ascribe.spec".to_owned(), header.spec_sha256.to_string()),
            ("ascribe.store".to_owned(), header.uuid.clone()),
        ]);
        let mut bytes = Vec::new();
        tensors::write(&mut bytes, &path, &tensors, &metadata)?;
        write_atomic(&path, &bytes)?;
        Ok(Part { file, bytes: bytes.len() as u64, blake3: blake3::hash(&bytes).to_hex().to_string() })
    }

    /// The sums of `generation`: read from its file, zero for the generation before any.
    pub(crate) fn of(paths: &Paths, header: &StoreHeader, generation: &Generation) -> Result<Self, StoreError> {
        let Some(part) = &generation.sums else { return Ok(Self::new(header.spec.dim)) };
        let path = paths.root.join(&part.file);
        Self::parse(&path, &Map::open(&path)?, part, header, generation.n_datasets as usize)
    }

    /// Reads a file's bytes back; they must be the ones that `part` names.
    pub(crate) fn parse(
        path: &Path,
        bytes: &[u8],
        part: &Part,
        header: &StoreHeader,
        n_datasets: usize,
    ) -> Result<Self, StoreError> {
        check_part(path, bytes, part)?;
        let dim = header.spec.dim;
        let table = Table::read(path, bytes)?;
        let doubles = |name| -> Result<Vec<f64>, StoreError> {
            let range = table.range(path, name, Dtype::F64, &[n_datasets, dim])?;
            Ok(bytes[range].as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
        };
        let main = doubles("sum")?;
        // Sums of version 1 are plain f64 sums.
        let rest = if header.is_v1() { vec![0.0; main.len()] } else { doubles("rest")? };
        let count_range = table.range(path, "count", Dtype::U64, &[n_datasets])?;
        let counts = bytes[count_range].as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        Ok(Self { dim, main, rest, counts })
    }
}

/// Refuses bytes that are not those of `part`.
pub(crate) fn check_part(path: &Path, bytes: &[u8], part: &Part) -> Result<(), StoreError> {
    let found = blake3::hash(bytes).to_hex();
    if found.as_str() == part.blake3 {
        return Ok(());
    }
    let (path, expected, found) = (path.to_path_buf(), part.blake3.clone(), found.to_string());
    Err(StoreError::WrongChecksum { path, expected, found })
}

wide! {
    /// Adds one row, or takes it out.
    pub(super) fn add_row / add_row_at (main: &mut [f64], rest: &mut [f64], row: &[f32], sign: f64) {
        main.iter_mut().zip(rest).zip(row).for_each(|((s, r), &x)| add_times::<FMA>(s, r, f64::from(x), sign));
    }
}

/// `s + x` without losing what the rounding loses (Knuth's TwoSum).
#[inline(always)]
pub(super) fn add_to(s: &mut f64, r: &mut f64, x: f64) {
    add_times::<false>(s, r, x, 1.0);
}

/// The same for `sign · x`, where `sign` is 1 or −1. With `FMA` three of its seven additions are products with a sign, too: processors
/// have units for those that would stand still. No bit is another.
#[inline(always)]
pub(super) fn add_times<const FMA: bool>(s: &mut f64, r: &mut f64, x: f64, sign: f64) {
    let sum = if FMA { x.mul_add(sign, *s) } else { *s + sign * x };
    let back = sum - *s;
    let lost_of_s = *s - (sum - back);
    let lost_of_x = if FMA { x.mul_add(sign, -back) } else { sign * x - back };
    let lost = lost_of_s + lost_of_x;
    *r = if FMA { lost.mul_add(sign * sign, *r) } else { *r + lost };
    *s = sum;
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn id(dataset: u32, idx: u32) -> ExampleId {
        ExampleId { dataset, idx }
    }

    #[test]
    fn a_small_number_survives_large_ones() {
        // 1 + 2⁶⁰ − 2⁶⁰ is 0 in plain f64.
        let mut sums = DatasetSums::new(1);
        let big = (1u64 << 60) as f32;
        sums.add(&[id(0, 0), id(0, 1), id(0, 2)], array![[1.0], [big], [-big]].view());
        assert_eq!(sums.sums(), array![[1.0]]);
        sums.subtract(&[id(0, 1)], array![[big]].view());
        assert_eq!(sums.sums(), array![[1.0 - f64::from(big)]]);
        assert_eq!(sums.counts, [2]);
    }

    #[test]
    fn taking_out_merging_and_owners() {
        let row = |i: usize| (0..5).map(move |j| ((i * 7 + j * 3) % 11) as f32 * 0.37f32.powi((i % 9) as i32) - 1.0);
        let rows = Array2::from_shape_vec((60, 5), (0..60).flat_map(row).collect()).unwrap();
        let ids: Vec<ExampleId> = (0..60).map(|i| id(i % 3, i / 3)).collect();
        let sum_of = |keep: &dyn Fn(usize) -> bool| {
            let mut sums = DatasetSums::new(5);
            for i in (0..60).filter(|&i| keep(i)) {
                sums.add(&ids[i..=i], rows.slice(ndarray::s![i..=i, ..]));
            }
            sums.grow(3);
            sums
        };
        let all = sum_of(&|_| true);
        let mut fewer = all.clone();
        let gone: Vec<usize> = (0..60).filter(|i| i % 7 == 2).collect();
        for &i in &gone {
            fewer.subtract(&ids[i..=i], rows.slice(ndarray::s![i..=i, ..]));
        }
        let again = sum_of(&|i| i % 7 != 2);
        assert!(fewer.distance(&again) < 1e-28, "{}", fewer.distance(&again));
        assert_eq!(fewer.sums(), again.sums());
        let (mut left, right) = (sum_of(&|i| i < 20), sum_of(&|i| i >= 20));
        left.merge(&right);
        assert!(left.distance(&all) < 1e-28);
        let mut without = all.clone();
        without.clear(1);
        assert_eq!(without, sum_of(&|i| i % 3 != 1));
        // Owners 0 and 1; dataset 2 moves from the first to the second.
        let before = all.by_owner(&[Some(0), Some(1), Some(0)], 2).sums();
        assert_eq!(before.row(1), all.sums().row(1));
        let after = all.by_owner(&[Some(0), Some(1), Some(1)], 2).sums();
        assert_eq!(after.row(0), all.sums().row(0));
        // Equal to sums made anew under the new owner.
        let mut rebuilt = DatasetSums::new(5);
        let owners: Vec<ExampleId> = ids.iter().map(|i| ExampleId { dataset: i.dataset.min(1), ..*i }).collect();
        rebuilt.add(&owners, rows.view());
        assert!(all.by_owner(&[Some(0), Some(1), Some(1)], 2).distance(&rebuilt) < 1e-28);
        // A dataset of nobody is in nobody's sum.
        assert_eq!(all.by_owner(&[None, Some(0)], 1).sums().row(0), all.sums().row(1));
        let total = |a: &Array2<f64>| a.sum_axis(ndarray::Axis(0));
        assert!((total(&before) - total(&after)).iter().all(|d| d.abs() < 1e-12));
        assert_eq!(all.distance(&sum_of(&|i| i > 0)), f64::INFINITY);
    }
}
