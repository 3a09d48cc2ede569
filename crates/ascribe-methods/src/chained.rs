//! Several sources as one: the examples of the first, then those of the second, and so on.
//!
//! Checkpoints of one training run chained over the same examples give curvature that is averaged over the checkpoints, as
//! SOURCE asks for (arXiv:2405.12186). Here never lives: anything about checkpoints.

use ndarray::{Array2, ArrayView2, Axis};

use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer, LayerCapture};

/// Sources with the same layers, one after the other.
pub struct Chained<'a> {
    sources: Vec<&'a dyn CaptureSource>,
    /// Number of the first example of every source, and the total.
    starts: Vec<usize>,
}

impl<'a> Chained<'a> {
    /// Chains `sources`.
    ///
    /// # Errors
    /// No source; layers that differ.
    pub fn new(sources: Vec<&'a dyn CaptureSource>) -> Result<Self, MethodError> {
        let Some(first) = sources.first() else { return Err(MethodError::Empty { what: "the list of sources" }) };
        for source in &sources {
            if source.layers() != first.layers() {
                return Err(MethodError::shape("layers of a chained source", first.layers(), source.layers()));
            }
        }
        let mut starts = vec![0];
        for source in &sources {
            starts.push(starts[starts.len() - 1] + source.len());
        }
        Ok(Self { sources, starts })
    }
}

impl CaptureSource for Chained<'_> {
    fn layers(&self) -> &[Layer] {
        self.sources[0].layers()
    }

    fn len(&self) -> usize {
        self.starts[self.sources.len()]
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let place = |e: u32| self.starts.partition_point(|&start| start <= e as usize) - 1;
        if let Some(e) = examples.iter().find(|&&e| e as usize >= self.len()) {
            return Err(MethodError::shape("number of an example", format!("below {}", self.len()), e));
        }
        let mut runs = examples.chunk_by(|&a, &b| place(a) == place(b));
        let local = |run: &[u32]| -> (usize, Vec<u32>) {
            let source = place(run[0]);
            (source, run.iter().map(|e| e - self.starts[source] as u32).collect())
        };
        let Some(first) = runs.next() else { return self.sources[0].capture(examples, labels, out) };
        let (source, ids) = local(first);
        self.sources[source].capture(&ids, labels, out)?;
        for run in runs {
            let (source, ids) = local(run);
            let mut more = Captured::default();
            self.sources[source].capture(&ids, labels, &mut more)?;
            append(out, &more);
        }
        Ok(())
    }
}

/// Puts the examples of `more` behind those of `out`.
fn append(out: &mut Captured, more: &Captured) {
    out.losses.extend(&more.losses);
    for (starts, others) in out.starts.iter_mut().zip(&more.starts) {
        let base = starts.last().copied().unwrap_or(0);
        starts.extend(others.iter().skip(1).map(|s| base + s));
    }
    for (own, other) in out.layers.iter_mut().zip(&more.layers) {
        let join = |a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>| -> Array2<f32> {
            ndarray::concatenate(Axis(0), &[a, b]).expect("sources with the same layers have the same columns")
        };
        *own =
            LayerCapture { x: join(own.x.view(), other.x.view()), delta: join(own.delta.view(), other.delta.view()) };
    }
}
