//! Ghost products: exact norms and dot products of per-example gradients, module by module, without rows.
//!
//! `⟨Σ_t δ_t x_tᵀ, Σ_s δ_s x_sᵀ⟩ = Σ_{t,s} (x_t·x_s)(δ_t·δ_s)`; where forming the gradient is cheaper, it is formed. The
//! choice depends on the shapes of the two examples and the module alone. What the numbers are used for lives elsewhere.

use std::ops::Range;

use ascribe_core::Column;
use ascribe_linalg::elementwise::{add_assign, sum_squares};
use ascribe_linalg::{Threads, gemm, sum};
use ndarray::{Array2, Array3, ArrayView2, s};
use rayon::prelude::*;

use super::block::{Block, room};
use super::config::{Projection, TapConfig};
use super::example::{self, Example};
use super::plan::Plan;
use crate::decoder::{Decoder, Module, Norm, NormGradient, Objective, Rows, Sink};
use crate::error::ModelError;
use crate::ops::{matrix, matrix_mut};

/// Examples per side whose activations are in memory at the same time.
const TILE: usize = 16;

/// What a column stands for, and where a [`Tape`] keeps it.
#[derive(Clone, Debug)]
enum Kind {
    /// Output columns of a product.
    Linear { site: usize, columns: Range<usize> },
    /// A table: rows looked up, and, where it is the output layer too, a product.
    Table { lookup: usize, head: Option<usize> },
    /// A norm's gain or bias, or a bias: the gradient itself.
    Vector(Range<usize>),
}

/// Exact inner products of the gradients of a decoder's tracked modules.
///
/// [`TapConfig`] says what is tracked and which loss is differentiated; its projection and widths are of no consequence.
#[derive(Debug)]
pub struct GhostProducts<'m> {
    decoder: &'m Decoder,
    config: TapConfig,
    plan: Plan,
    kinds: Vec<Kind>,
    /// Kinds of the columns that are not projected start here in a row of whole gradients.
    vectors: Range<usize>,
}

impl<'m> GhostProducts<'m> {
    /// Finds the tracked modules.
    ///
    /// # Errors
    /// What [`GradientStage::new`](super::GradientStage::new) refuses, save widths.
    pub fn new(decoder: &'m Decoder, config: TapConfig) -> Result<Self, ModelError> {
        let config = TapConfig { projection: Projection::Full, ..config };
        let plan = Plan::new(decoder, &config, None, None)?;
        let tied_head = decoder.config.tie_word_embeddings.then(|| plan.sites.len() - 1);
        let at = |block: &Option<Block>, start: usize| block.as_ref().is_some_and(|block| block.place.start == start);
        let kind = |column: &Column| {
            let linear = plan.sites.iter().enumerate().find_map(|(i, site)| {
                let blocks = site.as_ref().map_or(&[][..], |site| &site.blocks);
                Some((i, blocks.iter().find(|block| block.place.start == column.start)?))
            });
            match linear {
                Some((site, block)) => Kind::Linear { site, columns: block.columns.clone() },
                None if at(&plan.embedding, column.start) => Kind::Table { lookup: 0, head: tied_head },
                None if at(&plan.positions, column.start) => Kind::Table { lookup: 1, head: None },
                None => Kind::Vector(column.start..column.start + column.len),
            }
        };
        let kinds: Vec<Kind> = plan.columns.iter().map(kind).collect();
        let starts =
            kinds.iter().filter_map(|kind| if let Kind::Vector(range) = kind { Some(range.start) } else { None });
        let vectors = starts.min().unwrap_or(plan.dim)..plan.dim;
        Ok(Self { decoder, config, plan, kinds, vectors })
    }

    /// The tracked parameters, in order; names as in feature rows, places as in rows of whole gradients.
    pub fn columns(&self) -> &[Column] {
        &self.plan.columns
    }

