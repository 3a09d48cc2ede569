//! Training of an image classifier from a recipe file: images and labels in, a model folder out; resumed where it stopped.
//!
//! ```toml
//! [model]                       # the fields of the classifier's config.json; shape and classes come from the data
//! kind = "mlp"                  # lr, mlp, lenet or resnet9
//! widths = [128, 64]
//!
//! [data]                        # .npy or IDX files, relative to this one
//! images = "train-images.npy"
//! labels = "train-labels.npy"
//! mean = [0.1307]
//! std = [0.3081]
//!
//! [held_out]                    # optional
//! images = "test-images.npy"
//! labels = "test-labels.npy"
//!
//! [train]
//! epochs = 12
//! batch = 64
//! lr = 0.03
//! schedule = "linear"           # constant, linear or cosine
//! weight_decay = 0.0005
//! optimizer = { kind = "sgd", momentum = 0.9 } # sgd, adam or adamw
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Progress, RowType};
use ascribe_models::vision::{
    Classifier, ClassifierConfig, ClassifierRecipe, ClassifierStep, ClassifierTrainer, ImageSet, Normalization,
    Objective, Optimizer, WEIGHTS_FILE,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::run::{LOSS_LOG_FILE, LossLine, read_log};
use crate::error::EngineError;
use crate::files;

const STATE_DIR: &str = ".state";

/// Steps between two saved states.
const STATE_EVERY_STEPS: u64 = 200;

/// A recipe file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecipe {
    /// `kind` and sizes of the network, as in its `config.json`; checked there.
    pub model: toml::Table,
    /// What it learns from.
    pub data: ImageData,
    /// What it is judged on, normalised like `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<ImageFiles>,
    /// How.
    pub train: ClassifierRecipe,
    /// Epochs after which the weights are kept, ascending.
    #[serde(default)]
    pub checkpoint_epochs: Vec<u32>,
}

/// Two files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFiles {
    /// Images, `.npy` or IDX.
    pub images: PathBuf,
    /// Their classes, `.npy` or IDX.
    pub labels: PathBuf,
}

/// Training data of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageData {
    /// Images, `.npy` or IDX.
    pub images: PathBuf,
    /// Their classes, `.npy` or IDX.
    pub labels: PathBuf,
    /// Subtracted, per channel or once.
    #[serde(default = "zero")]
    pub mean: Vec<f32>,
    /// Divided by, per channel or once.
    #[serde(default = "one")]
    pub std: Vec<f32>,
    /// Places of images that are left out.
    #[serde(default)]
    pub exclude: Vec<u32>,
}

fn zero() -> Vec<f32> {
    Normalization::default().mean
}

fn one() -> Vec<f32> {
    Normalization::default().std
}

/// How a classifier does on some images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// Images.
    pub images: u64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Share of images classified as labelled.
    pub accuracy: f64,
}

/// What a run tells.
#[derive(Clone, Debug, Serialize)]
pub struct ImageTrainReport {
    /// Model folder.
    pub out: PathBuf,
    /// Parameters.
    pub parameters: u64,
    /// Images that it learnt from.
    pub images: u64,
    /// Steps of the recipe.
    pub steps: u64,
    /// Seconds of this call.
    pub seconds: f64,
    /// Images per second of this call's steps.
    pub images_per_second: f64,
    /// The finished model on its training images.
    pub train: Judgement,
    /// The finished model on held-out images.
    pub held_out: Option<Judgement>,
}

/// True if the file is a recipe for images: it says where images are, which a recipe for text never does.
///
/// # Errors
/// A file that cannot be read, or is no TOML.
pub fn is_image_recipe(path: &Path) -> Result<bool, EngineError> {
    let text = std::fs::read_to_string(path).map_err(|e| EngineError::io(path, e))?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|e| EngineError::Recipe { path: path.into(), why: e.to_string() })?;
    Ok(table.get("data").is_some_and(|data| data.get("images").is_some()))
}

