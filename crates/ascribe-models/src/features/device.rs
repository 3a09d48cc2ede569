//! What the stage says to a device: its projectors as plain matrices.

use ndarray::Array2;

use super::GradientStage;
use super::block::{Block, Side};
use super::config::Projection;
use super::plan::mismatch;
use crate::decoder::{Loss, Module, Norm};
use crate::error::ModelError;
use crate::graph::{BlockPlan, SitePlan, TapPlan};

impl GradientStage<'_> {
    /// The plan of this stage for `graph::GraphStage`.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for another loss than the next token's, another projection than the two-sided one, optimiser
    /// moments.
    pub(crate) fn device_plan(&self) -> Result<TapPlan, ModelError> {
        let config = &self.config;
        let expected = || "on a device: next-token loss, two-sided projection, no optimiser moments".to_string();
        if config.loss != Loss::NextToken || config.projection != Projection::TwoSided || self.normalizer != "none" {
            let found = format!("{:?}, {:?}, moments {}", config.loss, config.projection, self.normalizer);
            return Err(mismatch("gradient stage", expected(), found));
        }
        let n_layers = self.decoder.config.num_hidden_layers;
        let layers = (0..n_layers).flat_map(|l| [Module::Qkv(l), Module::O(l), Module::Up(l), Module::Down(l)]);
        let mut plan = TapPlan { dim: self.dim(), ..TapPlan::default() };
        for module in layers.chain([Module::Head]) {
            if let Some(site) = self.plan.site(module) {
                let blocks = site.blocks.iter().map(block).collect();
                let biases = site.biases.iter().map(|bias| (bias.columns.clone(), bias.place.start)).collect();
                plan.sites.push((module, SitePlan { blocks, biases }));
            }
        }
        plan.embedding = self.plan.embedding.as_ref().map(block);
        plan.positions = self.plan.positions.as_ref().map(block);
        if let Some(embedding) = plan.embedding.iter().find(|_| self.decoder.config.tie_word_embeddings) {
            // A tied output layer is the same matrix: its gradient is added to the table's.
            let site = SitePlan { blocks: vec![embedding.clone()], biases: vec![] };
            plan.sites.retain(|(module, _)| *module != Module::Head);
            plan.sites.push((Module::Head, site));
        }
        let norms = (0..n_layers).flat_map(|l| {
            [Norm::Attn(l), Norm::Query(l), Norm::Key(l), Norm::AttnPost(l), Norm::Mlp(l), Norm::MlpPost(l)]
        });
        for norm in norms.chain([Norm::Out]) {
            if let Some(tap) = self.plan.norm(norm) {
                plan.norms.push((norm, tap.gain.start, tap.has_bias.then_some(tap.bias.start)));
            }
        }
        Ok(plan)
    }
}

fn block(block: &Block) -> BlockPlan {
    let matrix = |side: &Side| match side {
        Side::Product(p) => p.clone(),
        // Two-sided projections keep a side whole only where it is no wider than its k.
        side => Array2::eye(side.fan()),
    };
    BlockPlan {
        columns: block.columns.clone(),
        p_in: matrix(&block.input),
        p_out: matrix(&block.output),
        start: block.place.start,
    }
}
