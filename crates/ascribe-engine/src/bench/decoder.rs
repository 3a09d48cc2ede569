//! Decoders as curvature methods see them: captured activations of examples and products with the Gauss–Newton matrix, in the
//! shapes that methods ask for.
//!
//! Here lives: the way from a decoder's passes (models) to the traits of methods. Here never lives: passes or methods.

use ascribe_corpus::Corpus;
use ascribe_methods::MethodError;
use ascribe_methods::projected::Basis;
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture, Operator};
use ascribe_models::{
    Capture, Decoder, Example, GivenBases, Granularity, LinearTap, Loss, ModelError, ModuleBasis, Sequence, TapRows,
    TappedDecoder,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::bank::query_sequences;

/// The training examples of a corpus; their number in the corpus is their id.
pub fn training_examples(corpus: &Corpus) -> Vec<Example<'_>> {
    let examples = corpus.examples.iter().enumerate();
    examples.map(|(i, example)| Example::numbered(Sequence::whole(&example.tokens), i as u64)).collect()
}

/// The responses of a corpus: the prompt is context, the rest counts.
pub fn query_examples(corpus: &Corpus) -> Vec<Example<'_>> {
    query_sequences(corpus).into_iter().enumerate().map(|(i, query)| Example::numbered(query, i as u64)).collect()
}

/// The tracked modules as methods name them.
fn layers(tapped: &TappedDecoder<'_>) -> Vec<Layer> {
    let layer = |tap: &LinearTap| Layer { name: tap.name.clone(), n_out: tap.n_out, n_in: tap.n_in };
    tapped.taps().iter().map(layer).collect()
}

/// Fitted bases (such as `Kron::leading`'s) as projections of gradient rows: `bases` in the order of the source's layers, for
/// `GradientStage::with_bases` with taps of the same granularity.
///
/// # Errors
/// Another number of bases than layers; a layer with a bias, whose basis mixes the constant input in
/// ([`DecoderSource::without_biases`] makes sources without).
pub fn given_bases(source: &DecoderSource<'_>, bases: &[Basis]) -> Result<GivenBases, ModelError> {
    let taps = source.tapped.taps();
    let refuse = |expected: String, found: String| ModelError::Mismatch { what: "fitted bases", expected, found };
    if bases.len() != taps.len() {
        return Err(refuse(format!("{}, one per layer", taps.len()), bases.len().to_string()));
    }
    if let Some(tap) = taps.iter().find(|tap| tap.has_bias) {
        return Err(refuse("layers without biases".into(), tap.name.clone()));
    }
    let narrow = |side: &Array2<f64>| side.mapv(|x| x as f32);
    let pair = |(tap, basis): (&LinearTap, &Basis)| {
        (tap.name.clone(), ModuleBasis { input: narrow(&basis.input), output: narrow(&basis.output) })
    };
    GivenBases::new(taps.iter().zip(bases).map(pair).collect())
}

/// Some examples of a decoder, with what its tracked linear modules saw of them.
///
/// [`Labels::Given`] means [`DecoderSource::with_loss`]'s loss (next token, unless said otherwise), [`Labels::Sampled`] labels
/// drawn from the model, named by the example's id and position. An example's numbers depend on nothing but the example.
#[derive(Debug)]
pub struct DecoderSource<'m> {
    tapped: TappedDecoder<'m>,
    layers: Vec<Layer>,
    examples: Vec<Example<'m>>,
    loss: Loss,
}

impl<'m> DecoderSource<'m> {
    /// Tracks the linear modules of `decoder` whose names match one of `modules` (`["*"]` for all) over `examples`.
    ///
    /// # Errors
    /// See [`TappedDecoder::new`].
    pub fn new(
        decoder: &'m Decoder,
        examples: Vec<Example<'m>>,
        modules: &[&str],
        granularity: Granularity,
    ) -> Result<Self, ModelError> {
        let tapped = TappedDecoder::new(decoder, modules, granularity)?;
        let layer =
            |tap: &ascribe_models::LinearTap| Layer { name: tap.name.clone(), n_out: tap.n_out, n_in: tap.n_in };
        let layers = tapped.taps().iter().map(layer).collect();
        Ok(Self { tapped, layers, examples, loss: Loss::NextToken })
    }

    /// The same with another loss for the examples' own labels: [`Loss::Margin`] for TRAK.
    #[must_use]
    pub fn with_loss(self, loss: Loss) -> Self {
        Self { loss, ..self }
    }

    /// The same with biases as constants: weights alone, for [`given_bases`].
    #[must_use]
    pub fn without_biases(self) -> Self {
        let tapped = self.tapped.without_biases();
        Self { layers: layers(&tapped), tapped, ..self }
    }

