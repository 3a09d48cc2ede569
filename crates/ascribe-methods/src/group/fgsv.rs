//! Split-proof group values: a group gets the sum of its members' own Shapley values, whoever they are registered to.
//!
//! With groups as players, an owner who splits one dataset into shell companies can raise the sum of their values (and clipping
//! every owner's value at zero raises it again: `max(0, a) + max(0, b) ≥ max(0, a + b)`). The sum over members cannot be raised.
//! For a group of `n₀` among n examples, with `T(s)` over uniformly drawn subsets S of size s and `s₀ = |S ∩ group|`:
//!
//! `value = n₀/n·[U(all) − U(∅)] + Σ_{s=1}^{n−1} n/(s(n−s)) · E[(s₀ − s·n₀/n)·U(S)]`
//!
//! which needs no member's value by itself. Source: faithful group Shapley value, arXiv:2505.19013 (their estimator samples few
//! sizes exactly and the others by paired differences; here every drawn subset serves all groups at once). The weight
//! `n/(s(n−s))` is derived in the test below by brute force over all orders.

use ascribe_linalg::Stream;
use ndarray::Array2;

use crate::error::MethodError;

/// How much is drawn.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FgsvOptions {
    /// Subset pairs per size; at least 2, or no error can be told. A pair is a subset and its complement, whose size is another
    /// one of the sum.
    pub pairs_per_size: usize,
    /// Sizes that are drawn: all `1..n`, or this many spread evenly, with the sum over the others interpolated.
    pub max_sizes: usize,
    /// Seed of the streams `"fgsv/<size>/<pair>"`.
    pub seed: u64,
}

/// Group values with sampling errors.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupValues {
    /// `[Q, K]`; a row adds up to `U(all) − U(∅)`.
    pub values: Array2<f64>,
    /// `[Q, K]`: standard errors from the drawn subsets.
    pub std_errors: Array2<f64>,
    /// Utilities that were asked for.
    pub n_utilities: usize,
}

/// Group values of `K` groups; `group_of[i] < n_groups` is example i's group.
///
/// `utility(members)` returns the `[Q]` utilities of a set of examples (rising numbers). Deterministic. Cost
/// `2·pairs_per_size·⌈sizes/2⌉ + 2` utilities.
///
/// # Errors
/// No example, groups out of range, options out of range, utilities of another length or not finite, those of `utility`.
pub fn group_values(
    group_of: &[u32],
    n_groups: usize,
    options: FgsvOptions,
    mut utility: impl FnMut(&[u32]) -> Result<Vec<f64>, MethodError>,
) -> Result<GroupValues, MethodError> {
    let n = group_of.len();
    check(group_of, n_groups, options)?;
    let all: Vec<u32> = (0..n as u32).collect();
    let (empty, full) = (utility(&[])?, utility(&all)?);
    let n_queries = empty.len();
    let mut n_utilities = 2;
    let sizes_of_groups: Vec<f64> =
        (0..n_groups).map(|k| group_of.iter().filter(|g| **g as usize == k).count() as f64).collect();
    let whole = |q: usize, k: usize| sizes_of_groups[k] / n as f64 * (full[q] - empty[q]);
    let mut values = Array2::from_shape_fn((n_queries, n_groups), |(q, k)| whole(q, k));
    let mut variances = Array2::<f64>::zeros(values.dim());
    let mut ask = |members: &[u32]| -> Result<Vec<f64>, MethodError> {
        n_utilities += 1;
        let row = utility(members)?;
        if row.len() != n_queries {
            return Err(MethodError::shape("queries of a utility", n_queries, row.len()));
        }
        match row.iter().position(|u| !u.is_finite()) {
            None => Ok(row),
            Some(column) => Err(MethodError::BadValue { what: "utilities".into(), row: 0, column, found: row[column] }),
        }
    };
    check_row(&empty, &full)?;
    for (size, weight) in sizes(n, options.max_sizes) {
        let mut draws = Vec::with_capacity(options.pairs_per_size);
        for pair in 0..options.pairs_per_size {
            let mut order = all.clone();
            Stream::new(options.seed, &format!("fgsv/{size}/{pair}")).shuffle(&mut order);
            let (mut inside, mut outside) = (order[..size].to_vec(), order[size..].to_vec());
            inside.sort_unstable();
            outside.sort_unstable();
            let (u, v) = (ask(&inside)?, ask(&outside)?);
            // The complement has size n − s and the opposite surplus; the factor n/(s(n−s)) is the same for both sizes.
            let mut surplus: Vec<f64> = sizes_of_groups.iter().map(|n0| -(size as f64) * n0 / n as f64).collect();
            inside.iter().for_each(|&i| surplus[group_of[i as usize] as usize] += 1.0);
            let factor = n as f64 / (size as f64 * (n - size) as f64);
            draws.push(Array2::from_shape_fn(values.dim(), |(q, k)| factor * surplus[k] * 0.5 * (u[q] - v[q])));
        }
        let m = draws.len() as f64;
        let mean = draws.iter().fold(Array2::zeros(values.dim()), |sum: Array2<f64>, d| sum + d) / m;
        for draw in &draws {
            let off = draw - &mean;
            variances.scaled_add(weight * weight / (m * (m - 1.0)), &(&off * &off));
        }
        values.scaled_add(weight, &mean);
    }
    Ok(GroupValues { values, std_errors: variances.mapv(f64::sqrt), n_utilities })
}

