//! What makes two feature rows comparable.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// How a row's numbers are kept at rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowType {
    /// 32-bit floats.
    F32,
    /// bfloat16: f32's range, 8 bits of precision.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Codes −127 … 127 with one f32 scale per row.
    Int8,
    /// Codes −7 … 7, two to a byte (the first number in the low half), with one f32 scale per row.
    Int4,
}

impl RowType {
    /// All row types, most bits first.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Int4];

    /// Bits of one number.
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::Bf16 | Self::F16 => 16,
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// Bytes of `n` numbers side by side, without scale or padding.
    pub const fn row_bytes(self, n: usize) -> usize {
        (n * self.bits()).div_ceil(8)
    }

    /// True for codes that mean nothing without their row's scale.
    pub const fn has_scale(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4)
    }

    /// Name in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

/// A contiguous group of columns that belongs to one tracked module (one curvature block).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    /// Module name, as in the weights (`layers.0.attn.qkv`).
    pub name: String,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub len: usize,
}

/// The linear compression between a gradient and its row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProjectorSpec {
    /// LoGra: `P_out · G · P_inᵀ` per module with seeded ±1/√k entries (arXiv:2405.13954).
    TwoSided {
        /// Root seed; each module draws its own named stream from it.
        seed: u64,
        /// Rows kept on the input side.
        k_in: usize,
        /// Rows kept on the output side.
        k_out: usize,
        /// Version of the generator; a change of its bits is a new version.
        version: u32,
    },
    /// Not a projection: the row is what the tap gave.
    Identity,
    /// LoRIF: the best rank-c approximation of each module's two-sided projection, as its factors: per module
    /// `left [k_out, rank]`, then `right [k_in, rank]`, row-major. Rows must be multiplied out before they are dotted.
    Factored {
        /// Root seed of the two-sided projection.
        seed: u64,
        /// Rows kept on the input side.
        k_in: usize,
        /// Rows kept on the output side.
        k_out: usize,
        /// Columns of the factors.
        rank: usize,
        /// Version of the two-sided generator.
        version: u32,
    },
    /// Sparse Johnson–Lindenstrauss transform of each module's whole gradient (arXiv:1012.1577).
    Sparse {
        /// Root seed; each module draws its own named stream from it.
        seed: u64,
        /// Numbers per module.
        dim: usize,
        /// Places that each number of the gradient is added to.
        nnz: usize,
        /// Version of the generator.
        version: u32,
    },
    /// FactGraSS: a seeded mask on either side of each module's gradient, then a sparse transform (arXiv:2505.18976).
    MaskedSparse {
        /// Root seed; each module draws its own named streams from it.
        seed: u64,
        /// Inputs kept by the mask.
        keep_in: usize,
        /// Outputs kept by the mask.
        keep_out: usize,
        /// Numbers per module.
        dim: usize,
        /// Places that each kept number is added to.
        nnz: usize,
        /// Version of the generator.
        version: u32,
    },
    /// `P_outᵀ · G · P_in` per module with matrices that were fitted, not drawn: LoGra's PCA form (arXiv:2405.13954, 4.1).
    Given {
        /// SHA-256 over names, shapes and numbers of the matrices.
        matrices: Digest,
    },
}

/// Everything that makes two rows comparable: two rows may be dotted if and only if their spec hashes are equal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FeatureSpec {
    /// SHA-256 of the weights file.
    pub model: Digest,
    /// Name of the checkpoint (`final`, `step-000400`).
    pub checkpoint: String,
    /// What the rows are (`gradient`, `hidden_mean`).
    pub quantity: String,
    /// Loss whose gradient was taken (`next_token_nll_sum`), or `none`.
    pub loss: String,
    /// Optimiser-state scaling (`none`, `adam_v`).
    pub normalizer: String,
    /// Compression.
    pub projector: ProjectorSpec,
    /// Column groups, in order, without gaps; they cover `0..dim`.
    pub columns: Vec<Column>,
    /// Numbers per row.
    pub dim: usize,
    /// SHA-256 of the corpus manifest that fixes the examples and their order.
    pub corpus: Digest,
}

impl FeatureSpec {
    /// SHA-256 over the JSON form. It travels with rows, scores, shares, transfers and receipts.
    pub fn hash(&self) -> Digest {
        Digest::of_json(self).expect("strings and integers always serialise")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Specs of stores on disk are these bytes: new kinds of projection must not change the old ones.
    #[test]
    fn the_json_of_old_projectors_is_pinned() {
        let two_sided = ProjectorSpec::TwoSided { seed: 7, k_in: 16, k_out: 8, version: 1 };
        let json = r#"{"kind":"two_sided","seed":7,"k_in":16,"k_out":8,"version":1}"#;
        assert_eq!(serde_json::to_string(&two_sided).unwrap(), json);
        assert_eq!(serde_json::to_string(&ProjectorSpec::Identity).unwrap(), r#"{"kind":"identity"}"#);
        assert_eq!(serde_json::from_str::<ProjectorSpec>(json).unwrap(), two_sided);
    }
}
