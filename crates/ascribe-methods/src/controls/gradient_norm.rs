//! Gradient norm: examples that moved the model most, whatever the query. A control for "big gradients win".

use ndarray::Array2;

use crate::error::MethodError;

/// The same row of norms for every query: `[N]` → `[Q, N]`.
///
/// # Errors
/// A norm that is NaN, infinite or negative.
pub fn score(norms: &[f32], n_queries: usize) -> Result<Array2<f32>, MethodError> {
    if let Some(column) = norms.iter().position(|n| !(n.is_finite() && *n >= 0.0)) {
        let found = f64::from(norms[column]);
        return Err(MethodError::BadValue { what: "gradient norms".to_owned(), row: 0, column, found });
    }
    Ok(Array2::from_shape_fn((n_queries, norms.len()), |(_, i)| norms[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_sees_the_norms() {
        let scores = score(&[1.0, 3.0], 2).unwrap();
        assert_eq!(scores, ndarray::arr2(&[[1.0, 3.0], [1.0, 3.0]]));
        assert!(score(&[1.0, f32::NAN], 1).unwrap_err().to_string().contains("gradient norms, row 0, column 1"));
    }
}