    /// `‖g_i‖` per row of the examples ([`Example::n_rows`]) and column, `[rows, columns]`. The root of a row's squares is
    /// the norm over everything tracked.
    ///
    /// Examples run in parallel, sums are f64 in a fixed order. Cost per module: the smaller of `T²(I + O)` and `T·I·O`, twice.
    /// Memory per thread: the rows of one module, of the output layer `T·(d + V)` numbers.
    ///
    /// # Errors
    /// Bad examples ([`GradientStage::rows_of`](super::GradientStage::rows_of)); [`ModelError::Diverged`].
    pub fn norms(&self, examples: &[Example<'_>]) -> Result<Array2<f64>, ModelError> {
        let rows: Vec<Vec<f64>> = self.tapes(examples, true)?.into_iter().map(|tape| tape.squares).collect();
        let shape = (rows.len(), self.plan.columns.len());
        let squares = Array2::from_shape_vec(shape, rows.concat()).expect("one number per column");
        finite("gradient norm", squares.iter())?;
        Ok(squares.mapv(f64::sqrt))
    }

    /// `⟨g_i, g_j⟩` of rows of two sets per column, `[columns, rows of a, rows of b]`. A sum over the first axis is the dot
    /// product of everything tracked.
    ///
    /// Pairs run in parallel; a pair's numbers depend on the pair alone. Cost per pair and module: about the smaller of
    /// `T_a·T_b·(I + O)` and `I·O`, twice; memory: the activations of 32 examples (`T·(I + O)` numbers for every tracked
    /// module), and one gradient of one module per example where that is cheaper.
    ///
    /// # Errors
    /// As [`GhostProducts::norms`].
    pub fn dots(&self, a: &[Example<'_>], b: &[Example<'_>]) -> Result<Array3<f64>, ModelError> {
        let count = |examples: &[Example<'_>]| examples.iter().map(Example::n_rows).sum::<usize>();
        let mut out = Array3::zeros((self.plan.columns.len(), count(a), count(b)));
        let mut row = 0;
        for a in a.chunks(TILE) {
            let left = self.tapes(a, false)?;
            let mut column = 0;
            for b in b.chunks(TILE) {
                let right = self.tapes(b, false)?;
                for (kind, mut out) in self.kinds.iter().zip(out.outer_iter_mut()) {
                    let place = s![row..row + left.len(), column..column + right.len()];
                    out.slice_mut(place).assign(&self.pairs(kind, &left, &right));
                }
                column += right.len();
            }
            row += left.len();
        }
        finite("gradient product", out.iter())?;
        Ok(out)
    }

    /// One column's products of two tiles.
    fn pairs(&self, kind: &Kind, left: &[Tape], right: &[Tape]) -> Array2<f64> {
        // Gradients are formed once per tile, and only where some pair will use them.
        let formed = |side: &[Tape], other: &[Tape]| -> Vec<Option<Vec<f32>>> {
            side.par_iter()
                .map(|tape| {
                    let Kind::Linear { site, columns } = kind else { return None };
                    let (tape, mut others) = (&tape.sites[*site], other.iter().map(|other| &other.sites[*site]));
                    others.any(|other| tape.forms(other, columns)).then(|| tape.gradient(columns))
                })
                .collect()
        };
        let (formed_left, formed_right) = (formed(left, right), formed(right, left));
        let pair = |(i, j): (usize, usize)| match (kind, &formed_left[i], &formed_right[j]) {
            (Kind::Linear { site, columns }, Some(a), Some(b))
                if left[i].sites[*site].forms(&right[j].sites[*site], columns) =>
            {
                sum::dot(a, b)
            }
            _ => inner(kind, &left[i], &right[j]),
        };
        let all: Vec<(usize, usize)> = (0..left.len()).flat_map(|i| (0..right.len()).map(move |j| (i, j))).collect();
        let products: Vec<f64> = all.into_par_iter().map(pair).collect();
        Array2::from_shape_vec((left.len(), right.len()), products).expect("one product per pair")
    }

    /// The tapes of all rows, in order. With `measure` they hold squared norms alone.
    fn tapes(&self, examples: &[Example<'_>], measure: bool) -> Result<Vec<Tape>, ModelError> {
        example::check(self.decoder, examples)?;
        let work = |example: &Example<'_>| {
            let objectives: Vec<Objective<'_>> = example.objectives(self.config.loss).collect();
            self.decoder.pool().with(|ws| {
                if objectives.iter().any(|objective| !objective.predicting.is_empty()) {
                    self.decoder.forward(example.tokens, ws);
                }
                let row = |objective: &Objective<'_>| {
                    let mut sink = TapeSink::new(self, measure);
                    self.decoder.descend(objective, ws, &mut sink);
                    sink.finish()
                };
                objectives.iter().map(row).collect::<Vec<Tape>>()
            })
        };
        let rows: Vec<Vec<Tape>> = examples.par_iter().map(work).collect();
        Ok(rows.into_iter().flatten().collect())
    }
}

fn finite<'a>(what: &'static str, mut numbers: impl Iterator<Item = &'a f64>) -> Result<(), ModelError> {
    match numbers.find(|x| !x.is_finite()) {
        Some(&found) => Err(ModelError::Diverged { step: 0, what, found }),
        None => Ok(()),
    }
}

