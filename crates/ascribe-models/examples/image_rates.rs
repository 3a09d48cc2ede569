//! Prints what one thread does per CPU-second with the image classifiers, one JSON object per line.
//!
//! `cargo run --release -p ascribe-models --example image_rates -- DIR` where DIR holds `x_train.npy` and `y_train.npy`
//! (bytes, `[n, 784]`). `benches/peers/image_compare.py` runs this beside PyTorch.

use std::io::Write as _;
use std::path::Path;

use ascribe_linalg::Stream;
use ascribe_models::ModelError;
use ascribe_models::vision::{
    Classifier, ClassifierConfig, ClassifierKind, ClassifierRecipe, ClassifierStage, ClassifierTaps, ClassifierTrainer,
    ImageSet, Normalization, Objective, Optimizer, Schedule,
};
use ndarray::Array2;

/// CPU seconds of the calling thread.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? * 1e-9)
}

fn timed<R>(what: &str, images: usize, work: impl FnOnce() -> Result<R, ModelError>) -> Result<R, ModelError> {
    let (before, wall) = (cpu_seconds(), std::time::Instant::now());
    let result = work()?;
    let seconds = match (before, cpu_seconds()) {
        (Some(before), Some(after)) if after > before => after - before,
        _ => wall.elapsed().as_secs_f64(),
    };
    let rate = images as f64 / seconds;
    let line =
        format!("{{\"what\": \"{what}\", \"cpu_seconds\": {seconds:.4}, \"images_per_cpu_second\": {rate:.0}}}\n");
    // A reader that has gone away is no reason to stop measuring.
    let _ = std::io::stdout().write_all(line.as_bytes());
    Ok(result)
}

fn recipe(epochs: u32, lr: f64, weight_decay: f64) -> ClassifierRecipe {
    ClassifierRecipe {
        epochs,
        batch: 64,
        drop_last: true,
        steps: None,
        optimizer: Optimizer::Sgd { momentum: 0.9 },
        lr,
        schedule: Schedule::Linear,
        warmup_steps: 0,
        weight_decay,
        seed: 0,
    }
}

fn train(
    name: &str,
    config: ClassifierConfig,
    recipe: ClassifierRecipe,
    set: &ImageSet,
    n: u32,
) -> Result<Classifier, ModelError> {
    let members: Vec<u32> = (0..n).collect();
    let mut trainer = ClassifierTrainer::new(config, recipe.clone(), members.clone())?;
    let images = trainer.total_steps() as usize * recipe.batch as usize;
    timed(&format!("train {name}"), images, || trainer.run(set, |_, _| Ok::<(), ModelError>(())))?;
    let model = trainer.into_classifier();
    let loss = timed(&format!("losses {name}"), n as usize, || model.losses(set, &members, Objective::LOSS))?;
    let mean = loss.iter().sum::<f64>() / f64::from(n);
    let line = format!("{{\"what\": \"final loss {name}\", \"loss\": {mean:.4}}}\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
    Ok(model)
}

/// Full gradients, `chunk` images at a time into one buffer, and rows of 16 × 16 per module.
fn gradients(name: &str, model: &Classifier, set: &ImageSet, n: u32, chunk: usize) -> Result<(), ModelError> {
    let ids: Vec<u32> = (0..n).collect();
    let mut buffer = vec![0.0f32; chunk * model.parameters().len()];
    let mut pass = |ids: &[u32]| {
        ids.chunks(chunk).try_for_each(|ids| {
            let out = &mut buffer[..ids.len() * model.parameters().len()];
            model.gradients_into(set, ids, Objective::LOSS, out).map(|_| ())
        })
    };
    pass(&ids[..chunk])?;
    timed(&format!("gradients {name}"), n as usize, || pass(&ids))?;
    let stage = ClassifierStage::new(model, ClassifierTaps::all(1, 16))?;
    let mut rows = Array2::zeros((ids.len(), stage.dim()));
    timed(&format!("rows {name}"), n as usize, || stage.rows(set, &ids, Objective::LOSS, rows.view_mut(), None))?;
    Ok(())
}

fn measure(dir: &Path) -> Result<(), ModelError> {
    let normalization = Normalization { mean: vec![0.1307], std: vec![0.3081] };
    let mnist = ImageSet::open(&dir.join("x_train.npy"), &dir.join("y_train.npy"), &normalization)?;
    let n = mnist.len() as u32;
    let flat = |kind| ClassifierConfig::new([1, 1, 784], 10, kind);
    let model = train("lr", flat(ClassifierKind::LogisticRegression), recipe(16, 0.01, 1e-3), &mnist, n)?;
    gradients("lr", &model, &mnist, n, 500)?;
    let mlp = flat(ClassifierKind::Mlp { widths: vec![128, 64] });
    let model = train("mlp", mlp, recipe(12, 0.03, 5e-4), &mnist, n)?;
    gradients("mlp", &model, &mnist, n, 500)?;

    let mut stream = Stream::new(1, "images");
    let mut random = |shape: [usize; 3], n: usize| {
        let images = (0..n * shape.iter().product::<usize>()).map(|_| stream.normal() as f32).collect();
        let labels = (0..n as u32).map(|i| i % 10).collect();
        ImageSet::from_f32(shape, images, labels, &Normalization::default())
    };
    let digits = random([1, 28, 28], 1024)?;
    let lenet = ClassifierConfig::new([1, 28, 28], 10, ClassifierKind::lenet());
    let model = train("lenet", lenet, recipe(1, 0.01, 0.0), &digits, 1024)?;
    gradients("lenet", &model, &digits, 1024, 128)?;
    let photos = random([3, 32, 32], 64)?;
    let resnet = ClassifierConfig::new([3, 32, 32], 10, ClassifierKind::resnet9());
    let model = train("resnet9", resnet, recipe(1, 0.001, 0.0), &photos, 64)?;
    gradients("resnet9", &model, &photos, 32, 4)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("image_rates DIR, with x_train.npy and y_train.npy")?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    Ok(pool.install(|| measure(Path::new(&dir)))?)
}