impl ImageRecipe {
    /// Reads a recipe file; paths in it become relative to where the caller stands.
    ///
    /// # Errors
    /// The file, and the field that is wrong.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let text = std::fs::read_to_string(path).map_err(|e| EngineError::io(path, e))?;
        let refuse = |why: String| EngineError::Recipe { path: path.into(), why };
        let mut recipe: Self = toml::from_str(&text).map_err(|e| refuse(e.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let held_out = recipe.held_out.iter_mut().flat_map(|files| [&mut files.images, &mut files.labels]);
        for file in held_out.chain([&mut recipe.data.images, &mut recipe.data.labels]) {
            *file = folder.join(&*file);
        }
        recipe.train.validate()?;
        let epochs = &recipe.checkpoint_epochs;
        let ascending = epochs.windows(2).all(|pair| pair[0] < pair[1]);
        let within = epochs.iter().all(|&epoch| (1..=recipe.train.epochs).contains(&epoch));
        if !ascending || !within || (recipe.train.steps.is_some() && !epochs.is_empty()) {
            let expected = "ascending epochs from 1 to `epochs`, and none beside `steps`";
            return Err(refuse(format!("field `checkpoint_epochs`: expected {expected}, found {epochs:?}")));
        }
        Ok(recipe)
    }

    /// The network for images like those of `set`.
    ///
    /// # Errors
    /// The recipe file `path` and the field that does not fit.
    pub fn config(&self, path: &Path, set: &ImageSet) -> Result<ClassifierConfig, EngineError> {
        network(&self.model, set, path)
    }

    fn normalization(&self) -> Normalization {
        Normalization { mean: self.data.mean.clone(), std: self.data.std.clone() }
    }
}

/// The network that the table `model` (`kind` and sizes, as in a `config.json`) describes, for images like those of `set`.
///
/// # Errors
/// The file `path` that the table came from, and the field that does not fit.
pub fn network(model: &toml::Table, set: &ImageSet, path: &Path) -> Result<ClassifierConfig, EngineError> {
    let mut fields = match serde_json::to_value(model)? {
        Value::Object(fields) => fields,
        other => serde_json::Map::from_iter([("model".to_owned(), other)]),
    };
    if let Some(kind) = fields.remove("kind") {
        let kind = kind.as_str().map_or_else(|| kind.to_string(), str::to_owned);
        fields.insert("model_type".into(), format!("ascribe-{kind}").into());
    }
    fields.entry("input_shape").or_insert_with(|| Value::from(set.shape().to_vec()));
    fields.entry("num_classes").or_insert_with(|| set.n_classes().max(2).into());
    Ok(ClassifierConfig::from_json(&Value::Object(fields), path)?)
}

/// File name of a kept epoch.
pub fn checkpoint_file(epoch: u64) -> String {
    format!("epoch-{epoch:04}.safetensors")
}

/// Trains the recipe's classifier and fills the folder `out`: `config.json`, `model.safetensors`, kept epochs, Adam's second
/// moments, `train_log.jsonl`. An interrupted run goes on; the bytes are those of an uninterrupted one.
///
/// # Errors
/// A recipe, image or label file that cannot be used, the trainer's or the disk's errors; [`EngineError::Stopped`] when the
/// listener asked to stop (the state is saved).
pub fn run(recipe_path: &Path, out: &Path, progress: &dyn Progress) -> Result<ImageTrainReport, EngineError> {
    let clock = std::time::Instant::now();
    let recipe = ImageRecipe::read(recipe_path)?;
    let normalization = recipe.normalization();
    let set = ImageSet::open(&recipe.data.images, &recipe.data.labels, &normalization)?;
    let held_out = match &recipe.held_out {
        Some(files) => Some(ImageSet::open(&files.images, &files.labels, &normalization)?),
        None => None,
    };
    let config = recipe.config(recipe_path, &set)?;
    let members: Vec<u32> = (0..set.len() as u32).filter(|id| !recipe.data.exclude.contains(id)).collect();
    let state = out.join(STATE_DIR);
    let mut trainer = if ClassifierTrainer::has_state(&state) {
        ClassifierTrainer::resume(config, recipe.train.clone(), members, &state)?
    } else {
        ClassifierTrainer::new(config, recipe.train.clone(), members)?
    };
    let mut log = LogFile::open(out, trainer.step_count())?;
    let (total, before) = (trainer.total_steps(), trainer.step_count());
    progress.start("train", total, "steps");
    progress.advance(before);
    let mut images = 0;
    trainer.run(&set, |step, trainer| {
        images += step.images;
        note_step(&recipe, out, &mut log, step, trainer, progress)
    })?;
    let seconds = clock.elapsed().as_secs_f64();
    progress.finish("");
    save(out, &trainer)?;
    let model = trainer.classifier();
    let report = ImageTrainReport {
        out: out.to_path_buf(),
        parameters: model.parameters().len() as u64,
        images: trainer.members().len() as u64,
        steps: total,
        seconds,
        images_per_second: images as f64 / seconds,
        train: judge(model, &set, trainer.members())?,
        held_out: match &held_out {
            Some(set) => Some(judge(model, set, &(0..set.len() as u32).collect::<Vec<u32>>())?),
            None => None,
        },
    };
    log.write()?;
    if state.exists() {
        std::fs::remove_dir_all(&state).map_err(|e| EngineError::io(&state, e))?;
    }
    Ok(report)
}

fn note_step(
    recipe: &ImageRecipe,
    out: &Path,
    log: &mut LogFile,
    step: &ClassifierStep,
    trainer: &ClassifierTrainer,
    progress: &dyn Progress,
) -> Result<(), EngineError> {
    progress.advance(1);
    log.lines.push(LossLine {
        step: u32::try_from(step.step).unwrap_or(u32::MAX),
        loss: step.loss,
        grad_norm: step.grad_norm,
        lr: step.lr,
    });
    let epoch = step.step / recipe.train.steps_per_epoch(trainer.members().len()).max(1);
    if trainer.epoch_done() && recipe.checkpoint_epochs.iter().any(|&kept| u64::from(kept) == epoch) {
        let metadata = BTreeMap::from([("epoch".to_owned(), epoch.to_string())]);
        trainer.classifier().save(&out.join(checkpoint_file(epoch)), RowType::F32, &metadata)?;
    }
    let stop = progress.stop_requested() && step.step < trainer.total_steps();
    if stop || step.step.is_multiple_of(STATE_EVERY_STEPS) {
        // The log first: a state never counts a step that the log has not got.
        log.write()?;
        trainer.save_state(&out.join(STATE_DIR))?;
    }
    if stop { Err(EngineError::Stopped) } else { Ok(()) }
}

fn save(out: &Path, trainer: &ClassifierTrainer) -> Result<(), EngineError> {
    let model = trainer.classifier();
    model.save_config(out)?;
    model.save(&out.join(WEIGHTS_FILE), RowType::F32, &BTreeMap::new())?;
    if !matches!(trainer.recipe().optimizer, Optimizer::Sgd { .. }) {
        trainer.save_second_moments(&out.join("second_moments.safetensors"), RowType::F32)?;
    }
    Ok(())
}

fn judge(model: &Classifier, set: &ImageSet, ids: &[u32]) -> Result<Judgement, EngineError> {
    let losses = model.losses(set, ids, Objective::LOSS)?;
    Ok(Judgement {
        images: ids.len() as u64,
        loss: losses.iter().sum::<f64>() / ids.len().max(1) as f64,
        accuracy: model.accuracy(set, ids)?,
    })
}

/// The losses of every step, in `train_log.jsonl`.
struct LogFile {
    path: PathBuf,
    lines: Vec<LossLine>,
}

impl LogFile {
    /// The log of the first `steps` steps of a run that is resumed.
    fn open(out: &Path, steps: u64) -> Result<Self, EngineError> {
        let path = out.join(LOSS_LOG_FILE);
        let mut lines = if steps == 0 { vec![] } else { read_log(out)? };
        if (lines.len() as u64) < steps {
            let (expected, found) = (format!("a line for each of {steps} steps"), format!("{} lines", lines.len()));
            return Err(EngineError::Content { path, expected, found });
        }
        lines.truncate(usize::try_from(steps).unwrap_or(usize::MAX));
        Ok(Self { path, lines })
    }

