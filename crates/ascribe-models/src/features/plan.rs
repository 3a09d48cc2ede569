//! Which parameters of a decoder are tracked, under which names, and where in the row each of them goes.

use std::collections::BTreeSet;
use std::ops::Range;

use ascribe_core::Column;
use ascribe_linalg::{Sjlt, TwoSided, sparse};
use ndarray::Array2;

use super::adapter::AdapterTap;
use super::bases::GivenBases;
use super::block::{Bias, Block, Side, Site};
use super::config::{Granularity, Projection, TapConfig};
use super::normalizer::Normalizer;
use crate::decoder::{Decoder, Module, Norm};
use crate::error::ModelError;
use crate::layout::LinearLayout;
use crate::lora::{AdaptedDecoder, Part};

/// Norms per layer, in the order of [`norms_of`].
const NORMS: usize = 6;

/// A tracked norm: gain and, where there is one, bias; neighbours in the row.
#[derive(Clone, Debug)]
pub(super) struct NormTap {
    pub parameter: String,
    pub gain: Range<usize>,
    pub bias: Range<usize>,
    pub has_bias: bool,
}

/// Everything that is tracked. Columns are those of the row before factoring.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub columns: Vec<Column>,
    pub dim: usize,
    /// Four per layer (qkv, o, up, down), then the output layer.
    pub sites: Vec<Option<Site>>,
    /// The embedding table (and the output layer, if they are tied).
    pub embedding: Option<Block>,
    pub positions: Option<Block>,
    /// Six per layer, then the last.
    pub norms: Vec<Option<NormTap>>,
}

/// A module that can be tracked.
pub(crate) struct Candidate {
    pub module: Module,
    /// By which patterns choose it.
    pub name: String,
    parameter: String,
    /// Its columns of the fused output.
    pub columns: Range<usize>,
}

impl Plan {
    /// # Errors
    /// [`ModelError::Mismatch`] for widths of 0, a pattern that matches nothing, an encoder, or nothing tracked.
    pub fn new(
        decoder: &Decoder,
        config: &TapConfig,
        normalizer: Option<&Normalizer>,
        given: Option<&GivenBases>,
    ) -> Result<Self, ModelError> {
        check_widths(config)?;
        if decoder.config.arch.is_encoder() {
            return Err(mismatch("model", "a decoder with a next-token loss".into(), "an encoder".into()));
        }
        let candidates = candidates(decoder, config.granularity);
        let chosen = choose(&candidates, config)?;
        let n_layers = decoder.config.num_hidden_layers;
        let mut builder = Builder { plan: Self::default(), decoder, config, normalizer, given };
        builder.plan.sites.resize_with(4 * n_layers + 1, || None);
        builder.plan.norms.resize(NORMS * n_layers + 1, None);
        let folded = config.embedding && decoder.config.tie_word_embeddings;
        for candidate in candidates.into_iter().filter(|candidate| chosen.contains(&candidate.name)) {
            // A tied output layer whose table is tracked is part of that table.
            if !(folded && candidate.module == Module::Head) {
                builder.add_module(candidate)?;
            }
        }
        builder.add_tables()?;
        if config.norms {
            builder.add_norms();
        }
        if config.biases {
            builder.add_biases();
        }
        let mut plan = builder.plan;
        plan.sites.iter_mut().flatten().for_each(Site::join);
        if plan.dim == 0 {
            return Err(mismatch("taps", "at least one tracked module".into(), "none".into()));
        }
        Ok(plan)
    }

