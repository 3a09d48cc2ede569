//! Influence by kind and depth of module, as channels: embedding, attention, MLP and norms, early, middle and late.
//!
//! Modules answer different questions (embeddings see words, upper layers see form); a combination may weigh them. A channel per
//! module is too many for a small retrain bank, so modules are grouped by name. Here never lives: the weighing (see `combine`).

use ascribe_core::Column;
use ndarray::{Array2, ArrayView2};

use crate::block_fisher;
use crate::error::MethodError;

/// What a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Tables of tokens and positions, the output layer.
    Embedding,
    /// Attention's projections.
    Attention,
    /// The feed-forward part.
    Mlp,
    /// Gains and biases of norms.
    Norm,
    /// Nothing of these.
    Other,
}

impl Kind {
    /// From the name of a module, of this house or of Hugging Face's models.
    pub fn of(name: &str) -> Self {
        let name = name.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        // Norms first: `post_attention_layernorm` is no attention.
        if has(&["norm", "ln_", "final_layer_norm"]) {
            Self::Norm
        } else if has(&["embed", "wte", "wpe", "lm_head", "head", "positions"]) {
            Self::Embedding
        } else if has(&["attn", "attention"]) {
            Self::Attention
        } else if has(&["mlp", "ffn", "fc", "dense_h_to_4h", "dense_4h_to_h", "intermediate"]) {
            Self::Mlp
        } else {
            Self::Other
        }
    }

    /// Name of a channel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Norm => "norms",
            Self::Other => "other",
        }
    }
}

/// The number of a module's layer: the first part of its name that is a number.
pub fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// Channels `(name, [Q, K])` of dataset scores, grouped by kind and depth. Their sum is `dot::dataset_scores`.
///
/// `queries` `[Q, D]` are preconditioned, `sums` `[K, D]` per-dataset sums of rows. Layers are cut into thirds, `early`, `middle`
/// and `late` (`attention.early`, …; with fewer than three layers some are missing); what stands outside of the layers has no
/// depth. Groups without a module are left out. Order: embedding, attention, MLP, norms, other, each by depth.
///
/// # Errors
/// Shapes; NaN.
pub fn channels_by_depth(
    columns: &[Column],
    queries: ArrayView2<'_, f64>,
    sums: ArrayView2<'_, f64>,
) -> Result<Vec<(String, Array2<f64>)>, MethodError> {
    let tables = block_fisher::scores_by_module(columns, queries, sums)?;
    let n_layers = columns.iter().filter_map(|c| layer(&c.name)).max().map_or(0, |last| last + 1);
    let mut groups = std::collections::BTreeMap::<(Kind, Option<usize>), Array2<f64>>::new();
    for (column, table) in columns.iter().zip(tables) {
        let third = layer(&column.name).map(|l| 3 * l / n_layers);
        match groups.get_mut(&(Kind::of(&column.name), third)) {
            Some(sum) => *sum += &table,
            None => {
                groups.insert((Kind::of(&column.name), third), table);
            }
        }
    }
    let name = |(kind, third): (Kind, Option<usize>)| match third {
        None => kind.name().to_owned(),
        Some(third) => format!("{}.{}", kind.name(), ["early", "middle", "late"][third]),
    };
    Ok(groups.into_iter().map(|(key, table)| (name(key), table)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot;

    #[test]
    fn names_say_kind_and_layer() {
        let check = |name: &str, kind, number| assert_eq!((Kind::of(name), layer(name)), (kind, number), "{name}");
        check("layers.0.attn.qkv", Kind::Attention, Some(0));
        check("layers.11.mlp.gate_up", Kind::Mlp, Some(11));
        check("layers.3.post_attention_layernorm", Kind::Norm, Some(3));
        check("model.layers.2.self_attn.q_proj", Kind::Attention, Some(2));
        check("transformer.h.5.ln_1", Kind::Norm, Some(5));
        check("transformer.h.5.mlp.c_fc", Kind::Mlp, Some(5));
        check("embedding", Kind::Embedding, None);
        check("lm_head", Kind::Embedding, None);
        check("norm", Kind::Norm, None);
        check("block.1", Kind::Other, Some(1));
    }

    #[test]
    fn channels_add_up_to_the_whole() {
        let names = ["embedding", "layers.0.attn.o", "layers.0.mlp.up", "layers.1.attn.o", "layers.2.attn.o", "norm"];
        let column = |(i, name): (usize, &&str)| Column { name: (*name).to_owned(), start: 2 * i, len: 2 };
        let columns: Vec<Column> = names.iter().enumerate().map(column).collect();
        let number = |(i, j): (usize, usize)| ((1 + i * 13 + j * 7) as f64).sin();
        let (queries, sums) = (Array2::from_shape_fn((3, 12), number), Array2::from_shape_fn((4, 12), number));
        let channels = channels_by_depth(&columns, queries.view(), sums.view()).unwrap();
        let found: Vec<&str> = channels.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["embedding", "attention.early", "attention.middle", "attention.late", "mlp.early", "norms"];
        assert_eq!(found, expected);
        let total = channels.iter().fold(Array2::<f64>::zeros((3, 4)), |sum, (_, table)| sum + table);
        let whole = dot::dataset_scores(queries.view(), sums.view()).unwrap();
        assert!((&total - &whole).iter().all(|x| x.abs() < 1e-13));
    }
}