    fn write(&self) -> Result<(), EngineError> {
        let mut text = Vec::new();
        for line in &self.lines {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        files::write_atomic(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use ascribe_core::progress::NoProgress;

    use super::*;

    /// Stops after so many steps.
    struct Stop(AtomicU64);

    impl Progress for Stop {
        fn start(&self, _: &str, _: u64, _: &str) {}
        fn advance(&self, n: u64) {
            self.0.fetch_sub(n.min(self.0.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
        fn finish(&self, _: &str) {}
        fn stop_requested(&self) -> bool {
            self.0.load(Ordering::Relaxed) == 0
        }
    }

    /// Bars at one of four heights in 6 × 6 images: IDX files and a recipe beside them.
    fn folder(recipe: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (mut images, mut labels) =
            (vec![0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 6, 0, 0, 0, 6], vec![0, 0, 8, 1, 0, 0, 0, 40]);
        for i in 0..40u8 {
            let class = i % 4;
            images.extend((0..36u8).map(|p| if p / 6 == class + 1 { 200 + i } else { p.wrapping_mul(i) % 50 }));
            labels.push(class);
        }
        std::fs::write(dir.path().join("images"), images).unwrap();
        std::fs::write(dir.path().join("labels"), labels).unwrap();
        std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
        dir
    }

    const MLP: &str = r#"
        checkpoint_epochs = [2]
        model = { kind = "mlp", widths = [8] }
        data = { images = "images", labels = "labels", mean = [0.2], std = [0.3], exclude = [3] }
        held_out = { images = "images", labels = "labels" }
        [train]
        epochs = 6
        batch = 7
        lr = 0.01
        schedule = "cosine"
        optimizer = { kind = "adamw", beta1 = 0.9, beta2 = 0.99, eps = 1e-8 }
    "#;

    #[test]
    fn a_recipe_becomes_a_model_folder_and_a_stop_leaves_no_trace() {
        let dir = folder(MLP);
        let recipe = dir.path().join("recipe.toml");
        let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
        let report = run(&recipe, &whole, &NoProgress).unwrap();
        assert_eq!((report.images, report.steps, report.parameters), (39, 36, 36 * 8 + 8 + 8 * 4 + 4));
        assert!(report.train.accuracy == 1.0 && report.held_out.unwrap().images == 40, "{report:?}");
        assert!(report.train.loss < 0.5, "{report:?}");
        assert!(matches!(run(&recipe, &stopped, &Stop(AtomicU64::new(10))), Err(EngineError::Stopped)));
        assert!(!stopped.join(WEIGHTS_FILE).exists());
        run(&recipe, &stopped, &NoProgress).unwrap();
        for file in ["config.json", WEIGHTS_FILE, "second_moments.safetensors", LOSS_LOG_FILE, "epoch-0002.safetensors"]
        {
            assert_eq!(files::read(&whole.join(file)).unwrap(), files::read(&stopped.join(file)).unwrap(), "{file}");
        }
        assert!(!stopped.join(STATE_DIR).exists());
        assert_eq!(read_log(&whole).unwrap().len(), 36);
        let model = Classifier::open(&whole).unwrap();
        assert_eq!(model.config().input_shape, [1, 6, 6]);
    }

    #[test]
    fn recipes_that_cannot_be_carried_out_are_refused() {
        let cases = [
            ("kind = \"mlp\"", "kind = \"tree\"", "ascribe-tree"),
            ("widths = [8]", "width = [8]", "widths"),
            ("widths = [8]", "widths = [8], num_classes = 3", "below 3"),
            ("[2]", "[7]", "checkpoint_epochs"),
            ("epochs = 6", "epochs = 0", "`epochs`"),
            ("batch = 7", "batch = 7\nbatches = 1", "batches"),
            ("labels = \"labels\", mean", "labels = \"nobody\", mean", "nobody"),
            ("std = [0.3]", "std = [0.0]", "deviations"),
        ];
        for (good, bad, part) in cases {
            let dir = folder(&MLP.replacen(good, bad, 1));
            let error = run(&dir.path().join("recipe.toml"), &dir.path().join("out"), &NoProgress).unwrap_err();
            assert!(error.to_string().contains(part), "{bad}: {error}");
        }
    }
}