    /// The decoder with its tracked modules.
    pub fn tapped(&self) -> &TappedDecoder<'m> {
        &self.tapped
    }

    /// The examples.
    pub fn examples(&self) -> &[Example<'m>] {
        &self.examples
    }

    /// The examples of these numbers.
    fn pick(&self, examples: &[u32]) -> Result<Vec<Example<'m>>, MethodError> {
        let pick = |&e: &u32| {
            self.examples.get(e as usize).copied().ok_or_else(|| MethodError::Shape {
                what: "example",
                expected: format!("below {}", self.examples.len()),
                found: e.to_string(),
            })
        };
        examples.iter().map(pick).collect()
    }
}

impl CaptureSource for DecoderSource<'_> {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.examples.len()
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let picked = self.pick(examples)?;
        let loss = match labels {
            Labels::Given => self.loss,
            Labels::Sampled { seed } => Loss::Sampled { seed },
        };
        let mut capture = take(out);
        let done = self.tapped.capture(&picked, loss, &mut capture);
        give(&self.layers, capture, out);
        done.map_err(|source| failed("a pass over examples", examples, source))
    }
}

/// The Gauss–Newton matrix of a source's mean loss: `H_B = (1/|B|) Σ_i Σ_t J_tᵀ(diag p_t − p_t p_tᵀ)J_t`, the Fisher matrix of
/// the model's own distribution. Exact products in f32, added over examples in f64; whatever loss the source has, the curvature
/// is that of the next-token loss.
#[derive(Clone, Copy, Debug)]
pub struct DecoderCurvature<'a, 'm>(pub &'a DecoderSource<'m>);

impl Operator for DecoderCurvature<'_, '_> {
    fn dim(&self) -> usize {
        self.0.tapped.dim()
    }

    fn n_examples(&self) -> usize {
        self.0.examples.len()
    }

    fn apply(
        &self,
        examples: Option<&[u32]>,
        v: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), MethodError> {
        if v.dim() != out.dim() {
            let (expected, found) = (format!("{:?}", v.dim()), format!("{:?}", out.dim()));
            return Err(MethodError::Shape { what: "products with the curvature", expected, found });
        }
        let picked: Vec<Example<'_>>;
        let chosen = match examples {
            Some(examples) => {
                picked = self.0.pick(examples)?;
                &picked[..]
            }
            None => &self.0.examples[..],
        };
        if chosen.is_empty() {
            return Err(MethodError::Empty { what: "the batch of a curvature product" });
        }
        let sums = self.0.tapped.gauss_newton(chosen, v);
        let sums =
            sums.map_err(|source| failed("a curvature product over examples", examples.unwrap_or(&[]), source))?;
        let n = chosen.len() as f64;
        out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = (sum / n) as f32);
        Ok(())
    }
}

/// A model's error as a method's.
fn failed(pass: &str, examples: &[u32], source: ModelError) -> MethodError {
    let at = match examples {
        [] => pass.to_owned(),
        [one] => format!("{pass} {one}"),
        [first, .., last] => format!("{pass} {first} to {last}"),
    };
    MethodError::Model { at, source: Box::new(source) }
}

/// The memory of `out`, for the next pass.
fn take(out: &mut Captured) -> Capture {
    let memory = |matrix: &mut Array2<f32>| std::mem::take(matrix).into_raw_vec_and_offset().0;
    let starts = std::mem::take(&mut out.starts).into_iter().chain(std::iter::repeat(vec![]));
    let rows = |(layer, starts): (&mut LayerCapture, Vec<usize>)| TapRows {
        starts,
        x: memory(&mut layer.x),
        delta: memory(&mut layer.delta),
    };
    Capture { taps: out.layers.iter_mut().zip(starts).map(rows).collect(), losses: std::mem::take(&mut out.losses) }
}

