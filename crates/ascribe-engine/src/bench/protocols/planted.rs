//! Labs with changed labels: planted errors that self-influence should find, and merged classes that the top example should
//! tell apart.
//!
//! Sources: Koh and Liang (arXiv:1703.04730, §5.4); ROC-AUC of self-influence as in dattri (arXiv:2410.04555); subclass detection
//! as in quanda (arXiv:2410.07158). Queries of the planted lab are training images, so a method's self-influence is its score of
//! an image upon itself, and costs what any queries cost.

use ascribe_core::Digest;
use ascribe_eval::Estimate;
use ascribe_eval::detection::{area_with_interval, found_area, label_top1, roc_auc};
use ascribe_linalg::Stream;
use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};

use super::{BOOTSTRAP_SEED, Figures, estimated, named};
use crate::bench::lab::ImageLab;
use crate::error::EngineError;

/// A lab whose training labels are partly wrong.
pub struct Planted {
    /// The same images with the planted labels.
    pub lab: ImageLab,
    /// `[N]`: the labels that were changed.
    pub flipped: Vec<bool>,
    /// Training images that are the lab's queries; empty while the queries are the setting's.
    pub asked: Vec<u32>,
}

/// A lab that was trained on merged classes, with the classes that it never saw.
pub struct Merged {
    /// The same images with the merged labels.
    pub lab: ImageLab,
    /// `[N]`: own classes of the training images.
    pub train: Vec<u32>,
    /// `[Q]`: own classes of the queries.
    pub queries: Vec<u32>,
}

/// How well self-influence finds planted errors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Probability that a wrong label scores higher than a right one (dattri's protocol).
    pub auc: Estimate,
    /// Area under the errors found over the labels inspected, from the highest score down (quanda's).
    pub found_area: Estimate,
}

/// Changes `part` of the training labels, each to another class drawn evenly from the rest (stream `bench/mislabel`).
///
/// # Errors
/// `part` outside (0, 1); fewer than two classes.
pub fn mislabel(lab: &ImageLab, part: f64, seed: u64) -> Result<Planted, EngineError> {
    let (train, n_classes) = (&lab.images.train, lab.images.config.num_classes as u32);
    if !(part > 0.0 && part < 1.0) {
        return Err(refused("part of the labels", "a number between 0 and 1", part));
    }
    if n_classes < 2 {
        return Err(refused("classes", "at least 2", n_classes));
    }
    let mut order: Vec<usize> = (0..train.len()).collect();
    let mut stream = Stream::new(seed, "bench/mislabel");
    stream.shuffle(&mut order);
    let n_flipped = ((part * train.len() as f64).round() as usize).clamp(1, train.len());
    let (mut labels, mut flipped) = (train.labels().to_vec(), vec![false; train.len()]);
    for &i in &order[..n_flipped] {
        let shift = 1 + stream.below(n_classes - 1);
        labels[i] = (labels[i] + shift) % n_classes;
        flipped[i] = true;
    }
    let mut images = lab.images.clone();
    images.train = images.train.with_labels(labels.clone())?;
    images.digest = Digest::of_json(&(images.digest, labels))?;
    Ok(Planted { lab: ImageLab::new(lab.subject.clone(), images)?, flipped, asked: Vec::new() })
}

impl Planted {
    /// The same with `n` training images as queries, in turn one with a wrong and one with its right label as long as there are
    /// both, so that a method that explains fewer queries still sees as many of either.
    ///
    /// # Errors
    /// No image.
    pub fn asked_about(mut self, n: usize) -> Result<Self, EngineError> {
        let flipped = &self.flipped;
        let of = |wanted: bool| (0..flipped.len() as u32).filter(move |&i| flipped[i as usize] == wanted);
        let (wrong, right): (Vec<u32>, Vec<u32>) = (of(true).collect(), of(false).collect());
        let longest = wrong.len().max(right.len());
        let turn = |i: usize| [wrong.get(i).copied(), right.get(i).copied()];
        let asked: Vec<u32> = (0..longest).flat_map(turn).flatten().take(n).collect();
        let mut images = self.lab.images.clone();
        images.queries = images.train.picked(&asked)?;
        images.digest = Digest::of_json(&(images.digest, &asked))?;
        self.lab = ImageLab::new(self.lab.subject.clone(), images)?;
        self.asked = asked;
        Ok(self)
    }

