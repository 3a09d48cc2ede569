//! What is measured at the logits of one example, and its gradient: cross-entropy and margin, in f64 sums.

use ascribe_linalg::elementwise::exp;

use crate::vision::loss::Measure;

/// `ln Σ e^{z_j}` over all j but `without`, and that sum's terms in `terms` (0 at `without`), divided by the sum.
fn log_sum_exp(logits: &[f32], without: Option<usize>, terms: &mut [f64]) -> f64 {
    let counted = |j: usize| Some(j) != without;
    let mut top = usize::MAX;
    for j in (0..logits.len()).filter(|&j| counted(j)) {
        if top == usize::MAX || logits[j] > logits[top] {
            top = j;
        }
    }
    let max = logits[top];
    let mut others = 0.0;
    for (j, (term, &z)) in terms.iter_mut().zip(logits).enumerate() {
        *term = match j {
            _ if j == top => 1.0,
            _ if !counted(j) => 0.0,
            _ => f64::from(exp(z - max)),
        };
        if j != top {
            others += *term;
        }
    }
    let inverse = 1.0 / (1.0 + others);
    terms.iter_mut().for_each(|term| *term *= inverse);
    // ln(1 + ε) keeps what 1 + ε would lose.
    f64::from(max) + others.ln_1p()
}

/// The measured number at `logits` for class `class`; `d` receives its gradient by the logits.
///
/// Cross-entropy: `−ln p_c`, gradient `p − e_c`. Margin: `ln(p_c / (1 − p_c)) = z_c − ln Σ_{j≠c} e^{z_j}`, gradient
/// `e_c − softmax_{j≠c}`. `scratch` has the length of `logits`.
pub(crate) fn loss_and_gradient(
    measure: Measure,
    logits: &[f32],
    class: usize,
    scratch: &mut [f64],
    d: &mut [f32],
) -> f64 {
    match measure {
        Measure::CrossEntropy => {
            let log_sum = log_sum_exp(logits, None, scratch);
            // 1 − p_c as the sum of the others: no cancellation when the model is sure.
            let rest: f64 = scratch.iter().enumerate().filter(|&(j, _)| j != class).map(|(_, p)| p).sum();
            d.iter_mut().zip(&*scratch).for_each(|(d, &p)| *d = p as f32);
            d[class] = -rest as f32;
            if scratch[class] > 0.5 { -(-rest).ln_1p() } else { log_sum - f64::from(logits[class]) }
        }
        Measure::Margin => {
            let log_sum = log_sum_exp(logits, Some(class), scratch);
            d.iter_mut().zip(&*scratch).for_each(|(d, &p)| *d = -p as f32);
            d[class] = 1.0;
            f64::from(logits[class]) - log_sum
        }
    }
}

/// The class whose stretch of the cumulated probabilities holds `uniform` in `[0, 1)`.
pub(crate) fn sample_class(logits: &[f32], uniform: f64, scratch: &mut [f64]) -> usize {
    log_sum_exp(logits, None, scratch);
    let mut sum = 0.0;
    for (class, p) in scratch.iter().enumerate() {
        sum += p;
        if uniform < sum {
            return class;
        }
    }
    // Rounding left the sum below 1: the last class that can occur.
    scratch.iter().rposition(|&p| p > 0.0).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::differences::{check, noise};
    use super::*;

    fn at(measure: Measure, logits: &[f32], class: usize) -> (f64, Vec<f32>) {
        let (mut scratch, mut d) = (vec![0.0; logits.len()], vec![f32::NAN; logits.len()]);
        let value = loss_and_gradient(measure, logits, class, &mut scratch, &mut d);
        (value, d)
    }

    #[test]
    fn losses_agree_with_their_definition_and_finite_differences() {
        for n in [2, 5, 40] {
            let logits: Vec<f32> = noise("logits", n).iter().map(|z| 3.0 * z).collect();
            let exps: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
            for class in [0, n - 1] {
                let p = exps[class] / exps.iter().sum::<f64>();
                let (nll, d) = at(Measure::CrossEntropy, &logits, class);
                assert!((nll + p.ln()).abs() < 1e-6 * (1.0 + nll), "{nll} {}", -p.ln());
                check(&logits, &d, 1e-2, 2e-4, |z| at(Measure::CrossEntropy, z, class).0);
                let (margin, d) = at(Measure::Margin, &logits, class);
                assert!((margin - (p / (1.0 - p)).ln()).abs() < 1e-6 * (1.0 + margin.abs()));
                check(&logits, &d, 1e-2, 2e-4, |z| at(Measure::Margin, z, class).0);
            }
        }
    }

    /// Logits (0, ln 3): probabilities ¼ and ¾.
    #[test]
    fn losses_by_hand() {
        let logits = [0.0, 3f32.ln()];
        let (nll, d) = at(Measure::CrossEntropy, &logits, 0);
        assert!((nll - 4f64.ln()).abs() < 1e-6 && (d[0] + 0.75).abs() < 1e-6 && (d[1] - 0.75).abs() < 1e-6);
        let (margin, d) = at(Measure::Margin, &logits, 0);
        assert!((margin + 3f64.ln()).abs() < 1e-6);
        assert_eq!(d, [1.0, -1.0]);
    }

    /// A sure model still has a gradient, exact to rounding: 1 − p = e⁻⁶⁰ here, which 1 − p in f32 (or f64) loses.
    #[test]
    fn a_sure_model_loses_no_digits() {
        let (nll, d) = at(Measure::CrossEntropy, &[60.0, 0.0], 0);
        let exact = (-60f64).exp();
        assert!((nll / exact - 1.0).abs() < 1e-6 && (f64::from(d[0]) / -exact - 1.0).abs() < 1e-6, "{nll} {d:?}");
        assert!((at(Measure::Margin, &[60.0, 0.0], 0).0 - 60.0).abs() < 1e-9);
    }

    #[test]
    fn classes_are_drawn_as_often_as_they_are_probable() {
        let logits = [0.0, 3f32.ln(), -100.0];
        let mut scratch = [0.0; 3];
        let n = 4000;
        let zeros =
            (0..n).filter(|i| sample_class(&logits, (f64::from(*i) + 0.5) / f64::from(n), &mut scratch) == 0).count();
        assert_eq!(zeros, 1000);
        assert_eq!(sample_class(&logits, 0.999_999, &mut scratch), 1);
    }
}
