//! The gradient stage: one forward and one backward pass per sequence, and a projected gradient row out of it.
//!
//! For each tracked module the row holds `ĝ = P_outᵀ·(Σ_t δ_t x_tᵀ)·P_in` (LoGra, arXiv:2405.13954), computed as
//! `(Δ·P_out)ᵀ·(X·P_in)`: the weight gradient in the brackets is never formed. What rows are good for lives elsewhere.

use ascribe_core::{Column, ProjectorSpec};
use ascribe_linalg::project::TWO_SIDED_VERSION;
use ascribe_linalg::{Threads, TwoSided, gemm};
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::decoder::{Decoder, Module, Norm, NormGradient, Rows, Sequence, Sink};
use crate::error::ModelError;
use crate::ops::{matrix, matrix_mut};

/// What is tapped, and how much of it is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapConfig {
    /// Root seed of all projectors; each module draws its own stream.
    pub seed: u64,
    /// Columns kept of a module's fan-in.
    pub k_in: usize,
    /// Columns kept of a module's fan-out.
    pub k_out: usize,
    /// Track the embedding (and the output layer: one block if tied, two if not).
    pub embedding: bool,
    /// Track the gains of all norms, unprojected.
    pub norms: bool,
    /// Names of tracked linear modules; `*` stands for any text (`layers.*.mlp.down`). The names are those of
    /// [`GradientStage::columns`].
    pub modules: Vec<String>,
}

impl TapConfig {
    /// All linear modules of all layers, embedding and norms, `k` columns on either side.
    pub fn all(seed: u64, k: usize) -> Self {
        Self { seed, k_in: k, k_out: k, embedding: true, norms: true, modules: vec!["*".into()] }
    }
}

/// A tracked linear module.
#[derive(Debug)]
struct Tap {
    projector: TwoSided,
    start: usize,
}

impl Tap {
    fn len(&self) -> usize {
        self.projector.dim()
    }
}

/// Turns sequences into projected gradient rows of one decoder.
#[derive(Debug)]
pub struct GradientStage<'m> {
    decoder: &'m Decoder,
    config: TapConfig,
    columns: Vec<Column>,
    /// Four per layer (qkv, o, gate and up, down), then the output layer.
    taps: Vec<Option<Tap>>,
    /// The embedding: a tap of its own, or the output layer's if they are tied.
    embedding: Option<Tap>,
    /// First column of a norm's gain: two per layer, then the last.
    norms: Option<usize>,
    dim: usize,
}

/// Memory of one worker.
struct Scratch {
    x: Vec<f32>,
    delta: Vec<f32>,
    /// Where gains go that nobody asked for.
    gain: Vec<f32>,
}

impl<'m> GradientStage<'m> {
    /// Prepares the projectors of `config` for `decoder`.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if a `k` is 0, a pattern matches no module, or nothing is tracked.
    pub fn new(decoder: &'m Decoder, config: TapConfig) -> Result<Self, ModelError> {
        let fail =
            |what, expected: &str, found: String| Err(ModelError::Mismatch { what, expected: expected.into(), found });
        if config.k_in == 0 || config.k_out == 0 {
            return fail(
                "tap columns",
                "k_in and k_out of at least 1",
                format!("{} and {}", config.k_in, config.k_out),
            );
        }
        let n_layers = decoder.config.num_hidden_layers;
        let modules: Vec<Module> =
            (0..n_layers).flat_map(|l| [Module::Qkv(l), Module::O(l), Module::Up(l), Module::Down(l)]).collect();
        for pattern in &config.modules {
            if !modules.iter().any(|&module| matches(pattern, &module_name(module))) {
                let names = modules.iter().map(|&m| module_name(m)).collect::<Vec<_>>().join(", ");
                return fail("tap pattern", &format!("one that matches a module of: {names}"), pattern.clone());
            }
        }
        let mut stage = Self { decoder, config, columns: vec![], taps: vec![], embedding: None, norms: None, dim: 0 };
        for module in modules {
            let name = module_name(module);
            let tracked = stage.config.modules.iter().any(|pattern| matches(pattern, &name));
            let tap = tracked.then(|| stage.add_tap(&name, module));
            stage.taps.push(tap);
        }
        stage.taps.push(None);
        if stage.config.embedding {
            stage.embedding = Some(stage.add_tap("embed_tokens", Module::Head));
            if !decoder.config.tie_word_embeddings {
                let head = stage.add_tap("lm_head", Module::Head);
                stage.taps[4 * n_layers] = Some(head);
            }
        }
        if stage.config.norms {
            stage.norms = Some(stage.dim);
            for norm in (0..n_layers).flat_map(|l| [Norm::Attn(l), Norm::Mlp(l)]).chain([Norm::Out]) {
                stage.add_column(norm_name(norm), decoder.config.hidden_size);
            }
        }
        if stage.dim == 0 {
            return fail("taps", "at least one tracked module", "none".into());
        }
        Ok(stage)
    }

