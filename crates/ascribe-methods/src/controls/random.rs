//! Chance: standard normal scores. What every measure must show as worthless.

use ascribe_linalg::Stream;
use ndarray::Array2;

/// `[rows, columns]` standard normal scores of the stream `"control/random"` under `seed`.
///
/// Entry `(q, i)` depends on `(seed, q, i)` alone, so tables of different sizes agree where they overlap.
pub fn score(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    let mut out = Array2::zeros((rows, columns));
    for (q, mut row) in out.rows_mut().into_iter().enumerate() {
        let mut stream = Stream::new(seed, &format!("control/random/{q}"));
        row.iter_mut().for_each(|v| *v = stream.normal() as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::s;

    #[test]
    fn depends_on_seed_and_place_alone() {
        let (small, large) = (score(1, 2, 3), score(1, 4, 9));
        assert_eq!(small, large.slice(s![..2, ..3]).to_owned());
        assert_ne!(small, score(2, 2, 3));
        assert_ne!(small.row(0), small.row(1));
    }
}
