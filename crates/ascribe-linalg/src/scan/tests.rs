//! Kernels against plain twins, and bounds against exact products.

use ascribe_core::RowType;
use ndarray::Array2;
use proptest::prelude::*;

use super::*;
use crate::rng::Stream;

/// A block in memory, with what it stands for.
struct Made {
    bytes: Vec<u8>,
    halves: Vec<u16>,
    floats: Vec<f32>,
    row_type: RowType,
    n: usize,
    dim: usize,
    stride: usize,
    /// What the stored numbers are, without their scale.
    numbers: Array2<f64>,
}

impl Made {
    fn new(row_type: RowType, n: usize, dim: usize, padded: bool, seed: u64) -> Self {
        let mut stream = Stream::new(seed, "scan-test");
        let mut numbers = Array2::zeros((n, dim));
        let (mut bytes, mut halves, mut floats) = (vec![], vec![], vec![]);
        let up = |x: usize, to: usize| if padded { x.next_multiple_of(to) } else { x };
        let stride = match row_type {
            RowType::F32 => up(dim, 16),
            RowType::F16 | RowType::Bf16 => up(dim, 32),
            RowType::Int8 => up(dim, 64),
            RowType::Int4 => up(dim.div_ceil(2), 64),
        };
        bytes.resize(if matches!(row_type, RowType::Int8 | RowType::Int4) { n * stride } else { 0 }, 0u8);
        halves.resize(if matches!(row_type, RowType::F16 | RowType::Bf16) { n * stride } else { 0 }, 0u16);
        floats.resize(if row_type == RowType::F32 { n * stride } else { 0 }, 0f32);
        for i in 0..n {
            for j in 0..dim {
                let at = i * stride + j;
                numbers[(i, j)] = match row_type {
                    RowType::Int8 => {
                        // -128 too: no writer of ours makes it, but a file may hold it.
                        let code = stream.below(256) as i32 - 128;
                        bytes[at] = code as i8 as u8;
                        f64::from(code)
                    }
                    RowType::Int4 => {
                        let code = stream.below(16) as i32 - 8;
                        bytes[i * stride + j / 2] |= ((code as u8) & 15) << (4 * (j % 2));
                        f64::from(code)
                    }
                    RowType::F32 => {
                        floats[at] = stream.normal() as f32;
                        f64::from(floats[at])
                    }
                    RowType::Bf16 => {
                        halves[at] = (f32::to_bits(stream.normal() as f32) >> 16) as u16;
                        f64::from(f32::from_bits(u32::from(halves[at]) << 16))
                    }
                    RowType::F16 => {
                        // Any finite half: sign, exponent below the last, mantissa.
                        halves[at] = (stream.below(2) << 15 | stream.below(31) << 10 | stream.below(1024)) as u16;
                        half_by_definition(halves[at])
                    }
                };
            }
        }
        Self { bytes, halves, floats, row_type, n, dim, stride, numbers }
    }

    fn block(&self) -> Block<'_> {
        let lines = match self.row_type {
            RowType::F32 => Lines::F32(&self.floats),
            RowType::F16 => Lines::F16(&self.halves),
            RowType::Bf16 => Lines::Bf16(&self.halves),
            RowType::Int8 => Lines::Int8(&self.bytes),
            RowType::Int4 => Lines::Int4(&self.bytes),
        };
        Block { lines, n_rows: self.n, dim: self.dim, stride: self.stride }
    }
}

/// The value of half-precision bits by the standard's own formula.
fn half_by_definition(bits: u16) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = if exponent == 0 { mantissa * 2f64.powi(-24) } else { (1024.0 + mantissa) * 2f64.powi(exponent - 25) };
    if bits >> 15 == 1 { -size } else { size }
}

fn made_queries(n: usize, dim: usize, seed: u64) -> Array2<f32> {
    let mut stream = Stream::new(seed, "scan-test/queries");
    Array2::from_shape_fn((n, dim), |_| stream.normal() as f32)
}

const TYPES: [RowType; 5] = [RowType::F32, RowType::F16, RowType::Bf16, RowType::Int8, RowType::Int4];

/// Every product lies within its bound of the exact one, and integers are exact.
fn check(row_type: RowType, n: usize, dim: usize, n_queries: usize, padded: bool) {
    let made = Made::new(row_type, n, dim, padded, 5);
    let queries = made_queries(n_queries, dim, 6);
    let prepared = Queries::new(row_type, queries.view());
    let mut scores = Scores::new();
    scores.multiply(&made.block(), &prepared);
    let bounds = Bounds::new(&prepared);
    for i in 0..n {
        let norm = made.numbers.row(i).iter().map(|x| x * x).sum::<f64>().sqrt();
        for q in 0..n_queries {
            let exact: f64 = (0..dim).map(|j| made.numbers[(i, j)] * f64::from(queries[(q, j)])).sum();
            let found = scores.at(i, q, row_type) * prepared.scale(q);
            let bound = bounds.of(q, 0.0, norm as f32);
            assert!(
                (found - exact).abs() <= bound,
                "{row_type:?} {n} {dim} {n_queries} row {i} query {q}: {found} {exact} ± {bound}"
            );
            assert!(bound <= 0.02 * norm * prepared.norm(q) + 1e-9, "a bound that bounds nothing: {bound}");
        }
    }
}

