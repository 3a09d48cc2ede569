//! Decoders as a lab: the model folder's checkpoints; further seeds are trained when they are asked for.

use std::path::PathBuf;
use std::sync::Arc;

use ascribe_core::Digest;
use ascribe_methods::MethodError;
use ascribe_methods::controls::text::terms;
use ascribe_methods::source::{CaptureSource, Operator};
use ascribe_models::{
    Decoder, Example, GradientStage, Granularity, Loss, Sequence, TapConfig, TappedDecoder, TrainRecipe,
    train::load_second_moments,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::{Lab, Quantity, StageRows, Stretch, Tokens, View, Which, Words};
use crate::bank::query_sequences;
use crate::bench::decoder::{DecoderCurvature, DecoderSource};
use crate::bench::runners::{DecoderData, open_decoder};
use crate::error::EngineError;
use crate::home::Home;
use crate::train;
use crate::train::run::checkpoint_file;

/// Linear modules of all layers; the embedding, which is the output layer too, and norms are left out.
const MODULES: [&str; 1] = ["*"];

/// A decoder's setting, opened.
pub struct DecoderLab {
    /// Recipe, tokenizer, corpus.
    pub data: DecoderData,
    /// The model folder.
    pub dir: PathBuf,
}

/// A decoder with the sequences of its lab.
pub(super) struct DecoderView<'a> {
    model: Arc<Decoder>,
    examples: Vec<Sequence<'a>>,
    queries: Vec<Sequence<'a>>,
}

/// The parts of a training between the checkpoints that its recipe keeps.
pub(super) fn stretches(recipe: &TrainRecipe) -> Vec<Stretch> {
    let mut start = 0;
    let stretch = |&step: &u32| {
        let learning_rate_sum = (start..step).map(|s| recipe.learning_rate(s)).sum();
        start = step;
        // AdamW's momentum is normalised away, its decay does not pass through the gradient.
        Stretch { step: u64::from(step), learning_rate_sum, momentum: 0.0, weight_decay: 0.0 }
    };
    recipe.checkpoint_steps.iter().map(stretch).collect()
}

impl DecoderLab {
    /// Opens the model folder `model` under the home folder.
    ///
    /// # Errors
    /// A recipe, registry or tokenizer that does not read.
    pub fn open(home: &Home, model: &str) -> Result<Self, EngineError> {
        Ok(Self { data: open_decoder(home, model)?, dir: home.model(model) })
    }

    /// The same with the first `n` queries only.
    #[must_use]
    pub fn limited(mut self, n: usize) -> Self {
        self.data.corpus.queries.truncate(n);
        self
    }

    /// The checkpoint's weights, by its place in the recipe's list.
    ///
    /// # Errors
    /// A place beyond the list; weights that do not read.
    pub fn kept(&self, index: usize) -> Result<Decoder, EngineError> {
        let recipe = &self.data.recipe.train;
        let step = recipe.checkpoint_steps.get(index).ok_or_else(|| EngineError::Setting {
            setting: "checkpoint",
            expected: format!("one of the {} kept", recipe.checkpoint_steps.len()),
            found: index.to_string(),
        })?;
        let file = if *step == recipe.steps { "model.safetensors".to_owned() } else { checkpoint_file(*step) };
        Ok(Decoder::load(&self.dir, &file)?)
    }

    /// AdamW's second moments after the last step, in the order of the tracked modules' flat vectors.
    ///
    /// # Errors
    /// Moments that are not in the model folder or do not fit it.
    pub fn second_moments(&self) -> Result<Vec<f32>, EngineError> {
        // Moments lie like parameters: a decoder made of them turns them into layers.
        let decoder = Decoder::from_parameters(self.data.recipe.decoder_config(), self.parameter_moments()?)?;
        Ok(TappedDecoder::new(&decoder, &MODULES, Granularity::Module)?.parameters())
    }

    /// AdamW's second moments after the last step, one per parameter.
    ///
    /// # Errors
    /// Moments that are not in the model folder or do not fit it.
    pub fn parameter_moments(&self) -> Result<Vec<f32>, EngineError> {
        let config = self.data.recipe.decoder_config();
        Ok(load_second_moments(&config, &self.dir.join("second_moments.safetensors"))?)
    }

    /// Training examples as sequences.
    pub fn examples(&self) -> Vec<Sequence<'_>> {
        self.data.corpus.examples.iter().map(|e| Sequence::whole(&e.tokens)).collect()
    }
}

impl Lab for DecoderLab {
    fn digest(&self) -> Digest {
        let parts = (self.data.recipe.digest(), self.data.corpus.manifest.digest());
        Digest::of(format!("{} {}", parts.0, parts.1).as_bytes())
    }

    fn n_examples(&self) -> usize {
        self.data.corpus.examples.len()
    }

    fn n_queries(&self) -> usize {
        self.data.corpus.queries.len()
    }

