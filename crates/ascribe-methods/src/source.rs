//! What curvature methods ask of a model: captured activations, and products with its curvature. No model lives here; the
//! engine implements these traits for classifiers and decoders, tests implement them for models small enough to check by hand.
//!
//! Parameters are those of the linear layers, as matrices `[out, in]` with the bias as a last input column that is always 1.
//! A flat vector holds the layers one after the other, each row-major: entry `start + o·n_in + i` is weight `(o, i)`.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::error::MethodError;

/// One linear layer `y = W x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Name of the module, as in the weights.
    pub name: String,
    /// Outputs.
    pub n_out: usize,
    /// Inputs, the constant 1 of a bias included.
    pub n_in: usize,
}

impl Layer {
    /// Numbers of its weight matrix.
    pub fn len(&self) -> usize {
        self.n_out * self.n_in
    }

    /// True for a layer without weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Numbers of all layers: the length of a flat vector.
pub fn dim(layers: &[Layer]) -> usize {
    layers.iter().map(Layer::len).sum()
}

/// Whose loss is differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// The example's own labels: its training loss.
    Given,
    /// Labels drawn from the model's own probabilities, the same for the same seed and example in any batch: their gradients
    /// have the true Fisher matrix as second moment.
    Sampled {
        /// Seed of the draw.
        seed: u64,
    },
}

impl Labels {
    /// Labels of another draw; given ones stay.
    #[must_use]
    pub const fn redrawn(self) -> Self {
        match self {
            Self::Given => Self::Given,
            Self::Sampled { seed } => Self::Sampled { seed: seed.wrapping_add(1) },
        }
    }
}

/// What one layer saw: row `t` of `x` and `delta` belong to one position, `∂ℓ/∂W = Σ_t δ_t x_tᵀ`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerCapture {
    /// Inputs `[T, n_in]`, the last column 1 where the layer has a bias.
    pub x: Array2<f32>,
    /// Gradients of the example's summed loss by the layer's outputs, `[T, n_out]`.
    pub delta: Array2<f32>,
}

/// What all layers saw of some examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captured {
    /// Per layer, `[n + 1]` row numbers: example `e` has rows `starts[l][e]..starts[l][e + 1]`.
    pub starts: Vec<Vec<usize>>,
    /// Per layer.
    pub layers: Vec<LayerCapture>,
    /// Summed loss of every example, in nats (of the sampled labels, if they were sampled).
    pub losses: Vec<f64>,
}

impl Captured {
    /// Examples.
    pub fn n_examples(&self) -> usize {
        self.losses.len()
    }

    /// Rows of example `e` in layer `l`: `x [t, n_in]` and `delta [t, n_out]`.
    pub fn rows(&self, l: usize, e: usize) -> (ArrayView2<'_, f32>, ArrayView2<'_, f32>) {
        let rows = self.starts[l][e]..self.starts[l][e + 1];
        let layer = &self.layers[l];
        (layer.x.slice(ndarray::s![rows.clone(), ..]), layer.delta.slice(ndarray::s![rows, ..]))
    }
}

/// Hands out captured activations. Examples are numbered `0..len()`.
pub trait CaptureSource: Sync {
    /// The layers, in the order of flat vectors.
    fn layers(&self) -> &[Layer];
    /// Number of examples.
    fn len(&self) -> usize;
    /// True without examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// One pass over `examples` into `out`, whose memory is used again. Called from many threads; an example's numbers do not
    /// depend on the others in the call.
    ///
    /// # Errors
    /// The model's.
    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError>;
}

/// A symmetric positive (semi-)definite matrix that one can multiply with: Gauss–Newton, Fisher or Hessian of the mean loss.
pub trait Operator: Sync {
    /// Length of a vector.
    fn dim(&self) -> usize;
    /// Training examples that the mean runs over.
    fn n_examples(&self) -> usize;
    /// `out[r] = H_B v[r]` for the mean over `examples` (all of them if `None`), without damping: `v`, `out` are `[R, P]`.
    ///
    /// # Errors
    /// The model's; [`MethodError::Shape`].
    fn apply(
        &self,
        examples: Option<&[u32]>,
        v: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), MethodError>;

    /// The matrix itself over all examples, `[P, P]`, without damping, from a model that has a cheaper way to it than `P` products;
    /// `None`, as here, from others. Both triangles are filled.
    ///
    /// # Errors
    /// The model's.
    fn whole(&self) -> Result<Option<Array2<f64>>, MethodError> {
        Ok(None)
    }
}
