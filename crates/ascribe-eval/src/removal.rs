//! What happens to queries when their top examples are taken out, or trained on once more.
//!
//! Sources: brittleness, datamodels (arXiv:2202.00622, §4.1) and TRAK (arXiv:2303.14186); query-loss difference after removing
//! the top part, bergson; tail-patch, TrackStar (arXiv:2410.17413, §4.2). Here never lives: the retraining itself.

use ndarray::ArrayView2;

use crate::error::{EvalError, check_finite};

/// Per query how much a retraining without its top examples took from its outcome, beyond what removing as many random
/// examples took: `random − removed`, positive = the examples mattered.
///
/// Outcomes (larger = better for the query) are `[Q, R]` over repeated trainings and are averaged per query. Every query has
/// its own removed set, so `removed` row q comes from trainings without q's top examples.
///
/// # Errors
/// Rows that differ; NaN; no repetition.
pub fn removal_effect(
    removed: ArrayView2<'_, f64>,
    random: ArrayView2<'_, f64>,
) -> Result<Vec<Option<f64>>, EvalError> {
    if removed.nrows() != random.nrows() {
        return Err(EvalError::shape("queries of the random removals", removed.nrows(), random.nrows()));
    }
    if removed.ncols() == 0 || random.ncols() == 0 {
        return Err(EvalError::Empty { what: "the set of trainings after a removal" });
    }
    check_finite("outcomes after removing the top examples", removed)?;
    check_finite("outcomes after removing random examples", random)?;
    let mean = |row: ndarray::ArrayView1<'_, f64>| row.sum() / row.len() as f64;
    Ok(removed.rows().into_iter().zip(random.rows()).map(|(a, b)| Some(mean(b) - mean(a))).collect())
}

/// Per query whether the removal flipped its prediction: part of the trainings whose margin is no longer positive.
///
/// `margins` is `[Q, R]` after the removal, `before` the `[Q]` margins with all examples. `None` for a query that was wrong
/// before: there is nothing to flip.
///
/// # Errors
/// Shapes; NaN; no repetition.
pub fn brittleness(before: &[f64], margins: ArrayView2<'_, f64>) -> Result<Vec<Option<f64>>, EvalError> {
    if before.len() != margins.nrows() {
        return Err(EvalError::shape("queries before the removal", margins.nrows(), before.len()));
    }
    if margins.ncols() == 0 {
        return Err(EvalError::Empty { what: "the set of trainings after a removal" });
    }
    if let Some(row) = before.iter().position(|m| !m.is_finite()) {
        return Err(EvalError::NotFinite { what: "margins before the removal", row, column: 0, found: before[row] });
    }
    check_finite("margins after the removal", margins)?;
    let flipped =
        |row: ndarray::ArrayView1<'_, f64>| row.iter().filter(|m| **m <= 0.0).count() as f64 / row.len() as f64;
    Ok(before.iter().zip(margins.rows()).map(|(&b, row)| (b > 0.0).then(|| flipped(row))).collect())
}

/// What taking out a query's top examples did to its prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// Wrong with all examples: there is nothing to flip.
    WrongBefore,
    /// Right whatever was taken out.
    Never,
    /// Turned when this many were taken out, and with no smaller number that was tried.
    After(usize),
}

/// Per query the smallest number of removed top examples that turns its prediction: datamodels' brittleness
/// (arXiv:2202.00622, §4.1), read off the sizes that were tried.
///
/// `before` is `[Q]` margins with all examples, `sizes` `[P]` the rising numbers of examples taken out, `margins` `[Q, P]` the
/// mean margins after. A margin that is not positive is a turned prediction.
///
/// # Errors
/// Shapes; NaN; sizes that do not rise.
pub fn removals_to_flip(before: &[f64], sizes: &[usize], margins: ArrayView2<'_, f64>) -> Result<Vec<Flip>, EvalError> {
    if (before.len(), sizes.len()) != margins.dim() {
        return Err(EvalError::shape("queries and sizes of a removal", margins.dim(), (before.len(), sizes.len())));
    }
    if sizes.is_empty() {
        return Err(EvalError::Empty { what: "the list of numbers of removed examples" });
    }
    if let Some(pair) = sizes.windows(2).find(|pair| pair[0] >= pair[1]) {
        let expected = "rising from one size to the next";
        return Err(EvalError::Parameter { field: "number of removed examples", expected, found: pair[1] as f64 });
    }
    if let Some(row) = before.iter().position(|m| !m.is_finite()) {
        return Err(EvalError::NotFinite { what: "margins before the removal", row, column: 0, found: before[row] });
    }
    check_finite("margins after the removal", margins)?;
    let flip = |(&before, row): (&f64, ndarray::ArrayView1<'_, f64>)| match (before > 0.0, row) {
        (false, _) => Flip::WrongBefore,
        (true, row) => row.iter().position(|m| *m <= 0.0).map_or(Flip::Never, |p| Flip::After(sizes[p])),
    };
    Ok(before.iter().zip(margins.rows()).map(flip).collect())
}

