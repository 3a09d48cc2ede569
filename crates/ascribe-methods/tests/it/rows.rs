//! Scores over rows under every metric and normalisation, TrackStar and LESS: against the formulas written out.

use ascribe_core::{FeatureReader as _, NoProgress};
use ascribe_methods::block_fisher::{Covariance, Preconditioner};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::rows::{self, InMemory, OneGroup, Weighted};
use ascribe_methods::trackstar::{self, Mix, Options, TrackStar};
use ascribe_methods::{less, rows::score};
use ascribe_testkit::MemoryReader;
use ascribe_testkit::ridge::solve;
use ndarray::{Array1, Array2, arr2, s};

use crate::support::{queries, reader, relative, with_threads};

const GROUPS: [usize; 2] = [7, 4];

/// `(H + λ)⁻¹ x` from the rows themselves, block by block, by elimination.
fn moved(rows: &Array2<f64>, x: &Array1<f64>, damping: f64) -> Array1<f64> {
    let mut out = Array1::zeros(x.len());
    for (start, len) in [(0, GROUPS[0]), (GROUPS[0], GROUPS[1])] {
        let part = rows.slice(s![.., start..start + len]);
        let mut h = part.t().dot(&part) / rows.nrows() as f64;
        let lambda = damping * h.diag().mean().unwrap();
        h.diag_mut().mapv_inplace(|d| d + lambda);
        let solved = solve(&h, &x.slice(s![start..start + len]).to_owned());
        out.slice_mut(s![start..start + len]).assign(&solved);
    }
    out
}

#[test]
fn every_normalisation_under_every_metric_is_its_formula() {
    let (train, query) = (reader(60, &GROUPS, 2), queries(3, 11));
    let factors = Covariance::fit(&train, &NoProgress).unwrap().cholesky(0.1).unwrap();
    let (plain, q) = (train.rows().mapv(f64::from), query.mapv(f64::from));
    for metric in [None, Some(&factors as &dyn Preconditioner)] {
        let by = |x: ndarray::ArrayView1<'_, f64>| match metric {
            None => x.to_owned(),
            Some(_) => moved(&plain, &x.to_owned(), 0.1),
        };
        let own = |x: ndarray::ArrayView1<'_, f64>| x.dot(&by(x));
        for how in [
            Normalisation::None,
            Normalisation::UnitQuery,
            Normalisation::UnitTrain,
            Normalisation::Cosine,
            Normalisation::RelatIf,
            Normalisation::Distance,
        ] {
            let found = score(&train, query.view(), metric, how, &NoProgress).unwrap();
            let expected = Array2::from_shape_fn((3, 60), |(k, i)| {
                let (q, g) = (q.row(k), plain.row(i));
                let dot = q.dot(&by(g));
                match how {
                    Normalisation::UnitQuery => dot / own(q).sqrt(),
                    Normalisation::UnitTrain => dot / own(g).sqrt(),
                    Normalisation::Cosine => dot / (own(q) * own(g)).sqrt(),
                    Normalisation::RelatIf => dot / by(g).dot(&by(g)).sqrt(),
                    Normalisation::Distance => dot - 0.5 * own(g),
                    _ => dot,
                }
            });
            assert!(relative(&found.values.mapv(f64::from), &expected) < 1e-6, "{how:?}");
        }
    }
}