#[test]
fn products_of_every_shape_lie_within_their_bounds() {
    for row_type in TYPES {
        for dim in [1, 15, 16, 63, 64, 65, 130, 400] {
            for (n, n_queries) in [(1, 1), (3, 2), (33, 1), (67, 4), (5, 5), (48, 16), (67, 33)] {
                check(row_type, n, dim, n_queries, true);
                check(row_type, n, dim, n_queries, false);
            }
        }
    }
}

#[test]
fn integer_products_are_those_of_plain_sums() {
    for row_type in [RowType::Int8, RowType::Int4] {
        // 9,000 numbers: more than the tiles take in one go.
        for (n, dim, n_queries) in [(37, 9000, 20), (21, 257, 3), (64, 128, 64)] {
            let made = Made::new(row_type, n, dim, true, 7);
            let queries = made_queries(n_queries, dim, 8);
            let prepared = Queries::new(row_type, queries.view());
            let mut scores = Scores::new();
            scores.multiply(&made.block(), &prepared);
            for q in 0..n_queries {
                let scale = prepared.scale(q);
                let code = |x: f32| (f64::from(x) / scale).round();
                for i in 0..n {
                    let exact: f64 = (0..dim).map(|j| made.numbers[(i, j)] * code(queries[(q, j)])).sum();
                    assert_eq!(scores.at(i, q, row_type), exact, "{row_type:?} row {i} query {q}");
                }
            }
        }
    }
}

#[test]
fn every_route_gives_the_same_integers() {
    let best = ints::Route::best();
    let mut routes = vec![ints::Route::Plain];
    #[cfg(target_arch = "x86_64")]
    {
        routes.extend(avx2::available().then_some(ints::Route::Avx2));
        routes.extend(ints::vnni_available().then_some(ints::Route::Vnni));
    }
    routes.push(best);
    for row_type in [RowType::Int8, RowType::Int4] {
        for (n, dim, n_queries) in [(1, 64, 1), (37, 130, 3), (50, 257, 20), (33, 8300, 35)] {
            let made = Made::new(row_type, n, dim, true, 13);
            let prepared = Queries::new(row_type, made_queries(n_queries, dim, 14).view());
            let width = if n_queries > FEW { n_queries.next_multiple_of(16) } else { n };
            let of = |route| {
                let mut out = vec![0i32; width * if n_queries > FEW { n } else { n_queries }];
                ints::multiply(route, &made.bytes, &made.block(), &prepared, &mut out, width);
                // Columns behind the last query may hold anything.
                let line = |line: &[i32]| line[..if n_queries > FEW { n_queries } else { n }].to_vec();
                out.chunks(width).flat_map(line).collect::<Vec<i32>>()
            };
            let plain = of(ints::Route::Plain);
            for &route in &routes {
                assert_eq!(of(route), plain, "{route:?} {row_type:?} {n} {dim} {n_queries}");
            }
        }
    }
}

#[test]
fn few_queries_have_the_bits_of_the_plain_twin() {
    for row_type in [RowType::F32, RowType::F16, RowType::Bf16] {
        let (n, dim) = (23, 100);
        let made = Made::new(row_type, n, dim, true, 9);
        let queries = made_queries(3, dim, 10);
        let mut scores = Scores::new();
        scores.multiply(&made.block(), &Queries::new(row_type, queries.view()));
        // Every instruction set of this processor, not only its best.
        #[cfg(not(target_arch = "x86_64"))]
        let others: [Vec<f32>; 0] = [];
        #[cfg(target_arch = "x86_64")]
        let others: Vec<Vec<f32>> =
            floats::Isa::all().map(|isa| floats::few_on(isa, &made.block(), queries.view())).collect();
        for i in 0..n {
            let mut row = vec![0.0f32; 112];
            (0..dim).for_each(|j| row[j] = made.numbers[(i, j)] as f32);
            for q in 0..3 {
                let mut query = vec![0.0f32; 112];
                query[..dim].copy_from_slice(queries.row(q).as_slice().unwrap());
                let twin = floats::fused_dot(&row, &query);
                assert_eq!(floats::best_dot(&row, &query).to_bits(), twin.to_bits());
                assert_eq!((scores.at(i, q, row_type) as f32).to_bits(), twin.to_bits(), "{row_type:?}");
                assert!(others.iter().all(|other| other[q * n + i].to_bits() == twin.to_bits()), "{row_type:?}");
            }
        }
    }
}