    /// Taps on an adapter's weights: a module's `A` is named `{module}.lora_A`, its `B` `{module}.lora_B`.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for widths of 0, a pattern that matches nothing, parameters that an adapter does not have.
    pub fn adapter(adapted: &AdaptedDecoder, config: &TapConfig) -> Result<Self, ModelError> {
        check_widths(config)?;
        let TapConfig { embedding, norms, biases, positions, .. } = *config;
        if embedding || norms || biases || positions {
            let expected = "modules alone: an adapter has no embedding, norms, biases or positions".to_string();
            return Err(mismatch("taps of an adapter", expected, format!("{config:?}")));
        }
        let (decoder, parameters) = (adapted.decoder(), adapted.adapter().parameters());
        let parts = adapted.adapter().parts();
        let halves = |part: &Part| {
            [("lora_A", 0..part.rank), ("lora_B", part.columns.clone())].map(|(half, columns)| {
                let name = format!("{}.{half}", part.name);
                Candidate { module: part.module, parameter: name.clone(), name, columns }
            })
        };
        let chosen = choose(&parts.iter().flat_map(halves).collect::<Vec<_>>(), config)?;
        let n_sites = 4 * decoder.config.num_hidden_layers + 1;
        let mut builder = Builder { plan: Self::default(), decoder, config, normalizer: None, given: None };
        builder.plan.sites.resize_with(n_sites, || None);
        builder.plan.norms.resize(NORMS * decoder.config.num_hidden_layers + 1, None);
        for part in parts {
            let mut blocks = halves(part).into_iter().zip([part.fan.input, part.rank]).map(|(half, fan_in)| {
                let wanted = chosen.contains(&half.name);
                wanted.then(|| {
                    let block = builder.block(&half.name, half.parameter, half.columns, fan_in)?;
                    builder.finish(half.name, block, false)
                })
            });
            let [on_a, on_b] = [blocks.next().flatten().transpose()?, blocks.next().flatten().transpose()?];
            drop(blocks);
            if on_a.is_some() || on_b.is_some() {
                let (a, b) = (part.a(parameters).to_owned(), part.b(parameters).to_owned());
                let tap = AdapterTap { scale: part.scale, a, b, columns: part.columns.clone(), on_a, on_b };
                builder.plan.sites[site_index(part.module, n_sites)].get_or_insert_default().adapters.push(tap);
            }
        }
        if builder.plan.dim == 0 {
            return Err(mismatch("taps", "at least one tracked module".into(), "none".into()));
        }
        Ok(builder.plan)
    }

    /// What is tracked at a product. The tied output layer stands in [`Plan::embedding`].
    pub fn site(&self, module: Module) -> Option<&Site> {
        self.sites[self.place(module)].as_ref()
    }

    /// Index of a product in [`Plan::sites`].
    pub fn place(&self, module: Module) -> usize {
        site_index(module, self.sites.len())
    }

    pub fn norm(&self, norm: Norm) -> Option<&NormTap> {
        self.norms[norm_index(norm, self.norms.len())].as_ref()
    }

    /// All projected blocks.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        let sites = || self.sites.iter().flatten();
        let adapters = sites().flat_map(|site| &site.adapters).flat_map(AdapterTap::blocks);
        sites().flat_map(|site| &site.blocks).chain(adapters).chain(&self.embedding).chain(&self.positions)
    }

    /// Columns that nothing projects (norms, biases), and the places of their parameters.
    pub fn unprojected(&self, decoder: &Decoder) -> Vec<(Range<usize>, Range<usize>)> {
        let mut found = vec![];
        let place =
            |name: String| decoder.layout.slots().iter().find(|slot| slot.name == name).map(|s| s.range.clone());
        for tap in self.norms.iter().flatten() {
            found.push((tap.gain.clone(), place(format!("{}.weight", tap.parameter))));
            if tap.has_bias {
                found.push((tap.bias.clone(), place(format!("{}.bias", tap.parameter))));
            }
        }
        for bias in self.sites.iter().flatten().flat_map(|site| &site.biases) {
            let mut start = bias.place.start;
            for part in bias.parameter.split('+') {
                let place = place(format!("{part}.bias"));
                let len = place.as_ref().map_or(0, Range::len);
                found.push((start..start + len, place));
                start += len;
            }
        }
        found.into_iter().filter_map(|(columns, place)| Some((columns, place?))).collect()
    }

    /// True if something lies below the first layer's queries, keys and values.
    pub fn wants_input_gradient(&self) -> bool {
        self.embedding.is_some() || self.positions.is_some() || self.norms.iter().any(Option::is_some)
    }

    /// The last tracked product on the way down, if nothing else is tracked below it.
    pub fn ends_at(&self) -> Option<Module> {
        let lowest = self.sites.iter().position(Option::is_some).filter(|_| !self.wants_input_gradient());
        lowest.map(|place| module_at(place, self.sites.len()))
    }
}

