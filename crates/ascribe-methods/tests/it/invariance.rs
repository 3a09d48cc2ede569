//! Bytes must not depend on threads, on the cut of a store, or on the other queries; row order only moves columns.

use ascribe_core::NoProgress;
use ascribe_methods::block_fisher::{self, Covariance};
use ascribe_methods::dot;
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, Axis, s};

use crate::support::{queries, reader, relative, with_threads};

const GROUPS: [usize; 3] = [150, 33, 70];

struct Outcome {
    preconditioned: Array2<f64>,
    scores: Array2<f32>,
    own: Vec<f64>,
    sums: Array2<f64>,
    datasets: Array2<f64>,
    removal: Array2<f64>,
}

fn walk(rows: &MemoryReader, query: &Array2<f32>, spectral: bool) -> Outcome {
    let covariance = Covariance::fit(rows, &NoProgress).unwrap();
    let spectrum = covariance.spectrum().unwrap();
    let (factors, damped) = (covariance.cholesky(0.01).unwrap(), spectrum.damped(0.01).unwrap());
    let by: &dyn block_fisher::Preconditioner = if spectral { &damped } else { &factors };
    let preconditioned = block_fisher::precondition(by, query.view()).unwrap();
    let own = block_fisher::self_influence(rows, by, &NoProgress).unwrap();
    let weights = block_fisher::row_weights(&own);
    let scores = dot::score(rows, preconditioned.view(), Some(&weights), &NoProgress).unwrap().values;
    let sums = dot::dataset_sums(rows, 4, Some(&weights), &NoProgress).unwrap();
    let datasets = dot::dataset_scores(preconditioned.view(), sums.view()).unwrap();
    let grouped = rows.ids().is_sorted();
    let removal = match grouped {
        true => block_fisher::removal_vectors(rows, &covariance, 0.1, 4, &NoProgress).unwrap(),
        false => Array2::zeros((0, 0)),
    };
    Outcome { preconditioned, scores, own, sums, datasets, removal }
}

fn assert_same(a: &Outcome, b: &Outcome, what: &str) {
    assert_eq!(a.preconditioned, b.preconditioned, "{what}");
    assert_eq!(a.scores, b.scores, "{what}");
    assert_eq!(a.own, b.own, "{what}");
    assert_eq!(a.sums, b.sums, "{what}");
    assert_eq!(a.datasets, b.datasets, "{what}");
    assert_eq!(a.removal, b.removal, "{what}");
}

#[test]
fn threads_and_block_sizes_change_no_byte() {
    // More than two blocks of 512 rows, the last one not full.
    let (rows, query) = (reader(1100, &GROUPS, 4), queries(37, 253));
    for spectral in [false, true] {
        let one = with_threads(1, || walk(&rows, &query, spectral));
        for (threads, per_block) in [(2, 100), (3, 1), (2, 512), (1, 513), (2, 5000)] {
            let cut = rows.with_rows_per_block(per_block);
            let other = with_threads(threads, || walk(&cut, &query, spectral));
            assert_same(&one, &other, &format!("{threads} threads, {per_block} rows per block"));
        }
    }
}

#[test]
fn a_query_does_not_see_the_others() {
    let (rows, query) = (reader(700, &GROUPS, 4), queries(40, 253));
    let all = walk(&rows, &query, false);
    for q in [0, 5, 31, 32, 39] {
        let alone = walk(&rows, &query.slice(s![q..q + 1, ..]).to_owned(), false);
        assert_eq!(alone.scores.row(0), all.scores.row(q), "query {q}");
        assert_eq!(alone.datasets.row(0), all.datasets.row(q), "query {q}");
        assert_eq!(alone.preconditioned.row(0), all.preconditioned.row(q), "query {q}");
    }
}

#[test]
fn row_order_moves_columns_and_nothing_else() {
    let (rows, query) = (reader(300, &[20, 9], 3), queries(3, 29));
    let order: Vec<usize> = (0..300).map(|i| (i * 7 + 3) % 300).collect();
    let shuffled = MemoryReader::new(
        gradient_spec(&[20, 9]),
        order.iter().map(|&i| rows.ids()[i]).collect(),
        rows.rows().select(Axis(0), &order),
        64,
    );
    let (plain, moved) = (walk(&rows, &query, false), walk(&shuffled, &query, false));
    // Sums in another order: rounding of f64, magnified by the condition number (below 1/damping × 20).
    assert!(relative(&moved.preconditioned, &plain.preconditioned) < 1e-11);
    assert!(relative(&moved.datasets, &plain.datasets) < 1e-11);
    let back = plain.scores.select(Axis(1), &order);
    let close = |a: &f32, b: &f32| (a - b).abs() <= 4.0 * f32::EPSILON * b.abs().max(1e-3);
    assert!(moved.scores.iter().zip(&back).all(|(a, b)| close(a, b)));
}

#[test]
fn streamed_scores_are_the_table() {
    let (rows, query) = (reader(530, &[16], 2), queries(5, 16).mapv(f64::from));
    let table = dot::score(&rows, query.view(), None, &NoProgress).unwrap();
    let mut seen = 0;
    dot::for_each_scores(&rows, query.view(), None, &NoProgress, |first, ids, scores| {
        assert_eq!(first, seen);
        assert_eq!(ids, &table.examples[first..first + ids.len()]);
        assert_eq!(scores.mapv(|v| v as f32), table.values.slice(s![.., first..first + ids.len()]));
        seen += ids.len();
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, 530);
    // The plain double loop, a second route.
    let plain = query.dot(&rows.rows().mapv(f64::from).t());
    assert!(relative(&table.values.mapv(f64::from), &plain) < 2.0 * f64::from(f32::EPSILON));
}