/// The lower median over rightly answered queries of the removals that turned them; `None` if fewer than half of them turned,
/// or none was right.
pub fn median_removals(flips: &[Flip]) -> Option<usize> {
    let mut needed: Vec<usize> = flips
        .iter()
        .filter_map(|flip| match flip {
            Flip::WrongBefore => None,
            Flip::Never => Some(usize::MAX),
            Flip::After(n) => Some(*n),
        })
        .collect();
    needed.sort_unstable();
    needed.get(needed.len().saturating_sub(1) / 2).copied().filter(|n| *n < usize::MAX)
}

/// Per query the mean rise of the target's probability after one training step on each of its top examples: tail-patch.
///
/// `before` is `[Q]`, `after` `[Q, k]`, both probabilities. In units of probability; positive = the examples teach the target.
///
/// # Errors
/// Shapes; numbers that are no probabilities; no example.
pub fn tail_patch(before: &[f64], after: ArrayView2<'_, f64>) -> Result<Vec<Option<f64>>, EvalError> {
    if before.len() != after.nrows() {
        return Err(EvalError::shape("queries before the step", after.nrows(), before.len()));
    }
    if after.ncols() == 0 {
        return Err(EvalError::Empty { what: "the set of patched examples" });
    }
    check_finite("probabilities after a step", after)?;
    let outside = |p: &&f64| !(0.0..=1.0).contains(*p);
    if let Some(&found) = before.iter().chain(after).find(outside) {
        return Err(EvalError::Parameter { field: "probability of the target", expected: "between 0 and 1", found });
    }
    let rise = |(&b, row): (&f64, ndarray::ArrayView1<'_, f64>)| {
        Some(row.iter().map(|a| a - b).sum::<f64>() / row.len() as f64)
    };
    Ok(before.iter().zip(after.rows()).map(rise).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    #[test]
    fn by_hand() {
        let effect = removal_effect(arr2(&[[1.0, 2.0], [5.0, 5.0]]).view(), arr2(&[[4.0], [4.0]]).view()).unwrap();
        assert_eq!(effect, [Some(2.5), Some(-1.0)]);
        let flips = brittleness(&[1.0, -0.5], arr2(&[[-1.0, 0.0, 2.0, 3.0], [1.0; 4]]).view()).unwrap();
        assert_eq!(flips, [Some(0.5), None]);
        let rise = tail_patch(&[0.25], arr2(&[[0.5, 0.75]]).view()).unwrap();
        assert_eq!(rise, [Some(0.375)]);
    }

    #[test]
    fn removals_needed_by_hand() {
        // Right and turned by 5; turned by 20 only; never; wrong before.
        let margins = arr2(&[[-1.0, 3.0, -2.0], [1.0, 0.5, 0.0], [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]);
        let flips = removals_to_flip(&[1.0, 2.0, 3.0, -0.5], &[5, 10, 20], margins.view()).unwrap();
        assert_eq!(flips, [Flip::After(5), Flip::After(20), Flip::Never, Flip::WrongBefore]);
        assert_eq!(median_removals(&flips), Some(20));
        assert_eq!(median_removals(&flips[..2]), Some(5), "the lower of two");
        assert_eq!(median_removals(&[Flip::Never, Flip::Never, Flip::After(3)]), None, "most never turned");
        assert_eq!(median_removals(&[Flip::WrongBefore]), None);
        assert_eq!(median_removals(&[]), None);
        let text = |sizes: &[usize], margins: &Array2<f64>| {
            removals_to_flip(&[1.0], sizes, margins.view()).unwrap_err().to_string()
        };
        assert!(text(&[5, 5], &Array2::zeros((1, 2))).contains("rising"));
        assert!(text(&[5], &Array2::zeros((1, 2))).contains("expected (1, 2), found (1, 1)"));
        assert!(text(&[5], &arr2(&[[f64::NAN]])).contains("margins after the removal, row 0"));
        assert!(text(&[], &Array2::zeros((1, 0))).contains("is empty"));
    }

    #[test]
    fn bad_input_is_named() {
        let error = removal_effect(Array2::zeros((2, 1)).view(), Array2::zeros((1, 1)).view()).unwrap_err().to_string();
        assert!(error.contains("expected 2, found 1"), "{error}");
        assert!(removal_effect(Array2::zeros((2, 0)).view(), Array2::zeros((2, 1)).view()).is_err());
        let error = brittleness(&[f64::NAN], Array2::zeros((1, 1)).view()).unwrap_err().to_string();
        assert!(error.contains("margins before the removal, row 0"), "{error}");
        let error = tail_patch(&[0.5], arr2(&[[1.5]]).view()).unwrap_err().to_string();
        assert!(error.contains("between 0 and 1"), "{error}");
        assert!(tail_patch(&[0.5], Array2::zeros((1, 0)).view()).unwrap_err().to_string().contains("is empty"));
    }
}
