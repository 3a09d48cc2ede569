//! Linear modules under observation: what curvature methods ask of a decoder, in the coordinates of its weight matrices.
//!
//! A [`TappedDecoder`] tracks some linear modules. It hands out what they saw (`capture`), moves their weights along
//! directions (`tangent`) and says how every token's loss changes (`tokens`), and multiplies with their Gauss–Newton matrix
//! (`curvature`). Projected rows live in `features`; what any of this is good for lives in methods.
//!
//! A flat vector holds the modules one after the other, each `[out, in]` row-major whichever way the file stores it, with the
//! bias as a last input column. Embedding, positions and norms are not tracked and count as constants.

mod capture;
mod curvature;
mod tangent;
mod tokens;

use std::ops::Range;

pub use capture::{Capture, TapRows};

use crate::decoder::{Decoder, Module, PackedWeights, Pass, packs};
use crate::error::ModelError;
use crate::features::{self, Example, Granularity, Precision, TapConfig};

/// Tokens that share a pass; no part of the results.
const PACK_ROWS: usize = 512;

/// Tokens that share a walk along directions: there every direction has activations of its own.
const TANGENT_ROWS: usize = 256;

/// A tracked linear module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearTap {
    /// Its name, by the [`Granularity`] asked for.
    pub name: String,
    /// Outputs.
    pub n_out: usize,
    /// Inputs, the constant 1 of a bias included.
    pub n_in: usize,
    /// True if the last input column is a bias.
    pub has_bias: bool,
    /// Where it begins in a flat vector.
    pub start: usize,
    module: Module,
    /// Its columns of the fused output.
    columns: Range<usize>,
}

impl LinearTap {
    /// Its numbers in a flat vector.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.n_out * self.n_in
    }
}

/// A decoder with tracked linear modules.
///
/// Sequences share passes in packs, with weights that are packed once: an example's numbers depend on the example alone,
/// whatever shares its pass and whatever thread it runs on.
#[derive(Debug)]
pub struct TappedDecoder<'m> {
    decoder: &'m Decoder,
    taps: Vec<LinearTap>,
    /// Taps of each product, from the bottom up.
    sites: Vec<Vec<usize>>,
    weights: PackedWeights,
}

impl<'m> TappedDecoder<'m> {
    /// Tracks the modules of `decoder` whose names match one of `patterns` (`*` stands for any text): by their Hugging Face
    /// names ([`Granularity::Module`]) or as the passes compute them, queries with keys and values, gates with ups
    /// ([`Granularity::Fused`]). Of an output layer that is tied to the embedding nothing is tracked: its matrix is the table's
    /// too, and half of a gradient is none.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if a pattern matches no module, nothing is tracked, or the model is an encoder.
    pub fn new(decoder: &'m Decoder, patterns: &[&str], granularity: Granularity) -> Result<Self, ModelError> {
        let mismatch =
            |what, expected: &str, found: String| ModelError::Mismatch { what, expected: expected.into(), found };
        if decoder.config.arch.is_encoder() {
            return Err(mismatch("model", "a decoder with a next-token loss", "an encoder".into()));
        }
        let config = TapConfig { granularity, ..TapConfig::modules(0, 1, patterns) };
        let candidates = features::candidates(decoder, granularity);
        let chosen = features::choose(&candidates, &config)?;
        let n_sites = 4 * decoder.config.num_hidden_layers + 1;
        let (mut taps, mut sites, mut start) = (vec![], vec![vec![]; n_sites], 0);
        for candidate in candidates.into_iter().filter(|candidate| chosen.contains(&candidate.name)) {
            let features::Candidate { module, name, columns, .. } = candidate;
            if module == Module::Head && decoder.config.tie_word_embeddings {
                continue;
            }
            let has_bias = decoder.linear_layout(module).bias.is_some();
            let (n_out, n_in) = (columns.len(), decoder.fan(module).input + usize::from(has_bias));
            sites[features::site_index(module, n_sites)].push(taps.len());
            taps.push(LinearTap { name, n_out, n_in, has_bias, start, module, columns });
            start += n_out * n_in;
        }
        if taps.is_empty() {
            return Err(mismatch("taps", "at least one tracked module", format!("none in {patterns:?}")));
        }
        let weights = PackedWeights::new(decoder, Precision::F32.into());
        Ok(Self { decoder, taps, sites, weights })
    }

