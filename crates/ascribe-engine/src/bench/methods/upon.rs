//! Scores of training examples upon themselves, for every method: large ones are examples that the model fits alone (wrong labels,
//! rarities, what it knows by heart).
//!
//! Where a method's self-influence has a shorter route than a table of scores (gradient lengths, rotated gradients of Kronecker
//! factors) it is taken; a test holds it against the diagonal of the table. Source: arXiv:2002.08484, section 4; arXiv:1703.04730, section
//! 5.4. Here never lives: what is told about the scores (`upon` of the engine).

use ascribe_core::{Digest, Progress};
use ascribe_methods::MethodError;
use ascribe_methods::captured;
use ascribe_methods::kron::{Kron, Options};
use ascribe_methods::normalise::Normalisation;
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, Operator};
use ndarray::{Array2, Axis};

use super::super::lab::{DecoderLab, ImageLab, Lab, Quantity, Stretch, Tokens, View, Which, Words};
use super::super::report::cpu_of;
use super::{Method, Spec, averaged, explained};
use crate::error::EngineError;

/// Largest table of scores that is made for its diagonal, in bytes.
const TABLE_BYTES_MAX: u64 = 2 << 30;

/// Self-influence of some training examples.
#[derive(Clone, Debug, PartialEq)]
pub struct Upon {
    /// In the order of the examples asked for; a method that explains few queries by construction may give fewer.
    pub values: Vec<f64>,
    /// CPU seconds of all of it.
    pub cpu_seconds: f64,
    /// True if it was read off a table of scores.
    pub by_table: bool,
}

/// Self-influence of the training examples `ids` under a method. Deterministic. Cost: that of the method with these examples as
/// queries, but for gradients and Kronecker factors, where it is one pass.
///
/// # Errors
/// An example beyond the end; a table that would be larger than 2 GiB; what the method says.
pub fn self_influence(
    method: &Method,
    lab: &dyn Lab,
    ids: &[u32],
    progress: &dyn Progress,
) -> Result<Upon, EngineError> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= lab.n_examples()) {
        let expected = format!("below {}", lab.n_examples());
        return Err(EngineError::Setting { setting: "example", expected, found: id.to_string() });
    }
    let (found, cpu_seconds) = cpu_of(|| direct(&method.spec, lab, progress));
    if let Some(all) = found? {
        let values = ids.iter().map(|&i| all[i as usize]).collect();
        return Ok(Upon { values, cpu_seconds, by_table: false });
    }
    by_table(method, lab, ids, progress)
}

/// Self-influence as the diagonal of the method's scores with these examples as queries.
///
/// # Errors
/// As [`self_influence`].
pub fn by_table(method: &Method, lab: &dyn Lab, ids: &[u32], progress: &dyn Progress) -> Result<Upon, EngineError> {
    let bytes = 4 * ids.len() as u64 * lab.n_examples() as u64;
    if bytes > TABLE_BYTES_MAX {
        return Err(EngineError::DoesNotFit {
            stage: "self-influence",
            what: "memory",
            expected: format!("{bytes} bytes for a table of scores"),
            found: format!("a limit of {TABLE_BYTES_MAX}"),
            hint: "ask for fewer examples",
        });
    }
    let spec = method.spec.for_all_queries();
    let (scores, cpu_seconds) = cpu_of(|| match lab.images() {
        Some(images) => spec.timed(&asked_about_itself(images, ids)?, progress),
        None => spec.timed(&Asked { lab, ids }, progress),
    });
    let scores = scores?.values;
    let one = |q: usize| f64::from(scores[(q, ids[q] as usize)]);
    Ok(Upon { values: (0..scores.nrows().min(ids.len())).map(one).collect(), cpu_seconds, by_table: true })
}

