//! TRAK against the model it comes from: a logistic regression, where its scores have a closed form and models can be refitted.

use ascribe_core::NoProgress;
use ascribe_linalg::Stream;
use ascribe_methods::rows::InMemory;
use ascribe_methods::trak::{self, Ensemble, Kernel, Ridge, SoftThreshold};
use ascribe_testkit::ridge::solve;
use ndarray::{Array1, Array2, Axis, s};

use crate::support::{queries, reader, relative, with_threads};

const EXACT: Ridge = Ridge::Absolute { lambda: 0.0 };

/// `Σ log(1 + e^{−y·x·θ})`, with the label multiplied into the inputs: `rows[i] = y_i x_i` is the margin's gradient.
struct Logistic {
    rows: Array2<f64>,
    theta: Array1<f64>,
}

impl Logistic {
    /// 60 examples of dimension 4 whose labels are drawn, so that no direction separates them.
    fn toy() -> Self {
        let mut stream = Stream::new(31, "trak-test");
        let truth = [1.0, -0.5, 0.25, 0.0];
        let mut rows = Array2::from_shape_fn((60, 4), |_| stream.normal());
        for mut row in rows.rows_mut() {
            let margin: f64 = row.iter().zip(truth).map(|(x, t)| x * t).sum();
            if stream.uniform() > 1.0 / (1.0 + (-margin).exp()) {
                row *= -1.0;
            }
        }
        // The numbers that the f32 rows will have, so that closed forms see the same data.
        let rows = rows.mapv(|x| f64::from(x as f32));
        let theta = Self::fit(&rows);
        Self { rows, theta }
    }

    /// Newton's method to convergence.
    fn fit(rows: &Array2<f64>) -> Array1<f64> {
        let mut theta = Array1::zeros(rows.ncols());
        for _ in 0..50 {
            let p = rows.dot(&theta).mapv(sigmoid);
            let gradient = rows.t().dot(&p.mapv(|p| p - 1.0));
            theta = theta - solve(&Self::hessian(rows, &p), &gradient);
        }
        theta
    }

    fn hessian(rows: &Array2<f64>, p: &Array1<f64>) -> Array2<f64> {
        rows.t().dot(&(rows * &p.mapv(|p| p * (1.0 - p)).insert_axis(Axis(1))))
    }

    fn p(&self) -> Array1<f64> {
        self.rows.dot(&self.theta).mapv(sigmoid)
    }

    /// The margin's fall for query `q` when example i is left out, by refitting.
    fn leave_out(&self, q: &Array1<f64>, i: usize) -> f64 {
        let kept: Vec<usize> = (0..self.rows.nrows()).filter(|&j| j != i).collect();
        q.dot(&(&self.theta - &Self::fit(&self.rows.select(Axis(0), &kept))))
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn with_the_hessians_weights_it_is_influence_and_predicts_refits() {
    let model = Logistic::toy();
    let (p, rows) = (model.p(), model.rows.mapv(|x| x as f32));
    let query = queries(3, 4);
    let weights: Vec<f64> = p.iter().map(|p| (p * (1.0 - p)).sqrt()).collect();
    let residuals: Vec<f32> = p.iter().map(|p| (1.0 - p) as f32).collect();
    let train = InMemory::new(rows.view());
    let kernel = Kernel::fit_weighted(&train, &weights, EXACT, &NoProgress).unwrap();
    let mut one = Ensemble::new();
    one.add_fitted(&kernel, &train, query.view(), &residuals, &NoProgress).unwrap();
    let scores = one.scores(SoftThreshold::None).unwrap().values;
    let hessian = Logistic::hessian(&model.rows, &p);
    for (q, query) in query.mapv(f64::from).rows().into_iter().enumerate() {
        for i in 0..60 {
            let row = model.rows.row(i).to_owned();
            let moved = solve(&hessian, &row);
            // Closed form: the parameters fall by H⁻¹ φ_i (1 − p_i) to first order.
            let influence = query.dot(&moved) * (1.0 - p[i]);
            assert!((f64::from(scores[(q, i)]) - influence).abs() < 1e-5, "{q} {i}");
            // Refitting: one Newton step from the optimum without i, which divides by 1 − leverage; what is left is of second
            // order in 1/60.
            let step = influence / (1.0 - p[i] * (1.0 - p[i]) * row.dot(&moved));
            let exact = model.leave_out(&query.to_owned(), i);
            assert!((step - exact).abs() < 0.12 * exact.abs() + 4e-3, "{q} {i}: {step} {exact}");
        }
    }
}

#[test]
fn an_ensemble_is_the_product_of_two_means() {
    let (a, b) = (reader(70, &[9], 2), reader(70, &[5, 6], 2));
    let (qa, qb) = (queries(4, 9), queries(4, 11));
    let ra: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin().abs()).collect();
    let rb: Vec<f32> = (0..70).map(|i| (i as f32 * 0.91).cos().abs()).collect();
    let ridge = Ridge::Absolute { lambda: 0.5 };
    let mut both = Ensemble::new();
    both.add(&a, qa.view(), &ra, ridge, &NoProgress).unwrap();
    let alone = trak::score(&a, qa.view(), &ra, ridge, SoftThreshold::None, &NoProgress).unwrap();
    assert_eq!(both.scores(SoftThreshold::None).unwrap(), alone);
    both.add(&b, qb.view(), &rb, ridge, &NoProgress).unwrap();
    let found = both.scores(SoftThreshold::None).unwrap();
    assert_eq!((both.n_models(), found.examples.as_slice()), (2, a.ids()));
    let mut expected = Array2::<f64>::zeros((4, 70));
    for (rows, query) in [(a.rows(), &qa), (b.rows(), &qb)] {
        let (rows, query) = (rows.mapv(f64::from), query.mapv(f64::from));
        let kernel = rows.t().dot(&rows) + Array2::<f64>::eye(rows.ncols()) * 0.5;
        for (mut target, q) in expected.rows_mut().into_iter().zip(query.rows()) {
            target += &rows.dot(&solve(&kernel, &q.to_owned()));
        }
    }
    for mut row in expected.rows_mut() {
        row.indexed_iter_mut().for_each(|(i, v)| *v *= 0.5 * 0.5 * (f64::from(ra[i]) + f64::from(rb[i])));
    }
    assert!(relative(&found.values.mapv(f64::from), &expected) < 1e-6);
    let kept = both.scores(SoftThreshold::Keep { keep: 7 }).unwrap().values;
    assert!(kept.rows().into_iter().all(|row| row.iter().filter(|v| **v != 0.0).count() == 7));
}

#[test]
fn bytes_depend_on_neither_threads_nor_blocks_nor_the_other_queries() {
    let (rows, query) = (reader(700, &[40, 9], 2), queries(35, 49));
    let residuals = vec![0.5f32; 700];
    let run = |rows: &_, query: ndarray::ArrayView2<'_, f32>| {
        trak::score(rows, query, &residuals, Ridge::default(), SoftThreshold::None, &NoProgress).unwrap().values
    };
    let one = with_threads(1, || run(&rows, query.view()));
    for (threads, per_block) in [(2, 33), (3, 512)] {
        let cut = rows.with_rows_per_block(per_block);
        assert_eq!(with_threads(threads, || run(&cut, query.view())), one);
    }
    assert_eq!(run(&rows, query.slice(s![33..34, ..])).row(0), one.row(33));
}

