//! Truth: what each query's loss did when a dataset was left out of training.

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::error::{EvalError, check_finite};
use crate::shares::clip_and_normalise;

/// Loss changes of leave-one-dataset-out retraining, and the shares that follow from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// `[Q, K]`: loss without dataset k minus loss with all; positive = the dataset helped. In the unit of the losses.
    pub change: Array2<f64>,
    /// `[Q, K]`: changes clipped at zero and normalised; zeros in the rows of `excluded`.
    pub shares: Array2<f64>,
    /// Queries with at least one positive change, rising.
    pub usable: Vec<usize>,
    /// Queries that no dataset helped. They have no true shares: reported, counted, and left out of every mean.
    pub excluded: Vec<usize>,
}

impl Truth {
    /// From loss changes `[Q, K]`.
    ///
    /// # Errors
    /// NaN; no query or no dataset.
    pub fn from_change(change: Array2<f64>) -> Result<Self, EvalError> {
        if change.is_empty() {
            return Err(EvalError::Empty { what: "the table of loss changes" });
        }
        check_finite("loss changes", change.view())?;
        let mut shares = Array2::zeros(change.dim());
        let (mut usable, mut excluded) = (Vec::new(), Vec::new());
        for (q, row) in change.rows().into_iter().enumerate() {
            match clip_and_normalise(row) {
                Some(share) => {
                    shares.row_mut(q).assign(&share);
                    usable.push(q);
                }
                None => excluded.push(q),
            }
        }
        Ok(Self { change, shares, usable, excluded })
    }

    /// From losses: `with_all` `[Q]` of the full run, `without` `[Q, K]` of the runs that left dataset k out.
    ///
    /// # Errors
    /// Shapes; NaN; nothing to evaluate.
    pub fn from_losses(with_all: ArrayView1<'_, f64>, without: ArrayView2<'_, f64>) -> Result<Self, EvalError> {
        if with_all.len() != without.nrows() {
            return Err(EvalError::shape("queries of the full run", without.nrows(), with_all.len()));
        }
        Self::from_change(&without - &with_all.insert_axis(ndarray::Axis(1)))
    }

    /// From the mean change over seeds, each `[Q, K]`.
    ///
    /// The mean is taken before clipping: noise of both signs cancels, which clipping first would turn into shares.
    ///
    /// # Errors
    /// No seed; shapes that differ; NaN.
    pub fn from_seeds(changes: &[Array2<f64>]) -> Result<Self, EvalError> {
        let first = changes.first().ok_or(EvalError::Empty { what: "the list of seeds" })?;
        let mut mean = Array2::<f64>::zeros(first.dim());
        for change in changes {
            if change.dim() != first.dim() {
                return Err(EvalError::shape("shape of a seed's loss changes", first.dim(), change.dim()));
            }
            mean += change;
        }
        Self::from_change(mean / changes.len() as f64)
    }

    /// Queries.
    pub fn n_queries(&self) -> usize {
        self.change.nrows()
    }

    /// Datasets.
    pub fn n_datasets(&self) -> usize {
        self.change.ncols()
    }

    /// Whether query q has true shares.
    pub fn is_usable(&self, q: usize) -> bool {
        self.usable.binary_search(&q).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{arr1, arr2};

    #[test]
    fn by_hand() {
        let truth =
            Truth::from_losses(arr1(&[2.0, 5.0]).view(), arr2(&[[5.0, 2.5, 1.0], [4.0, 5.0, 4.5]]).view()).unwrap();
        assert_eq!(truth.change, arr2(&[[3.0, 0.5, -1.0], [-1.0, 0.0, -0.5]]));
        assert_eq!((truth.usable.as_slice(), truth.excluded.as_slice()), ([0].as_slice(), [1].as_slice()));
        assert!((truth.shares[(0, 0)] - 6.0 / 7.0).abs() < 1e-15 && truth.shares[(0, 2)] == 0.0);
        assert_eq!(truth.shares.row(1).sum(), 0.0);
        assert!(truth.is_usable(0) && !truth.is_usable(1));
    }

    #[test]
    fn seeds_are_averaged_before_clipping() {
        let truth = Truth::from_seeds(&[arr2(&[[1.0, -3.0]]), arr2(&[[1.0, 1.0]])]).unwrap();
        assert_eq!(truth.change, arr2(&[[1.0, -1.0]]));
        assert_eq!(truth.shares, arr2(&[[1.0, 0.0]]));
    }

    #[test]
    fn bad_input_is_named() {
        let error = Truth::from_change(arr2(&[[0.0, f64::NAN]])).unwrap_err().to_string();
        assert!(error.contains("loss changes, row 0, column 1"), "{error}");
        assert!(Truth::from_change(Array2::zeros((0, 3))).is_err());
        assert!(Truth::from_seeds(&[]).unwrap_err().to_string().contains("list of seeds is empty"));
        let error = Truth::from_seeds(&[Array2::zeros((1, 2)), Array2::zeros((1, 3))]).unwrap_err().to_string();
        assert!(error.contains("expected (1, 2), found (1, 3)"), "{error}");
        let error = Truth::from_losses(arr1(&[1.0]).view(), Array2::zeros((2, 2)).view()).unwrap_err().to_string();
        assert!(error.contains("expected 2, found 1"), "{error}");
    }
}
