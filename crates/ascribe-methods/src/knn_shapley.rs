//! Exact Shapley values of training examples for a k-nearest-neighbour vote. Source: arXiv:1908.08619, theorem 1.
//!
//! The utility of a set S at a query is `(1/k) Σ` over the (at most k) nearest examples of S of `[label = query's label]`. Its
//! Shapley values follow from the ranking alone, from the farthest example inwards. No model, no gradients.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::blocks;
use crate::error::MethodError;

/// Queries per task.
const TASK: usize = 32;

/// How far two examples are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Straight line.
    #[default]
    Euclidean,
    /// One minus the cosine; a vector of zeros is at distance 1 from all.
    Cosine,
}

/// Options of [`score`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnShapleyOptions {
    /// Neighbours that vote. 5, as in the paper's figures.
    pub k: usize,
    /// The distance.
    pub distance: Distance,
}

impl Default for KnnShapleyOptions {
    fn default() -> Self {
        Self { k: 5, distance: Distance::Euclidean }
    }
}

/// Examples with their labels.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// `[n, F]`.
    pub features: ArrayView2<'a, f32>,
    /// `[n]`.
    pub labels: &'a [u32],
}

/// Shapley value of every training example for every query, `[Q, N]`; a row sums to the vote of all examples (within
/// rounding), positive = helps. Examples at the same distance rank by their number.
///
/// `k` may exceed the number of examples: the vote is still divided by `k`. Distances in f64. Cost `2·Q·N·F + Q·N·log N`;
/// memory `12·Q·N` bytes. Bytes do not depend on threads or on other queries.
///
/// # Errors
/// No training examples; `k = 0`; shapes; NaN.
pub fn score(
    queries: Labelled<'_>,
    train: Labelled<'_>,
    options: &KnnShapleyOptions,
) -> Result<Array2<f32>, MethodError> {
    check("query features", queries)?;
    check("training features", train)?;
    if train.labels.is_empty() {
        return Err(MethodError::Empty { what: "the set of training examples" });
    }
    if queries.features.ncols() != train.features.ncols() {
        return Err(MethodError::shape(
            "width of the query features",
            train.features.ncols(),
            queries.features.ncols(),
        ));
    }
    if options.k == 0 {
        return Err(MethodError::Parameter { field: "k", expected: "at least 1", found: 0.0 });
    }
    let wide = |rows: ArrayView2<'_, f32>| rows.mapv(f64::from);
    let (queries_wide, train_wide) = (wide(queries.features), wide(train.features));
    let train_norms = norms(&train_wide);
    let mut out = Array2::<f32>::zeros((queries.labels.len(), train.labels.len()));
    out.axis_chunks_iter_mut(Axis(0), TASK)
        .into_par_iter()
        .zip(queries_wide.axis_chunks_iter(Axis(0), TASK).into_par_iter())
        .zip(queries.labels.par_chunks(TASK))
        .for_each(|((mut rows, queries), labels)| {
            let products = blocks::rows_times(queries, train_wide.t());
            for (((mut row, query), products), &label) in
                rows.rows_mut().into_iter().zip(queries.rows()).zip(products.rows()).zip(labels)
            {
                let order = ranking(query, products, &train_norms, options.distance);
                let fits: Vec<bool> = order.iter().map(|&i| train.labels[i] == label).collect();
                for (&i, value) in order.iter().zip(recursion(&fits, options.k)) {
                    row[i] = value as f32;
                }
            }
        });
    Ok(out)
}

/// Shapley values by rank, nearest first: `s_n = [y_n = y]·min(k, n)/(k·n)` for the farthest, and inwards
/// `s_i = s_{i+1} + ([y_i = y] − [y_{i+1} = y])/k · min(k, i)/i`.
fn recursion(fits: &[bool], k: usize) -> Vec<f64> {
    let n = fits.len();
    let mut values = vec![0.0; n];
    let Some(&last) = fits.last() else { return values };
    let vote = |fits: bool| if fits { 1.0 } else { 0.0 };
    values[n - 1] = vote(last) * k.min(n) as f64 / (k as f64 * n as f64);
    for i in (1..n).rev() {
        // `i` counts from 1 here: the example of rank i against the one of rank i + 1.
        let step = (vote(fits[i - 1]) - vote(fits[i])) / k as f64;
        values[i - 1] = values[i] + step * k.min(i) as f64 / i as f64;
    }
    values
}

/// Training examples by distance, nearest first.
fn ranking(query: ArrayView1<'_, f64>, products: ArrayView1<'_, f64>, norms: &[f64], distance: Distance) -> Vec<usize> {
    let own = query.dot(&query);
    let far: Vec<f64> = products
        .iter()
        .zip(norms)
        .map(|(&product, &norm)| match distance {
            Distance::Euclidean => own + norm - 2.0 * product,
            Distance::Cosine if own > 0.0 && norm > 0.0 => 1.0 - product / (own * norm).sqrt(),
            Distance::Cosine => 1.0,
        })
        .collect();
    let mut order: Vec<usize> = (0..far.len()).collect();
    order.sort_unstable_by(|&a, &b| far[a].total_cmp(&far[b]).then(a.cmp(&b)));
    order
}