struct Builder<'a> {
    plan: Plan,
    decoder: &'a Decoder,
    config: &'a TapConfig,
    normalizer: Option<&'a Normalizer>,
    given: Option<&'a GivenBases>,
}

impl Builder<'_> {
    fn add_column(&mut self, name: String, len: usize) -> Range<usize> {
        let start = self.plan.dim;
        self.plan.columns.push(Column { name, start, len });
        self.plan.dim += len;
        start..self.plan.dim
    }

    /// A block without a place for a matrix `[fan_out, fan_in]`.
    fn block(&self, name: &str, parameter: String, columns: Range<usize>, fan_in: usize) -> Result<Block, ModelError> {
        let TapConfig { seed, k_in, k_out, .. } = *self.config;
        let fan_out = columns.len();
        let (mut input, mut output, mut sjlt) = (Side::Whole(fan_in), Side::Whole(fan_out), None);
        match self.config.projection {
            Projection::TwoSided | Projection::Factored { .. } => {
                let TwoSided { p_in, p_out } = TwoSided::new(seed, name, fan_in, fan_out, k_in, k_out);
                if fan_in > k_in {
                    input = Side::Product(p_in);
                }
                if fan_out > k_out {
                    output = Side::Product(p_out);
                }
            }
            Projection::Full => {}
            Projection::Sparse { dim, nnz } => {
                sjlt = (fan_in * fan_out > dim).then(|| Sjlt::new(seed, name, dim, nnz));
            }
            Projection::MaskedSparse { keep_in, keep_out, dim, nnz } => {
                let pick = |side: &str, fan, keep| Side::Pick {
                    kept: sparse::mask(seed, &format!("{name}/{side}"), fan, keep),
                    fan,
                };
                (input, output) = (pick("in", fan_in, keep_in), pick("out", fan_out, keep_out));
                let lost = (fan_in as f64 / input.width() as f64) * (fan_out as f64 / output.width() as f64);
                sjlt = Some(Sjlt::new(seed, name, dim, nnz).scaled(lost.sqrt() as f32));
            }
            Projection::Given { .. } => {
                let [p_in, p_out] = given_matrices(self.given, name, fan_in, fan_out)?;
                (input, output) = (Side::Product(p_in), Side::Product(p_out));
            }
        }
        Ok(Block { parameter, columns, input, output, sjlt, scale: None, place: 0..0 })
    }

    fn finish(&mut self, name: String, mut block: Block, transposed: bool) -> Result<Block, ModelError> {
        if let Some(normalizer) = self.normalizer {
            block.scale = Some(normalizer.matrix(self.decoder, &block, transposed)?);
        }
        block.place = self.add_column(name, block.len());
        Ok(block)
    }

    fn add_module(&mut self, candidate: Candidate) -> Result<(), ModelError> {
        let Candidate { module, name, parameter, columns } = candidate;
        let fan_in = self.decoder.fan(module).input;
        let block = self.block(&name, parameter, columns, fan_in)?;
        let block = self.finish(name, block, linear_layout(self.decoder, module).transposed)?;
        let place = site_index(module, self.plan.sites.len());
        self.plan.sites[place].get_or_insert_default().blocks.push(block);
        Ok(())
    }

    /// Embedding, output layer of fused names, positions.
    fn add_tables(&mut self) -> Result<(), ModelError> {
        let decoder = self.decoder;
        let fused = self.config.granularity == Granularity::Fused;
        let (vocabulary, d) = (decoder.config.vocab_size, decoder.config.hidden_size);
        let slot_name = |range: &Range<usize>| {
            let slot = decoder.layout.slots().iter().find(|slot| slot.range == *range);
            slot.map(|slot| slot.name.trim_end_matches(".weight").to_string()).unwrap_or_default()
        };
        if self.config.embedding {
            let hugging_face = slot_name(&decoder.layout.embedding);
            let name = if fused { "embed_tokens".into() } else { hugging_face.clone() };
            // The embedding matrix is used as the output layer is: fan-in d, fan-out V.
            let block = self.block(&name, hugging_face, 0..vocabulary, d)?;
            self.plan.embedding = Some(self.finish(name, block, false)?);
            if fused && !decoder.config.tie_word_embeddings {
                let part = &decoder.layout.head.parts[0];
                let (name, parameter) = ("lm_head".to_string(), part.name.clone());
                self.add_module(Candidate { module: Module::Head, name, parameter, columns: part.columns.clone() })?;
            }
        }
        if let Some(range) = decoder.layout.positions.as_ref().filter(|_| self.config.positions) {
            let hugging_face = slot_name(range);
            let name = if fused { "embed_positions".into() } else { hugging_face.clone() };
            let block = self.block(&name, hugging_face, 0..decoder.config.max_position_embeddings, d)?;
            self.plan.positions = Some(self.finish(name, block, false)?);
        }
        Ok(())
    }

    fn add_norms(&mut self) {
        for norm in norms_of(self.decoder) {
            let layout = self.decoder.norm_layout(norm);
            let name = match self.config.granularity {
                Granularity::Fused => fused_norm_name(norm),
                Granularity::Module => layout.name.clone(),
            };
            let gain = self.add_column(name.clone(), layout.gain.len());
            let has_bias = layout.bias.is_some();
            let bias =
                if has_bias { self.add_column(format!("{name}.bias"), layout.gain.len()) } else { gain.end..gain.end };
            let place = norm_index(norm, self.plan.norms.len());
            self.plan.norms[place] = Some(NormTap { parameter: layout.name.clone(), gain, bias, has_bias });
        }
    }

    fn add_biases(&mut self) {
        for place in 0..self.plan.sites.len() {
            let Some(site) = &self.plan.sites[place] else { continue };
            if linear_layout(self.decoder, module_at(place, self.plan.sites.len())).bias.is_none() {
                continue;
            }
            let found: Vec<_> = site
                .blocks
                .iter()
                .map(|block| {
                    let column = self.plan.columns.iter().find(|column| column.start == block.place.start);
                    let name = column.map(|column| column.name.clone()).unwrap_or_default();
                    (name, block.parameter.clone(), block.columns.clone())
                })
                .collect();
            for (name, parameter, columns) in found {
                let place_in_row = self.add_column(format!("{name}.bias"), columns.len());
                if let Some(site) = &mut self.plan.sites[place] {
                    site.biases.push(Bias { parameter, columns, place: place_in_row });
                }
            }
        }
    }
}

