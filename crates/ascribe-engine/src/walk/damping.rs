//! The evidence for a damping: held-out likelihood of every module's rows over a grid, at every checkpoint. Here never lives:
//! the criterion (`ascribe_methods::damping`), fitting with what was chosen (`fit`).

use std::collections::BTreeMap;

use ascribe_core::Progress;
use ascribe_methods::damping::{CRITERION, Options, block_fisher};
pub use ascribe_methods::damping::{Curve, Point};
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::features::open_train;
use crate::error::EngineError;
use crate::files;
use crate::recipe::DampingRule;

/// The curves of a run whose damping they chose, relative to the run folder.
pub const DAMPING_FILE: &str = "factors/damping.json";

/// Curves of all checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DampingCurves {
    /// What a curve's height is.
    pub criterion: String,
    /// What the run's factors use: the fixed numbers of `attribution.toml`, or the chosen ones.
    pub rule: DampingRule,
    /// Grid and split.
    pub options: Options,
    /// Per checkpoint, one curve per module.
    pub checkpoints: BTreeMap<String, Vec<Curve>>,
}

impl DampingCurves {
    /// Computes the curves of every checkpoint. Depends on rows and seed alone. Cost: three reads of each store, and two
    /// eigendecompositions per module.
    ///
    /// # Errors
    /// From the stores and the method (row and module named); [`EngineError::Stopped`].
    pub fn compute(context: &Context, progress: &dyn Progress) -> Result<Self, EngineError> {
        let options = Options { seed: context.attribution.seed, ..Options::default() };
        let mut checkpoints = BTreeMap::new();
        for checkpoint in &context.checkpoints {
            let store = open_train(context, &checkpoint.name)?;
            checkpoints.insert(checkpoint.name.clone(), block_fisher(&store, &options, progress)?);
        }
        let rule = context.attribution.damping;
        Ok(Self { criterion: CRITERION.to_owned(), rule, options, checkpoints })
    }

    /// The curves that a run wrote.
    ///
    /// # Errors
    /// A missing or damaged file.
    pub fn read(context: &Context) -> Result<Self, EngineError> {
        let path = context.out.join(DAMPING_FILE);
        serde_json::from_slice(&files::read(&path)?).map_err(|e| EngineError::Content {
            path,
            expected: "damping curves".into(),
            found: e.to_string(),
        })
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, context: &Context) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec_pretty(self).expect("numbers and strings always serialise");
        files::write_atomic(&context.out.join(DAMPING_FILE), &[bytes, b"\n".to_vec()].concat())
    }

    /// Chosen dampings of a checkpoint, relative to each module's mean eigenvalue, in the order of modules.
    pub fn chosen(&self, checkpoint: &str) -> Vec<f64> {
        self.checkpoints.get(checkpoint).into_iter().flatten().map(|c| c.chosen.damping_rel).collect()
    }
}