    fn model(&self, which: Which) -> Result<Box<dyn View + '_>, EngineError> {
        let model = match which {
            Which::Final(0) => Decoder::load(&self.dir, "model.safetensors")?,
            Which::Half(_) => return Err(super::no_halves()),
            Which::Kept(index) => self.kept(index)?,
            Which::Final(offset) => {
                let (data, members) = (&self.data, (0..self.n_examples() as u32).collect());
                let seed = data.recipe.seed + offset;
                let trained = train::train_members(
                    &data.corpus,
                    &data.recipe,
                    seed,
                    members,
                    None,
                    &ascribe_core::NoProgress,
                    |_, _| Ok(()),
                )?;
                trained.into_decoder()
            }
        };
        Ok(Box::new(DecoderView::new(Arc::new(model), self.examples(), query_sequences(&self.data.corpus))))
    }

    fn stretches(&self) -> Vec<Stretch> {
        stretches(&self.data.recipe.train)
    }

    fn words(&self) -> Option<Words> {
        let corpus = &self.data.corpus;
        let train = corpus.examples.iter().map(|e| terms(&corpus.text_of(&e.spans))).collect();
        let queries = corpus.queries.iter().map(|q| terms(&corpus.text_of(&q.spans))).collect();
        Some((train, queries))
    }

    fn texts(&self) -> Option<(Vec<String>, Vec<String>)> {
        let corpus = &self.data.corpus;
        let train = corpus.examples.iter().map(|e| corpus.text_of(&e.spans)).collect();
        Some((train, corpus.queries.iter().map(|q| corpus.text_of(&q.spans)).collect()))
    }

    fn tokens(&self) -> Option<Tokens<'_>> {
        let corpus = &self.data.corpus;
        let train = corpus.examples.iter().map(|e| e.tokens.as_slice()).collect();
        Some((train, corpus.queries.iter().map(|q| q.tokens.as_slice()).collect()))
    }

    fn datasets(&self) -> Option<Vec<u32>> {
        Some(self.data.corpus.examples.iter().map(|e| e.id.dataset).collect())
    }

    fn decoder(&self) -> Option<&DecoderLab> {
        Some(self)
    }
}

impl<'a> DecoderView<'a> {
    pub fn new(model: Arc<Decoder>, examples: Vec<Sequence<'a>>, queries: Vec<Sequence<'a>>) -> Self {
        Self { model, examples, queries }
    }

    fn source<'s>(&'s self, sequences: &[Sequence<'s>], quantity: Quantity) -> Result<DecoderSource<'s>, EngineError> {
        let numbered = |(id, sequence): (usize, &Sequence<'s>)| Example::numbered(*sequence, id as u64);
        let examples = sequences.iter().enumerate().map(numbered).collect();
        let source = DecoderSource::new(&self.model, examples, &MODULES, Granularity::Module)?;
        Ok(match quantity {
            Quantity::Loss => source,
            // TRAK multiplies a query's row with a training row: the sign of both does not matter.
            Quantity::NegativeMargin => source.with_loss(Loss::Margin),
        })
    }
}

/// The curvature with the source that it is of.
struct OwnCurvature<'m>(DecoderSource<'m>);

impl Operator for OwnCurvature<'_> {
    fn dim(&self) -> usize {
        DecoderCurvature(&self.0).dim()
    }

    fn n_examples(&self) -> usize {
        DecoderCurvature(&self.0).n_examples()
    }

    fn apply(
        &self,
        examples: Option<&[u32]>,
        v: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), MethodError> {
        DecoderCurvature(&self.0).apply(examples, v, out)
    }
}

impl View for DecoderView<'_> {
    fn train(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError> {
        Ok(Box::new(self.source(&self.examples, quantity)?))
    }

    fn queries(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError> {
        Ok(Box::new(self.source(&self.queries, quantity)?))
    }

    fn curvature(&self) -> Result<Box<dyn Operator + '_>, EngineError> {
        Ok(Box::new(OwnCurvature(self.source(&self.examples, Quantity::Loss)?)))
    }

    fn stage_rows(&self, taps: &TapConfig, corpus: Digest) -> Result<StageRows, EngineError> {
        let stage = GradientStage::new(&self.model, taps.clone())?;
        let rows = |sequences: &[Sequence<'_>]| -> Result<Array2<f32>, EngineError> {
            let mut out = Array2::zeros((sequences.len(), stage.dim()));
            stage.rows(sequences, out.view_mut(), None)?;
            Ok(out)
        };
        let spec = stage.spec("final", corpus);
        Ok(StageRows { spec, train: rows(&self.examples)?, queries: rows(&self.queries)? })
    }

    fn embeddings(&self) -> Result<(Array2<f32>, Array2<f32>), EngineError> {
        Ok((self.model.mean_hidden(&self.examples)?, self.model.mean_hidden(&self.queries)?))
    }

    fn residuals(&self) -> Result<Vec<f32>, EngineError> {
        use rayon::prelude::*;
        let of = |sequence: &Sequence<'_>| -> Result<f32, EngineError> {
            let nll = self.model.token_nll(sequence.tokens)?;
            let total: f64 = nll.iter().map(|&l| -(-f64::from(l)).exp_m1()).sum();
            Ok((total / nll.len().max(1) as f64).clamp(0.0, 1.0) as f32)
        };
        let results: Vec<Result<f32, EngineError>> = self.examples.par_iter().map(of).collect();
        results.into_iter().collect()
    }
}