/// `[N]` by a shorter route, where there is one.
fn direct(spec: &Spec, lab: &dyn Lab, progress: &dyn Progress) -> Result<Option<Vec<f64>>, EngineError> {
    let lengths = |view: &dyn View| -> Result<Vec<f64>, EngineError> {
        Ok(captured::square_norms(view.train(Quantity::Loss)?.as_ref(), Labels::Given, progress)?)
    };
    let added = |total: &mut Vec<f64>, part: Vec<f64>, weight: f64| {
        total.iter_mut().zip(part).for_each(|(to, v)| *to += weight * v);
    };
    let mut total = vec![0.0; lab.n_examples()];
    match spec {
        Spec::Gradient { normalise: Normalisation::None } => added(&mut total, lengths(explained(lab)?.as_ref())?, 1.0),
        Spec::TracIn { normalise: Normalisation::None } => {
            for (i, stretch) in lab.stretches().iter().enumerate() {
                let view = lab.model(Which::Kept(i))?;
                added(&mut total, lengths(view.as_ref())?, stretch.learning_rate_sum);
            }
        }
        Spec::Kron {
            kind,
            inverse,
            damping,
            models,
            checkpoints,
            normalise: Normalisation::None,
            empirical,
            redraw,
        } => {
            let all = averaged(lab, *models, *checkpoints)?;
            for &which in &all {
                let view = lab.model(which)?;
                let labels = if *empirical { Labels::Given } else { Labels::Sampled { seed: 0 } };
                let train = view.train(Quantity::Loss)?;
                let factors = Kron::fit(train.as_ref(), &Options { kind: *kind, labels, redraw: *redraw }, progress)?;
                let inverted = factors.inverse(*inverse, damping)?;
                let own = inverted.self_influence(train.as_ref(), Labels::Given, progress)?;
                added(&mut total, own, 1.0 / all.len() as f64);
            }
        }
        _ => return Ok(None),
    }
    Ok(Some(total))
}

/// The image lab with training images as queries.
fn asked_about_itself(lab: &ImageLab, ids: &[u32]) -> Result<ImageLab, EngineError> {
    let mut images = lab.images.clone();
    images.queries = images.train.picked(ids)?;
    images.digest = Digest::of_json(&(images.digest, ids))?;
    ImageLab::new(lab.subject.clone(), images)
}

/// A lab of text whose queries are training examples: their whole loss, not that of a response.
struct Asked<'a> {
    lab: &'a dyn Lab,
    ids: &'a [u32],
}

struct AskedView<'a> {
    view: Box<dyn View + 'a>,
    ids: &'a [u32],
}

/// Some of a source's examples.
struct Picked<'a> {
    source: Box<dyn CaptureSource + 'a>,
    ids: &'a [u32],
}

impl CaptureSource for Picked<'_> {
    fn layers(&self) -> &[Layer] {
        self.source.layers()
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let own: Vec<u32> = examples.iter().map(|&e| self.ids[e as usize]).collect();
        self.source.capture(&own, labels, out)
    }
}

impl View for AskedView<'_> {
    fn train(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError> {
        self.view.train(quantity)
    }

    fn queries(&self, quantity: Quantity) -> Result<Box<dyn CaptureSource + '_>, EngineError> {
        Ok(Box::new(Picked { source: self.view.train(quantity)?, ids: self.ids }))
    }

    fn curvature(&self) -> Result<Box<dyn Operator + '_>, EngineError> {
        self.view.curvature()
    }

    fn embeddings(&self) -> Result<(Array2<f32>, Array2<f32>), EngineError> {
        let (train, _) = self.view.embeddings()?;
        let ids: Vec<usize> = self.ids.iter().map(|&i| i as usize).collect();
        let own = train.select(Axis(0), &ids);
        Ok((train, own))
    }

    fn residuals(&self) -> Result<Vec<f32>, EngineError> {
        self.view.residuals()
    }
}

impl Lab for Asked<'_> {
    fn digest(&self) -> Digest {
        self.lab.digest()
    }

    fn n_examples(&self) -> usize {
        self.lab.n_examples()
    }

    fn n_queries(&self) -> usize {
        self.ids.len()
    }

    fn model(&self, which: Which) -> Result<Box<dyn View + '_>, EngineError> {
        Ok(Box::new(AskedView { view: self.lab.model(which)?, ids: self.ids }))
    }

    fn stretches(&self) -> Vec<Stretch> {
        self.lab.stretches()
    }

    fn words(&self) -> Option<Words> {
        let (train, _) = self.lab.words()?;
        let own = self.ids.iter().map(|&i| train[i as usize].clone()).collect();
        Some((train, own))
    }

    fn tokens(&self) -> Option<Tokens<'_>> {
        let (train, _) = self.lab.tokens()?;
        let own = self.ids.iter().map(|&i| train[i as usize]).collect();
        Some((train, own))
    }

    fn texts(&self) -> Option<(Vec<String>, Vec<String>)> {
        let (train, _) = self.lab.texts()?;
        let own = self.ids.iter().map(|&i| train[i as usize].clone()).collect();
        Some((train, own))
    }

    fn datasets(&self) -> Option<Vec<u32>> {
        self.lab.datasets()
    }

    fn decoder(&self) -> Option<&DecoderLab> {
        self.lab.decoder()
    }
}