    fn add_tap(&mut self, name: &str, module: Module) -> Tap {
        // The embedding matrix is used as the output layer is: fan-in d, fan-out V.
        let fan = self.decoder.fan(module);
        let TapConfig { seed, k_in, k_out, .. } = self.config;
        let projector = TwoSided::new(seed, name, fan.input, fan.output, k_in, k_out);
        let start = self.add_column(name.into(), projector.dim());
        Tap { projector, start }
    }

    fn add_column(&mut self, name: String, len: usize) -> usize {
        let start = self.dim;
        self.columns.push(Column { name, start, len });
        self.dim += len;
        start
    }

    /// Column groups, one per module, in order and without gaps. A projected module's group is `[k_out, k_in]` row-major.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What was asked for.
    pub fn config(&self) -> &TapConfig {
        &self.config
    }

    /// The projector as a feature spec names it.
    pub fn projector_spec(&self) -> ProjectorSpec {
        let TapConfig { seed, k_in, k_out, .. } = self.config;
        ProjectorSpec::TwoSided { seed, k_in, k_out, version: TWO_SIDED_VERSION }
    }

    /// Fills `out` `[n, dim]` with the rows of `sequences`: the projected gradient of each *summed* loss (see [`Sequence`]),
    /// zeros where nothing counts. Returns the summed losses in nats.
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
        mut out: ArrayViewMut2<'_, f32>,
        norms: Option<&mut [f32]>,
    ) -> Result<Vec<f64>, ModelError> {
        self.decoder.check(sequences)?;
        let mismatch = |what, expected: String, found: String| Err(ModelError::Mismatch { what, expected, found });
        if out.dim() != (sequences.len(), self.dim) {
            let expected = format!("{:?}", (sequences.len(), self.dim));
            return mismatch("shape of the gradient rows", expected, format!("{:?}", out.dim()));
        }
        if let Some(norms) = norms.as_ref().filter(|norms| norms.len() != sequences.len()) {
            return mismatch("number of gradient norms", sequences.len().to_string(), norms.len().to_string());
        }
        let longest = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let work = |scratch: &mut Scratch, (mut row, &sequence): (ndarray::ArrayViewMut1<'_, f32>, &Sequence<'_>)| {
            // A view may have gaps between rows, or even between numbers: then the row goes through a copy.
            let mut copy = vec![];
            let target = match row.as_slice_mut() {
                Some(slice) => slice,
                None => {
                    copy.resize(self.dim, 0.0);
                    &mut copy[..]
                }
            };
            let result = self.row(sequence, target, scratch);
            if !copy.is_empty() {
                row.iter_mut().zip(copy).for_each(|(out, x)| *out = x);
            }
            result
        };
        let results: Vec<(f64, f64)> = out
            .axis_iter_mut(Axis(0))
            .into_par_iter()
            .zip(sequences)
            .map_init(|| self.scratch(longest), work)
            .collect();
        if let Some(found) = results.iter().find(|(_, squared)| !squared.is_finite()) {
            return Err(ModelError::Diverged { step: 0, what: "projected gradient", found: found.1 });
        }
        if let Some(norms) = norms {
            norms.iter_mut().zip(&results).for_each(|(norm, (_, squared))| *norm = squared.sqrt() as f32);
        }
        Ok(results.into_iter().map(|(loss, _)| loss).collect())
    }

    /// One row; returns its loss and squared length.
    fn row(&self, sequence: Sequence<'_>, row: &mut [f32], scratch: &mut Scratch) -> (f64, f64) {
        row.fill(0.0);
        let mut sink = ProjectedRow { stage: self, row, scratch };
        let loss = self.decoder.pool().with(self.decoder, |ws| self.decoder.backward(sequence, ws, &mut sink));
        (loss, ascribe_linalg::elementwise::sum_squares(sink.row))
    }

    fn scratch(&self, t: usize) -> Scratch {
        let taps = || self.taps.iter().flatten().chain(&self.embedding);
        let widest = |side: fn(&TwoSided) -> usize| taps().map(|tap| side(&tap.projector)).max().unwrap_or(0);
        Scratch {
            x: vec![0.0; t * widest(|p| p.p_in.ncols())],
            delta: vec![0.0; t * widest(|p| p.p_out.ncols())],
            gain: vec![0.0; self.decoder.config.hidden_size],
        }
    }

    /// One pass over the sequences on the calling thread, for measurements.
    pub(crate) fn rows_on_this_thread(&self, sequences: &[Sequence<'_>], row: &mut [f32]) {
        let longest = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let mut scratch = self.scratch(longest);
        for &sequence in sequences {
            std::hint::black_box(self.row(sequence, row, &mut scratch));
        }
    }

    /// Operations per token that the projections add to the pass.
    pub(crate) fn flop_per_token(&self) -> f64 {
        let taps = self.taps.iter().flatten().chain(&self.embedding);
        taps.map(|tap| 2.0 * (tap.projector.p_in.len() + tap.projector.p_out.len() + tap.len()) as f64).sum()
    }

    fn tap(&self, module: Module) -> Option<&Tap> {
        let place = match module {
            Module::Qkv(l) => 4 * l,
            Module::O(l) => 4 * l + 1,
            Module::Up(l) => 4 * l + 2,
            Module::Down(l) => 4 * l + 3,
            Module::Head if self.decoder.config.tie_word_embeddings => return self.embedding.as_ref(),
            Module::Head => self.taps.len() - 1,
        };
        self.taps[place].as_ref()
    }
}

