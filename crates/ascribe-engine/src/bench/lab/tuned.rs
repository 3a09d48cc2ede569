//! A fine-tuned model as a lab: tuned when it is asked for, the one that is explained kept while the lab lives.

use std::sync::{Arc, OnceLock};

use ascribe_core::{Digest, NoProgress};
use ascribe_methods::controls::text::terms;
use ascribe_models::Decoder;

use super::decoders::DecoderView;
use super::{Lab, Stretch, Tokens, View, Which, Words};
use crate::bench::tuned::{TunedData, TunedWindow};
use crate::error::EngineError;

/// Seed of the model that is explained, as banks count their seeds.
const SEED: u64 = 1;

/// A setting of fine-tuning, opened.
pub struct TunedLab {
    /// Model and windows.
    pub data: TunedData,
    explained: OnceLock<Arc<Decoder>>,
}

impl TunedLab {
    /// A lab of opened data.
    pub fn new(data: TunedData) -> Self {
        Self { data, explained: OnceLock::new() }
    }

    /// The same with the first `n` queries only.
    #[must_use]
    pub fn limited(mut self, n: usize) -> Self {
        self.data.queries.truncate(n);
        self
    }

    fn tuned(&self, offset: u64, steps: Option<u32>) -> Result<Arc<Decoder>, EngineError> {
        let members = (0..self.data.examples.len() as u32).collect();
        Ok(Arc::new(self.data.tune(SEED + offset, members, steps, &NoProgress)?))
    }
}

impl Lab for TunedLab {
    fn digest(&self) -> Digest {
        Digest::of(format!("{} {}", self.data.digest, self.data.subject.recipe_digest()).as_bytes())
    }

    fn n_examples(&self) -> usize {
        self.data.examples.len()
    }

    fn n_queries(&self) -> usize {
        self.data.queries.len()
    }

    fn model(&self, which: Which) -> Result<Box<dyn View + '_>, EngineError> {
        let model = match which {
            Which::Final(0) => match self.explained.get() {
                Some(model) => model.clone(),
                None => {
                    let model = self.tuned(0, None)?;
                    self.explained.get_or_init(|| model).clone()
                }
            },
            Which::Final(offset) => self.tuned(offset, None)?,
            Which::Half(_) => return Err(super::no_halves()),
            Which::Kept(index) => {
                let steps = &self.data.subject.train.checkpoint_steps;
                let step = steps.get(index).ok_or_else(|| EngineError::Setting {
                    setting: "checkpoint",
                    expected: format!("one of the {} kept", steps.len()),
                    found: index.to_string(),
                })?;
                self.tuned(0, Some(*step))?
            }
        };
        Ok(Box::new(DecoderView::new(model, self.data.sequences(), self.data.query_sequences())))
    }

    fn stretches(&self) -> Vec<Stretch> {
        super::decoders::stretches(&self.data.subject.train)
    }

    fn words(&self) -> Option<Words> {
        let of = |windows: &[TunedWindow]| windows.iter().map(|w| terms(&w.text)).collect();
        Some((of(&self.data.examples), of(&self.data.queries)))
    }

    fn texts(&self) -> Option<(Vec<String>, Vec<String>)> {
        let of = |windows: &[TunedWindow]| windows.iter().map(|w| w.text.clone()).collect();
        Some((of(&self.data.examples), of(&self.data.queries)))
    }

    fn tokens(&self) -> Option<Tokens<'_>> {
        let train = self.data.examples.iter().map(|w| w.tokens.as_slice()).collect();
        Some((train, self.data.queries.iter().map(|w| w.tokens.as_slice()).collect()))
    }

    fn datasets(&self) -> Option<Vec<u32>> {
        Some(self.data.examples.iter().map(|w| w.dataset).collect())
    }
}