fn check(group_of: &[u32], n_groups: usize, options: FgsvOptions) -> Result<(), MethodError> {
    if group_of.is_empty() || n_groups == 0 {
        return Err(MethodError::Empty { what: "the set of examples or of groups" });
    }
    if let Some(group) = group_of.iter().find(|g| **g as usize >= n_groups) {
        return Err(MethodError::shape("group of an example", format!("below {n_groups}"), group));
    }
    for (field, value) in [("pairs_per_size", options.pairs_per_size), ("max_sizes", options.max_sizes)] {
        if value < 2 {
            return Err(MethodError::Parameter { field, expected: "at least 2", found: value as f64 });
        }
    }
    Ok(())
}

fn check_row(empty: &[f64], full: &[f64]) -> Result<(), MethodError> {
    if full.len() != empty.len() {
        return Err(MethodError::shape("queries of a utility", empty.len(), full.len()));
    }
    match empty.iter().chain(full).position(|u| !u.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (column, found) = (at % empty.len(), if at < empty.len() { empty[at] } else { full[at - empty.len()] });
            Err(MethodError::BadValue { what: "utilities".into(), row: 0, column, found })
        }
    }
}

/// Sizes to draw and how many sizes of the sum each stands for (trapezoids between them; 1 where all are drawn).
///
/// A pair of subsets covers s and n − s, so weights over `1..n` are given to both ends alike.
fn sizes(n: usize, max_sizes: usize) -> Vec<(usize, f64)> {
    if n < 2 {
        return vec![];
    }
    if n - 1 <= max_sizes {
        return (1..n).map(|s| (s, 1.0)).collect();
    }
    let mut picked: Vec<usize> =
        (0..max_sizes).map(|i| 1 + (i as f64 * (n - 2) as f64 / (max_sizes - 1) as f64).round() as usize).collect();
    picked.dedup();
    let weight = |i: usize| {
        let left = if i == 0 { 0.5 } else { (picked[i] - picked[i - 1]) as f64 / 2.0 };
        let right = if i + 1 == picked.len() { 0.5 } else { (picked[i + 1] - picked[i]) as f64 / 2.0 };
        left + right
    };
    (0..picked.len()).map(|i| (picked[i], weight(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: FgsvOptions = FgsvOptions { pairs_per_size: 4_000, max_sizes: 64, seed: 1 };

    /// Brute force: sums over each group of the members' own Shapley values.
    fn exact(group_of: &[u32], n_groups: usize, utility: &dyn Fn(&[u32]) -> f64) -> Vec<f64> {
        let n = group_of.len();
        let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
        let members = |mask: usize| (0..n as u32).filter(|i| mask >> i & 1 == 1).collect::<Vec<u32>>();
        let mut out = vec![0.0; n_groups];
        for i in 0..n {
            for mask in (0..1usize << n).filter(|mask| mask >> i & 1 == 0) {
                let size = mask.count_ones() as usize;
                let weight = factorial(size) * factorial(n - 1 - size) / factorial(n);
                out[group_of[i] as usize] += weight * (utility(&members(mask | 1 << i)) - utility(&members(mask)));
            }
        }
        out
    }

    /// Concave in what is known: ten facts, some known twice.
    fn facts(members: &[u32]) -> f64 {
        let known: std::collections::BTreeSet<u32> =
            members.iter().flat_map(|&i| [i % 5, i * 7 % 11, (i * i + 1) % 6]).collect();
        (known.len() as f64).sqrt() + 0.1 * members.len() as f64
    }

    #[test]
    fn the_formula_is_the_sum_of_the_members_values() {
        // All subsets of every size instead of draws: the expectation itself, against brute force over members.
        let group_of = [0u32, 0, 1, 2, 1, 0, 2];
        let n = group_of.len();
        let expected = exact(&group_of, 3, &facts);
        for (k, expected) in expected.iter().enumerate() {
            let n0 = group_of.iter().filter(|g| **g as usize == k).count() as f64;
            let all: Vec<u32> = (0..n as u32).collect();
            let mut value = n0 / n as f64 * (facts(&all) - facts(&[]));
            for size in 1..n {
                let (mut sum, mut count) = (0.0, 0.0);
                for mask in (0..1usize << n).filter(|m| m.count_ones() as usize == size) {
                    let members: Vec<u32> = all.iter().copied().filter(|i| mask >> i & 1 == 1).collect();
                    let inside = members.iter().filter(|i| group_of[**i as usize] as usize == k).count() as f64;
                    sum += (inside - size as f64 * n0 / n as f64) * facts(&members);
                    count += 1.0;
                }
                value += n as f64 / (size as f64 * (n - size) as f64) * sum / count;
            }
            assert!((value - expected).abs() < 1e-12, "{k}: {value} {expected}");
        }
    }

    #[test]
    fn draws_agree_with_brute_force_within_their_errors() {
        let group_of = [0u32, 0, 1, 2, 1, 0, 2, 2];
        let expected = exact(&group_of, 3, &facts);
        let got = group_values(&group_of, 3, EXACT, |s| Ok(vec![facts(s)])).unwrap();
        for (k, expected) in expected.iter().enumerate() {
            let off = (got.values[(0, k)] - expected).abs() / got.std_errors[(0, k)];
            assert!(off < 4.0 && got.std_errors[(0, k)] < 0.02, "{k}: {off} {}", got.std_errors[(0, k)]);
        }
        assert!((got.values.sum() - (facts(&[0, 1, 2, 3, 4, 5, 6, 7]) - facts(&[]))).abs() < 1e-9);
        assert_eq!(got, group_values(&group_of, 3, EXACT, |s| Ok(vec![facts(s)])).unwrap());
    }

    #[test]
    fn splitting_pays_when_groups_are_players_and_not_here() {
        // Whoever comes first brings all there is to know. Two groups of two; the second owner splits into two shells.
        let know = |members: &[u32]| f64::from(u8::from(!members.is_empty()));
        let whole = [0u32, 0, 1, 1];
        let split = [0u32, 0, 1, 2];
        let as_players = |group_of: &[u32], n_groups: usize| {
            let members = |groups: &[u32]| -> Vec<u32> {
                (0..4u32).filter(|i| groups.contains(&group_of[*i as usize])).collect()
            };
            let players: Vec<u32> = (0..n_groups as u32).collect();
            exact(&players, n_groups, &|groups| know(&members(groups)))
        };
        let (before, after) = (as_players(&whole, 2), as_players(&split, 3));
        assert!((before[1] - 0.5).abs() < 1e-12 && (after[1] + after[2] - 2.0 / 3.0).abs() < 1e-12);
        let (before, after) = (exact(&whole, 2, &know), exact(&split, 3, &know));
        assert!((before[1] - (after[1] + after[2])).abs() < 1e-12 && (before[1] - 0.5).abs() < 1e-12);
    }

    #[test]
    fn clipping_per_owner_reopens_the_attack() {
        // Example 2 helps, example 3 harms as much: together worth nothing, and honestly paid nothing.
        let worth = |members: &[u32]| members.iter().map(|&i| [1.0, 1.0, 1.0, -1.0][i as usize]).sum::<f64>();
        let clipped = |group_of: &[u32], n_groups: usize| -> Vec<f64> {
            exact(group_of, n_groups, &worth).iter().map(|v| v.max(0.0)).collect()
        };
        let (honest, split) = (clipped(&[0, 0, 1, 1], 2), clipped(&[0, 0, 1, 2], 3));
        assert!(honest[1] < 1e-12);
        assert!((split[1] + split[2] - 1.0).abs() < 1e-12);
        // Clipped per canonical record before grouping, registration changes nothing.
        let record = clipped(&[0, 1, 2, 3], 4);
        assert!((record[2] + record[3] - (split[1] + split[2])).abs() < 1e-12);
    }

    #[test]
    fn few_sizes_interpolate_a_smooth_game() {
        let group_of: Vec<u32> = (0..60).map(|i| u32::from(i >= 20)).collect();
        let smooth = |members: &[u32]| {
            let helpful = members.iter().filter(|i| **i < 20).count() as f64;
            (1.0 + helpful).ln() + 0.01 * members.len() as f64
        };
        let run = |max_sizes| {
            let options = FgsvOptions { pairs_per_size: 400, max_sizes, seed: 3 };
            group_values(&group_of, 2, options, |s| Ok(vec![smooth(s)])).unwrap()
        };
        let (all, few) = (run(64), run(24));
        assert!(few.n_utilities < all.n_utilities / 2);
        // Closed form: the second group only has its linear part (0.4), the first all the rest.
        assert!((all.values[(0, 1)] - 0.4).abs() < 0.1, "{:?}", all.values);
        assert!((few.values[(0, 1)] - 0.4).abs() < 0.2, "{:?}", few.values);
    }

    #[test]
    fn bad_input_is_named() {
        let text =
            |group_of: &[u32], options| group_values(group_of, 2, options, |_| Ok(vec![0.0])).unwrap_err().to_string();
        assert!(text(&[], EXACT).contains("is empty"));
        assert!(text(&[2], EXACT).contains("below 2"));
        assert!(text(&[0], FgsvOptions { pairs_per_size: 1, ..EXACT }).contains("pairs_per_size"));
        let nan = |s: &[u32]| Ok(vec![if s.len() == 1 { f64::NAN } else { 0.0 }]);
        let error = group_values(&[0, 1], 2, EXACT, nan).unwrap_err().to_string();
        assert!(error.contains("utilities, row 0, column 0"), "{error}");
        // One example is the whole gain.
        let one = group_values(&[1], 2, EXACT, |s| Ok(vec![s.len() as f64])).unwrap();
        assert_eq!(one.values.row(0).to_vec(), [0.0, 1.0]);
    }
}