#[test]
fn views_show_the_same_rows() {
    let train = reader(50, &GROUPS, 2);
    let memory = InMemory::new(train.rows().view());
    let memory = memory.with_columns(train.spec().columns.clone()).unwrap().with_ids(train.ids().to_vec()).unwrap();
    let query = queries(2, 11);
    let run = |r: &dyn Fn() -> ascribe_methods::dot::ExampleScores| r();
    let a = run(&|| score(&train, query.view(), None, Normalisation::Cosine, &NoProgress).unwrap());
    let b = run(&|| score(&memory, query.view(), None, Normalisation::Cosine, &NoProgress).unwrap());
    assert_eq!(a, b);
    // All columns in one group: the covariance of a reader that has one.
    let whole = Covariance::fit(&OneGroup::new(&train), &NoProgress).unwrap();
    let direct = Covariance::fit(&InMemory::new(train.rows().view()), &NoProgress).unwrap();
    assert_eq!(whole.block(0), direct.block(0));
    let weights: Vec<f64> = (0..50).map(f64::from).collect();
    let cut = train.with_rows_per_block(7);
    let weighted = Weighted::new(&cut, &weights).unwrap();
    let norms = rows::square_norms(&weighted, &NoProgress).unwrap();
    let plain = rows::square_norms(&train, &NoProgress).unwrap();
    for (i, (a, b)) in norms.iter().zip(&plain).enumerate() {
        assert!((a - b * weights[i] * weights[i]).abs() <= 1e-6 * a, "{i}");
    }
    assert!(InMemory::new(train.rows().view()).with_ids(vec![]).is_err());
    assert!(InMemory::new(train.rows().view()).with_columns(vec![]).is_err());
    assert!(Weighted::new(&train, &weights[..9]).is_err());
    assert!(Weighted::new(&train, &vec![f64::NAN; 50]).unwrap_err().to_string().contains("row weights, row 0"));
}

fn diagonal(rows: &[[f32; 2]]) -> Covariance {
    let rows = arr2(rows);
    Covariance::fit(&InMemory::new(rows.view()), &NoProgress).unwrap()
}

#[test]
fn the_crossing_by_hand() {
    // Two rows each: R_train = diag(8, 2), R_eval = diag(2, ½)·… second moments are means over two rows.
    let train = diagonal(&[[4.0, 0.0], [0.0, 2.0]]);
    let eval = diagonal(&[[0.0, 2.0], [1.0, 0.0]]);
    // Falling eigenvalues: train 8, 2; eval 2, ½. k = 1: λ = 8/(2 + 8); k = 2: λ = 2/(½ + 2).
    for (rank, lambda) in [(1, 0.8), (2, 0.8), (9, 0.8)] {
        assert!((trackstar::crossing(&train, &eval, rank).unwrap() - lambda).abs() < 1e-12, "{rank}");
    }
    let eval = diagonal(&[[0.0, 4.0], [4.0, 0.0]]);
    assert!((trackstar::crossing(&train, &eval, 2).unwrap() - 0.2).abs() < 1e-12);
    let fitted = TrackStar::fit(&train, &eval, Options { mix: Mix::Crossing { rank: 2 }, damping_rel: 0.0 }).unwrap();
    assert!((fitted.lambda() - 0.2).abs() < 1e-12);
    // R = 0.2·8·I + 0.8·diag(8, 2) = diag(8, 3.2): the cosine of (1, 1) and (1, −1) is (1/8 − 1/3.2)/(1/8 + 1/3.2) = −3/7.
    let (z, q) = (arr2(&[[1.0f32, -1.0], [0.0, 0.0]]), arr2(&[[1.0f32, 1.0]]));
    let scores = fitted.score(&InMemory::new(z.view()), q.view(), &NoProgress).unwrap().values;
    assert!((scores[(0, 0)] + 3.0 / 7.0).abs() < 1e-6 && scores[(0, 1)] == 0.0, "{scores}");
}

