//! LoRIF: with full ranks it is exact block-Fisher influence; with few it is the dense computation on the same pieces.

use ascribe_core::{Column, NoProgress, ProjectorSpec};
use ascribe_linalg::{Stream, factors};
use ascribe_methods::block_fisher::{self, Covariance, Preconditioner};
use ascribe_methods::dot;
use ascribe_methods::lorif::{self, Expanded, Layout, LowRank, Options, Tail};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, ArrayView2, s};

use crate::support::{queries, reader, relative, with_threads};

const SHAPES: [Option<[usize; 2]>; 3] = [Some([6, 5]), None, Some([4, 8])];

/// Rows whose factored modules have a falling spectrum, stored at `rank`; returns them dense and stored.
fn factored(n: usize, rank: usize, seed: u64) -> (Array2<f32>, Array2<f32>, Layout) {
    let mut stream = Stream::new(seed, "lorif-test");
    let (dense_dim, whole) = (30 + 3 + 32, 3);
    let dense = Array2::from_shape_fn((n, dense_dim), |(_, j)| (stream.normal() / (1.0 + j as f64 / 9.0)) as f32);
    let lens = [rank * 11, whole, rank * 12];
    let mut stored = Array2::zeros((n, lens.iter().sum()));
    for (mut to, from) in stored.rows_mut().into_iter().zip(dense.rows()) {
        let from = from.to_vec();
        let mut numbers: Vec<f32> = Vec::new();
        for (shape, range) in SHAPES.iter().zip([0..30, 30..33, 33..65]) {
            match shape {
                None => numbers.extend(&from[range]),
                Some([o, i]) => {
                    let f = factors(ArrayView2::from_shape((*o, *i), &from[range]).unwrap(), rank).unwrap();
                    // A matrix of lower rank than asked for has fewer columns: the others are zero.
                    for side in [&f.left, &f.right] {
                        let number = |(j, c)| if c < side.ncols() { side[(j, c)] as f32 } else { 0.0 };
                        numbers.extend(Array2::from_shape_fn((side.nrows(), rank), number));
                    }
                }
            }
        }
        to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x);
    }
    let mut start = 0;
    let columns: Vec<Column> = lens
        .iter()
        .enumerate()
        .map(|(m, &len)| {
            start += len;
            Column { name: format!("block.{m}"), start: start - len, len }
        })
        .collect();
    (dense, stored, Layout::new(&columns, &SHAPES, rank).unwrap())
}

fn stored_reader(stored: &Array2<f32>, layout: &Layout) -> MemoryReader {
    let mut spec = gradient_spec(&[layout.stored_dim()]);
    spec.columns = layout.stored_columns();
    let ids = reader(stored.nrows(), &[1], 2).ids().to_vec();
    MemoryReader::new(spec, ids, stored.clone(), 100)
}

fn options(rank: usize) -> Options {
    Options { rank, oversample: 6, passes: 3, damping_rel: 0.05, tail: Tail::Mean, seed: 3 }
}

#[test]
fn full_rank_is_the_exact_block_fisher() {
    let (train, query) = (reader(300, &[20, 9], 3), queries(4, 29));
    let exact = Covariance::fit(&train, &NoProgress).unwrap().cholesky(0.05).unwrap();
    let low = LowRank::fit(&train, options(29), &NoProgress).unwrap();
    let solve = |by: &dyn Preconditioner| block_fisher::precondition(by, query.view()).unwrap();
    assert!(relative(&solve(&low), &solve(&exact)) < 1e-10);
    let own = |by: &dyn Preconditioner| block_fisher::self_influence(&train, by, &NoProgress).unwrap();
    assert!(own(&low).iter().zip(own(&exact)).all(|(a, b)| (a - b).abs() < 1e-10 * b));
    assert!((low.explained(0) - 1.0).abs() < 1e-12 && low.values(1).len() == 9);
    assert_eq!(low.len(), 20 * 21 + 9 * 10);
    assert!(!low.is_empty() && low.values(0).windows(2).all(|w| w[0] >= w[1]));
}