/// The fitted matrices of a module, `[I, k_in]` and `[O, k_out]`.
fn given_matrices(
    given: Option<&GivenBases>,
    name: &str,
    fan_in: usize,
    fan_out: usize,
) -> Result<[Array2<f32>; 2], ModelError> {
    let what = "given projection";
    let Some(given) = given else {
        return Err(mismatch(what, "matrices, through GradientStage::with_bases".into(), "none".into()));
    };
    let Some(basis) = given.get(name) else {
        return Err(mismatch(what, format!("matrices for {name}"), format!("those of {}", given.names())));
    };
    let (expected, found) = ((fan_in, fan_out), (basis.input.ncols(), basis.output.ncols()));
    if expected != found {
        let expected = format!("{fan_in} inputs and {fan_out} outputs of {name}");
        return Err(mismatch(what, expected, format!("{} and {}", found.0, found.1)));
    }
    Ok([&basis.input, &basis.output].map(|side| side.t().as_standard_layout().into_owned()))
}

fn check_widths(config: &TapConfig) -> Result<(), ModelError> {
    let (what, widths, names) = match config.projection {
        Projection::TwoSided => ("tap columns", vec![config.k_in, config.k_out], "k_in and k_out"),
        Projection::Factored { rank } => ("tap columns", vec![config.k_in, config.k_out, rank], "k_in, k_out and rank"),
        Projection::Full | Projection::Given { .. } => return Ok(()),
        Projection::Sparse { dim, nnz } => ("sparse projection", vec![dim, nnz], "dim and nnz"),
        Projection::MaskedSparse { keep_in, keep_out, dim, nnz } => {
            ("masked projection", vec![keep_in, keep_out, dim, nnz], "keep_in, keep_out, dim and nnz")
        }
    };
    if widths.contains(&0) {
        let found = widths.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        return Err(mismatch(what, format!("{names} of at least 1"), found));
    }
    Ok(())
}