/// Rows of one product.
#[derive(Debug, Default)]
struct Activations {
    n: usize,
    /// `[n, I]`.
    x: Vec<f32>,
    /// `[n, O]`.
    delta: Vec<f32>,
}

impl Activations {
    fn x(&self) -> ArrayView2<'_, f32> {
        matrix(&self.x, self.n, self.x.len().checked_div(self.n).unwrap_or(0))
    }

    fn delta(&self) -> ArrayView2<'_, f32> {
        matrix(&self.delta, self.n, self.delta.len().checked_div(self.n).unwrap_or(0))
    }

    /// True if a pair is cheaper with formed gradients: `T_a·T_b·(I + O)` against `I·O`, and a share of their forming.
    fn forms(&self, other: &Self, columns: &Range<usize>) -> bool {
        let (i, o) = (self.x().ncols() as f64, columns.len() as f64);
        let (a, b) = (self.n as f64, other.n as f64);
        a * b * (i + o) > i * o * (1.0 + (a + b) / TILE as f64)
    }

    /// `Σ_t δ_t x_tᵀ` of the columns, `[O, I]`.
    fn gradient(&self, columns: &Range<usize>) -> Vec<f32> {
        let (x, delta) = (self.x(), self.delta());
        let mut out = vec![0.0; columns.len() * x.ncols()];
        if self.n > 0 {
            let delta = delta.slice_move(s![.., columns.clone()]);
            gemm(1.0, delta.t(), x, 0.0, matrix_mut(&mut out, columns.len(), x.ncols()), Threads::One);
        }
        out
    }

    /// `Σ_{t,s} (x_t·x_s)(δ_t·δ_s)` over the columns.
    fn ghost(&self, other: &Self, columns: &Range<usize>) -> f64 {
        let of = |activations: &Self| activations.delta.len().checked_div(activations.n).unwrap_or(0);
        if self.n == 0 || other.n == 0 {
            return 0.0;
        }
        debug_assert_eq!(of(self), of(other), "one module has one width");
        let delta = |side: &Self| -> Array2<f32> { side.delta().slice(s![.., columns.clone()]).to_owned() };
        let inputs = products(self.x(), other.x());
        let outputs = products(delta(self).view(), delta(other).view());
        sum::dot(&inputs, &outputs)
    }

    /// `‖Σ_t δ_t x_tᵀ‖²` of the columns, the cheaper way.
    fn square(&self, columns: &Range<usize>) -> f64 {
        let (i, o) = (self.x().ncols(), columns.len());
        if self.n * (i + o) <= i * o { self.ghost(self, columns) } else { sum_squares(&self.gradient(columns)) }
    }
}