#[test]
fn rows_of_low_rank_need_no_more_and_more_rank_explains_more() {
    // 40 columns, all rows in a plane of 5 dimensions: rank 5 with damping is exact.
    let mut stream = Stream::new(8, "lorif-plane");
    let plane = Array2::from_shape_fn((5, 40), |_| stream.normal());
    let rows = Array2::from_shape_fn((200, 5), |_| stream.normal()).dot(&plane).mapv(|x| x as f32);
    let spec = gradient_spec(&[40]);
    let train = MemoryReader::new(spec, reader(200, &[1], 2).ids().to_vec(), rows, 64);
    let exact = Covariance::fit(&train, &NoProgress).unwrap().cholesky(0.05).unwrap();
    let low = LowRank::fit(&train, Options { rank: 5, ..options(5) }, &NoProgress).unwrap();
    let query = queries(3, 40);
    let solve = |by: &dyn Preconditioner| block_fisher::precondition(by, query.view()).unwrap();
    // f32 rows leave the plane by their rounding.
    assert!(relative(&solve(&low), &solve(&exact)) < 1e-5);
    let train = reader(400, &[60], 2);
    let eigen = Covariance::fit(&train, &NoProgress).unwrap().spectrum().unwrap();
    let total: f64 = eigen.values(0).iter().sum();
    let mut last = 0.0;
    for rank in [1, 4, 16, 40] {
        let low = LowRank::fit(&train, options(rank), &NoProgress).unwrap();
        let best: f64 = eigen.values(0).iter().rev().take(rank).sum::<f64>() / total;
        assert!(low.explained(0) > last && low.explained(0) <= best + 1e-12, "{rank}");
        assert!(low.explained(0) > 0.95 * best, "{rank}: {} of {best}", low.explained(0));
        last = low.explained(0);
    }
}

/// `H + λ` of what is kept and what is taken of the rest, written out; the inverse and its root hold against it.
#[test]
fn a_tail_is_the_inverse_of_its_own_matrix() {
    let (train, query) = (reader(200, &[30], 2), queries(3, 30).mapv(f64::from));
    let eigen = Covariance::fit(&train, &NoProgress).unwrap().spectrum().unwrap();
    for tail in [Tail::Zero, Tail::Mean] {
        // Rank and oversampling cover the module: the subspace is exact, only the tail is not.
        let low = LowRank::fit(&train, Options { rank: 8, oversample: 30, tail, ..options(8) }, &NoProgress).unwrap();
        let kept: f64 = low.values(0).iter().sum();
        let total: f64 = eigen.values(0).iter().sum();
        let tau = if tail == Tail::Mean { (total - kept) / 22.0 } else { 0.0 };
        let mut solved = query.clone();
        low.solve(0, solved.view_mut());
        let mut axes = Array2::<f64>::eye(30);
        low.solve(0, axes.view_mut());
        let inverse = ascribe_linalg::SymmetricEigen::of(axes.view()).unwrap();
        let floor = low.lambda(0) + tau;
        // Largest eigenvalues of the inverse are the 22 of the tail, then 1/(s + λ) falling.
        for (j, value) in inverse.values.iter().rev().enumerate() {
            let expected = if j < 22 { 1.0 / floor } else { 1.0 / (low.values(0)[29 - j] + low.lambda(0)) };
            assert!((value - expected).abs() < 1e-9 * expected, "{tail:?} {j}: {value} {expected}");
        }
        let (mut once, mut twice) = (query.clone(), query.clone());
        low.whiten(0, once.view_mut());
        low.whiten(0, twice.view_mut());
        low.whiten(0, twice.view_mut());
        assert!(relative(&twice, &solved) < 1e-10);
        assert!((once.row(0).dot(&once.row(0)) - query.row(0).dot(&solved.row(0))).abs() < 1e-9);
    }
}

/// Straight from the factors = dense rows, preconditioned queries, one product; on either route.
#[test]
fn scores_from_factors_are_those_of_rows_multiplied_out() {
    // Rank 1 with few eigenpairs takes the factors, rank 3 takes the matrices, full rank is the dense row itself.
    for (rank, eigenpairs) in [(1, 3), (1, 64), (3, 8), (5, 64)] {
        let (dense, stored, layout) = factored(600, rank, 1);
        let (query_dense, query_stored, _) = factored(35, rank, 2);
        let train = stored_reader(&stored, &layout);
        let rows = Expanded::new(&train, &layout).unwrap();
        let low = LowRank::fit(&rows, options(eigenpairs), &NoProgress).unwrap();
        let found = lorif::score(&train, query_stored.view(), &layout, &low, &NoProgress).unwrap();
        let query = layout.expand_rows(query_stored.view()).unwrap();
        let solved = block_fisher::precondition(&low, query.view()).unwrap();
        let expected = dot::score(&rows, solved.view(), None, &NoProgress).unwrap();
        assert_eq!(found.examples, expected.examples);
        let (a, b) = (found.values.mapv(f64::from), expected.values.mapv(f64::from));
        // The factors' products are not rounded to f32 on the way, rows multiplied out are.
        assert!(relative(&a, &b) < 1e-5, "{rank} {eigenpairs}: {}", relative(&a, &b));
        if (rank, eigenpairs) == (5, 64) {
            // Everything full (a module of 4 × 8 has rank 4): exact block-Fisher influence of the dense rows.
            let mut spec = gradient_spec(&[30, 3, 32]);
            spec.columns = layout.dense_columns();
            let whole = MemoryReader::new(spec, train.ids().to_vec(), dense, 100);
            let exact = Covariance::fit(&whole, &NoProgress).unwrap().cholesky(0.05).unwrap();
            let solved = block_fisher::precondition(&exact, query_dense.view()).unwrap();
            let exact = dot::score(&whole, solved.view(), None, &NoProgress).unwrap().values.mapv(f64::from);
            assert!(relative(&a, &exact) < 1e-4, "{}", relative(&a, &exact));
        }
    }
}