/// The sink of one row.
struct ProjectedRow<'a, 'm> {
    stage: &'a GradientStage<'m>,
    row: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Sink for ProjectedRow<'_, '_> {
    fn linear(&mut self, module: Module, n: usize, Rows { x, delta, .. }: Rows<'_>) {
        let Some(tap) = self.stage.tap(module) else { return };
        let TwoSided { p_in, p_out } = &tap.projector;
        let (i, k_in) = p_in.dim();
        let (o, k_out) = p_out.dim();
        let Scratch { x: px, delta: pd, .. } = &mut *self.scratch;
        // [n, I] → [n, k_in] and [n, O] → [n, k_out]
        gemm(1.0, matrix(x, n, i), p_in.view(), 0.0, matrix_mut(px, n, k_in), Threads::One);
        gemm(1.0, matrix(delta, n, o), p_out.view(), 0.0, matrix_mut(pd, n, k_out), Threads::One);
        let block = &mut self.row[tap.start..tap.start + tap.len()];
        let pd = matrix(pd, n, k_out);
        gemm(1.0, pd.t(), matrix(px, n, k_in), 1.0, matrix_mut(block, k_out, k_in), Threads::One);
    }

    fn norm(&mut self, norm: Norm, _sequence: usize) -> NormGradient<'_> {
        let d = self.stage.decoder.config.hidden_size;
        let place = match norm {
            Norm::Attn(l) => 2 * l,
            Norm::Mlp(l) => 2 * l + 1,
            _ => 2 * self.stage.decoder.config.num_hidden_layers,
        };
        let gain = match self.stage.norms {
            Some(start) => &mut self.row[start + place * d..start + (place + 1) * d],
            None => &mut self.scratch.gain,
        };
        NormGradient { gain, bias: &mut [] }
    }

