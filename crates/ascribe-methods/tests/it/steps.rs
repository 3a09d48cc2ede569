//! Gradient methods against what they claim to predict: the change of a query's loss when the model takes a step on an example,
//! by finite differences on a model whose loss is known.

use ascribe_core::NoProgress;
use ascribe_methods::captured;
use ascribe_methods::less::{self, Adam};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::rows::{self, InMemory};
use ascribe_methods::source::Labels;
use ascribe_methods::trajectory::{self, CheckpointRows};
use ndarray::{Array1, Array2, Axis};

use crate::softmax::{Softmax, clouds};

const QUERIES: [usize; 4] = [0, 7, 13, 21];

/// Away from the optimum, where single gradients are large.
fn model() -> Softmax {
    let (x, labels) = clouds(5, 40, 5, 3);
    let mut model = Softmax::fit(x, labels, 3, 0.01);
    model.theta *= 0.5;
    model
}

/// Gradients of all examples at the model's weights, `[n, P]`.
fn gradients(model: &Softmax) -> Array2<f32> {
    let all: Vec<u32> = (0..40).collect();
    captured::gradients(model, &all, Labels::Given).unwrap()
}

/// Change of query `q`'s loss per step along `−direction`, from both sides.
fn slope(model: &Softmax, q: usize, direction: &Array1<f64>) -> f64 {
    let step = 1e-5;
    let loss = |theta: &Array1<f64>| model.loss(theta, model.x.row(q).as_slice().unwrap(), model.labels[q]);
    let (up, down) = (&model.theta + &(direction * step), &model.theta - &(direction * step));
    (loss(&up) - loss(&down)) / (2.0 * step)
}

#[test]
fn dot_cosine_and_self_influence_are_slopes_of_losses() {
    let model = model();
    let g = gradients(&model);
    let queries = g.select(Axis(0), &QUERIES);
    let train = InMemory::new(g.view());
    let score = |how| rows::score(&train, queries.view(), None, how, &NoProgress).unwrap().values;
    let (dot, cosine) = (score(Normalisation::None), score(Normalisation::Cosine));
    for (k, &q) in QUERIES.iter().enumerate() {
        let own = queries.row(k).mapv(f64::from);
        for i in 0..40 {
            let direction = g.row(i).mapv(f64::from);
            let found = slope(&model, q, &direction);
            assert!((f64::from(dot[(k, i)]) - found).abs() < 1e-5, "{q} {i}: {} {found}", dot[(k, i)]);
            let lengths = (own.dot(&own) * direction.dot(&direction)).sqrt();
            assert!((f64::from(cosine[(k, i)]) - found / lengths).abs() < 1e-5, "{q} {i}");
        }
        // A score upon oneself: how fast an example's own step lowers its own loss.
        assert!((slope(&model, q, &own) - f64::from(dot[(k, q)])).abs() < 1e-5);
    }
}

#[test]
fn tracin_is_what_the_steps_of_a_run_took_off_the_loss() {
    let mut model = model();
    let rate = 1e-5;
    let visits = [3usize, 17, 3, 29, 8];
    let loss =
        |model: &Softmax, q: usize| model.loss(&model.theta, model.x.row(q).as_slice().unwrap(), model.labels[q]);
    let before: Vec<f64> = QUERIES.iter().map(|&q| loss(&model, q)).collect();
    // Every step's gradients, and a checkpoint whose only example is the one that was visited.
    let mut found = vec![0.0f64; QUERIES.len()];
    for i in visits {
        let g = gradients(&model);
        let queries = g.select(Axis(0), &QUERIES).mapv(f64::from);
        let all = InMemory::new(g.view());
        let terms = [CheckpointRows { reader: &all, queries: queries.view(), weight: rate }];
        let scores = trajectory::score(&terms, &NoProgress).unwrap().values;
        found.iter_mut().enumerate().for_each(|(k, sum)| *sum += f64::from(scores[(k, i)]));
        let step = g.row(i).mapv(f64::from) * rate;
        model.theta -= &step;
    }
    for (k, &q) in QUERIES.iter().enumerate() {
        let gone = before[k] - loss(&model, q);
        // What is left is of second order in the rate: some 1e-9 of losses that fall by 1e-5 and more.
        assert!((found[k] - gone).abs() < 1e-8, "{q}: {} {gone}", found[k]);
    }
}

#[test]
fn less_is_the_slope_along_adams_step() {
    let model = model();
    let g = gradients(&model);
    let queries = g.select(Axis(0), &QUERIES);
    let first: Vec<f32> = (0..g.ncols()).map(|p| 0.02 * (p as f32 * 0.7).sin()).collect();
    let second: Vec<f32> = (0..g.ncols()).map(|p| 0.01 + 0.03 * (p as f32 * 0.3).cos().abs()).collect();
    let mut steps = g.clone();
    less::adam_steps(steps.view_mut(), &first, &second, Adam::default()).unwrap();
    let train = InMemory::new(steps.view());
    let terms = [less::Checkpoint { reader: &train, queries: queries.view(), rate: 1.0 }];
    let scores = less::score(&terms, &NoProgress).unwrap().values;
    for (k, &q) in QUERIES.iter().enumerate() {
        let own = queries.row(k).mapv(f64::from);
        for i in 0..40 {
            // Adam's next step on example i, written out.
            let direction: Array1<f64> = (0..g.ncols())
                .map(|p| {
                    let (x, m, v) = (f64::from(g[(i, p)]), f64::from(first[p]), f64::from(second[p]));
                    (0.9 * m + 0.1 * x) / (0.999 * v + 0.001 * x * x + 1e-8).sqrt()
                })
                .collect();
            let expected = slope(&model, q, &direction) / (own.dot(&own) * direction.dot(&direction)).sqrt();
            assert!((f64::from(scores[(k, i)]) - expected).abs() < 1e-5, "{q} {i}: {} {expected}", scores[(k, i)]);
        }
    }
}

#[test]
fn theta_relatif_is_the_slope_per_unit_of_movement() {
    let model = model();
    let g = gradients(&model);
    let queries = g.select(Axis(0), &QUERIES);
    let train = InMemory::new(g.view());
    let covariance = ascribe_methods::block_fisher::Covariance::fit(&train, &NoProgress).unwrap();
    let factors = covariance.cholesky(0.1).unwrap();
    let moved = ascribe_methods::block_fisher::precondition(&factors, g.view()).unwrap();
    let scores =
        rows::score(&train, queries.view(), Some(&factors), Normalisation::RelatIf, &NoProgress).unwrap().values;
    for (k, &q) in QUERIES.iter().enumerate() {
        for i in 0..40 {
            let direction = moved.row(i).to_owned();
            let unit = &direction / direction.dot(&direction).sqrt();
            let expected = slope(&model, q, &unit);
            assert!((f64::from(scores[(k, i)]) - expected).abs() < 1e-5, "{q} {i}: {} {expected}", scores[(k, i)]);
        }
    }
}
