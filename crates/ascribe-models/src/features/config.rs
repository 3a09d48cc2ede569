//! What is tapped, which loss is differentiated, and how much of a gradient is kept. Plain data, checked by the stage.

use ascribe_core::{Digest, ProjectorSpec};
use ascribe_linalg::project::TWO_SIDED_VERSION;
use ascribe_linalg::sparse::SPARSE_VERSION;
use serde::{Deserialize, Serialize};

use crate::decoder::Loss;

/// What is tapped, and how much of it is kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapConfig {
    /// Root seed of all projectors; each module draws its own stream.
    pub seed: u64,
    /// Columns kept of a module's fan-in (by [`Projection::TwoSided`] and [`Projection::Factored`]).
    pub k_in: usize,
    /// Columns kept of a module's fan-out.
    pub k_out: usize,
    /// Track the embedding. A tied output layer is the same matrix: its gradient is added in. An untied one is a module of
    /// its own, tracked by name ([`Granularity::Module`]) or together with the embedding ([`Granularity::Fused`]).
    pub embedding: bool,
    /// Track the gains and biases of all norms, unprojected.
    pub norms: bool,
    /// Names of tracked linear modules; `*` stands for any text (`layers.*.mlp.down`, `*.q_proj`, `lm_head`). The names are
    /// those of [`GradientStage::columns`](super::GradientStage::columns).
    pub modules: Vec<String>,
    /// Names of modules that are left out again, by the same patterns.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Track the biases of the tracked linear modules, unprojected.
    #[serde(default)]
    pub biases: bool,
    /// Track the table of learned positions.
    #[serde(default)]
    pub positions: bool,
    /// What a module is.
    #[serde(default)]
    pub granularity: Granularity,
    /// What becomes of a module's gradient.
    #[serde(default)]
    pub projection: Projection,
    /// The scalar that is differentiated.
    #[serde(default)]
    pub loss: Loss,
    /// Number type of the model's linear products.
    #[serde(default)]
    pub precision: Precision,
}

impl TapConfig {
    /// All fused linear modules of all layers, embedding and norms, `k` columns on either side.
    pub fn all(seed: u64, k: usize) -> Self {
        Self {
            seed,
            k_in: k,
            k_out: k,
            embedding: true,
            norms: true,
            modules: vec!["*".into()],
            exclude: vec![],
            biases: false,
            positions: false,
            granularity: Granularity::Fused,
            projection: Projection::TwoSided,
            loss: Loss::NextToken,
            precision: Precision::F32,
        }
    }

    /// The linear modules with Hugging Face names that match one of `patterns` (`["*"]` for all, the output layer included),
    /// `k` columns on either side; nothing else.
    pub fn modules(seed: u64, k: usize, patterns: &[&str]) -> Self {
        Self {
            embedding: false,
            norms: false,
            modules: patterns.iter().map(ToString::to_string).collect(),
            granularity: Granularity::Module,
            ..Self::all(seed, k)
        }
    }

    /// The projector as a feature spec names it.
    pub fn projector_spec(&self) -> ProjectorSpec {
        let Self { seed, k_in, k_out, .. } = *self;
        match self.projection {
            Projection::TwoSided => ProjectorSpec::TwoSided { seed, k_in, k_out, version: TWO_SIDED_VERSION },
            Projection::Full => ProjectorSpec::Identity,
            Projection::Factored { rank } => {
                ProjectorSpec::Factored { seed, k_in, k_out, rank, version: TWO_SIDED_VERSION }
            }
            Projection::Sparse { dim, nnz } => ProjectorSpec::Sparse { seed, dim, nnz, version: SPARSE_VERSION },
            Projection::MaskedSparse { keep_in, keep_out, dim, nnz } => {
                ProjectorSpec::MaskedSparse { seed, keep_in, keep_out, dim, nnz, version: SPARSE_VERSION }
            }
            Projection::Given { matrices } => ProjectorSpec::Given { matrices },
        }
    }
}

/// Number type of the factors in the products of linear layers; sums are f32, and so is everything else: norms, attention,
/// losses, projections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats: agrees with PyTorch in f32 to about 10⁻⁵.
    #[default]
    F32,
    /// Weights, activations and gradients are rounded to bfloat16 before each product: faster, and near 10⁻² in a row. Bytes
    /// depend on the instruction set that multiplies ([`ascribe_linalg::packed::isa`]).
    Bf16,
}

impl From<Precision> for ascribe_linalg::packed::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// What one block of columns stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// A product as the passes compute it: `layers.0.attn.qkv`, `layers.0.attn.o`, `layers.0.mlp.gate_up` (`mlp.up` without a
    /// gate), `layers.0.mlp.down`.
    #[default]
    Fused,
    /// A module of the Hugging Face model under its own name: `model.layers.0.self_attn.q_proj`, `transformer.h.0.attn.c_attn`.
    Module,
}

/// What becomes of a module's gradient `G = Σ_t δ_t x_tᵀ`, `[O, I]` (also where the file keeps the weight turned).
///
/// Projections are linear and seeded per module name. `E⟨row_i, row_j⟩ = ⟨G_i, G_j⟩` over seeds for all but `Factored`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Projection {
    /// LoGra (arXiv:2405.13954): `P_outᵀ·G·P_in`, `[k_out, k_in]`; a side no wider than its k is kept whole.
    #[default]
    TwoSided,
    /// `G` itself, `[O, I]`.
    Full,
    /// LoRIF (arXiv:2601.21929): the best rank-c factors of the two-sided projection, `left [k_out, rank]` then
    /// `right [k_in, rank]`, both with the root of the singular values. Where factors would not be shorter the block stays
    /// as it is. Rows are multiplied out by [`GradientStage::expand`](super::GradientStage::expand).
    Factored {
        /// Columns of the factors, c.
        rank: usize,
    },
    /// A sparse Johnson–Lindenstrauss transform of `vec(G)` (arXiv:1012.1577); a gradient no longer than `dim` is kept whole.
    /// Costs the forming of `G`.
    Sparse {
        /// Numbers per module.
        dim: usize,
        /// Places that each number is added to.
        nnz: usize,
    },
    /// FactGraSS (arXiv:2505.18976): a seeded mask keeps `keep_out` outputs and `keep_in` inputs, the outer products of what
    /// is left go through a sparse transform. Scaled by `√(O/keep_out · I/keep_in)`, so that dot products are unbiased.
    MaskedSparse {
        /// Inputs kept.
        keep_in: usize,
        /// Outputs kept.
        keep_out: usize,
        /// Numbers per module.
        dim: usize,
        /// Places that each number is added to.
        nnz: usize,
    },
    /// `P_outᵀ·G·P_in` with fitted matrices ([`GivenBases`](super::GivenBases)), which
    /// [`GradientStage::with_bases`](super::GradientStage::with_bases) hands over; `k_in` and `k_out` say nothing here.
    Given {
        /// [`GivenBases::digest`](super::GivenBases::digest).
        matrices: Digest,
    },
}