/// `a·bᵀ`, row-major.
fn products(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<f32> {
    let (m, n) = (a.nrows(), b.nrows());
    let mut out = vec![0.0; m * n];
    gemm(1.0, a, b.t(), 0.0, matrix_mut(&mut out, m, n), Threads::One);
    out
}

/// Rows that were looked up in a table, and the gradients that came back.
#[derive(Debug, Default)]
struct Lookup {
    indices: Vec<u32>,
    /// `[T, d]`.
    d_x: Vec<f32>,
}

impl Lookup {
    fn d_x(&self) -> ArrayView2<'_, f32> {
        let n = self.indices.len();
        matrix(&self.d_x, n, self.d_x.len().checked_div(n).unwrap_or(0))
    }

    /// `⟨Σ_t e_i(t)·d_x_tᵀ, Σ_s e_i(s)·d_x_sᵀ⟩`: pairs that read the same row.
    fn with_lookup(&self, other: &Self) -> f64 {
        let mut total = 0.0;
        for (i, d_x) in self.indices.iter().zip(self.d_x().rows()) {
            for (j, other) in other.indices.iter().zip(other.d_x().rows()) {
                if i == j {
                    total += d_x.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                }
            }
        }
        total
    }

    /// `⟨Σ_t e_i(t)·d_x_tᵀ, Σ_s δ_s x_sᵀ⟩ = Σ_{t,s} (d_x_t·x_s)·δ_s[i(t)]`.
    fn with_product(&self, other: &Activations) -> f64 {
        if self.indices.is_empty() || other.n == 0 {
            return 0.0;
        }
        let inputs = products(self.d_x(), other.x());
        let delta = other.delta();
        let picked: Vec<f32> = self.indices.iter().flat_map(|&i| delta.column(i as usize).to_vec()).collect();
        sum::dot(&inputs, &picked)
    }
}

/// What one row's gradient is made of.
#[derive(Debug, Default)]
struct Tape {
    /// As many as the plan has sites.
    sites: Vec<Activations>,
    /// Embedding and positions.
    lookups: [Lookup; 2],
    /// Gradients of unprojected parameters.
    vectors: Vec<f32>,
    /// Where `vectors` starts in a row of whole gradients.
    offset: usize,
    /// Squared norms per column, where they are measured.
    squares: Vec<f64>,
}

/// One column's product of two tapes, without forming anything.
fn inner(kind: &Kind, a: &Tape, b: &Tape) -> f64 {
    match kind {
        Kind::Linear { site, columns } => a.sites[*site].ghost(&b.sites[*site], columns),
        Kind::Vector(range) => {
            let part = |tape: &Tape| range.start - tape.offset..range.end - tape.offset;
            sum::dot(&a.vectors[part(a)], &b.vectors[part(b)])
        }
        Kind::Table { lookup, head } => {
            let (from_a, from_b) = (&a.lookups[*lookup], &b.lookups[*lookup]);
            let looked_up = from_a.with_lookup(from_b);
            let Some(head) = head else { return looked_up };
            let (head_a, head_b) = (&a.sites[*head], &b.sites[*head]);
            let all = 0..head_a.delta().ncols().max(head_b.delta().ncols());
            looked_up + from_a.with_product(head_b) + from_b.with_product(head_a) + head_a.ghost(head_b, &all)
        }
    }
}

/// Records one row.
struct TapeSink<'a, 'm> {
    ghost: &'a GhostProducts<'m>,
    tape: Tape,
    measure: bool,
    /// The module whose rows are coming.
    current: Option<usize>,
    /// Where norms go that nobody asked for.
    spare: Vec<f32>,
}

impl<'a, 'm> TapeSink<'a, 'm> {
    fn new(ghost: &'a GhostProducts<'m>, measure: bool) -> Self {
        let mut tape = Tape { offset: ghost.vectors.start, squares: vec![0.0; ghost.kinds.len()], ..Tape::default() };
        tape.sites.resize_with(ghost.plan.sites.len(), Activations::default);
        tape.vectors.resize(ghost.vectors.len(), 0.0);
        Self { ghost, tape, measure, current: None, spare: vec![] }
    }

