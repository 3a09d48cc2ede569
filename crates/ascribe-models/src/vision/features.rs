//! The gradient stage of classifiers: projected gradient rows, one per image, with the columns of `ascribe-core`.
//!
//! A tracked convolution or dense layer gives `ĝ = P_outᵀ·(Σ_t δ_t x_tᵀ)·P_in` (LoGra, arXiv:2405.13954); a convolution's
//! `x_t` are its patches, one per position. The weight gradient in the brackets is never formed where both sides are
//! projected. A side that is not larger than its `k` is kept as it is, so a large `k` gives the exact gradient of the weights.

use ascribe_core::{Column, ProjectorSpec};
use ascribe_linalg::elementwise::sum_squares;
use ascribe_linalg::project::TWO_SIDED_VERSION;
use ascribe_linalg::{Threads, TwoSided, gemm};
use ndarray::{ArrayViewMut2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Classifier;
use super::data::ImageSet;
use super::gradient::{bias_gradient, finite};
use super::loss::Objective;
use super::network::{Node, Op};
use super::pass::{Rows, Sink};
use crate::error::ModelError;
use crate::features::matches;
use crate::ops::{matrix, matrix_mut};

/// What is tapped in a classifier, and how much of it is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTaps {
    /// Root seed of all projectors; each module draws its own stream.
    pub seed: u64,
    /// Columns kept of a module's fan-in.
    pub k_in: usize,
    /// Columns kept of a module's fan-out.
    pub k_out: usize,
    /// Names of tracked convolutions and dense layers; `*` stands for any text (`res1.*`).
    pub modules: Vec<String>,
    /// Names among those that are not tracked after all.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Track the biases of tracked modules, unprojected.
    pub biases: bool,
    /// Track gains and biases of all norms, unprojected.
    pub norms: bool,
}

impl ClassifierTaps {
    /// Everything, `k` columns on either side of each module.
    pub fn all(seed: u64, k: usize) -> Self {
        Self { seed, k_in: k, k_out: k, modules: vec!["*".into()], exclude: vec![], biases: true, norms: true }
    }
}

/// Where a node's numbers go in a row.
#[derive(Debug)]
enum Tap {
    Module { projector: TwoSided, start: usize, bias: Option<usize> },
    Norm { start: usize, channels: usize },
}

/// Turns images into projected gradient rows of one classifier.
#[derive(Debug)]
pub struct ClassifierStage<'m> {
    model: &'m Classifier,
    config: ClassifierTaps,
    columns: Vec<Column>,
    /// One place per node of the network.
    taps: Vec<Option<Tap>>,
    dim: usize,
}

impl<'m> ClassifierStage<'m> {
    /// Prepares the projectors of `config` for `model`.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if a `k` is 0, a pattern matches no module (with the names that exist), or nothing is
    /// tracked.
    pub fn new(model: &'m Classifier, config: ClassifierTaps) -> Result<Self, ModelError> {
        let fail =
            |what, expected: &str, found: String| Err(ModelError::Mismatch { what, expected: expected.into(), found });
        if config.k_in == 0 || config.k_out == 0 {
            let found = format!("{} and {}", config.k_in, config.k_out);
            return fail("tap columns", "k_in and k_out of at least 1", found);
        }
        let nodes = &model.network.nodes;
        let names: Vec<&str> = nodes.iter().filter(|node| fan(node).is_some()).map(|node| node.name.as_str()).collect();
        for pattern in config.modules.iter().chain(&config.exclude) {
            if !names.iter().any(|name| matches(pattern, name)) {
                let expected = format!("one that matches a module of: {}", names.join(", "));
                return fail("tap pattern", &expected, pattern.clone());
            }
        }
        let mut stage = Self { model, config, columns: vec![], taps: vec![], dim: 0 };
        for node in nodes {
            let tap = stage.tap(node);
            stage.taps.push(tap);
        }
        if stage.dim == 0 {
            return fail("taps", "at least one tracked module", "none".into());
        }
        Ok(stage)
    }

