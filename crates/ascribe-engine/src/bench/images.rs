//! Classifiers as the methods see them: captured rows, products with the curvature, gradients of queries. All vectors are in
//! layer form. What a bank is and how its models are trained stands in `bank` and `runners`.

use ascribe_methods::MethodError;
use ascribe_methods::source::{CaptureSource, Captured, Labels, Layer, LayerCapture, Operator};
use ascribe_models::ModelError;
use ascribe_models::vision::{
    Classifier, ClassifierRecipe, Curvature, ImageSet, LayerRows, Measure, Objective, Replay, Target,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::setting::Images;
use crate::error::EngineError;

/// What a classifier sees of a set's images; examples are numbered by their place in the set.
#[derive(Clone, Debug)]
pub struct ImageSource<'a> {
    model: &'a Classifier,
    set: &'a ImageSet,
    layers: Vec<Layer>,
    measure: QueryMeasure,
}

impl<'a> ImageSource<'a> {
    /// Captures of all images of `set`, of their cross-entropy.
    pub fn new(model: &'a Classifier, set: &'a ImageSet) -> Self {
        Self { model, set, layers: layers(model), measure: QueryMeasure::Loss }
    }

    /// The same of another measure.
    #[must_use]
    pub fn of(self, measure: QueryMeasure) -> Self {
        Self { measure, ..self }
    }
}

/// The layers of a classifier: convolutions (their inputs are patches) and dense layers. Norms have none.
pub fn layers(model: &Classifier) -> Vec<Layer> {
    let layer = |l: ascribe_models::vision::LinearLayer| Layer { name: l.name, n_out: l.n_out, n_in: l.n_in };
    model.linear_layers().into_iter().map(layer).collect()
}

impl CaptureSource for ImageSource<'_> {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.set.len()
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        let target = match labels {
            Labels::Given => Target::Label,
            Labels::Sampled { seed } => Target::Sampled { seed },
        };
        // The arrays' memory goes to the model and comes back filled.
        let take = |array: &mut Array2<f32>| std::mem::take(array).into_raw_vec_and_offset().0;
        let mut rows: Vec<LayerRows> =
            out.layers.iter_mut().map(|l| LayerRows { x: take(&mut l.x), delta: take(&mut l.delta) }).collect();
        let (measure, sign) = match self.measure {
            QueryMeasure::Loss => (Measure::CrossEntropy, 1.0),
            QueryMeasure::NegativeMargin => (Measure::Margin, -1.0),
        };
        let objective = Objective { measure, target };
        let captured = self.model.capture(self.set, examples, objective, &mut rows);
        out.losses = captured.map_err(|e| failed("a capturing pass", examples, e))?;
        if sign < 0.0 {
            out.losses.iter_mut().for_each(|loss| *loss = -*loss);
            rows.iter_mut().for_each(|rows| rows.delta.iter_mut().for_each(|d| *d = -*d));
        }
        out.starts.resize_with(rows.len(), Vec::new);
        out.layers.clear();
        for ((rows, layer), starts) in rows.into_iter().zip(&self.layers).zip(&mut out.starts) {
            let n = rows.delta.len() / layer.n_out;
            let positions = n / examples.len().max(1);
            starts.clear();
            starts.extend((0..=examples.len()).map(|e| e * positions));
            let array = |columns, flat| Array2::from_shape_vec((n, columns), flat).expect("whole rows were captured");
            out.layers.push(LayerCapture { x: array(layer.n_in, rows.x), delta: array(layer.n_out, rows.delta) });
        }
        Ok(())
    }
}

/// The curvature of a classifier's mean loss over a set.
#[derive(Clone, Debug)]
pub struct ImageCurvature<'a> {
    model: &'a Classifier,
    set: &'a ImageSet,
    kind: Curvature,
    dim: usize,
}

impl<'a> ImageCurvature<'a> {
    /// Products with the Gauss–Newton matrix or the Hessian over the images of `set`.
    pub fn new(model: &'a Classifier, set: &'a ImageSet, kind: Curvature) -> Self {
        Self { model, set, kind, dim: model.layer_dim() }
    }
}