/// What a pass left, as methods read it.
fn give(layers: &[Layer], capture: Capture, out: &mut Captured) {
    out.losses = capture.losses;
    out.starts.clear();
    out.layers.clear();
    for (layer, rows) in layers.iter().zip(capture.taps) {
        let n = rows.starts.last().copied().unwrap_or(0);
        let matrix = |numbers, width| Array2::from_shape_vec((n, width), numbers).expect("a tap's rows have its width");
        out.layers.push(LayerCapture { x: matrix(rows.x, layer.n_in), delta: matrix(rows.delta, layer.n_out) });
        out.starts.push(rows.starts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ascribe_models::{DecoderConfig, Sequence};

    /// The trait's contract on a small decoder: row numbers, shapes, sampled labels that belong to the example, memory that
    /// is used again, numbers beyond the end.
    #[test]
    fn captured_rows_belong_to_their_examples() {
        let decoder = Decoder::init(DecoderConfig::llama(32, 16, 24, 2, 2, 2, 12), 3).unwrap();
        let texts: [&[u32]; 3] = [&[1, 2, 3, 1, 2, 3], &[5], &[7, 8, 9, 7, 8, 9, 7, 8]];
        let examples: Vec<Example<'_>> =
            texts.iter().enumerate().map(|(i, t)| Example::numbered(Sequence::whole(t), i as u64)).collect();
        let source = DecoderSource::new(&decoder, examples, &["*mlp*"], Granularity::Module).unwrap();
        assert_eq!((source.len(), source.layers().len()), (3, 6));
        let (mut all, mut one) = (Captured::default(), Captured::default());
        for labels in [Labels::Given, Labels::Sampled { seed: 1 }] {
            source.capture(&[2, 1, 0], labels, &mut all).unwrap();
            assert_eq!((all.n_examples(), &all.starts[0][..]), (3, &[0, 7, 7, 12][..]));
            source.capture(&[0], labels, &mut one).unwrap();
            assert_eq!(one.losses[0], all.losses[2]);
            for l in 0..6 {
                assert_eq!(one.rows(l, 0), all.rows(l, 2));
                let (layer, (x, delta)) = (&source.layers()[l], one.rows(l, 0));
                assert_eq!((x.ncols(), delta.ncols()), (layer.n_in, layer.n_out));
            }
        }
        source.capture(&[], Labels::Given, &mut all).unwrap();
        assert_eq!((all.n_examples(), all.layers[0].x.dim()), (0, (0, 16)));
        assert!(source.capture(&[3], Labels::Given, &mut all).unwrap_err().to_string().contains("below 3"));
    }
    /// The mean over a batch is the mean of products over its examples, and the whole is the batch of all; what does not fit is
    /// refused.
    #[test]
    fn curvature_products_are_means_over_the_batch() {
        let decoder = Decoder::init(DecoderConfig::llama(32, 16, 24, 2, 2, 2, 12), 3).unwrap();
        let texts: [&[u32]; 3] = [&[1, 2, 3, 1, 2, 3], &[5, 6, 5], &[7, 8, 9, 7, 8, 9, 7, 8]];
        let source =
            DecoderSource::new(&decoder, texts.map(Example::whole).to_vec(), &["*"], Granularity::Module).unwrap();
        let curvature = DecoderCurvature(&source);
        let v = Array2::from_shape_fn((2, curvature.dim()), |(r, p)| ((p * 7 + r * 3) % 11) as f32 - 5.0);
        let product = |examples: Option<&[u32]>| {
            let mut out = Array2::zeros(v.dim());
            curvature.apply(examples, v.view(), out.view_mut()).unwrap();
            out
        };
        let all = product(None);
        assert_eq!(all, product(Some(&[0, 1, 2])));
        let each = [0, 1, 2].map(|e| product(Some(&[e])));
        let mean = (&each[0] + &each[1] + &each[2]) / 3.0;
        let size = all.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(size > 0.0 && mean.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-5 * size));
        let mut out = Array2::zeros(v.dim());
        assert!(curvature.apply(Some(&[]), v.view(), out.view_mut()).is_err());
        assert!(curvature.apply(Some(&[3]), v.view(), out.view_mut()).is_err());
        let mut short = Array2::zeros((1, curvature.dim()));
        assert!(curvature.apply(None, v.view(), short.view_mut()).is_err());
    }
    /// LoGra's PCA form by two routes: rows of the gradient stage under given matrices, and gradients of the projected source.
    #[test]
    fn rows_under_fitted_bases_are_gradients_of_the_projected_source() {
        use ascribe_core::NoProgress;
        use ascribe_methods::captured;
        use ascribe_methods::kron::{Kron, Options};
        use ascribe_methods::projected::Projected;
        use ascribe_models::{GradientStage, TapConfig};
        let decoder = Decoder::init(DecoderConfig::llama(32, 16, 24, 2, 2, 2, 12), 3).unwrap();
        let texts: Vec<Vec<u32>> =
            (0..9u32).map(|i| (0..12).map(|t| (i * 5 + t * t * (1 + i % 3)) % 32).collect()).collect();
        let examples: Vec<Example<'_>> = texts.iter().map(|t| Example::whole(t)).collect();
        let source = DecoderSource::new(&decoder, examples.clone(), &["*.*"], Granularity::Module).unwrap();
        let kron = Kron::fit(&source, &Options::default(), &NoProgress).unwrap();
        let bases = kron.leading(4, 3).unwrap();
        let config = TapConfig::modules(0, 1, &["*.*"]);
        let stage = GradientStage::with_bases(&decoder, config, &given_bases(&source, &bases).unwrap()).unwrap();
        let mut rows = Array2::zeros((9, stage.dim()));
        stage.rows_of(&examples, rows.view_mut()).unwrap();
        let projected = Projected::new(&source, &bases).unwrap();
        let all: Vec<u32> = (0..9).collect();
        let expected = captured::gradients(&projected, &all, Labels::Given).unwrap();
        assert_eq!(rows.dim(), expected.dim());
        let size = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(size > 0.0 && rows.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * size));
        assert!(given_bases(&source, &bases[1..]).is_err());
    }
}