    fn tap(&mut self, node: &Node) -> Option<Tap> {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, &node.name));
        if let Op::Norm { gain, .. } = &node.op {
            let channels = gain.len();
            return self.config.norms.then(|| {
                let start = self.column(format!("{}.weight", node.name), channels);
                self.column(format!("{}.bias", node.name), channels);
                Tap::Norm { start, channels }
            });
        }
        let (fan_in, fan_out, has_bias) = fan(node)?;
        if !any(&self.config.modules) || any(&self.config.exclude) {
            return None;
        }
        let ClassifierTaps { seed, k_in, k_out, biases, .. } = self.config;
        let projector = TwoSided::new(seed, &node.name, fan_in, fan_out, k_in, k_out);
        let start = self.column(node.name.clone(), projector.dim());
        let bias = (biases && has_bias).then(|| self.column(format!("{}.bias", node.name), fan_out));
        Some(Tap::Module { projector, start, bias })
    }

    fn column(&mut self, name: String, len: usize) -> usize {
        let start = self.dim;
        self.columns.push(Column { name, start, len });
        self.dim += len;
        start
    }

    /// Column groups in order and without gaps: a module's is named like the module and holds `[k_out, k_in]` row-major;
    /// biases, gains and their like are named like the parameter.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// What was asked for.
    pub fn config(&self) -> &ClassifierTaps {
        &self.config
    }

    /// The projector as a feature spec names it.
    pub fn projector_spec(&self) -> ProjectorSpec {
        let ClassifierTaps { seed, k_in, k_out, .. } = self.config;
        ProjectorSpec::TwoSided { seed, k_in, k_out, version: TWO_SIDED_VERSION }
    }

    /// Fills `out` `[n, dim]` with the rows of the images `ids`; returns their measured numbers. `norms` receives `‖row‖`.
    ///
    /// Images run in parallel; a row's bytes depend on its image (and class) alone. Cost per image: one forward pass, the
    /// activations' half of a backward pass, and `2·T·(I·k_in + O·k_out)` per module of `T` positions.
    ///
    /// # Errors
    /// As [`Classifier::losses`]; [`ModelError::Mismatch`] if `out` or `norms` have another size; [`ModelError::Diverged`]
    /// if a row is not finite.
    pub fn rows(
        &self,
        set: &ImageSet,
        ids: &[u32],
        objective: Objective<'_>,
        mut out: ArrayViewMut2<'_, f32>,
        norms: Option<&mut [f32]>,
    ) -> Result<Vec<f64>, ModelError> {
        self.model.check(set, ids, objective)?;
        let mismatch = |what, expected: String, found: String| Err(ModelError::Mismatch { what, expected, found });
        if out.dim() != (ids.len(), self.dim) {
            let expected = format!("{:?}", (ids.len(), self.dim));
            return mismatch("shape of the gradient rows", expected, format!("{:?}", out.dim()));
        }
        if let Some(norms) = norms.as_ref().filter(|norms| norms.len() != ids.len()) {
            return mismatch("number of gradient norms", ids.len().to_string(), norms.len().to_string());
        }
        let group = self.model.group();
        let work = |scratch: &mut Scratch, (i, (mut rows, ids)): (usize, (ArrayViewMut2<'_, f32>, &[u32]))| {
            let mut sink = ProjectedRows { stage: self, scratch };
            sink.scratch.rows[..ids.len() * self.dim].fill(0.0);
            let losses = self.model.pool.with(self.model, |ws| {
                self.model.forward(set, ids, ws);
                let losses = self.model.measure(set, ids, i * group, objective, ws);
                self.model.backward(ids.len(), ws, &mut sink);
                losses
            });
            // The caller's rows may have gaps, even between numbers.
            let filled = scratch.rows.chunks_exact(self.dim);
            let squares = rows.rows_mut().into_iter().zip(filled).map(|(mut out, row)| {
                out.iter_mut().zip(row).for_each(|(out, &x)| *out = x);
                sum_squares(row)
            });
            squares.zip(losses).collect::<Vec<(f64, f64)>>()
        };
        let groups = out.axis_chunks_iter_mut(Axis(0), group).into_par_iter().zip(ids.par_chunks(group)).enumerate();
        let results: Vec<Vec<(f64, f64)>> = groups.map_init(|| self.scratch(group), work).collect();
        let (squares, losses): (Vec<f64>, Vec<f64>) = results.into_iter().flatten().unzip();
        let squares = finite(squares, "projected gradient")?;
        if let Some(norms) = norms {
            norms.iter_mut().zip(&squares).for_each(|(norm, squared)| *norm = squared.sqrt() as f32);
        }
        finite(losses, "measure")
    }

    fn scratch(&self, group: usize) -> Scratch {
        let (mut x, mut delta) = (0, 0);
        for (tap, node) in self.taps.iter().zip(&self.model.network.nodes) {
            if let (Some(Tap::Module { projector, .. }), positions) = (tap, positions(node)) {
                x = x.max(projector.p_in.ncols() * positions);
                delta = delta.max(projector.p_out.ncols() * positions);
            }
        }
        Scratch { rows: vec![0.0; group * self.dim], x: vec![0.0; x], delta: vec![0.0; delta] }
    }
}

