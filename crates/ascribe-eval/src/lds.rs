//! Linear datamodelling score: do summed scores order random subsets as retraining on them does?
//!
//! Source: Ilyas et al., arXiv:2202.00622; TRAK, arXiv:2303.14186, eq. 3. Here with datasets or examples as players.

use ndarray::ArrayView2;

use crate::error::{EvalError, check_finite};
use crate::rank::spearman;

/// Per query the Spearman correlation between predicted and measured outcomes over subsets.
///
/// `scores` is `[Q, N]` (positive = proponent); `included` is `[M, N]`: whether subset m was trained on with player i;
/// `losses` is `[Q, M]`: the query's loss after training on subset m. Prediction of subset m: the sum of the scores of its
/// players; measured: `−loss`. `None` for a query whose prediction or outcome is constant. Sums in f64 in player order.
/// Cost `Q·M·N`.
///
/// # Errors
/// Shapes; NaN; fewer than two subsets.
pub fn lds(
    scores: ArrayView2<'_, f64>,
    included: ArrayView2<'_, bool>,
    losses: ArrayView2<'_, f64>,
) -> Result<Vec<Option<f64>>, EvalError> {
    let (n_queries, n_players) = scores.dim();
    let n_subsets = included.nrows();
    if included.ncols() != n_players {
        return Err(EvalError::shape("players of the subsets", n_players, included.ncols()));
    }
    if losses.dim() != (n_queries, n_subsets) {
        return Err(EvalError::shape("losses of the subsets", (n_queries, n_subsets), losses.dim()));
    }
    if n_subsets < 2 {
        return Err(EvalError::shape("subsets", "at least 2", n_subsets));
    }
    check_finite("scores", scores)?;
    check_finite("losses", losses)?;
    let query = |q: usize| {
        let sum = |m: usize| {
            let row = included.row(m);
            ascribe_linalg::sum::sum_by(n_players, |i| if row[i] { scores[(q, i)] } else { 0.0 })
        };
        let predicted: Vec<f64> = (0..n_subsets).map(sum).collect();
        let measured: Vec<f64> = losses.row(q).iter().map(|loss| -loss).collect();
        spearman(&predicted, &measured)
    };
    Ok((0..n_queries).map(query).collect())
}

/// The removal form: per query the Spearman correlation between the summed scores of the players that subset m *lacks* and
/// the loss after training on it. Inputs as in [`lds`].
///
/// For one query both sums add to the same total, so this orders subsets exactly as [`lds`] does as long as no two sums are
/// equal to rounding; it is here because published figures name either, and because it stays exact where nearly all players
/// are kept (the sum over the few removed ones carries no rounding of the rest). Source: bergson.
///
/// # Errors
/// As [`lds`].
pub fn lds_removed(
    scores: ArrayView2<'_, f64>,
    included: ArrayView2<'_, bool>,
    losses: ArrayView2<'_, f64>,
) -> Result<Vec<Option<f64>>, EvalError> {
    // Spearman(Σ removed, loss) = Spearman(Σ over kept of "removed", −loss) with both signs turned.
    let removed = included.mapv(|kept| !kept);
    lds(scores, removed.view(), losses.mapv(|loss| -loss).view())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_linalg::Stream;
    use ndarray::{Array2, arr2};

    #[test]
    fn an_additive_world_is_predicted_perfectly() {
        let mut stream = Stream::new(1, "lds-test");
        let scores = Array2::from_shape_fn((3, 12), |_| stream.normal());
        let included = Array2::from_shape_fn((30, 12), |_| stream.uniform() < 0.5);
        let losses = Array2::from_shape_fn((3, 30), |(q, m)| {
            5.0 - (0..12).filter(|&i| included[(m, i)]).map(|i| scores[(q, i)]).sum::<f64>()
        });
        let got = lds(scores.view(), included.view(), losses.view()).unwrap();
        assert!(got.iter().all(|r| (r.unwrap() - 1.0).abs() < 1e-12), "{got:?}");
        let reversed = lds(scores.mapv(|v| -v).view(), included.view(), losses.view()).unwrap();
        assert!(reversed.iter().all(|r| (r.unwrap() + 1.0).abs() < 1e-12));
    }

    #[test]
    fn both_forms_agree() {
        let mut stream = Stream::new(2, "lds-forms");
        let scores = Array2::from_shape_fn((4, 9), |_| stream.normal());
        let included = Array2::from_shape_fn((25, 9), |_| stream.uniform() < 0.5);
        let losses = Array2::from_shape_fn((4, 25), |_| stream.normal());
        let (kept, removed) = (
            lds(scores.view(), included.view(), losses.view()).unwrap(),
            lds_removed(scores.view(), included.view(), losses.view()).unwrap(),
        );
        for (a, b) in kept.iter().zip(&removed) {
            assert!((a.unwrap() - b.unwrap()).abs() < 1e-12, "{a:?} {b:?}");
        }
        // Where only one player each is missing, rounding of a large common part must not decide.
        let big = arr2(&[[1e16, 3.0, 1.0, 2.0]]);
        let one_out = Array2::from_shape_fn((3, 4), |(m, i)| i != m + 1);
        let losses = arr2(&[[3.0, 1.0, 2.0]]);
        assert_eq!(lds_removed(big.view(), one_out.view(), losses.view()).unwrap(), [Some(1.0)]);
    }

    #[test]
    fn three_subsets_by_hand() {
        // Sums 3, 2, 1 against −loss −1, −3, −2: ranks (3, 2, 1) and (3, 1, 2): 0.5.
        let included = arr2(&[[true, true], [false, true], [true, false]]);
        let got = lds(arr2(&[[1.0, 2.0]]).view(), included.view(), arr2(&[[1.0, 3.0, 2.0]]).view()).unwrap();
        assert!((got[0].unwrap() - 0.5).abs() < 1e-15);
        let flat = lds(arr2(&[[0.0, 0.0]]).view(), included.view(), arr2(&[[1.0, 3.0, 2.0]]).view()).unwrap();
        assert_eq!(flat, [None]);
    }

    #[test]
    fn bad_input_is_named() {
        let included = arr2(&[[true, true], [false, true]]);
        let text = |scores: &Array2<f64>, losses: &Array2<f64>| {
            lds(scores.view(), included.view(), losses.view()).unwrap_err().to_string()
        };
        assert!(text(&Array2::zeros((1, 3)), &Array2::zeros((1, 2))).contains("players of the subsets"));
        assert!(text(&Array2::zeros((1, 2)), &Array2::zeros((2, 2))).contains("losses of the subsets"));
        assert!(text(&arr2(&[[f64::NAN, 0.0]]), &Array2::zeros((1, 2))).contains("scores, row 0, column 0"));
    }
}