#[test]
fn every_half_is_widened_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let mut wide = vec![0.0f32; all.len()];
    floats::widen_f16(&all, &mut wide);
    let mut again = vec![0.0f32; all.len()];
    floats::widen_halves(&all, &mut again);
    // A signalling NaN may come back quiet.
    assert!(wide.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())));
    for (&bits, &found) in all.iter().zip(&wide) {
        match bits & 0x7fff {
            0x7c00 => assert!(found.is_infinite() && (found < 0.0) == (bits >> 15 == 1)),
            0x7c01.. => assert!(found.is_nan()),
            _ => assert_eq!(f64::from(found).to_bits(), half_by_definition(bits).to_bits(), "{bits:#x}"),
        }
    }
}

#[test]
fn chosen_rows_have_the_products_of_all_rows() {
    let (n, dim) = (50, 192);
    let made = Made::new(RowType::Int8, n, dim, true, 11);
    let queries = made_queries(1, dim, 12);
    let prepared = Queries::new(RowType::Int8, queries.view());
    let mut scores = Scores::new();
    scores.multiply(&made.block(), &prepared);
    let (query, sum) = prepared.codes(0);
    let rows = [49, 0, 7, 7, 30, 12, 11];
    let mut out = [0i32; 7];
    dots_at(Codes::new(&made.bytes, dim), query, sum, &rows, &mut out);
    for (&row, &found) in rows.iter().zip(&out) {
        assert_eq!(f64::from(found), scores.at(row as usize, 0, RowType::Int8));
    }
}

#[test]
fn extreme_queries_are_prepared_without_harm() {
    for x in [0.0f32, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
        let mut queries = Array2::zeros((2, 70));
        queries[(1, 3)] = x;
        queries[(1, 69)] = -x;
        for row_type in TYPES {
            let prepared = Queries::new(row_type, queries.view());
            assert_eq!((prepared.scale(0), prepared.norm(0), prepared.lost(0)), (1.0, 0.0, 0.0));
            let exact = f64::from(x) * 2f64.sqrt();
            assert!((prepared.norm(1) - exact).abs() <= 1e-12 * exact);
            assert!(prepared.lost(1) <= prepared.norm(1) && prepared.scale(1) > 0.0, "{row_type:?} {x}");
        }
    }
}

proptest! {
    #[test]
    fn a_row_that_reaches_is_never_lost(seed in 0u64..1000, n in 1usize..70, n_queries in 1usize..20, kind in 0usize..5) {
        let (row_type, dim) = (TYPES[kind], 48);
        let made = Made::new(row_type, n, dim, true, seed);
        let queries = made_queries(n_queries, dim, seed + 1);
        let prepared = Queries::new(row_type, queries.view());
        let mut scores = Scores::new();
        scores.multiply(&made.block(), &prepared);
        let bounds = Bounds::new(&prepared);
        // A store of codes keeps a scale per row.
        let scale: Vec<f32> = (0..n).map(|i| 0.01 * (i + 1) as f32).collect();
        let scale = if matches!(row_type, RowType::Int8 | RowType::Int4) { scale } else { vec![] };
        let of = |i: usize| scale.get(i).map_or(1.0, |&s| f64::from(s));
        let norm: Vec<f32> =
            (0..n).map(|i| (of(i) * made.numbers.row(i).iter().map(|x| x * x).sum::<f64>().sqrt()) as f32).collect();
        let exact = |i: usize, q: usize| -> f64 {
            of(i) * (0..dim).map(|j| made.numbers[(i, j)] * f64::from(queries[(q, j)])).sum::<f64>()
        };
        let mut thresholds = Thresholds::new(&bounds, n_queries);
        // The threshold is the exact score of some row: that row must be found.
        let chosen: Vec<usize> = (0..n_queries).map(|q| (q * 7 + seed as usize) % n).collect();
        (0..n_queries).for_each(|q| thresholds.set(q, exact(chosen[q], q)));
        let mut found = vec![vec![]; n_queries];
        let facts = RowFacts { scale: &scale, error: &[], norm: &norm };
        reaching(&scores, row_type, &facts, &bounds, &mut thresholds, |reach, _| {
            found[reach.query].push(reach.row);
            assert!((reach.value - exact(reach.row, reach.query)).abs() <= reach.bound);
        });
        for q in 0..n_queries {
            prop_assert!(found[q].is_sorted());
            for i in 0..n {
                prop_assert!(exact(i, q) < exact(chosen[q], q) || found[q].contains(&i), "row {i} of query {q} was lost");
            }
        }
    }
}