    /// Measures a module whose rows are complete, and lets go of them.
    fn close(&mut self) {
        let Some(done) = self.current.take().filter(|_| self.measure) else { return };
        let tied = |kind: &Kind| matches!(kind, Kind::Table { head: Some(head), .. } if *head == done);
        if self.ghost.kinds.iter().any(tied) {
            return;
        }
        let activations = std::mem::take(&mut self.tape.sites[done]);
        for (kind, square) in self.ghost.kinds.iter().zip(&mut self.tape.squares) {
            match kind {
                Kind::Linear { site, columns } if *site == done => *square = activations.square(columns),
                _ => {}
            }
        }
    }

    fn finish(mut self) -> Tape {
        self.close();
        if self.measure {
            for (i, kind) in self.ghost.kinds.iter().enumerate() {
                if !matches!(kind, Kind::Linear { .. }) {
                    self.tape.squares[i] = inner(kind, &self.tape, &self.tape);
                }
            }
            self.tape = Tape { squares: self.tape.squares, ..Tape::default() };
        }
        self.tape
    }
}

impl Sink for TapeSink<'_, '_> {
    fn linear(&mut self, module: Module, n: usize, Rows { x, delta, .. }: Rows<'_>) {
        let plan = &self.ghost.plan;
        let place = plan.place(module);
        let in_table = module == Module::Head
            && self.ghost.kinds.iter().any(|kind| matches!(kind, Kind::Table { head: Some(_), .. }));
        if plan.sites[place].is_none() && !in_table {
            return;
        }
        if self.current != Some(place) {
            self.close();
            self.current = Some(place);
        }
        let site = &mut self.tape.sites[place];
        site.n += n;
        site.x.extend_from_slice(x);
        site.delta.extend_from_slice(delta);
        for bias in plan.sites[place].iter().flat_map(|site| &site.biases) {
            let sums = &mut self.tape.vectors[bias.place.start - self.tape.offset..bias.place.end - self.tape.offset];
            delta.chunks_exact(delta.len() / n).for_each(|delta| add_assign(sums, &delta[bias.columns.clone()]));
        }
    }