    /// The same with biases as constants: weights alone, for projections of weights.
    #[must_use]
    pub fn without_biases(mut self) -> Self {
        let mut start = 0;
        for tap in &mut self.taps {
            tap.n_in -= usize::from(std::mem::take(&mut tap.has_bias));
            tap.start = start;
            start += tap.n_in * tap.n_out;
        }
        self
    }

    /// The decoder.
    pub fn decoder(&self) -> &'m Decoder {
        self.decoder
    }

    /// The tracked modules, in the order of flat vectors.
    pub fn taps(&self) -> &[LinearTap] {
        &self.taps
    }

    /// Length of a flat vector.
    pub fn dim(&self) -> usize {
        self.taps.last().map_or(0, |tap| tap.range().end)
    }

    /// The weights of the tracked modules as a flat vector.
    pub fn parameters(&self) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.dim());
        for tap in &self.taps {
            let linear = self.decoder.linear(tap.module);
            let matrix = linear.matrix();
            for o in tap.columns.clone() {
                flat.extend(matrix.row(o));
                flat.extend(linear.bias.filter(|_| tap.has_bias).map(|bias| bias[o]));
            }
        }
        flat
    }

    /// A copy of the decoder whose tracked weights are `flat`: for retraining-free witnesses and steps along a direction.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for another length.
    pub fn with_parameters(&self, flat: &[f32]) -> Result<Decoder, ModelError> {
        if flat.len() != self.dim() {
            let (expected, found) = (self.dim().to_string(), flat.len().to_string());
            return Err(ModelError::Mismatch { what: "tracked weights", expected, found });
        }
        let mut decoder = self.decoder.clone();
        for tap in &self.taps {
            let layout = self.decoder.linear_layout(tap.module).clone();
            let fan = self.decoder.fan(tap.module);
            let parameters = decoder.parameters_mut();
            for (o, row) in tap.columns.clone().zip(flat[tap.range()].chunks_exact(tap.n_in)) {
                for (i, &w) in row[..fan.input].iter().enumerate() {
                    let place = if layout.transposed { i * fan.output + o } else { o * fan.input + i };
                    parameters[layout.weight.start + place] = w;
                }
                if let Some(bias) = layout.bias.as_ref().filter(|_| tap.has_bias) {
                    parameters[bias.start + o] = row[fan.input];
                }
            }
        }
        Ok(decoder)
    }

    fn pass(&self) -> Pass<'_> {
        Pass::packed(self.decoder, &self.weights)
    }

    /// The taps of a product.
    fn taps_of(&self, module: Module) -> impl Iterator<Item = (usize, &LinearTap)> {
        self.sites[features::site_index(module, self.sites.len())].iter().map(|&at| (at, &self.taps[at]))
    }

    /// The last product with a tap on the way down.
    fn lowest(&self) -> Module {
        let place = self.sites.iter().position(|site| !site.is_empty()).expect("at least one module is tracked");
        features::module_at(place, self.sites.len())
    }

    /// Checks examples; one objective each.
    fn check(&self, examples: &[Example<'_>]) -> Result<(), ModelError> {
        features::check(self.decoder, examples)?;
        match examples.iter().position(|example| example.n_rows() != 1) {
            None => Ok(()),
            Some(at) => {
                let (expected, found) = ("at most one span".to_string(), examples[at].n_rows().to_string());
                Err(ModelError::Mismatch { what: "spans of a tapped example", expected, found })
            }
        }
    }

    /// Neighbours that share a pass.
    fn packs(&self, examples: &[Example<'_>], rows: usize) -> Vec<Range<usize>> {
        packs(examples.iter().map(|example| example.tokens.len()), rows)
    }
}

#[cfg(test)]
mod tests;
