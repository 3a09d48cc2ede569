//! Tables of rotary positions, in the arithmetic of `transformers`: f32 frequencies and angles.

use ascribe_linalg::elementwise::rotate;

use crate::arch::{Positions, RopeScaling};
use crate::config::DecoderConfig;

/// Cosines and sines of one base, `[positions, half]`.
#[derive(Clone, Debug, Default)]
struct Table {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    fn new(frequencies: &[f32], factor: f32, positions: usize) -> Self {
        let angles = (0..positions).flat_map(|t| frequencies.iter().map(move |f| f64::from(t as f32 * f)));
        // A factor of 1 changes no bit.
        let (cos, sin) = angles.map(|a| (a.cos() as f32 * factor, a.sin() as f32 * factor)).unzip();
        Self { cos, sin }
    }
}

/// Which numbers of a row turn: head `h` begins at `first + h·step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub first: usize,
    pub step: usize,
    pub n_heads: usize,
}

/// Cosines and sines of all layers.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    /// Half of the turned width; 0 where nothing turns.
    half: usize,
    global: Table,
    /// Of layers with a window, where they differ.
    local: Option<Table>,
}

impl Rotary {
    /// Angles `t · θ^(−2i/width)` for `t < positions`.
    #[cfg(test)]
    pub fn new(theta: f64, width: usize, positions: usize) -> Self {
        Self { half: width / 2, global: Table::new(&frequencies(theta, width), 1.0, positions), local: None }
    }

    /// The tables of a configuration; empty where positions are learned.
    pub fn of(config: &DecoderConfig) -> Self {
        let Positions::Rotary { width, scaling, local_theta } = &config.arch.positions else {
            return Self { half: 0, global: Table::default(), local: None };
        };
        let width = if *width == 0 { config.head_dim } else { *width };
        let positions = config.max_position_embeddings;
        let (frequencies, factor) = scaled(config.rope_theta, width, scaling);
        let local = local_theta.map(|theta| Table::new(&self::frequencies(theta, width), 1.0, positions));
        Self { half: width / 2, global: Table::new(&frequencies, factor, positions), local }
    }

    /// Cosines and sines of all positions, of layers with (`local`) or without a window.
    fn tables_at(&self, local: bool) -> (&[f32], &[f32]) {
        let table = if local { self.local.as_ref().unwrap_or(&self.global) } else { &self.global };
        (&table.cos, &table.sin)
    }

    /// Turns (`sign = 1`) or turns back (`sign = −1`) the first `n_heads` heads of each row of `x` `[n, stride]`; row t
    /// is position t. Heads are neighbours and turn as a whole.
    pub fn apply(&self, x: &mut [f32], stride: usize, n_heads: usize, sign: f32) {
        self.turn(false, x, stride, Places { first: 0, step: 2 * self.half, n_heads }, sign);
    }

    /// [`Rotary::apply`] for heads at any places, with the tables of layers with or without a window.
    pub fn turn(&self, local: bool, x: &mut [f32], stride: usize, places: Places, sign: f32) {
        if self.half == 0 {
            return;
        }
        let (cos, sin) = self.tables_at(local);
        let len = x.len() / stride * self.half;
        let Places { first, step, n_heads } = places;
        rotate(x, stride, first, step, n_heads, self.half, &cos[..len], &sin[..len], sign);
    }
}

/// `θ^(−2i/width)`.
fn frequencies(theta: f64, width: usize) -> Vec<f32> {
    (0..width / 2).map(|i| (1.0 / theta.powf(2.0 * i as f64 / width as f64)) as f32).collect()
}

/// The frequencies under `scaling`, and the factor of cosines and sines.
fn scaled(theta: f64, width: usize, scaling: &RopeScaling) -> (Vec<f32>, f32) {
    let plain = frequencies(theta, width);
    match *scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.into_iter().map(|f| f / factor as f32).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let original = original_max_position_embeddings as f64;
            let (low, high) = (original / low_freq_factor, original / high_freq_factor);
            let change = |f: f32| {
                let f = f64::from(f);
                let wavelength = std::f64::consts::TAU / f;
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let changed = if wavelength > low {
                    f / factor
                } else if wavelength < high {
                    f
                } else {
                    (1.0 - smooth) * f / factor + smooth * f
                };
                changed as f32
            };
            (plain.into_iter().map(change).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_position_embeddings } => {
            // The dimension at which a frequency turns `rotations` times within the original context.
            let dimension = |rotations: f64| {
                let turns = original_max_position_embeddings as f64 / (rotations * std::f64::consts::TAU);
                width as f64 * turns.ln() / (2.0 * theta.ln())
            };
            let low = dimension(beta_fast).floor().max(0.0);
            let high = dimension(beta_slow).ceil().min(width as f64 - 1.0);
            let span = if low == high { 0.001 } else { high - low };
            let change = |(i, f): (usize, f32)| {
                let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
                let f = f64::from(f);
                (f / factor * ramp + f * (1.0 - ramp)) as f32
            };
            (plain.into_iter().enumerate().map(change).collect(), attention_factor as f32)
        }
    }
}