    /// Scores of the queries upon themselves.
    pub fn self_influence(&self, scores: &ArrayView2<'_, f32>) -> Vec<f64> {
        (0..scores.nrows()).map(|q| f64::from(scores[(q, self.asked[q] as usize)])).collect()
    }

    /// `mislabel_auc` with its interval, and the area under the errors found, for the first `own.len()` queries.
    ///
    /// The area is over all training images: queries hold more errors than the images do, and `(1 − p)·AUC + p/2` turns one
    /// into the other.
    ///
    /// # Errors
    /// NaN; queries of one kind only.
    pub fn figures(&self, own: &[f64]) -> Result<Figures, EngineError> {
        let labels: Vec<bool> = self.asked.iter().take(own.len()).map(|&i| self.flipped[i as usize]).collect();
        let auc = area_with_interval(roc_auc, own, &labels, BOOTSTRAP_SEED)?;
        let part = self.flipped.iter().filter(|f| **f).count() as f64 / self.flipped.len() as f64;
        let mut figures = named("mislabel_auc", Some(auc));
        figures.insert("mislabel_found_area".into(), Some((1.0 - part) * auc.mean + part / 2.0));
        Ok(figures)
    }
}

/// Holds self-influence of every training example, `[N]`, against the planted errors.
///
/// # Errors
/// Another number of scores than of labels; NaN.
pub fn detect(self_influence: &[f64], flipped: &[bool]) -> Result<Detection, EngineError> {
    Ok(Detection {
        auc: area_with_interval(roc_auc, self_influence, flipped, BOOTSTRAP_SEED)?,
        found_area: area_with_interval(found_area, self_influence, flipped, BOOTSTRAP_SEED)?,
    })
}

/// Makes one class of every `every` neighbouring ones and asks about the first `n_queries` queries.
///
/// # Errors
/// `every` below 2, or so large that one class is left.
pub fn merge(lab: &ImageLab, every: u32, n_queries: usize) -> Result<Merged, EngineError> {
    let n_classes = lab.images.config.num_classes as u32;
    if every < 2 || n_classes.div_ceil(every) < 2 {
        return Err(refused("merge", &format!("a number from 2 that leaves two of {n_classes} classes"), every));
    }
    let lab = lab.clone().limited(n_queries.min(lab.images.queries.len()))?;
    let mut images = lab.images;
    let (train, queries) = (images.train.labels().to_vec(), images.queries.labels().to_vec());
    let merged = |labels: &[u32]| labels.iter().map(|label| label / every).collect::<Vec<u32>>();
    images.train = images.train.with_labels(merged(&train))?;
    images.queries = images.queries.with_labels(merged(&queries))?;
    images.digest = Digest::of_json(&(images.digest, "merged", every))?;
    Ok(Merged { lab: ImageLab::new(lab.subject, images)?, train, queries })
}

impl Merged {
    /// `subclass_top1`: how often the example with the highest score has the query's own class.
    ///
    /// # Errors
    /// Shapes; NaN.
    pub fn figures(&self, scores: ArrayView2<'_, f32>) -> Result<Figures, EngineError> {
        let queries = &self.queries[..scores.nrows()];
        let top = label_top1(scores.mapv(f64::from).view(), queries, &self.train)?;
        Ok(named("subclass_top1", estimated(&top)?))
    }
}

fn refused(setting: &'static str, expected: &str, found: impl std::fmt::Display) -> EngineError {
    EngineError::Setting { setting, expected: expected.to_owned(), found: found.to_string() }
}