    fn norm(&mut self, norm: Norm, _sequence: usize) -> NormGradient<'_> {
        match self.ghost.plan.norm(norm) {
            Some(tap) => {
                let both = tap.gain.start - self.tape.offset..tap.bias.end - self.tape.offset;
                let (gain, bias) = self.tape.vectors[both].split_at_mut(tap.gain.len());
                NormGradient { gain, bias }
            }
            None => {
                let layout = self.ghost.decoder.norm_layout(norm);
                let width = layout.gain.len();
                let (gain, bias) = room(&mut self.spare, 2 * width).split_at_mut(width);
                NormGradient { gain, bias: if layout.bias.is_some() { bias } else { &mut [] } }
            }
        }
    }

    fn embedding(&mut self, _sequence: usize, tokens: &[u32], d_x: &[f32]) {
        let plan = &self.ghost.plan;
        if plan.embedding.is_some() {
            self.tape.lookups[0] = Lookup { indices: tokens.to_vec(), d_x: d_x.to_vec() };
        }
        if plan.positions.is_some() {
            self.tape.lookups[1] = Lookup { indices: (0..tokens.len() as u32).collect(), d_x: d_x.to_vec() };
        }
    }

    fn wants_input_gradient(&self) -> bool {
        self.ghost.plan.wants_input_gradient()
    }

    fn ends_at(&self) -> Option<Module> {
        self.ghost.plan.ends_at()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{families, scattered, tiny_config, tokens};
    use crate::{GradientStage, Granularity, Loss};

    fn everything(granularity: Granularity) -> TapConfig {
        TapConfig { granularity, biases: true, positions: true, ..TapConfig::all(1, 1) }
    }

    /// Short and long, so that both ways of a product are taken; with spans, and one row without any prediction.
    fn check(decoder: &Decoder, config: &TapConfig) {
        let texts = [tokens(1, 3), tokens(2, 70), tokens(3, 1), tokens(4, 12)];
        let spans = [0..20, 20..70];
        let mut examples: Vec<Example<'_>> = texts.iter().map(|text| Example::whole(text)).collect();
        examples[1].spans = &spans;
        let ghost = GhostProducts::new(decoder, config.clone()).unwrap();
        let stage = GradientStage::new(decoder, TapConfig { projection: Projection::Full, ..config.clone() }).unwrap();
        let mut rows = Array2::zeros((5, stage.dim()));
        stage.rows_of(&examples, rows.view_mut()).unwrap();
        let (norms, dots) = (ghost.norms(&examples).unwrap(), ghost.dots(&examples, &examples[..3]).unwrap());
        assert_eq!(ghost.columns(), stage.columns());
        // A key's bias moves all scores of a query alike: its gradient is nothing but rounding.
        let floor = 1e-7 * rows.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        for (c, column) in stage.columns().iter().enumerate() {
            let part = |row: usize| rows.slice(s![row, column.start..column.start + column.len]).mapv(f64::from);
            let lengths: Vec<f64> = (0..5).map(|i| part(i).dot(&part(i)).sqrt()).collect();
            for i in 0..5 {
                let off = (norms[(i, c)] - lengths[i]).abs();
                assert!(off <= 1e-5 * lengths[i] + floor, "{}: {} {}", column.name, norms[(i, c)], lengths[i]);
                for j in 0..4 {
                    let off = (dots[(c, i, j)] - part(i).dot(&part(j))).abs();
                    assert!(off <= 1e-5 * lengths[i] * lengths[j] + floor * floor, "{} {i} {j}: {off}", column.name);
                }
            }
        }
        // A pair does not feel its company, nor threads.
        let alone = ghost.dots(&examples[3..], &examples[..1]).unwrap();
        assert_eq!(alone.slice(s![.., 0, 0]), dots.slice(s![.., 4, 0]));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| ghost.norms(&examples).unwrap()), norms);
    }

    /// The second route: rows of whole gradients.
    #[test]
    fn products_are_those_of_whole_gradients() {
        for (_, config) in families() {
            let decoder = scattered(config, 4);
            for granularity in [Granularity::Fused, Granularity::Module] {
                check(&decoder, &everything(granularity));
            }
            check(&decoder, &TapConfig { loss: Loss::Margin, ..TapConfig::modules(1, 1, &["*.0.*"]) });
        }
    }

    /// Two positions by hand: δ = (1, 0), (0, 2) and x = (3, 1), (1, 1) give G = [[3, 1], [2, 2]], ‖G‖² = 18.
    #[test]
    fn a_norm_by_hand_both_ways() {
        let activations = Activations { n: 2, x: vec![3.0, 1.0, 1.0, 1.0], delta: vec![1.0, 0.0, 0.0, 2.0] };
        assert_eq!(activations.gradient(&(0..2)), [3.0, 1.0, 2.0, 2.0]);
        assert_eq!(activations.ghost(&activations, &(0..2)), 18.0);
        assert_eq!(activations.square(&(0..2)), 18.0);
        assert_eq!(activations.ghost(&activations, &(1..2)), 8.0);
    }

    #[test]
    fn norms_together_are_the_norm_of_the_gradient() {
        let decoder = Decoder::init(tiny_config(), 4).unwrap();
        let text = tokens(2, 50);
        let norms = GhostProducts::new(&decoder, everything(Granularity::Module)).unwrap();
        let norms = norms.norms(&[Example::whole(&text)]).unwrap();
        let whole = norms.iter().map(|x| x * x).sum::<f64>().sqrt();
        let exact = f64::from(decoder.gradient_norms(&[crate::Sequence::whole(&text)]).unwrap()[0]);
        assert!((whole / exact - 1.0).abs() < 1e-5);
    }
}