#[test]
fn trackstar_is_the_cosine_of_whitened_rows() {
    let (train, eval, query) = (reader(80, &GROUPS, 2), queries(30, 11), queries(5, 11));
    let columns = train.spec().columns.clone();
    let task = InMemory::new(eval.view()).with_columns(columns).unwrap();
    let (a, b) = (Covariance::fit(&train, &NoProgress).unwrap(), Covariance::fit(&task, &NoProgress).unwrap());
    let fitted = TrackStar::fit(&a, &b, Options::default()).unwrap();
    assert!(fitted.lambda() > 0.0 && fitted.lambda() < 1.0);
    let found = fitted.score(&train, query.view(), &NoProgress).unwrap().values;
    let whiten = |rows: &Array2<f32>| {
        let mut rows = rows.mapv(f64::from);
        for (m, c) in fitted.columns().iter().enumerate() {
            fitted.whiten(m, rows.slice_mut(s![.., c.start..c.start + c.len]));
        }
        rows.rows_mut().into_iter().for_each(|mut row| row /= row.dot(&row).sqrt());
        rows
    };
    let expected = whiten(&query).dot(&whiten(train.rows()).t());
    assert!(relative(&found.mapv(f64::from), &expected) < 1e-6);
    assert!(found.iter().all(|v| v.abs() <= 1.0 + 1e-6));
    // λ = 0 is training curvature alone.
    let none = TrackStar::fit(&a, &b, Options { mix: Mix::Given { lambda: 0.0 }, damping_rel: 0.1 }).unwrap();
    let plain = score(&train, query.view(), Some(&a.cholesky(0.1).unwrap()), Normalisation::Cosine, &NoProgress);
    assert_eq!(none.score(&train, query.view(), &NoProgress).unwrap(), plain.unwrap());
    let error = |options| TrackStar::fit(&a, &b, options).unwrap_err().to_string();
    assert!(error(Options { mix: Mix::Given { lambda: 1.5 }, damping_rel: 0.1 }).contains("0 to 1"));
    assert!(error(Options { mix: Mix::Crossing { rank: 0 }, damping_rel: 0.1 }).contains("rank of the crossing"));
    let zeros = Array2::<f32>::zeros((4, 11));
    let nothing = InMemory::new(zeros.view()).with_columns(train.spec().columns.clone()).unwrap();
    let nothing = Covariance::fit(&nothing, &NoProgress).unwrap();
    assert!(TrackStar::fit(&a, &nothing, Options::default()).unwrap_err().to_string().contains("curvature"));
    let other = Covariance::fit(&reader(9, &[11], 2), &NoProgress).unwrap();
    assert!(TrackStar::fit(&a, &other, Options::default()).is_err());
}

fn cosine(a: ndarray::ArrayView1<'_, f64>, b: ndarray::ArrayView1<'_, f64>) -> f64 {
    a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt()
}

#[test]
fn less_is_a_sum_of_cosines() {
    let (a, b) = (reader(90, &GROUPS, 3), reader(90, &[5], 3).with_rows_per_block(17));
    let (qa, qb) = (queries(4, 11), queries(4, 5));
    let run = || {
        let parts = [
            less::Checkpoint { reader: &a, queries: qa.view(), rate: 0.3 },
            less::Checkpoint { reader: &b, queries: qb.view(), rate: 0.1 },
        ];
        less::score(&parts, &NoProgress).unwrap()
    };
    let found = run();
    let (ra, rb) = (a.rows().mapv(f64::from), b.rows().mapv(f64::from));
    let (fa, fb) = (qa.mapv(f64::from), qb.mapv(f64::from));
    let expected = Array2::from_shape_fn((4, 90), |(q, i)| {
        0.3 * cosine(fa.row(q), ra.row(i)) + 0.1 * cosine(fb.row(q), rb.row(i))
    });
    assert!(relative(&found.values.mapv(f64::from), &expected) < 1e-6);
    assert_eq!(found.examples, a.ids());
    for threads in [1, 3] {
        assert_eq!(with_threads(threads, run), found);
    }
    // A row of zeros has no direction.
    let mut rows = a.rows().clone();
    rows.row_mut(5).fill(0.0);
    let with_zero = MemoryReader::new(a.spec().clone(), a.ids().to_vec(), rows, 100);
    let one = |rate| less::score(&[less::Checkpoint { reader: &with_zero, queries: qa.view(), rate }], &NoProgress);
    assert!(one(1.0).unwrap().values.column(5).iter().all(|v| *v == 0.0));
    assert!(one(-1.0).unwrap_err().to_string().contains("learning rate"));
    let none: [less::Checkpoint<'_, MemoryReader>; 0] = [];
    assert!(less::score(&none, &NoProgress).is_err());
}
