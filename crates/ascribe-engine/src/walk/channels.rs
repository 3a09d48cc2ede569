//! What a channel of the default method is called and where its scores come from.
//!
//! A channel is a method or control of the walk by its name, or a part of a gradient method: `block_fisher/step-000800` (another
//! checkpoint than the last), `trajectory_fisher/layers.1` (the modules whose names begin so: influence layer by layer). With
//! `_exchange` behind the method's name a dataset's sum stands against that of as many examples of the others.
//! Here never lives: weights of channels (`calibrate`).

use ascribe_core::{Column, Digest};
use ascribe_methods::aggregate::exchanged;
use ascribe_methods::block_fisher::precondition;
use ascribe_methods::combine::CalibratedMethod;
use ascribe_methods::dot;
use ascribe_models::GradientStage;
use ascribe_store::FeatureStore;
use ndarray::{Array2, s};

use super::context::Context;
use super::features::{load_rows, open_train, query_dir, taps_of};
use super::fit;
use super::score::METHODS;
use crate::error::EngineError;

/// A gradient method, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientChannel {
    /// Through the inverse curvature, or plain.
    pub curved: bool,
    /// Positions of the checkpoints that are summed.
    pub checkpoints: Vec<usize>,
    /// Modules that count: those whose name is this or begins with it and a dot. All without.
    pub modules: Option<String>,
    /// Whether sums stand against those of as many examples of other datasets.
    pub exchange: bool,
}

/// What a gradient method's name ends with where datasets are exchanged, not taken away.
pub(crate) const EXCHANGE: &str = "_exchange";

/// Names of the default method's channels: those of `attribution.toml` where there is a bank to fit them on, the documented ones
/// where there is none.
///
/// # Errors
/// A bank of another recipe or corpus.
pub fn names(context: &Context) -> Result<Vec<String>, EngineError> {
    Ok(match context.bank_if_any()? {
        Some(_) => context.attribution.channels.clone(),
        None => CalibratedMethod::defaults().calibration.channels.into_iter().map(|c| c.name).collect(),
    })
}

/// Checks all channel names, loading the model only where module names are asked for.
///
/// # Errors
/// The name, and what there is.
pub fn check(context: &Context) -> Result<(), EngineError> {
    let mut columns: Option<Vec<Column>> = None;
    for name in &context.attribution.channels {
        let Some(channel) = gradient(context, name)? else { continue };
        let Some(prefix) = &channel.modules else { continue };
        let columns = match &mut columns {
            Some(columns) => columns,
            empty => {
                let decoder = context.decoder(context.last())?;
                empty.insert(GradientStage::new(&decoder, taps_of(&context.attribution))?.columns().to_vec())
            }
        };
        if !columns.iter().any(|c| belongs(&c.name, prefix)) {
            let known: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
            return Err(refuse(context, format!("modules among {known:?}"), name));
        }
    }
    Ok(())
}

/// The gradient method that a channel names; `None` for a control.
///
/// # Errors
/// A name that is no method of the walk, or a part that a method does not have.
pub fn gradient(context: &Context, name: &str) -> Result<Option<GradientChannel>, EngineError> {
    let (base, part) = name.split_once('/').map_or((name, None), |(base, part)| (base, Some(part)));
    if !METHODS.iter().any(|m| m.name == base) {
        let expected =
            format!("channels among {:?}, gradient methods also by checkpoint or module", METHODS.map(|m| m.name));
        return Err(refuse(context, expected, name));
    }
    let last = context.checkpoints.len() - 1;
    let (plain, exchange) = base.strip_suffix(EXCHANGE).map_or((base, false), |plain| (plain, true));
    let (curved, checkpoints) = match plain {
        "block_fisher" => (true, vec![last]),
        "trajectory_fisher" => (true, (0..=last).collect()),
        "tracin" => (false, (0..=last).collect()),
        _ if part.is_some() => return Err(refuse(context, format!("the whole of control {base:?}"), name)),
        _ => return Ok(None),
    };
    let whole = GradientChannel { curved, checkpoints, modules: None, exchange };
    let Some(part) = part else { return Ok(Some(whole)) };
    Ok(Some(match context.checkpoints.iter().position(|c| c.name == part) {
        Some(position) => GradientChannel { checkpoints: vec![position], ..whole },
        None => GradientChannel { modules: Some(part.to_owned()), ..whole },
    }))
}

fn refuse(context: &Context, expected: String, found: &str) -> EngineError {
    EngineError::Content { path: context.model_dir.join("attribution.toml"), expected, found: format!("{found:?}") }
}

/// True if `module` is `prefix` or lies below it.
pub(crate) fn belongs(module: &str, prefix: &str) -> bool {
    module.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl GradientChannel {
    /// Response rows `[Q, D]` of a checkpoint, zero outside the channel's modules.
    ///
    /// # Errors
    /// From the stores.
    pub fn queries(
        &self,
        context: &Context,
        checkpoint: usize,
        columns: &[Column],
    ) -> Result<Array2<f32>, EngineError> {
        let dir = context.out.join(query_dir(&context.checkpoints[checkpoint].name));
        let mut rows = load_rows(&FeatureStore::open(&dir, None)?)?;
        if let Some(prefix) = &self.modules {
            let outside = columns.iter().filter(|c| !belongs(&c.name, prefix));
            outside.for_each(|c| rows.slice_mut(s![.., c.start..c.start + c.len]).fill(0.0));
        }
        Ok(rows)
    }

    /// Dataset scores `[Q, K]`: the sum over checkpoints, each with its learning rates.
    ///
    /// # Errors
    /// From the stores and factors.
    pub fn scores(&self, context: &Context) -> Result<Array2<f64>, EngineError> {
        let mut total = Array2::zeros((context.corpus.queries.len(), context.corpus.n_datasets()));
        for &c in &self.checkpoints {
            let checkpoint = &context.checkpoints[c];
            let store = open_train(context, &checkpoint.name)?;
            let rows = self.queries(context, c, &ascribe_core::FeatureReader::spec(&store).columns)?;
            let vectors = match self.curved {
                true => precondition(&fit::read(context, checkpoint)?, rows.view())?,
                false => rows.mapv(f64::from),
            };
            total.scaled_add(
                self.weight(context, c),
                &dot::dataset_scores(vectors.view(), store.dataset_sums()?.sums().view())?,
            );
        }
        self.placed(context, total)
    }

    /// Sums per dataset `[Q, K]` as the channel counts them: as they are, or against as many examples of the others.
    ///
    /// # Errors
    /// A table of other datasets.
    pub fn placed(&self, context: &Context, sums: Array2<f64>) -> Result<Array2<f64>, EngineError> {
        match self.exchange {
            true => Ok(exchanged(sums.view(), &context.sizes()?)?),
            false => Ok(sums),
        }
    }

    /// Weight of a checkpoint in the sum; 1 where there is but one.
    pub fn weight(&self, context: &Context, checkpoint: usize) -> f64 {
        if self.checkpoints.len() == 1 { 1.0 } else { context.checkpoints[checkpoint].weight }
    }

    /// What decides the scores, besides stores and factors.
    ///
    /// # Errors
    /// Never: strings and numbers.
    pub fn digest(&self, name: &str, features: Digest, factors: Digest) -> Result<Digest, EngineError> {
        let factors = self.curved.then_some(factors);
        Ok(Digest::of_json(&(name, features, factors, &self.checkpoints, &self.modules))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_a_name_does() {
        assert!(belongs("layers.1.mlp.up_proj", "layers.1"));
        assert!(belongs("norm", "norm"));
        assert!(!belongs("layers.11.mlp.up_proj", "layers.1"));
    }
}
