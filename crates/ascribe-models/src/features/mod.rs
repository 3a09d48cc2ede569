//! The gradient stage: one forward and one backward pass per sequence, and a projected gradient row out of it.
//!
//! For each tracked module the row holds a projection of `G = Σ_t δ_t x_tᵀ`; the default is LoGra's
//! `ĝ = P_outᵀ·G·P_in` (arXiv:2405.13954), computed as `(Δ·P_out)ᵀ·(X·P_in)`: the weight gradient is never formed.
//! [`Projection`] lists the others, [`Example`] what a row may be about. What rows are good for lives elsewhere.

mod adapter;
mod bases;
mod block;
mod config;
mod device;
mod example;
mod factored;
mod ghost;
mod memory;
mod normalizer;
mod plan;
mod sink;

use ascribe_core::{Column, Digest, FeatureSpec, ProjectorSpec};
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;

pub use bases::{GivenBases, ModuleBasis};
pub use config::{Granularity, Precision, Projection, TapConfig};
pub use example::{Example, RowReport};
pub use ghost::GhostProducts;
pub use memory::Memory;
pub use normalizer::Normalizer;

use crate::decoder::{Decoder, Objective, PackedWeights, Pass, Sequence, Workspace};
use crate::error::ModelError;
use crate::lora::AdaptedDecoder;
use block::Scratch;
pub(crate) use example::check;
use factored::Factoring;
pub(crate) use plan::{Candidate, candidates, choose, matches, module_at, site_index};
use plan::{Plan, mismatch};
use sink::RowSink;

/// Tokens that share a pass. Measured on the comparison model (benches/SETTINGS.md); no part of the results.
const PACK_ROWS: usize = 512;

/// Numbers of rows that a pass may leave before they are written.
const PACK_NUMBERS: usize = 1 << 22;

/// Turns sequences into projected gradient rows of one decoder.
///
/// Sequences share passes in packs, with weights that are packed once; a row's bytes depend on its own example alone,
/// whatever shares its pass.
#[derive(Debug)]
pub struct GradientStage<'m> {
    decoder: &'m Decoder,
    config: TapConfig,
    plan: Plan,
    /// Linear weights, packed once for all passes.
    weights: PackedWeights,
    factoring: Option<Factoring>,
    /// Factors of unprojected columns: norms and biases.
    elementwise: Vec<(std::ops::Range<usize>, Vec<f32>)>,
    normalizer: String,
}

impl<'m> GradientStage<'m> {
    /// Prepares the projectors of `config` for `decoder`.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if a width is 0, a pattern matches no module, nothing is tracked, or the model is an encoder.
    pub fn new(decoder: &'m Decoder, config: TapConfig) -> Result<Self, ModelError> {
        Self::build(decoder, config, None, None)
    }

    /// The same with fitted matrices in the place of drawn ones: LoGra's PCA form (arXiv:2405.13954, section 4.1) with leading
    /// eigenvectors of inputs and of output gradients. Every tracked matrix needs its pair, under its name; whatever
    /// projection `config` names is replaced. The spec carries the matrices' digest.
    ///
    /// # Errors
    /// What [`GradientStage::new`] refuses; a tracked matrix without a pair, or one of another shape.
    pub fn with_bases(decoder: &'m Decoder, config: TapConfig, bases: &GivenBases) -> Result<Self, ModelError> {
        let config = TapConfig { projection: Projection::Given { matrices: bases.digest() }, ..config };
        Self::build(decoder, config, None, Some(bases))
    }

    /// The same for gradients that are scaled by optimiser moments before they are projected.
    ///
    /// A scaled gradient does not factor into inputs and output gradients: every module's gradient is formed, in scratch
    /// memory, and then projected. Cost per sequence and module: `2·T·I·O + 2·O·I·k_in`; memory: one such matrix per thread
    /// and the factors of all tracked parameters.
    ///
    /// # Errors
    /// What [`GradientStage::new`] refuses.
    pub fn normalized(decoder: &'m Decoder, config: TapConfig, normalizer: &Normalizer) -> Result<Self, ModelError> {
        Self::build(decoder, config, Some(normalizer), None)
    }

    /// Rows over the weights of an adapter: everything that [`TapConfig`] can ask for, of modules named
    /// `{module}.lora_A` and `{module}.lora_B`, whose gradients are `[r, in]` and `[out, r]`. The model runs merged. Cost
    /// beside the pass: `4·T·r·(in + out)` per adapted module, and the projections.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if a width is 0, a pattern matches nothing, or embedding, norms, biases or positions are
    /// asked for.
    pub fn of_adapter(adapted: &'m AdaptedDecoder, config: TapConfig) -> Result<Self, ModelError> {
        Ok(Self::assemble(adapted.decoder(), Plan::adapter(adapted, &config)?, config, None))
    }