/// Names that the patterns choose.
pub(crate) fn choose(candidates: &[Candidate], config: &TapConfig) -> Result<BTreeSet<String>, ModelError> {
    for pattern in config.modules.iter().chain(&config.exclude) {
        if !candidates.iter().any(|candidate| matches(pattern, &candidate.name)) {
            let expected = format!("one that matches a module of: {}", in_short(candidates));
            return Err(mismatch("tap pattern", expected, pattern.clone()));
        }
    }
    let any = |patterns: &[String], name: &str| patterns.iter().any(|pattern| matches(pattern, name));
    let names = candidates.iter().map(|candidate| &candidate.name);
    Ok(names.filter(|name| any(&config.modules, name) && !any(&config.exclude, name)).cloned().collect())
}

/// Names with `*` for the layer, each once, and how many layers there are.
fn in_short(candidates: &[Candidate]) -> String {
    let mut seen = vec![];
    let mut layers = 0;
    for candidate in candidates {
        let part = |part: &str| part.parse::<usize>().map_or(part.to_string(), |_| "*".into());
        let short = candidate.name.split('.').map(part).collect::<Vec<_>>().join(".");
        if let Module::Qkv(l) = candidate.module {
            layers = layers.max(l + 1);
        }
        if !seen.contains(&short) {
            seen.push(short);
        }
    }
    format!("{} (layers 0 to {})", seen.join(", "), layers.saturating_sub(1))
}

/// All linear modules of a decoder, the output layer last (in [`Granularity::Module`]).
pub(crate) fn candidates(decoder: &Decoder, granularity: Granularity) -> Vec<Candidate> {
    let n_layers = decoder.config.num_hidden_layers;
    let modules = (0..n_layers).flat_map(|l| [Module::Qkv(l), Module::O(l), Module::Up(l), Module::Down(l)]);
    match granularity {
        Granularity::Fused => modules
            .map(|module| {
                let layout = linear_layout(decoder, module);
                let parameter = layout.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join("+");
                let columns = 0..decoder.fan(module).output;
                Candidate { module, name: fused_name(module, decoder.config.arch.gated), parameter, columns }
            })
            .collect(),
        Granularity::Module => modules
            .chain([Module::Head])
            .flat_map(|module| {
                linear_layout(decoder, module).parts.iter().map(move |part| Candidate {
                    module,
                    name: part.name.clone(),
                    parameter: part.name.clone(),
                    columns: part.columns.clone(),
                })
            })
            .collect(),
    }
}

pub(super) fn linear_layout(decoder: &Decoder, module: Module) -> &LinearLayout {
    let layers = &decoder.layout.layers;
    match module {
        Module::Qkv(l) => &layers[l].qkv,
        Module::O(l) => &layers[l].o,
        Module::Up(l) => &layers[l].up,
        Module::Down(l) => &layers[l].down,
        Module::Head => &decoder.layout.head,
    }
}