#[test]
fn bad_input_is_named_or_defined() {
    let twice = Array2::from_shape_fn((20, 3), |(i, j)| if j == 2 { i as f32 } else { (i + j * j) as f32 });
    let mut twice = twice;
    let copy = twice.column(0).to_owned();
    twice.column_mut(2).assign(&copy);
    let rows = InMemory::new(twice.view());
    let query = queries(2, 3);
    let run = |residuals: &[f32], ridge, soft| {
        trak::score(&rows, query.view(), residuals, ridge, soft, &NoProgress).map(|scores| scores.values)
    };
    let text = |r: Result<Array2<f32>, ascribe_methods::MethodError>| r.unwrap_err().to_string();
    let half = [0.5; 20];
    assert!(text(run(&half, EXACT, SoftThreshold::None)).contains("the TRAK kernel"));
    assert!(run(&half, Ridge::default(), SoftThreshold::None).unwrap().iter().all(|v| v.is_finite()));
    let negative = Ridge::Relative { part: -1.0 };
    assert!(text(run(&half, negative, SoftThreshold::None)).contains("part of the mean diagonal"));
    assert!(text(run(&[0.5; 19], Ridge::default(), SoftThreshold::None)).contains("residuals"));
    let mut wild = half;
    wild[7] = 1.5;
    assert!(text(run(&wild, Ridge::default(), SoftThreshold::None)).contains("column 7"));
    wild[7] = f32::NAN;
    assert!(text(run(&wild, Ridge::default(), SoftThreshold::None)).contains("column 7"));
    let soft = SoftThreshold::Absolute { value: -1.0 };
    assert!(text(run(&half, Ridge::default(), soft)).contains("soft threshold"));
    assert!(
        Ensemble::new().scores(SoftThreshold::None).unwrap_err().to_string().contains("ensemble of models is empty")
    );
    // Rows of zeros have no influence; one example is enough for a kernel with damping.
    let zeros = Array2::<f32>::zeros((20, 3));
    let zero = trak::score(&InMemory::new(zeros.view()), query.view(), &half, EXACT, SoftThreshold::None, &NoProgress);
    assert_eq!(zero.unwrap().values, Array2::<f32>::zeros((2, 20)));
    let single = twice.slice(s![3..4, ..]);
    let ridge = Ridge::default();
    let one = trak::score(&InMemory::new(single), query.view(), &[0.5], ridge, SoftThreshold::None, &NoProgress);
    assert!(one.unwrap().values.iter().all(|v| v.is_finite()));
    let mut both = Ensemble::new();
    both.add(&rows, query.view(), &half, ridge, &NoProgress).unwrap();
    let other = both.add(&rows, query.slice(s![..1, ..]), &half, ridge, &NoProgress).unwrap_err();
    assert!(other.to_string().contains("expected (2, 20), found (1, 20)"), "{other}");
}