/// Memory of one worker.
struct Scratch {
    rows: Vec<f32>,
    /// `[k_in, positions]`.
    x: Vec<f32>,
    /// `[k_out, positions]`.
    delta: Vec<f32>,
}

struct ProjectedRows<'a, 'm> {
    stage: &'a ClassifierStage<'m>,
    scratch: &'a mut Scratch,
}

impl Sink for ProjectedRows<'_, '_> {
    fn wants(&self, node: usize) -> bool {
        self.stage.taps[node].is_some()
    }

    fn linear(&mut self, node: usize, example: usize, rows: Rows<'_>) {
        let Some(Tap::Module { projector, start, bias }) = &self.stage.taps[node] else { return };
        let TwoSided { p_in, p_out } = projector;
        let ((i, k_in), (o, k_out), t) = (p_in.dim(), p_out.dim(), rows.positions());
        let Scratch { rows: out, x: px, delta: pd } = &mut *self.scratch;
        let out = &mut out[example * self.stage.dim..(example + 1) * self.stage.dim];
        // [I, T] → [k_in, T] and [O, T] → [k_out, T]; a side that is kept needs no product.
        let px = if i == k_in {
            rows.x
        } else {
            gemm(1.0, p_in.t(), matrix(rows.x, i, t), 0.0, matrix_mut(px, k_in, t), Threads::One);
            &px[..k_in * t]
        };
        let pd = if o == k_out {
            rows.delta
        } else {
            gemm(1.0, p_out.t(), matrix(rows.delta, o, t), 0.0, matrix_mut(pd, k_out, t), Threads::One);
            &pd[..k_out * t]
        };
        let block = matrix_mut(&mut out[*start..*start + k_in * k_out], k_out, k_in);
        gemm(1.0, matrix(pd, k_out, t), matrix(px, k_in, t).t(), 0.0, block, Threads::One);
        if let Some(bias) = *bias {
            bias_gradient(&rows, &mut out[bias..bias + o]);
        }
    }

    fn norm(&mut self, node: usize, example: usize, d_gain: &[f32], d_bias: &[f32]) {
        let Some(Tap::Norm { start, channels }) = self.stage.taps[node] else { return };
        let out = &mut self.scratch.rows[example * self.stage.dim + start..][..2 * channels];
        out[..channels].copy_from_slice(d_gain);
        out[channels..].copy_from_slice(d_bias);
    }
}

/// Fan-in, fan-out and whether there is a bias, of a convolution or dense layer.
fn fan(node: &Node) -> Option<(usize, usize, bool)> {
    match &node.op {
        Op::Conv { conv, bias, .. } => Some((conv.patch(), conv.channels_out, bias.is_some())),
        Op::Dense { fan_in, fan_out, bias, .. } => Some((*fan_in, *fan_out, bias.is_some())),
        _ => None,
    }
}

fn positions(node: &Node) -> usize {
    if let Op::Conv { conv, .. } = &node.op { conv.area() } else { 1 }
}