    fn embedding(&mut self, _sequence: usize, tokens: &[u32], d_x: &[f32]) {
        let Some(tap) = &self.stage.embedding else { return };
        let TwoSided { p_in, p_out } = &tap.projector;
        let (n, (d, k_in), k_out) = (tokens.len(), p_in.dim(), p_out.ncols());
        let Scratch { x: px, delta: rows, .. } = &mut *self.scratch;
        gemm(1.0, matrix(d_x, n, d), p_in.view(), 0.0, matrix_mut(px, n, k_in), Threads::One);
        // The gradient of the embedding is Σ_t e_token(t)·d_xᵀ: projecting the one-hot side picks a row of P_out.
        let mut picked = matrix_mut(rows, n, k_out);
        for (mut row, &token) in picked.rows_mut().into_iter().zip(tokens) {
            row.assign(&p_out.row(token as usize));
        }
        let block = &mut self.row[tap.start..tap.start + tap.len()];
        gemm(1.0, picked.t(), matrix(px, n, k_in), 1.0, matrix_mut(block, k_out, k_in), Threads::One);
    }

    fn wants_input_gradient(&self) -> bool {
        self.stage.embedding.is_some() || self.stage.norms.is_some()
    }
}

fn module_name(module: Module) -> String {
    match module {
        Module::Qkv(l) => format!("layers.{l}.attn.qkv"),
        Module::O(l) => format!("layers.{l}.attn.o"),
        Module::Up(l) => format!("layers.{l}.mlp.gate_up"),
        Module::Down(l) => format!("layers.{l}.mlp.down"),
        Module::Head => "lm_head".into(),
    }
}

fn norm_name(norm: Norm) -> String {
    match norm {
        Norm::Attn(l) => format!("layers.{l}.input_layernorm"),
        Norm::Mlp(l) => format!("layers.{l}.post_attention_layernorm"),
        _ => "norm".into(),
    }
}

