//! What a score is divided by, as data: one place for all gradient methods.
//!
//! A method with metric `M` (the identity for plain gradients, `(H + λ)⁻¹` for influence) has scores `⟨q, M g⟩` and the
//! self-influence `s(z) = ⟨z, M z⟩`. How `s` is computed belongs to the methods (`inverse::self_influence`,
//! `block_fisher::self_influence`); how it is used stands here.

use ndarray::{Array2, Axis};
use serde::{Deserialize, Serialize};

use crate::error::MethodError;

/// What scores `⟨q, M g⟩` become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// Stay as they are.
    #[default]
    None,
    /// `⟨q, Mg⟩ / √s(q)`: queries of one length. Leaves every query's ranking as it is.
    UnitQuery,
    /// `⟨q, Mg⟩ / √s(g)`: training rows of one length. With curvature as metric this is ℓ-RelatIF (arXiv:2003.11630): the
    /// most influential example among those that change the training loss by one unit.
    UnitTrain,
    /// `⟨q, Mg⟩ / √(s(q) s(g))`: a cosine in the metric, within ±1.
    Cosine,
    /// `⟨q, Mg⟩ / ‖Mg‖`: θ-RelatIF (arXiv:2003.11630), training rows that move the parameters by one unit.
    RelatIf,
    /// `⟨q, Mg⟩ − ½ s(g)`: minus half the squared distance in the metric, but for the query's own length (LogIX's `l2`).
    Distance,
}

impl Normalisation {
    /// Whether `s(q)` is needed.
    pub fn needs_query(self) -> bool {
        matches!(self, Self::UnitQuery | Self::Cosine)
    }

    /// Whether `s(g)` is needed.
    pub fn needs_train(self) -> bool {
        matches!(self, Self::UnitTrain | Self::Cosine | Self::Distance)
    }

    /// Whether `‖Mg‖` is needed.
    pub fn needs_moved(self) -> bool {
        self == Self::RelatIf
    }
}

/// What a normalisation divides by; only what it needs has to be there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own<'a> {
    /// `s(q) = ⟨q, Mq⟩`, `[Q]`.
    pub query: Option<&'a [f64]>,
    /// `s(g) = ⟨g, Mg⟩`, `[N]`.
    pub train: Option<&'a [f64]>,
    /// `‖Mg‖`, `[N]`.
    pub moved: Option<&'a [f64]>,
}

/// Normalises scores `[Q, N]` in place. A row or query of length zero gets scores of zero: it has no direction.
///
/// # Errors
/// [`MethodError::Empty`] when something needed is not there; lengths that do not fit; a value that is negative, NaN or
/// infinite, or a score that is not finite, with its place.
pub fn normalise(scores: &mut Array2<f32>, by: Normalisation, own: &Own<'_>) -> Result<(), MethodError> {
    if let Some(((row, column), &found)) = scores.indexed_iter().find(|(_, v)| !v.is_finite()) {
        return Err(MethodError::BadValue { what: "scores".to_owned(), row, column, found: f64::from(found) });
    }
    let (n_queries, n_train) = scores.dim();
    let query = needed(by.needs_query(), own.query, n_queries, "self-influence of the queries")?;
    let train = needed(by.needs_train(), own.train, n_train, "self-influence of the training rows")?;
    let moved = needed(by.needs_moved(), own.moved, n_train, "norms of the preconditioned training rows")?;
    if by == Normalisation::Distance {
        for (mut column, &s) in scores.axis_iter_mut(Axis(1)).zip(train) {
            column.mapv_inplace(|v| (f64::from(v) - 0.5 * s) as f32);
        }
        return Ok(());
    }
    let rows: Vec<f64> = match by.needs_query() {
        true => query.iter().map(|s| inverse(s.sqrt())).collect(),
        false => vec![1.0; n_queries],
    };
    let columns: Vec<f64> = match by {
        Normalisation::UnitTrain | Normalisation::Cosine => train.iter().map(|s| inverse(s.sqrt())).collect(),
        Normalisation::RelatIf => moved.iter().map(|&norm| inverse(norm)).collect(),
        _ => vec![1.0; n_train],
    };
    for (mut row, &by_query) in scores.rows_mut().into_iter().zip(&rows) {
        row.iter_mut().zip(&columns).for_each(|(v, &by_train)| *v = (f64::from(*v) * by_query * by_train) as f32);
    }
    Ok(())
}

fn needed<'a>(
    wanted: bool,
    values: Option<&'a [f64]>,
    len: usize,
    what: &'static str,
) -> Result<&'a [f64], MethodError> {
    if !wanted {
        return Ok(&[]);
    }
    let values = values.ok_or(MethodError::Empty { what })?;
    if values.len() != len {
        return Err(MethodError::shape(what, len, values.len()));
    }
    match values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
        None => Ok(values),
        Some(column) => Err(MethodError::BadValue { what: what.to_owned(), row: 0, column, found: values[column] }),
    }
}

fn inverse(length: f64) -> f64 {
    if length > 0.0 { 1.0 / length } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    /// `M = diag(1, 4)`, q = (1, 1), g = (3, 0), (0, 1), (0, 0): ⟨q, Mg⟩ = 3, 4, 0; s(g) = 9, 4, 0; ‖Mg‖ = 3, 4, 0; s(q) = 5.
    fn check(by: Normalisation, expected: [f64; 3]) {
        let mut scores = arr2(&[[3.0f32, 4.0, 0.0]]);
        let own = Own { query: Some(&[5.0]), train: Some(&[9.0, 4.0, 0.0]), moved: Some(&[3.0, 4.0, 0.0]) };
        normalise(&mut scores, by, &own).unwrap();
        for (found, expected) in scores.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{by:?}: {scores}");
        }
    }

    #[test]
    fn by_hand() {
        let root = 5.0f64.sqrt();
        check(Normalisation::None, [3.0, 4.0, 0.0]);
        check(Normalisation::UnitQuery, [3.0 / root, 4.0 / root, 0.0]);
        check(Normalisation::UnitTrain, [1.0, 2.0, 0.0]);
        check(Normalisation::Cosine, [1.0 / root, 2.0 / root, 0.0]);
        check(Normalisation::RelatIf, [1.0, 1.0, 0.0]);
        check(Normalisation::Distance, [-1.5, 2.0, 0.0]);
    }

    #[test]
    fn bad_input_is_named() {
        let mut scores = arr2(&[[1.0f32, 2.0]]);
        let mut error = |by, own: &Own<'_>| normalise(&mut scores, by, own).unwrap_err().to_string();
        assert!(error(Normalisation::Cosine, &Own::default()).contains("self-influence of the queries is empty"));
        let own = Own { train: Some(&[1.0]), ..Own::default() };
        assert!(error(Normalisation::UnitTrain, &own).contains("expected 2, found 1"));
        let own = Own { train: Some(&[1.0, -1.0]), ..Own::default() };
        assert!(error(Normalisation::UnitTrain, &own).contains("column 1"));
        let own = Own { moved: Some(&[f64::NAN, 1.0]), ..Own::default() };
        assert!(error(Normalisation::RelatIf, &own).contains("preconditioned training rows, row 0, column 0"));
        let mut scores = arr2(&[[1.0f32, f32::NAN]]);
        let error = normalise(&mut scores, Normalisation::None, &Own::default()).unwrap_err().to_string();
        assert!(error.contains("scores, row 0, column 1"), "{error}");
    }
}
