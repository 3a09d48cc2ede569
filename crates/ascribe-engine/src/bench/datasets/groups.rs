//! Channels in which datasets count as groups: what they say together (second order, whose values are split-proof), and Adam's scale on
//! their summed gradients.

use ascribe_core::NoProgress;
use ascribe_methods::block_fisher::{Factors, precondition};
use ascribe_methods::dot;
use ascribe_methods::group::additivity::second_order;
use ascribe_methods::group::removal::RemovalGame;
use ascribe_methods::trajectory::ScaledGradients;
use ascribe_models::train::load_second_moments;
use ascribe_models::{Decoder, Sequence};
use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate, s};

use super::channels::{ADAM, MeasuredChannel, Rows, SECOND_ORDER};
use crate::bank::query_sequences;
use crate::bench::runners::DecoderData;
use crate::error::EngineError;
use crate::home::Home;
use crate::machine::cpu_seconds;

/// `R_kl` of a trajectory, checkpoint after checkpoint.
pub(super) struct SecondOrder(Array3<f64>);

impl SecondOrder {
    pub fn new(n_queries: usize, k: usize) -> Self {
        Self(Array3::zeros((n_queries, k, k)))
    }

    /// Adds a checkpoint's part: products of every example with the queries and with the datasets' sums, through one curvature.
    ///
    /// # Errors
    /// What the methods refuse.
    pub fn add(
        &mut self,
        rows: &Rows,
        by: &Factors,
        (solved, sums): (ArrayView2<'_, f64>, ArrayView2<'_, f64>),
        weight: f64,
    ) -> Result<(), EngineError> {
        // Sums are larger than rows: to one scale first, so that f32 has room.
        let largest = sums.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
        let solved_sums = precondition(by, sums.mapv(|v| (v / largest) as f32).view())?;
        let both = concatenate(Axis(0), &[solved, solved_sums.view()]).expect("both have a row's columns");
        let scored = dot::score(rows, both.view(), None, &NoProgress)?;
        let (queries, datasets) = scored.values.view().split_at(Axis(0), solved.nrows());
        let pairs = second_order(queries, (datasets.mapv(f64::from) * largest).view(), &scored.examples)?;
        self.0.scaled_add(weight, &pairs);
        Ok(())
    }

    /// The channel, with the game that it predicts and the additivity residual.
    ///
    /// # Errors
    /// Scores that are not finite.
    pub fn channel(self, scores: Array2<f64>, costs: (f64, f64)) -> Result<MeasuredChannel, EngineError> {
        let game = RemovalGame::new(scores, self.0)?;
        let residuals: Vec<f64> = game.residuals()?.into_iter().flatten().collect();
        let mut channel = MeasuredChannel::new(SECOND_ORDER, false, game.values(), costs);
        channel.game = Some(game.table()?);
        let mean = residuals.iter().sum::<f64>() / residuals.len().max(1) as f64;
        channel.found.insert("additivity_residual".into(), mean);
        Ok(channel)
    }
}

/// Datasets' summed gradients over all parameters, divided by the root of Adam's second moments, against the queries' gradients, at the
/// final weights.
///
/// # Errors
/// A model folder without moments; what the model refuses.
pub(super) fn adam(home: &Home, model: &str, data: &DecoderData) -> Result<MeasuredChannel, EngineError> {
    let start = cpu_seconds();
    let (dir, corpus, recipe) = (home.model(model), &data.corpus, &data.recipe.train);
    let decoder = Decoder::load(&dir, "model.safetensors")?;
    let moments = load_second_moments(&data.recipe.decoder_config(), &dir.join("second_moments.safetensors"))?;
    let k = corpus.n_datasets();
    let mut sums = Array2::<f32>::zeros((k, moments.len()));
    for dataset in 0..k {
        let own = corpus.examples.iter().filter(|e| e.id.dataset as usize == dataset);
        let sequences: Vec<Sequence<'_>> = own.map(|e| Sequence::whole(&e.tokens)).collect();
        sums.row_mut(dataset).assign(&ndarray::ArrayView1::from(&decoder.gradient_sum(&sequences)?[..]));
    }
    // The optimiser saw means over tokens; these are sums.
    sums.mapv_inplace(|v| v / data.recipe.corpus.seq_len as f32);
    let unbiased = 1.0 / (1.0 - recipe.beta2.powi(recipe.steps as i32));
    let scaled = ScaledGradients::adam(sums, &moments, unbiased, recipe.eps, 1.0)?;
    let queries = query_sequences(corpus);
    let mut scores = Array2::zeros((queries.len(), k));
    for (q, sequence) in queries.iter().enumerate() {
        let row = scaled.score(&decoder.gradient_sum(std::slice::from_ref(sequence))?)?;
        scores.slice_mut(s![q, ..]).assign(&ndarray::ArrayView1::from(&row[..]));
    }
    Ok(MeasuredChannel::new(ADAM, false, scores, (cpu_seconds() - start, 0.0)))
}