fn norms(rows: &Array2<f64>) -> Vec<f64> {
    rows.rows().into_iter().map(|row| row.dot(&row)).collect()
}

fn check(what: &'static str, side: Labelled<'_>) -> Result<(), MethodError> {
    if side.features.nrows() != side.labels.len() {
        return Err(MethodError::shape("labels, one per example", side.features.nrows(), side.labels.len()));
    }
    match side.features.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some(((row, column), &found)) => {
            Err(MethodError::BadValue { what: what.to_owned(), row, column, found: f64::from(found) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::arr2;

    /// Shapley values from all 2^n sets, by the definition.
    fn brute_force(fits: &[bool], k: usize) -> Vec<f64> {
        let n = fits.len();
        let utility = |set: usize| {
            let votes = (0..n).filter(|i| set >> i & 1 == 1).take(k).filter(|&i| fits[i]).count();
            votes as f64 / k as f64
        };
        let factorial = |m: usize| (1..=m).map(|v| v as f64).product::<f64>();
        (0..n)
            .map(|i| {
                (0..1usize << n)
                    .filter(|set| set >> i & 1 == 0)
                    .map(|set| {
                        let size = set.count_ones() as usize;
                        let weight = factorial(size) * factorial(n - size - 1) / factorial(n);
                        weight * (utility(set | 1 << i) - utility(set))
                    })
                    .sum()
            })
            .collect()
    }

    #[test]
    fn the_recursion_is_the_definition() {
        let mut stream = Stream::new(8, "knn-test");
        for n in 1..=9 {
            for k in [1, 2, 3, 5, 12] {
                let fits: Vec<bool> = (0..n).map(|_| stream.uniform() < 0.5).collect();
                for (found, expected) in recursion(&fits, k).iter().zip(brute_force(&fits, k)) {
                    assert!((found - expected).abs() < 1e-13, "n = {n}, k = {k}: {found} against {expected}");
                }
            }
        }
    }

    #[test]
    fn three_examples_by_hand() {
        // k = 1, nearest first: wrong, right, right. s_3 = 1/3; s_2 = s_3; s_1 = s_2 − 1 = −2/3: their sum is the vote, 0.
        let train = arr2(&[[3.0f32], [1.0], [2.0]]);
        let side = |features, labels| Labelled { features, labels };
        let options = KnnShapleyOptions { k: 1, distance: Distance::Euclidean };
        let query = arr2(&[[0.0f32]]);
        let scores = score(side(query.view(), &[7]), side(train.view(), &[7, 0, 7]), &options).unwrap();
        let third = 1.0f32 / 3.0;
        assert_eq!(scores, arr2(&[[third, -2.0 * third, third]]));
    }

    #[test]
    fn rows_sum_to_the_vote_in_any_company_and_pool() {
        let mut stream = Stream::new(9, "knn-test");
        let mut rows = |n: usize| Array2::from_shape_fn((n, 4), |_| stream.normal() as f32);
        let (train, queries) = (rows(60), rows(40));
        let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
        let asked: Vec<u32> = (0..40).map(|i| i % 3).collect();
        let train_side = Labelled { features: train.view(), labels: &labels };
        for distance in [Distance::Euclidean, Distance::Cosine] {
            let options = KnnShapleyOptions { k: 5, distance };
            let side = |range: std::ops::Range<usize>| Labelled {
                features: queries.slice(ndarray::s![range.clone(), ..]),
                labels: &asked[range],
            };
            let all = score(side(0..40), train_side, &options).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            assert_eq!(all, pool.install(|| score(side(0..40), train_side, &options).unwrap()));
            let few = score(side(35..37), train_side, &options).unwrap();
            assert_eq!(few, all.slice(ndarray::s![35..37, ..]));
            for row in all.rows() {
                let votes = 5.0 * row.iter().map(|&v| f64::from(v)).sum::<f64>();
                assert!((votes - votes.round()).abs() < 1e-4 && (-1e-4..5.001).contains(&votes), "{votes}");
            }
        }
    }

    #[test]
    fn bad_input_is_named() {
        let train = arr2(&[[1.0f32, 0.0], [f32::NAN, 1.0]]);
        let side = |features, labels| Labelled { features, labels };
        let query = arr2(&[[0.0f32, 0.0]]);
        let options = KnnShapleyOptions::default();
        let error = |q: Labelled<'_>, t: Labelled<'_>, o: &KnnShapleyOptions| score(q, t, o).unwrap_err().to_string();
        let asked = side(query.view(), &[0]);
        assert!(error(asked, side(train.view(), &[0, 1]), &options).contains("training features, row 1, column 0"));
        assert!(error(asked, side(train.view(), &[0]), &options).contains("expected 2, found 1"));
        let none = Array2::zeros((0, 2));
        assert!(error(asked, side(none.view(), &[]), &options).contains("is empty"));
        let zero = KnnShapleyOptions { k: 0, ..options.clone() };
        assert!(error(asked, side(query.view(), &[0]), &zero).contains("k must be at least 1"));
        // One example, a larger k: it has the whole vote of a k-th.
        let one = score(asked, side(query.view(), &[0]), &options).unwrap();
        assert_eq!(one, arr2(&[[0.2f32]]));
    }
}
