//! Cosines, sines and masks of the graphs, computed here a second time: nothing is shared with the hand-written passes.
//!
//! The arithmetic of the frequencies is that of `transformers` (f32 frequencies and angles), because an angle of some
//! thousand radians would otherwise differ from it in the fourth digit.

use std::f64::consts::PI;

use crate::arch::{Positions, RopeScaling};
use crate::config::DecoderConfig;

/// Cosines and sines of a layer, `[positions, half]`.
pub(super) struct Angles {
    /// Half the turned width of a head.
    pub half: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// The rotary tables of layer `l` for `n` positions; none where positions are learned.
pub(super) fn angles(config: &DecoderConfig, l: usize, n: usize) -> Option<Angles> {
    let Positions::Rotary { width, scaling, local_theta } = &config.arch.positions else { return None };
    let width = if *width == 0 { config.head_dim } else { *width };
    let windowed = config.arch.window(l) != usize::MAX;
    let (frequencies, factor) = match local_theta.filter(|_| windowed) {
        Some(theta) => (plain(theta, width), 1.0),
        None => scaled(config.rope_theta, width, scaling),
    };
    let angle = |t: usize, f: f64| f64::from(t as f32 * f as f32);
    let table = |of: fn(f64) -> f64| {
        let at = |t: usize| frequencies.iter().map(move |&f| (of(angle(t, f)) * factor) as f32);
        (0..n).flat_map(at).collect()
    };
    Some(Angles { half: width / 2, cos: table(f64::cos), sin: table(f64::sin) })
}

fn plain(theta: f64, width: usize) -> Vec<f64> {
    (0..width / 2).map(|i| theta.powf(-((2 * i) as f64) / width as f64)).collect()
}

/// Frequencies, and the factor of cosines and sines.
fn scaled(theta: f64, width: usize, scaling: &RopeScaling) -> (Vec<f64>, f64) {
    let mut frequencies = plain(theta, width);
    match *scaling {
        RopeScaling::None => (frequencies, 1.0),
        RopeScaling::Linear { factor } => {
            frequencies.iter_mut().for_each(|f| *f /= factor);
            (frequencies, 1.0)
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            for f in &mut frequencies {
                // Rotations over the old context: many are kept, few are slowed, between them a straight line.
                let rotations = original * *f / (2.0 * PI);
                let kept = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                *f *= kept + (1.0 - kept) / factor;
            }
            (frequencies, 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            // The pair whose frequency turns `rotations` times over the old context.
            let pair = |rotations: f64| width as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let low = pair(beta_fast).floor().max(0.0);
            let mut high = pair(beta_slow).ceil().min(width as f64 - 1.0);
            if low == high {
                high += 0.001;
            }
            for (i, f) in frequencies.iter_mut().enumerate() {
                let slowed = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                *f *= 1.0 - slowed + slowed / factor;
            }
            (frequencies, attention_factor)
        }
    }
}

/// What is added to the scores of layer `l`: 0 where query `i` sees key `j`, −∞ elsewhere; `[n, n]`. None if all see all.
pub(super) fn mask(config: &DecoderConfig, l: usize, n: usize) -> Option<Vec<f32>> {
    if config.arch.is_encoder() {
        return None;
    }
    let window = config.arch.window(l);
    let seen = |i: usize, j: usize| j <= i && i - j < window;
    let cell = |at: usize| if seen(at / n, at % n) { 0.0 } else { f32::NEG_INFINITY };
    Some((0..n * n).map(cell).collect())
}