/// Place of a product, from the bottom up.
pub(crate) fn site_index(module: Module, n_sites: usize) -> usize {
    match module {
        Module::Qkv(l) => 4 * l,
        Module::O(l) => 4 * l + 1,
        Module::Up(l) => 4 * l + 2,
        Module::Down(l) => 4 * l + 3,
        Module::Head => n_sites - 1,
    }
}

/// The way back of [`site_index`].
pub(crate) fn module_at(place: usize, n_sites: usize) -> Module {
    let l = place / 4;
    match place % 4 {
        _ if place + 1 == n_sites => Module::Head,
        0 => Module::Qkv(l),
        1 => Module::O(l),
        2 => Module::Up(l),
        _ => Module::Down(l),
    }
}

fn norm_index(norm: Norm, n_norms: usize) -> usize {
    match norm {
        Norm::Attn(l) => NORMS * l,
        Norm::Query(l) => NORMS * l + 1,
        Norm::Key(l) => NORMS * l + 2,
        Norm::AttnPost(l) => NORMS * l + 3,
        Norm::Mlp(l) => NORMS * l + 4,
        Norm::MlpPost(l) => NORMS * l + 5,
        Norm::Out => n_norms - 1,
    }
}

/// The norms that a decoder has, in the order of its parameters.
fn norms_of(decoder: &Decoder) -> Vec<Norm> {
    let layer = |(l, layout): (usize, &crate::layout::LayerLayout)| {
        let all = [
            (Norm::Attn(l), layout.attn_norm.is_some()),
            (Norm::Query(l), layout.q_norm.is_some()),
            (Norm::Key(l), layout.k_norm.is_some()),
            (Norm::AttnPost(l), layout.attn_post.is_some()),
            (Norm::Mlp(l), layout.mlp_norm.is_some()),
            (Norm::MlpPost(l), layout.mlp_post.is_some()),
        ];
        all.into_iter().filter_map(|(norm, exists)| exists.then_some(norm))
    };
    let layers = decoder.layout.layers.iter().enumerate().flat_map(layer);
    layers.chain(decoder.layout.norm.iter().map(|_| Norm::Out)).collect()
}

fn fused_name(module: Module, gated: bool) -> String {
    match module {
        Module::Qkv(l) => format!("layers.{l}.attn.qkv"),
        Module::O(l) => format!("layers.{l}.attn.o"),
        Module::Up(l) => format!("layers.{l}.mlp.{}", if gated { "gate_up" } else { "up" }),
        Module::Down(l) => format!("layers.{l}.mlp.down"),
        Module::Head => "lm_head".into(),
    }
}

fn fused_norm_name(norm: Norm) -> String {
    match norm {
        Norm::Attn(l) => format!("layers.{l}.input_layernorm"),
        Norm::Query(l) => format!("layers.{l}.q_norm"),
        Norm::Key(l) => format!("layers.{l}.k_norm"),
        Norm::AttnPost(l) => format!("layers.{l}.attn_post_norm"),
        Norm::Mlp(l) => format!("layers.{l}.post_attention_layernorm"),
        Norm::MlpPost(l) => format!("layers.{l}.mlp_post_norm"),
        Norm::Out => "norm".into(),
    }
}

/// True if `name` is of the form `pattern`, where `*` stands for any text.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(tail) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(tail)
}

pub(super) fn mismatch(what: &'static str, expected: String, found: String) -> ModelError {
    ModelError::Mismatch { what, expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        let yes =
            [("*", ""), ("a.*.c", "a.b.c"), ("*.down", "layers.1.mlp.down"), ("a*b*a", "abba"), ("lm_head", "lm_head")];
        let no = [("a.*.c", "a.c"), ("*.down", "down_proj"), ("a*ba", "aba_"), ("", "x"), ("ab*ba", "aba"), ("a", "")];
        assert!(yes.iter().all(|(pattern, name)| matches(pattern, name)));
        for (pattern, name) in no {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