    fn build(
        decoder: &'m Decoder,
        config: TapConfig,
        normalizer: Option<&Normalizer>,
        given: Option<&GivenBases>,
    ) -> Result<Self, ModelError> {
        let plan = Plan::new(decoder, &config, normalizer, given)?;
        Ok(Self::assemble(decoder, plan, config, normalizer))
    }

    fn assemble(decoder: &'m Decoder, plan: Plan, config: TapConfig, normalizer: Option<&Normalizer>) -> Self {
        let factoring = Factoring::new(&plan, config.projection);
        let mut elementwise = vec![];
        if let Some(normalizer) = normalizer {
            for (place, parameter) in plan.unprojected(decoder) {
                elementwise.push((place, normalizer.factors(parameter).collect()));
            }
        }
        let normalizer = normalizer.map_or("none".into(), Normalizer::spec_name);
        let weights = PackedWeights::new(decoder, config.precision.into());
        Self { decoder, config, plan, weights, factoring, elementwise, normalizer }
    }

    /// Column groups, one per module, in order and without gaps. A two-sided projection's group is `[k_out, k_in]` row-major;
    /// [`Projection`] says what the others hold.
    pub fn columns(&self) -> &[Column] {
        self.factoring.as_ref().map_or(&self.plan.columns, |factoring| &factoring.columns)
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.factoring.as_ref().map_or(self.plan.dim, |factoring| factoring.dim)
    }

    /// Column groups of rows that were multiplied out ([`GradientStage::expand`]); otherwise those of the rows.
    pub fn expanded_columns(&self) -> &[Column] {
        &self.plan.columns
    }

    /// What was asked for.
    pub fn config(&self) -> &TapConfig {
        &self.config
    }

    /// The projector as a feature spec names it.
    pub fn projector_spec(&self) -> ProjectorSpec {
        self.config.projector_spec()
    }

    /// The spec of this stage's rows over the examples that `corpus` pins.
    pub fn spec(&self, checkpoint: &str, corpus: Digest) -> FeatureSpec {
        FeatureSpec {
            model: self.decoder.weights_digest(),
            checkpoint: checkpoint.into(),
            quantity: match self.config.precision {
                Precision::F32 => "gradient".into(),
                Precision::Bf16 => "gradient_bf16".into(),
            },
            loss: self.config.loss.spec_name(),
            normalizer: self.normalizer.clone(),
            projector: self.projector_spec(),
            columns: self.columns().to_vec(),
            dim: self.dim(),
            corpus,
        }
    }

    /// Multiplies a factored row out: `dense` gets the columns of [`GradientStage::expanded_columns`]. Other rows are copied.
    ///
    /// # Panics
    /// If `row` or `dense` has another length.
    pub fn expand(&self, row: &[f32], dense: &mut [f32]) {
        assert!(row.len() == self.dim() && dense.len() == self.plan.dim, "rows of this stage have its widths");
        match &self.factoring {
            Some(factoring) => factoring.expand(row, dense),
            None => dense.copy_from_slice(row),
        }
    }