/// True if `name` is of the form `pattern`, where `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name
            .strip_prefix(head)
            .is_some_and(|tail| (0..=tail.len()).any(|i| tail.is_char_boundary(i) && matches(rest, &tail[i..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DecoderConfig;
    use crate::decoder::tests::{tiny_config, tokens};
    use ndarray::Array2;

    fn untied() -> DecoderConfig {
        DecoderConfig { tie_word_embeddings: false, num_key_value_heads: 2, ..tiny_config() }
    }

    fn texts() -> Vec<Vec<u32>> {
        (0..6).map(|i| tokens(i, [70, 9, 2, 33, 1, 80][i as usize])).collect()
    }

    fn rows(stage: &GradientStage<'_>, sequences: &[Sequence<'_>]) -> Array2<f32> {
        let mut out = Array2::from_elem((sequences.len(), stage.dim()), f32::NAN);
        stage.rows(sequences, out.view_mut(), None).unwrap();
        out
    }

    /// The second route: full gradients, then both projectors as matrices.
    #[test]
    fn rows_are_projections_of_the_full_gradient() {
        for config in [tiny_config(), untied()] {
            let decoder = Decoder::init(config.clone(), 4).unwrap();
            let stage = GradientStage::new(&decoder, TapConfig { k_out: 3, ..TapConfig::all(5, 4) }).unwrap();
            let texts = texts();
            let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence { tokens, loss_from: 2 }).collect();
            let rows = rows(&stage, &sequences);
            let full = decoder.gradients(&sequences).unwrap();
            for column in stage.columns() {
                let name = &column.name;
                let layer = |rest: &str| {
                    let l: usize = name.split('.').nth(1).unwrap().parse().unwrap();
                    match rest {
                        "attn.qkv" => Module::Qkv(l),
                        "attn.o" => Module::O(l),
                        "mlp.gate_up" => Module::Up(l),
                        _ => Module::Down(l),
                    }
                };
                let (range, fan) = match name.as_str() {
                    "embed_tokens" => (decoder.layout.embedding.clone(), decoder.fan(Module::Head)),
                    "lm_head" => (decoder.range(Module::Head), decoder.fan(Module::Head)),
                    _ if name.contains("norm") => {
                        let full_name = format!("model.{name}.weight");
                        let slot = decoder.layout.slots().iter().find(|s| s.name == full_name).unwrap();
                        let exact = full.slice(ndarray::s![.., slot.range.clone()]);
                        let got = rows.slice(ndarray::s![.., column.start..column.start + column.len]);
                        assert_eq!(got, exact, "{name}");
                        continue;
                    }
                    _ => {
                        let module = layer(name.splitn(3, '.').nth(2).unwrap());
                        (decoder.range(module), decoder.fan(module))
                    }
                };
                let p = TwoSided::new(5, name, fan.input, fan.output, 4, 3);
                for (row, full) in rows.rows().into_iter().zip(full.rows()) {
                    let g = full.slice(ndarray::s![range.clone()]);
                    let g = g.to_shape((fan.output, fan.input)).unwrap();
                    let exact = p.p_out.t().dot(&g).dot(&p.p_in);
                    let scale = exact.iter().fold(0.0f32, |m, x| m.max(x.abs())) + 1e-6;
                    for (a, b) in row.iter().skip(column.start).zip(exact.iter()) {
                        assert!((a - b).abs() < 2e-5 * scale, "{name}: {a} {b}");
                    }
                }
            }
            assert!(rows.row(4).iter().all(|&x| x == 0.0), "one token predicts nothing");
        }
    }

    #[test]
    fn batches_order_and_threads_do_not_change_a_bit() {
        let decoder = Decoder::init(tiny_config(), 4).unwrap();
        let stage = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
        let texts = texts();
        let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
        let all = rows(&stage, &sequences);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| rows(&stage, &sequences)), all);
        for (i, sequence) in sequences.iter().enumerate() {
            assert_eq!(rows(&stage, &[*sequence]).row(0), all.row(i));
        }
        let reversed: Vec<Sequence<'_>> = sequences.iter().rev().copied().collect();
        assert_eq!(rows(&stage, &reversed).slice(ndarray::s![..;-1, ..]), all);
        let mut wide = Array2::zeros((stage.dim(), 6));
        stage.rows(&sequences, wide.view_mut().reversed_axes(), None).unwrap();
        assert_eq!(wide.t(), all);
    }

    #[test]
    fn losses_and_norms_come_along() {
        let decoder = Decoder::init(tiny_config(), 4).unwrap();
        let stage = GradientStage::new(&decoder, TapConfig::all(5, 16)).unwrap();
        let texts = texts();
        let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
        let (mut out, mut norms) = (Array2::zeros((6, stage.dim())), vec![0.0; 6]);
        let losses = stage.rows(&sequences, out.view_mut(), Some(&mut norms)).unwrap();
        let expected = decoder.losses(&sequences).unwrap();
        assert!(losses.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs() + 1e-9));
        for (norm, row) in norms.iter().zip(out.rows()) {
            assert!((norm - row.dot(&row).sqrt()).abs() <= 1e-5 * norm);
        }
    }

    #[test]
    fn patterns_choose_modules_and_blocks_stay_what_they_are() {
        let decoder = Decoder::init(tiny_config(), 4).unwrap();
        let all = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
        let only = TapConfig {
            embedding: false,
            norms: false,
            modules: vec!["layers.1.*".into(), "*.0.mlp.down".into()],
            ..TapConfig::all(5, 4)
        };
        let some = GradientStage::new(&decoder, only.clone()).unwrap();
        let names: Vec<&str> = some.columns().iter().map(|c| c.name.as_str()).collect();
        let expected =
            ["layers.0.mlp.down", "layers.1.attn.qkv", "layers.1.attn.o", "layers.1.mlp.gate_up", "layers.1.mlp.down"];
        assert_eq!(names, expected);
        let text = tokens(1, 40);
        let (a, b) = (rows(&all, &[Sequence::whole(&text)]), rows(&some, &[Sequence::whole(&text)]));
        for column in some.columns() {
            let same = all.columns().iter().find(|c| c.name == column.name).unwrap();
            let part = |m: &Array2<f32>, c: &Column| m.slice(ndarray::s![0, c.start..c.start + c.len]).to_vec();
            assert_eq!(part(&a, same), part(&b, column), "{}", column.name);
        }
        let wrong = GradientStage::new(&decoder, TapConfig { modules: vec!["layers.7.*".into()], ..only.clone() });
        let message = wrong.unwrap_err().to_string();
        assert!(message.contains("layers.7.*") && message.contains("layers.1.mlp.down"), "{message}");
        assert!(GradientStage::new(&decoder, TapConfig { modules: vec![], ..only.clone() }).is_err());
        assert!(GradientStage::new(&decoder, TapConfig { k_in: 0, ..only }).is_err());
    }
}
