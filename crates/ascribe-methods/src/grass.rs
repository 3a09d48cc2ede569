//! GraSS: a few seeded places of the whole gradient, then a sparse transform of those.
//!
//! `u_j = √(P/M)·g[m_j]` for M places `m` of the P numbers of a gradient, `row = S u` with one ±1 per place
//! ([`ascribe_linalg::Sjlt`]). `E⟨row, row'⟩ = ⟨g, g'⟩` over seeds. Source: arXiv:2505.18976, section 3 (random mask). Only the M places are
//! formed, from captured activations: `M·T` products per example and never a gradient. For modules that are masked on both sides
//! first (FactGraSS) see the masked bases of `projected`. Here never lives: curvature of the rows (`block_fisher`).

use ascribe_core::Progress;
use ascribe_linalg::Sjlt;
use ascribe_linalg::sparse::mask;
use ndarray::{Array2, ArrayView2};

use crate::captured;
use crate::error::MethodError;
use crate::source::{CaptureSource, Captured, Labels, Layer, dim};

/// How rows are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrassOptions {
    /// Places of the gradient that are kept; all of them if there are no more.
    pub mask: usize,
    /// Numbers of a row.
    pub dim: usize,
    /// Seed of places and signs (streams `grass/mask` and `grass/sjlt`).
    pub seed: u64,
}

/// The projection of one model's gradients.
#[derive(Clone, Debug)]
pub struct Grass {
    layers: Vec<Layer>,
    /// Per layer the kept places, rising, as (output, input); numbered through all layers.
    places: Vec<Vec<[usize; 2]>>,
    n_places: usize,
    sketch: Sjlt,
}

impl Grass {
    /// The projection for a model of these layers. Cost: `P` numbers of memory while places are drawn.
    ///
    /// # Errors
    /// [`MethodError::Parameter`] for nothing to keep; no parameters.
    pub fn new(layers: &[Layer], options: GrassOptions) -> Result<Self, MethodError> {
        for (field, value) in [("mask", options.mask), ("dim", options.dim)] {
            if value == 0 {
                return Err(MethodError::Parameter { field, expected: "at least 1", found: 0.0 });
            }
        }
        let width = dim(layers);
        if width == 0 {
            return Err(MethodError::Empty { what: "the set of parameters" });
        }
        let kept = mask(options.seed, "grass/mask", width, options.mask);
        let scale = (width as f64 / kept.len() as f64).sqrt() as f32;
        let (mut start, mut places) = (0, Vec::with_capacity(layers.len()));
        for layer in layers {
            let own = kept.iter().filter(|&&p| (start..start + layer.len()).contains(&p));
            places.push(own.map(|p| [(p - start) / layer.n_in, (p - start) % layer.n_in]).collect());
            start += layer.len();
        }
        let sketch = Sjlt::new(options.seed, "grass", options.dim, 1).scaled(scale);
        Ok(Self { layers: layers.to_vec(), places, n_places: kept.len(), sketch })
    }

    /// Numbers of a row.
    pub fn dim(&self) -> usize {
        self.sketch.dim()
    }

    /// Places of the gradient that are kept.
    pub fn n_places(&self) -> usize {
        self.n_places
    }

    /// Rows `[N, dim]` of all examples of a source. Products are added in f64 in the order of positions; bytes depend neither on
    /// threads nor on the company of an example. Cost: the source's pass and `M·T` per example.
    ///
    /// # Errors
    /// Other layers than the projection's; the source's; a number that is not finite, its example and layer named; a request to
    /// stop.
    pub fn rows(
        &self,
        source: &dyn CaptureSource,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Array2<f32>, MethodError> {
        if source.layers() != self.layers {
            let names = |layers: &[Layer]| layers.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
            return Err(MethodError::shape("layers of the source", names(&self.layers), names(source.layers())));
        }
        progress.start("GraSS rows", source.len() as u64, "examples");
        let parts = captured::stream(source, labels, progress, |ids, captured| {
            let mut out = Array2::<f32>::zeros((ids.len(), self.dim()));
            let mut kept = Vec::with_capacity(self.n_places);
            for (e, mut row) in out.rows_mut().into_iter().enumerate() {
                self.kept(captured, e, ids[e], &mut kept)?;
                self.sketch.add(0, &kept, row.as_slice_mut().expect("a fresh matrix has contiguous rows"));
            }
            Ok(out)
        })?;
        progress.finish("rows made");
        let views: Vec<ArrayView2<'_, f32>> = parts.iter().map(|part| part.view()).collect();
        match views.is_empty() {
            true => Ok(Array2::zeros((0, self.dim()))),
            false => Ok(ndarray::concatenate(ndarray::Axis(0), &views).expect("parts have one width")),
        }
    }

    /// The kept numbers of one example's gradient.
    fn kept(&self, captured: &Captured, e: usize, id: u32, out: &mut Vec<f32>) -> Result<(), MethodError> {
        out.clear();
        for (l, places) in self.places.iter().enumerate() {
            let (x, delta) = captured.rows(l, e);
            // Positions side by side: a place's products lie in two runs of memory.
            let (x, delta) = (x.t().as_standard_layout().into_owned(), delta.t().as_standard_layout().into_owned());
            for &[o, i] in places {
                let sum: f64 = delta.row(o).iter().zip(x.row(i)).map(|(&d, &x)| f64::from(d) * f64::from(x)).sum();
                if !sum.is_finite() {
                    return Err(captured::not_finite(id, &self.layers[l].name, sum));
                }
                out.push(sum as f32);
            }
        }
        Ok(())
    }

    /// Rows of flat vectors `[R, P]`.
    ///
    /// # Errors
    /// Vectors of another length; NaN.
    pub fn project(&self, vectors: ArrayView2<'_, f32>) -> Result<Array2<f32>, MethodError> {
        captured::check_vectors(&self.layers, vectors)?;
        let mut out = Array2::<f32>::zeros((vectors.nrows(), self.dim()));
        for (mut to, from) in out.rows_mut().into_iter().zip(vectors.rows()) {
            let (mut start, mut kept) = (0, Vec::with_capacity(self.n_places));
            for (layer, places) in self.layers.iter().zip(&self.places) {
                kept.extend(places.iter().map(|[o, i]| from[start + o * layer.n_in + i]));
                start += layer.len();
            }
            self.sketch.add(0, &kept, to.as_slice_mut().expect("a fresh matrix has contiguous rows"));
        }
        Ok(out)
    }
}