    /// Fills `out` `[n, dim]` with the rows of `sequences`: the projected gradient of each *summed* loss (see [`Sequence`]),
    /// zeros where nothing counts. Returns the summed losses in nats. Labels that [`Loss::Sampled`](crate::Loss::Sampled)
    /// draws are those of example ids 0, 1, …: give ids with [`GradientStage::rows_of`].
    ///
    /// `norms` receives `‖row‖`, whose square is an unbiased estimate of the tracked parameters' squared gradient norm
    /// (`Decoder::gradient_norms` is exact, at the price of a full backward pass). Sequences run in parallel; a row's bytes
    /// depend on its sequence alone. Cost per sequence: one forward pass, the activations' half of a backward pass, and
    /// `2·T·(I·k_in + O·k_out)` per module.
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`]; [`ModelError::Mismatch`] if `out` or `norms` have another size;
    /// [`ModelError::Diverged`] if a row is not finite.
    pub fn rows(
        &self,
        sequences: &[Sequence<'_>],
        out: ArrayViewMut2<'_, f32>,
        norms: Option<&mut [f32]>,
    ) -> Result<Vec<f64>, ModelError> {
        if let Some(norms) = norms.as_ref().filter(|norms| norms.len() != sequences.len()) {
            let (expected, found) = (sequences.len().to_string(), norms.len().to_string());
            return Err(mismatch("number of gradient norms", expected, found));
        }
        let examples: Vec<Example<'_>> =
            sequences.iter().enumerate().map(|(id, &sequence)| Example::numbered(sequence, id as u64)).collect();
        let reports = self.rows_of(&examples, out)?;
        if let Some(norms) = norms {
            norms.iter_mut().zip(&reports).for_each(|(norm, report)| *norm = report.norm);
        }
        Ok(reports.into_iter().map(|report| report.loss).collect())
    }

    /// Fills `out` with the rows of `examples`, [`Example::n_rows`] each, in order; reports them in the same order.
    ///
    /// The rows of an example's spans share one forward pass and have a backward pass each. Loss and gradient are sums over
    /// predicted tokens, so the rows of spans that part an example add up to the example's own row (to rounding).
    ///
    /// # Errors
    /// What [`GradientStage::rows`] refuses; targets of another length or beyond the vocabulary, a span that ends after its
    /// example or before its start.
    pub fn rows_of(
        &self,
        examples: &[Example<'_>],
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<Vec<RowReport>, ModelError> {
        check(self.decoder, examples)?;
        let n_rows = examples.iter().map(Example::n_rows).sum();
        if out.dim() != (n_rows, self.dim()) {
            let expected = format!("{:?}", (n_rows, self.dim()));
            return Err(mismatch("shape of the gradient rows", expected, format!("{:?}", out.dim())));
        }
        // A view may have gaps between rows, or even between numbers: then the rows go through a copy.
        let mut copy = vec![];
        let mut rest = match out.as_slice_mut() {
            Some(slice) => slice,
            None => {
                copy.resize(n_rows * self.dim(), 0.0);
                &mut copy[..]
            }
        };
        let mut jobs = vec![];
        for pack in self.packs(examples) {
            let n_rows: usize = pack.iter().map(Example::n_rows).sum();
            let (rows, after) = rest.split_at_mut(n_rows * self.dim());
            jobs.push((pack, rows));
            rest = after;
        }
        let work = |scratch: &mut Scratch, (pack, rows): (&[Example<'_>], &mut [f32])| {
            self.decoder.pool().with(|ws| self.pack(pack, rows, ws, scratch))
        };
        let reports: Vec<Vec<RowReport>> = jobs.into_par_iter().map_init(Scratch::default, work).collect();
        let reports: Vec<RowReport> = reports.into_iter().flatten().collect();
        if !copy.is_empty() {
            let copied = ndarray::ArrayView2::from_shape((n_rows, self.dim()), &copy).expect("the copy has this shape");
            out.assign(&copied);
        }
        finite(&reports)?;
        Ok(reports)
    }

    /// Fills `out` `[T, dim]` with one row per position of the example: position t's share `δ_t x_tᵀ` of every module's
    /// gradient. The rows add up to the example's row (to rounding); what a position contributes is how its activations were
    /// used for *all* later predictions, so it is no gradient of any one token's loss (spans give those). Returns the loss.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if norms are tracked (their gradients are summed inside the pass), rows are factored, or the
    /// example has spans; and what [`GradientStage::rows`] refuses.
    pub fn token_rows(&self, example: &Example<'_>, mut out: ArrayViewMut2<'_, f32>) -> Result<f64, ModelError> {
        check(self.decoder, std::slice::from_ref(example))?;
        if self.config.norms || self.factoring.is_some() || !example.spans.is_empty() {
            let expected = "projected modules and tables, no norms, no factors, no spans".to_string();
            return Err(mismatch(
                "rows per token",
                expected,
                format!("{:?} and spans {:?}", self.config, example.spans),
            ));
        }
        let expected = (example.tokens.len(), self.dim());
        if out.dim() != expected {
            return Err(mismatch("shape of the token rows", format!("{expected:?}"), format!("{:?}", out.dim())));
        }
        let mut rows = vec![0.0; expected.0 * expected.1];
        let objectives: Vec<Objective<'_>> = example.objectives(self.config.loss).collect();
        let mut loss = [0.0];
        let mut sink = RowSink { stage: self, rows: &mut rows, per_token: true, scratch: &mut Scratch::default() };
        self.decoder.pool().with(|ws| self.pass().backward(&objectives, ws, &mut sink, &mut loss));
        let loss = loss[0];
        for (mut out, row) in out.axis_iter_mut(Axis(0)).zip(rows.chunks_exact_mut(self.dim())) {
            let squared = self.scale_unprojected(row);
            finite(&[RowReport { loss, norm: squared.sqrt() as f32, ..RowReport::default() }])?;
            out.iter_mut().zip(row).for_each(|(out, x)| *out = *x);
        }
        Ok(loss)
    }

    fn pass(&self) -> Pass<'_> {
        Pass::packed(self.decoder, &self.weights)
    }

    /// Neighbours that share a pass: examples with one number of rows, of [`PACK_ROWS`] tokens together, or one that is longer.
    /// Packs change no bit, only how much is in memory and how well the products are fed.
    fn packs<'e, 'a>(&self, examples: &'e [Example<'a>]) -> Vec<&'e [Example<'a>]> {
        let most = (PACK_NUMBERS / self.plan.dim).max(1);
        let mut packs = vec![];
        let mut rest = examples;
        while let Some(first) = rest.first() {
            let mut tokens = 0;
            let fits = |example: &&Example<'_>| {
                tokens += example.tokens.len();
                tokens <= PACK_ROWS && example.n_rows() == first.n_rows()
            };
            let n = rest.iter().take(most).take_while(fits).count().max(1);
            let pack;
            (pack, rest) = rest.split_at(n);
            packs.push(pack);
        }
        packs
    }

    /// The rows of one pack: one forward pass, and a backward pass for each row of its examples.
    fn pack(
        &self,
        pack: &[Example<'_>],
        rows: &mut [f32],
        ws: &mut Workspace,
        scratch: &mut Scratch,
    ) -> Vec<RowReport> {
        let n_rows = pack.first().map_or(0, Example::n_rows);
        let objectives: Vec<Vec<Objective<'_>>> =
            pack.iter().map(|example| example.objectives(self.config.loss).collect()).collect();
        let counted =
            |of_example: &[Objective<'_>]| of_example.iter().any(|objective| !objective.predicting.is_empty());
        let sequences = pack.iter().zip(&objectives).enumerate().filter(|(_, (_, of_example))| counted(of_example));
        let sequences = sequences.map(|(index, (example, _))| (index, example.tokens));
        let any = sequences.clone().next().is_some();
        if any {
            self.pass().forward(sequences, ws);
        }
        let mut reports = vec![RowReport::default(); pack.len() * n_rows];
        let (mut dense, mut losses) = (std::mem::take(&mut scratch.dense), vec![0.0; pack.len()]);
        for k in 0..n_rows {
            let of_row: Vec<Objective<'_>> = objectives.iter().map(|of_example| of_example[k].clone()).collect();
            let found = block::room(&mut dense, pack.len() * self.plan.dim);
            found.fill(0.0);
            losses.fill(0.0);
            if any {
                let mut sink = RowSink { stage: self, rows: found, per_token: false, scratch };
                self.pass().descend(&of_row, ws, &mut sink, &mut losses);
            }
            for (i, (found, objective)) in found.chunks_exact_mut(self.plan.dim).zip(&of_row).enumerate() {
                let place = i * n_rows + k;
                let row = &mut rows[place * self.dim()..(place + 1) * self.dim()];
                reports[place] = self.finish(found, row, losses[i], objective.predicting.len());
            }
        }
        scratch.dense = dense;
        reports
    }

    /// Writes a row from what the pass left.
    fn finish(&self, found: &mut [f32], row: &mut [f32], loss: f64, n_predictions: usize) -> RowReport {
        let squared = self.scale_unprojected(found);
        let mut report = RowReport { loss, n_predictions, norm: squared.sqrt() as f32, residual: 0.0 };
        match &self.factoring {
            Some(factoring) => {
                let dropped = factoring.write(found, row);
                report.residual = if squared > 0.0 { (dropped / squared).sqrt() as f32 } else { 0.0 };
            }
            None => row.copy_from_slice(found),
        }
        report
    }

    /// Applies moments to the columns that nothing projects; returns the row's squared length.
    fn scale_unprojected(&self, row: &mut [f32]) -> f64 {
        for (place, factors) in &self.elementwise {
            row[place.clone()].iter_mut().zip(factors).for_each(|(g, s)| *g *= s);
        }
        ascribe_linalg::elementwise::sum_squares(row)
    }

    /// One pass over the sequences on the calling thread, for measurements.
    pub(crate) fn rows_on_this_thread(&self, sequences: &[Sequence<'_>], rows: &mut Vec<f32>) {
        let examples: Vec<Example<'_>> =
            sequences.iter().enumerate().map(|(id, &sequence)| Example::numbered(sequence, id as u64)).collect();
        let mut scratch = Scratch::default();
        for pack in self.packs(&examples) {
            let rows = block::room(rows, pack.len() * self.dim());
            std::hint::black_box(self.decoder.pool().with(|ws| self.pack(pack, rows, ws, &mut scratch)));
        }
    }

    /// Operations per token that the projections add to the pass.
    pub(crate) fn flop_per_token(&self) -> f64 {
        self.plan.blocks().map(|block| block.input.flop() + block.output.flop() + 2.0 * block.len() as f64).sum()
    }
}

/// Refuses a row that is not finite.
fn finite(reports: &[RowReport]) -> Result<(), ModelError> {
    let found = reports.iter().map(|report| f64::from(report.norm + report.residual)).find(|x| !x.is_finite());
    match found {
        Some(found) => Err(ModelError::Diverged { step: 0, what: "projected gradient", found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