#[test]
fn bytes_depend_on_neither_threads_nor_blocks_nor_the_other_queries() {
    let (_, stored, layout) = factored(700, 1, 1);
    let (_, query, _) = factored(35, 1, 2);
    let train = stored_reader(&stored, &layout);
    let run = |train: &MemoryReader, query: ArrayView2<'_, f32>| {
        let rows = Expanded::new(train, &layout).unwrap();
        let low = LowRank::fit(&rows, options(4), &NoProgress).unwrap();
        lorif::score(train, query, &layout, &low, &NoProgress).unwrap().values
    };
    let one = with_threads(1, || run(&train, query.view()));
    for (threads, per_block) in [(2, 33), (3, 512)] {
        assert_eq!(with_threads(threads, || run(&train.with_rows_per_block(per_block), query.view())), one);
    }
    assert_eq!(run(&train, query.slice(s![33..34, ..])).row(0), one.row(33));
}

#[test]
fn bad_input_is_named_or_defined() {
    let (_, stored, layout) = factored(40, 1, 1);
    let train = stored_reader(&stored, &layout);
    let rows = Expanded::new(&train, &layout).unwrap();
    let fit = |options| LowRank::fit(&rows, options, &NoProgress).map(|_| ()).unwrap_err().to_string();
    assert!(fit(Options { damping_rel: 0.0, ..options(3) }).contains("damping_rel must be finite and positive"));
    assert!(fit(Options { rank: 0, ..options(3) }).contains("rank must be at least 1"));
    assert!(Layout::new(&layout.stored_columns(), &SHAPES, 0).is_err());
    assert!(Layout::new(&layout.stored_columns(), &SHAPES[..2], 1).is_err());
    let error = Layout::new(&layout.stored_columns(), &SHAPES, 2).unwrap_err().to_string();
    assert!(error.contains("22 of 6 × 5 at rank 2") && error.contains("11 of block.0"), "{error}");
    assert!(Expanded::new(&reader(9, &[4], 2), &layout).is_err());
    let low = LowRank::fit(&rows, options(3), &NoProgress).unwrap();
    assert!(lorif::score(&train, stored.slice(s![..2, 1..]), &layout, &low, &NoProgress).is_err());
    let mut nan = stored.clone();
    nan[(33, 2)] = f32::NAN;
    let error = lorif::score(&stored_reader(&nan, &layout), stored.slice(s![..2, ..]), &layout, &low, &NoProgress);
    assert!(error.unwrap_err().to_string().contains("row 33"));
    // A module of zeros scores nothing, on either side.
    let mut zero = stored.clone();
    zero.slice_mut(s![.., ..11]).fill(0.0);
    let train = stored_reader(&zero, &layout);
    let low = LowRank::fit(&Expanded::new(&train, &layout).unwrap(), options(3), &NoProgress).unwrap();
    let scores = lorif::score(&train, stored.slice(s![..2, ..]), &layout, &low, &NoProgress).unwrap();
    assert!(low.lambda(0) == 0.0 && low.explained(0) == 1.0 && scores.values.iter().all(|v| v.is_finite()));
}

#[test]
fn a_spec_of_factored_rows_gives_its_layout() {
    let mut spec = gradient_spec(&[2 * (16 + 8), 7, 2 * (16 + 8)]);
    assert!(Layout::of_spec(&spec).unwrap_err().to_string().contains("projector of the rows"));
    spec.projector = ProjectorSpec::Factored { seed: 1, k_in: 16, k_out: 8, rank: 2, version: 1 };
    let layout = Layout::of_spec(&spec).unwrap();
    assert_eq!((layout.rank(), layout.stored_dim(), layout.dense_dim()), (2, 103, 263));
    assert_eq!(layout.modules()[1].shape, None);
    assert_eq!(layout.modules()[2].dense, Column { name: "block.2".into(), start: 135, len: 128 });
}