impl Operator for ImageCurvature<'_> {
    fn dim(&self) -> usize {
        self.dim
    }

    fn n_examples(&self) -> usize {
        self.set.len()
    }

    fn apply(
        &self,
        examples: Option<&[u32]>,
        v: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), MethodError> {
        let all: Vec<u32>;
        let examples = match examples {
            Some(examples) => examples,
            None => {
                all = places(self.set);
                &all
            }
        };
        let done = self.model.curvature_products(self.set, examples, self.kind, v, out);
        done.map_err(|e| failed("products with the curvature", examples, e))
    }

    fn whole(&self) -> Result<Option<Array2<f64>>, MethodError> {
        let examples = places(self.set);
        self.model.whole_curvature(self.set, &examples).map_err(|e| failed("the curvature", &examples, e))
    }
}

/// Whose gradients queries are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueryMeasure {
    /// Cross-entropy of the label.
    Loss,
    /// Minus the margin of the label: like a loss, smaller is better.
    NegativeMargin,
}

/// Gradients in layer form `[Q, P]` of all images of `queries`; of something that is better when it is smaller, so that
/// `⟨q, H⁻¹ g⟩ > 0` means that the training image helps.
///
/// # Errors
/// The model's.
pub fn query_gradients(
    model: &Classifier,
    queries: &ImageSet,
    measure: QueryMeasure,
) -> Result<Array2<f32>, EngineError> {
    let (objective, sign) = match measure {
        QueryMeasure::Loss => (Objective::LOSS, 1.0),
        QueryMeasure::NegativeMargin => (Objective::MARGIN, -1.0),
    };
    let mut gradients = model.layer_gradients(queries, &places(queries), objective)?;
    gradients.mapv_inplace(|g| sign * g);
    Ok(gradients)
}

/// MAGIC scores `[q, N]` (arXiv:2504.16430) of the first `q` queries, positive = proponent, and the trained classifier: the
/// derivative of each query's margin by each training image's weight, through the whole run of `recipe` with its seed.
///
/// Summed over the images that a replay leaves out it predicts how far the margin falls, in nats.
///
/// # Errors
/// As [`Replay::metagradients`]; more queries than there are.
pub fn magic(
    images: &Images,
    recipe: &ClassifierRecipe,
    n_queries: usize,
) -> Result<(Array2<f64>, Classifier), EngineError> {
    if n_queries > images.queries.len() {
        let expected = format!("at most {}", images.queries.len());
        return Err(EngineError::Setting { setting: "queries", expected, found: n_queries.to_string() });
    }
    let replay = Replay::new(images.config.clone(), recipe.clone(), &images.train)?;
    let ids = &places(&images.queries)[..n_queries];
    let meta = replay.metagradients(None, &images.queries, ids, Objective::MARGIN)?;
    Ok((meta.values, meta.classifier))
}

/// All places of a set.
pub fn places(set: &ImageSet) -> Vec<u32> {
    (0..set.len() as u32).collect()
}

