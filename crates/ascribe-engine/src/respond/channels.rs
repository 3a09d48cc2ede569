//! Dataset scores of one response, channel by channel, and the same with a little less of what was drawn by chance.

use std::collections::BTreeMap;

use ascribe_methods::aggregate::{Aggregate, to_datasets};
use ascribe_methods::block_fisher::{Factors, precondition, whiten_and_solve};
use ascribe_methods::combine::Channel;
use ascribe_methods::controls::{ngram::FOLLOWER_PSEUDO_COUNT, verbatim};
use ascribe_methods::dot;
use ascribe_methods::group::intervals::{ColumnReplicates, jackknife_variance};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::answer::RespondError;
use super::material::Material;
use super::responder::Responder;
use super::rows::Tokenised;
use crate::walk::calibrate::{Tables, channels_of};
use crate::walk::channels::{GradientChannel, belongs};
use crate::walk::noise::SOURCES;
use crate::walk::score::TOP_MEAN_K;

/// A channel of the default method, as a response needs it.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// By gradients.
    Gradient(GradientChannel),
    /// BM25; the best k of a dataset, or all.
    Bm25(Aggregate),
    /// Cosine of mean hidden states.
    Embedding(Aggregate),
    /// Longest run of equal tokens.
    Verbatim,
    /// What a bigram model loses without a dataset.
    Bigram,
}

impl Kind {
    /// The channel of that name.
    ///
    /// # Errors
    /// A control that says nothing about a response.
    pub(super) fn of(name: &str, gradient: Option<GradientChannel>) -> Result<Self, RespondError> {
        let top = Aggregate::TopMean { k: TOP_MEAN_K };
        Ok(match (gradient, name) {
            (Some(channel), _) => Self::Gradient(channel),
            (None, "bm25") => Self::Bm25(Aggregate::Mean),
            (None, "bm25_top20") => Self::Bm25(top),
            (None, "embedding") => Self::Embedding(Aggregate::Mean),
            (None, "embedding_top20") => Self::Embedding(top),
            (None, "bm25_exchange") => Self::Bm25(Aggregate::Exchange),
            (None, "embedding_exchange") => Self::Embedding(Aggregate::Exchange),
            (None, "verbatim") => Self::Verbatim,
            (None, "bigram") => Self::Bigram,
            _ => return Err(RespondError::refuse("method", "a method that reads the response", name)),
        })
    }
}

/// What a response's gradients say, by checkpoint: each is made once and solved once, whatever asks for it.
#[derive(Default)]
pub(super) struct Gradients {
    /// Where it was solved.
    solved: BTreeMap<usize, Solved>,
    /// By place of the channel, and checkpoint.
    parts: BTreeMap<(usize, usize), Part>,
}

/// A channel's part that one checkpoint makes.
struct Part {
    /// Products with the datasets' sums, `[1, K]`, before the checkpoint's weight.
    scores: Array2<f64>,
    /// The same without a projected column each, where they are asked for and the channel has them.
    columns: Option<ColumnReplicates>,
}

/// A response's gradient under the curvature `A = L·Lᵀ`.
#[derive(Clone)]
pub(super) struct Solved {
    /// `L⁻¹g`, `[1, D]`.
    pub(super) whitened: Array2<f64>,
    /// `A⁻¹g`, `[1, D]`.
    pub(super) solved: Array2<f64>,
}

impl Solved {
    /// Of a row `[1, D]`.
    pub(super) fn of(factors: &Factors, row: ArrayView2<'_, f32>) -> Result<Self, RespondError> {
        let (whitened, solved) = whiten_and_solve(factors, row)?;
        Ok(Self { whitened, solved })
    }
}

impl Gradients {
    /// The gradient of a checkpoint that was solved.
    pub(super) fn solved(&self, checkpoint: usize) -> Option<&Solved> {
        self.solved.get(&checkpoint)
    }

    /// Parts of the channel at a place, by checkpoint.
    fn parts(&self, at: usize) -> impl Iterator<Item = (usize, &Part)> {
        self.parts.range((at, 0)..(at + 1, 0)).map(|(&(_, c), part)| (c, part))
    }
}

