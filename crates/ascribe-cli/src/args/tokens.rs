//! Arguments of `tokens`.

use ascribe_engine::tokens::TokensRequest;
use clap::Args;

/// Which tokens helped.
#[derive(Clone, Debug, Args)]
pub struct TokensArgs {
    /// Model folder under models/.
    #[arg(long, value_name = "NAME", default_value = ascribe_engine::DEFAULT_MODEL)]
    pub model: String,
    /// Held-out response to explain, from 0, in the order of the corpus.
    #[arg(long, value_name = "N")]
    pub query: usize,
    /// Training examples to look into, by number [default: the most influential ones].
    #[arg(long, value_name = "N,…", value_delimiter = ',', conflicts_with = "best")]
    pub examples: Vec<u32>,
    /// How many most influential examples to look into.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub best: u32,
    /// How many tokens to list.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
    /// Training examples that the curvature is fitted on, evenly spread; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub fit_examples: usize,
    /// Damping, times the mean eigenvalue of each module's curvature.
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    pub damping_rel: f64,
    /// Choose the damping of every module by how likely held-out gradients are under it, and print the curves.
    #[arg(long, conflicts_with = "damping_rel")]
    pub choose_damping: bool,
    /// Seed of the labels that the curvature is fitted with.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl TokensArgs {
    /// What the engine is asked.
    pub fn request(&self) -> TokensRequest {
        TokensRequest {
            model: self.model.clone(),
            query: self.query,
            examples: self.examples.clone(),
            best: self.best as usize,
            top: self.top,
            fit_examples: self.fit_examples,
            damping_rel: self.damping_rel,
            choose_damping: self.choose_damping,
            seed: self.seed,
        }
    }
}