fn failed(pass: &str, examples: &[u32], source: ModelError) -> MethodError {
    let which = match examples {
        [] => "no images".to_owned(),
        [one] => format!("image {one}"),
        [first, .., last] => format!("{} images, {first} to {last}", examples.len()),
    };
    MethodError::Model { at: format!("{pass} of {which}"), source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ascribe_linalg::Stream;
    use ascribe_methods::source::dim;
    use ascribe_models::vision::{ClassifierConfig, ClassifierKind, Normalization};

    use super::*;

    fn setting(kind: ClassifierKind) -> (Classifier, ImageSet) {
        let mut stream = Stream::new(4, "images");
        let pixels = (0..9 * 144).map(|_| stream.normal() as f32).collect();
        let labels = (0..9).map(|i| i % 3).collect();
        let set = ImageSet::from_f32([1, 12, 12], pixels, labels, &Normalization::default()).unwrap();
        (Classifier::init(ClassifierConfig::new([1, 12, 12], 3, kind), 2).unwrap(), set)
    }

    fn kinds() -> [ClassifierKind; 3] {
        let lenet = ClassifierKind::LeNet {
            channels: [2, 3],
            kernel_size: 3,
            padding: 1,
            pool: ascribe_models::vision::Pooling::Max,
            widths: [6, 5],
        };
        [ClassifierKind::LogisticRegression, ClassifierKind::Mlp { widths: vec![7] }, lenet]
    }

    /// Captured rows make the gradients, memory is used again, and the operator is symmetric and fits the layers.
    #[test]
    fn captures_gradients_and_curvature_speak_of_the_same_vectors() {
        for kind in kinds() {
            let (model, set) = setting(kind);
            let source = ImageSource::new(&model, &set);
            let p = dim(source.layers());
            let gradients = query_gradients(&model, &set, QueryMeasure::Loss).unwrap();
            assert_eq!((source.len(), gradients.dim()), (9, (9, p)));
            let mut out = Captured::default();
            source.capture(&[0, 1, 2, 3], Labels::Sampled { seed: 1 }, &mut out).unwrap();
            source.capture(&[5, 2], Labels::Given, &mut out).unwrap();
            for (e, id) in [5, 2].into_iter().enumerate() {
                let mut start = 0;
                for (l, layer) in source.layers().iter().enumerate() {
                    let (x, delta) = out.rows(l, e);
                    let ours = delta.t().dot(&x);
                    let theirs = gradients.row(id);
                    let theirs = theirs.slice(ndarray::s![start..start + layer.len()]);
                    let off = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(off < 1e-5, "{} of image {id}: {off}", layer.name);
                    start += layer.len();
                }
            }
            for kind in [Curvature::GaussNewton, Curvature::Hessian] {
                let curvature = ImageCurvature::new(&model, &set, kind);
                assert_eq!((curvature.dim(), curvature.n_examples()), (p, 9));
                let mut out = Array2::zeros((9, p));
                curvature.apply(None, gradients.view(), out.view_mut()).unwrap();
                let table = out.dot(&gradients.t());
                let top = table.iter().fold(0f32, |top, x| top.max(x.abs()));
                let off = (&table - &table.t()).iter().fold(0f32, |top, x| top.max(x.abs()));
                assert!(top > 0.0 && off < 1e-5 * top, "{kind:?}: {off} of {top}");
            }
        }
    }

    /// LDS of MAGIC against the shipped banks of replays, and its cost: `cargo test --release -p ascribe-engine --lib -- \
    /// --ignored --nocapture magic_by_the_part`.
    #[test]
    #[ignore = "CPU-minutes; prints the figures of the report"]
    fn magic_by_the_part_that_is_kept() {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let home = crate::home::Home::find(Some(&home)).unwrap();
        for name in ["mnist-mlp-smooth", "mnist-mlp"] {
            println!("{name}");
            magic_against_banks(&super::super::setting::Setting::named(&home, name).unwrap());
        }
    }

    fn magic_against_banks(setting: &super::super::setting::Setting) {
        let super::super::setting::Subject::Images(subject) = &setting.subject else { unreachable!() };
        let images = subject.open(&setting.dir).unwrap();
        let n_queries = 100;
        let recipe = ClassifierRecipe { seed: 1, ..subject.train.clone() };
        let (before, clock) = (crate::machine::cpu_seconds(), std::time::Instant::now());
        let scores = magic(&images, &recipe, n_queries).unwrap().0;
        let cpu = crate::machine::cpu_seconds() - before;
        println!("{n_queries} queries, {cpu:.1} CPU s, {:.1} s", clock.elapsed().as_secs_f64());
        let judge = |scores: &Array2<f64>, bank: &super::super::bank::RetrainBank, outcomes: Array2<f64>| {
            let losses = outcomes.t().slice(ndarray::s![..n_queries, ..]).mapv(|x| -x);
            let all = ascribe_eval::lds::lds(scores.view(), bank.kept.view(), losses.view()).unwrap();
            all.into_iter().flatten().sum::<f64>() / n_queries as f64
        };
        for name in setting.banks.keys() {
            let Ok(bank) = super::super::runners::read_bank(setting, name) else { continue };
            let Some(s) = bank.seeds.iter().position(|&seed| seed == 1) else { continue };
            let own = bank.outcomes.index_axis(ndarray::Axis(0), s).to_owned();
            println!("{name}: LDS {:.4}", judge(&scores, &bank, own));
        }
    }

    #[test]
    fn foreign_images_are_refused_by_place() {
        let (model, set) = setting(ClassifierKind::LogisticRegression);
        let source = ImageSource::new(&model, &set);
        let message = source.capture(&[3, 99], Labels::Given, &mut Captured::default()).unwrap_err().to_string();
        assert!(message.contains("3 to 99"), "{message}");
    }
}