/// What is wanted of a checkpoint's gradient: whether it is solved, and the channels that sum over it, by place.
type Wanted<'c> = (bool, Vec<(usize, &'c GradientChannel)>);

/// Cosines and word scores `[1, N]` of a response: made once, however many channels sum them up.
#[derive(Default)]
struct Similar {
    cosines: Option<Array2<f32>>,
    words: Option<Array2<f32>>,
}

impl Responder<'_> {
    /// Gradients at the checkpoints that `kinds` sum over, with what each channel takes from them. Solved where a channel is curved and
    /// reads all modules, and at the last checkpoint if `solve_last`; `replicated` as [`Responder::variances`] needs it.
    pub(super) fn gradients(
        &self,
        kinds: &[&Kind],
        response: &Tokenised,
        solve_last: bool,
        replicated: bool,
    ) -> Result<Gradients, RespondError> {
        let last = self.material.checkpoints.len() - 1;
        // By checkpoint: whether it is solved, and the channels that sum over it.
        let mut needed: BTreeMap<usize, Wanted<'_>> = BTreeMap::new();
        if solve_last {
            needed.entry(last).or_default().0 = true;
        }
        for (at, kind) in kinds.iter().enumerate() {
            if let Kind::Gradient(channel) = kind {
                for &c in &channel.checkpoints {
                    let (solves, channels) = needed.entry(c).or_default();
                    *solves |= channel.curved && channel.modules.is_none();
                    channels.push((at, channel));
                }
            }
        }
        let one = |(c, (solves, channels)): (usize, Wanted<'_>)| -> Result<_, RespondError> {
            let row = self.row(c, response)?;
            let solved = solves.then(|| Solved::of(&self.material.checkpoints[c].factors, row.view())).transpose()?;
            let part = |(at, channel): (usize, &GradientChannel)| {
                Ok(((at, c), self.part(channel, c, &row, solved.as_ref(), replicated)?))
            };
            let parts = channels.into_iter().map(part).collect::<Result<Vec<_>, RespondError>>()?;
            Ok((c, solved, parts))
        };
        let needed: Vec<_> = needed.into_iter().collect();
        let made = needed.into_par_iter().map(one).collect::<Result<Vec<_>, RespondError>>()?;
        let mut gradients = Gradients::default();
        for (c, solved, parts) in made {
            gradients.solved.extend(solved.map(|solved| (c, solved)));
            gradients.parts.extend(parts);
        }
        Ok(gradients)
    }

    /// What a channel takes from the gradient of one checkpoint: products of the gradient within its modules, solved if the channel is
    /// curved, with the datasets' sums.
    fn part(
        &self,
        channel: &GradientChannel,
        c: usize,
        row: &Array2<f32>,
        solved: Option<&Solved>,
        replicated: bool,
    ) -> Result<Part, RespondError> {
        let m = self.material;
        let (by, prepared) = m.checkpoints[c].curvature(channel.curved);
        let made;
        let vector = match (&channel.modules, solved) {
            (None, Some(solved)) if channel.curved => solved.solved.view(),
            _ => {
                made = precondition(by, of_modules(m, channel, c, row).view())?;
                made.view()
            }
        };
        let scores = dot::dataset_scores(vector, m.checkpoints[c].sums.view())?;
        let columns = prepared.filter(|_| replicated).map(|prepared| prepared.replicates_of(vector)).transpose()?;
        Ok(Part { scores, columns })
    }

    /// Scores of datasets by influence at the last checkpoint, `⟨g, A⁻¹G_k⟩` with sums that were solved once: no solve per response.
    /// Equal to the walk's block-Fisher scores but for rounding.
    pub(super) fn folded(&self, row: ArrayView1<'_, f32>) -> Array2<f64> {
        let product =
            |sums: ArrayView1<'_, f64>| ascribe_linalg::sum::sum_by(row.len(), |i| f64::from(row[i]) * sums[i]);
        let scores = self.material.solved_sums.rows().into_iter().map(product).collect();
        Array1::from_vec(scores).insert_axis(Axis(0))
    }

    /// The response's gradient row `[1, D]` at a checkpoint: the sum over its windows.
    pub(super) fn row(&self, checkpoint: usize, response: &Tokenised) -> Result<Array2<f32>, RespondError> {
        let stage = &self.stages[checkpoint];
        let windows = response.windows(self.material.context_len());
        let mut rows = Array2::zeros((windows.len(), stage.dim()));
        stage.rows(&windows, rows.view_mut(), None)?;
        if windows.len() == 1 {
            return Ok(rows);
        }
        let sum = rows.rows().into_iter().fold(vec![0.0f64; stage.dim()], |mut sum, row| {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
            sum
        });
        Ok(Array2::from_shape_fn((1, stage.dim()), |(_, j)| sum[j] as f32))
    }

    /// Mean hidden state `[1, d]` over all tokens.
    pub(super) fn hidden(&self, response: &Tokenised) -> Result<Array2<f32>, RespondError> {
        let longest = self.material.context_len();
        let decoder = &self.material.last().decoder;
        let pieces: Vec<ascribe_models::Sequence<'_>> =
            response.tokens.chunks(longest).map(ascribe_models::Sequence::whole).collect();
        let means = decoder.mean_hidden(&pieces)?;
        if pieces.len() == 1 {
            return Ok(means);
        }
        let n = response.tokens.len() as f64;
        let mut mean = vec![0.0f64; means.ncols()];
        for (row, piece) in means.rows().into_iter().zip(&pieces) {
            mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x) * piece.tokens.len() as f64 / n);
        }
        Ok(Array2::from_shape_fn((1, means.ncols()), |(_, j)| mean[j] as f32))
    }

    /// Dataset scores of those of `kinds` that are controls, by place.
    pub(super) fn controls(
        &self,
        kinds: &[&Kind],
        response: &Tokenised,
    ) -> Result<BTreeMap<usize, Array2<f64>>, RespondError> {
        let mut similar = Similar::default();
        let mut scores = BTreeMap::new();
        for (at, kind) in kinds.iter().enumerate().filter(|(_, kind)| !matches!(kind, Kind::Gradient(_))) {
            scores.insert(at, self.control(kind, response, &mut similar)?);
        }
        Ok(scores)
    }

    /// Dataset scores `[1, K]` of the gradient channel at a place.
    pub(super) fn influence(
        &self,
        at: usize,
        channel: &GradientChannel,
        gradients: &Gradients,
    ) -> Result<Array2<f64>, RespondError> {
        let m = self.material;
        let mut total = Array2::zeros((1, m.catalog.datasets.len()));
        gradients.parts(at).for_each(|(c, part)| total.scaled_add(channel.weight(&m.context, c), &part.scores));
        Ok(channel.placed(&m.context, total)?)
    }

    /// Dataset scores `[1, K]` of a control.
    fn control(&self, kind: &Kind, response: &Tokenised, similar: &mut Similar) -> Result<Array2<f64>, RespondError> {
        let m = self.material;
        let datasets = |scores: ArrayView2<'_, f32>, how| to_datasets(scores, &m.ids, m.catalog.datasets.len(), how);
        Ok(match kind {
            Kind::Gradient(_) => unreachable!("a gradient is no control"),
            Kind::Bm25(how) => {
                let words = match similar.words.take() {
                    Some(words) => words,
                    None => {
                        let index = m.bm25.as_ref().expect("built where a channel asks for it");
                        index.score_all(std::slice::from_ref(&response.terms))
                    }
                };
                datasets(similar.words.insert(words).view(), *how)?
            }
            Kind::Embedding(how) => {
                let cosines = match similar.cosines.take() {
                    Some(cosines) => cosines,
                    None => m.hidden.score(self.hidden(response)?.view())?,
                };
                datasets(similar.cosines.insert(cosines).view(), *how)?
            }
            Kind::Verbatim => {
                let examples: Vec<&[u32]> = m.context.corpus.examples.iter().map(|e| e.tokens.as_slice()).collect();
                let runs = verbatim::score(&[response.tokens.as_slice()], &examples, verbatim::Measure::LongestRun)?;
                datasets(runs.view(), Aggregate::TopMean { k: 1 })?
            }
            Kind::Bigram => {
                let query = (response.tokens.as_slice(), response.completion);
                m.bigrams
                    .as_ref()
                    .expect("counted where a channel asks for it")
                    .leave_one_out(&[query], FOLLOWER_PSEUDO_COUNT)?
            }
        })
    }

    /// Variances of shares by source, as the walk's `calibrate` finds them.
    pub(super) fn variances(
        &self,
        tables: &Tables,
        gradients: &Gradients,
    ) -> Result<BTreeMap<String, Array2<f64>>, RespondError> {
        let m = self.material;
        let mut by_channel: BTreeMap<&str, [Vec<Array2<f64>>; 3]> = BTreeMap::new();
        for (at, (name, kind)) in m.channels.iter().enumerate() {
            if let Kind::Gradient(channel) = kind {
                by_channel.insert(name, self.replicates(at, channel, gradients)?);
            }
        }
        let mut out = BTreeMap::new();
        let calibration = &m.method.calibration;
        for (at, source) in SOURCES.into_iter().enumerate() {
            let n = by_channel.values().map(|all| all[at].len()).max().unwrap_or(0);
            if n < 2 {
                continue;
            }
            let without = |r: usize| -> Result<Array2<f64>, RespondError> {
                let channel = |(name, table): &'_ (String, Array2<f64>)| -> Array2<f64> {
                    by_channel.get(name.as_str()).and_then(|all| all[at].get(r)).unwrap_or(table).clone()
                };
                let changed: Tables = tables.iter().map(|t| (t.0.clone(), channel(t))).collect();
                Ok(calibration.predict(&channels_of(&changed))?)
            };
            let left_out = (0..n).into_par_iter().map(without).collect::<Result<Vec<_>, RespondError>>()?;
            out.insert(source.to_owned(), jackknife_variance(&left_out)?);
        }
        if m.seed_calibrations.len() > 1 {
            let channels: Vec<Channel<'_>> = channels_of(tables);
            let left_out: Result<Vec<_>, _> = m.seed_calibrations.iter().map(|c| c.predict(&channels)).collect();
            out.insert(crate::walk::calibrate::BANK_SEEDS.to_owned(), jackknife_variance(&left_out?)?);
        }
        Ok(out)
    }

    /// The channel at a place with one projected column, or one checkpoint, left out each, in the order of [`SOURCES`]. Of a single
    /// checkpoint none is left out.
    fn replicates(
        &self,
        at: usize,
        channel: &GradientChannel,
        gradients: &Gradients,
    ) -> Result<[Vec<Array2<f64>>; 3], RespondError> {
        let m = self.material;
        let mut columns: Option<ColumnReplicates> = None;
        let mut parts: BTreeMap<usize, Array2<f64>> = BTreeMap::new();
        for (c, part) in gradients.parts(at) {
            let weight = channel.weight(&m.context, c);
            if let Some(found) = &part.columns {
                match &mut columns {
                    None => columns = Some(found.clone().scaled(weight)),
                    Some(total) => total.add(found, weight)?,
                }
            }
            parts.insert(c, &part.scores * weight);
        }
        let mut checkpoints = Vec::new();
        if parts.len() > 1 {
            let whole = parts.values().skip(1).fold(parts[&channel.checkpoints[0]].clone(), |sum, part| sum + part);
            let without = |c: usize| parts.get(&c).map_or_else(|| whole.clone(), |part| &whole - part);
            checkpoints.extend((0..m.checkpoints.len()).map(without));
        }
        let (outputs, inputs) = columns.map_or_else(Default::default, |c| (c.outputs, c.inputs));
        let placed = |tables: Vec<Array2<f64>>| -> Result<Vec<Array2<f64>>, RespondError> {
            tables.into_iter().map(|table| Ok(channel.placed(&m.context, table)?)).collect()
        };
        Ok([placed(outputs)?, placed(inputs)?, placed(checkpoints)?])
    }
}

/// A row, zero outside the channel's modules.
fn of_modules(m: &Material, channel: &GradientChannel, checkpoint: usize, row: &Array2<f32>) -> Array2<f32> {
    let mut row = row.clone();
    if let Some(prefix) = &channel.modules {
        let columns = &m.checkpoints[checkpoint].columns;
        let outside = columns.iter().filter(|c| !belongs(&c.name, prefix));
        outside.for_each(|c| row.slice_mut(s![.., c.start..c.start + c.len]).fill(0.0));
    }
    row
}
