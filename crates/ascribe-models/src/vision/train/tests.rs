//! Training against PyTorch, against itself on other threads and after a stop, and what a state file must refuse.

use std::path::{Path, PathBuf};

use ascribe_linalg::Stream;

use super::*;
use crate::vision::tests::{FIXTURES, Fixture, bits, worst};
use crate::vision::{BankJob, Normalization, train_bank};

/// Three overlapping clouds in the plane.
pub(super) fn clouds(n: usize) -> ImageSet {
    let mut stream = Stream::new(8, "clouds");
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let centres = [[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]];
    let point = |&class: &u32| centres[class as usize].map(|c| (c + 0.7 * stream.normal()) as f32);
    let images = labels.iter().flat_map(point).collect();
    ImageSet::from_f32([1, 1, 2], images, labels, &Normalization::default()).unwrap()
}

pub(super) fn mlp() -> ClassifierConfig {
    ClassifierConfig::new([1, 1, 2], 3, ClassifierKind::Mlp { widths: vec![6, 5] })
}

fn finish(trainer: &mut ClassifierTrainer, set: &ImageSet) -> Vec<ClassifierStep> {
    let mut steps = vec![];
    trainer
        .run(set, |step, _| {
            steps.push(*step);
            Ok::<(), ModelError>(())
        })
        .unwrap();
    steps
}

/// Four full-batch steps of each rule: the losses on the way, the weights and running statistics at the end.
#[test]
fn pytorch_trains_the_same_models() {
    let (beta1, beta2, eps) = (0.9, 0.99, 1e-3);
    let rules = [
        ("sgd", 0.05, Optimizer::Sgd { momentum: 0.9 }),
        ("adam", 0.01, Optimizer::Adam { beta1, beta2, eps }),
        ("adamw", 0.01, Optimizer::AdamW { beta1, beta2, eps }),
    ];
    for name in FIXTURES {
        let f = Fixture::open(name);
        for (rule, lr, optimizer) in rules {
            let recipe = ClassifierRecipe {
                lr,
                optimizer,
                batch: 6,
                schedule: Schedule::Constant,
                weight_decay: 0.01,
                ..test_recipe(4)
            };
            let mut trainer = ClassifierTrainer::from_classifier(f.model.clone(), recipe, f.ids()).unwrap();
            let steps = finish(&mut trainer, &f.set);
            let losses: Vec<f64> = serde_json::from_str(&f.metadata(&format!("{rule}_losses"))).unwrap();
            for (step, loss) in steps.iter().zip(losses) {
                assert!((step.loss - loss).abs() < 1e-4 * (1.0 + loss), "{name} {rule}: {} {loss}", step.loss);
            }
            let model = trainer.classifier();
            let parts = [(model.parameter_slots(), model.parameters()), (model.buffer_slots(), model.buffers())];
            for (slots, flat) in parts {
                for slot in slots {
                    let off = worst(&flat[slot.range.clone()], &f.reference(&format!("{rule}.{}", slot.name)));
                    // Four steps of a network with norms multiply the rounding of the first.
                    let bound = if name.starts_with("resnet9") { 5e-4 } else { 1e-5 };
                    assert!(off < bound, "{name} {rule} {}: {off}", slot.name);
                }
            }
        }
    }
}

#[test]
fn clouds_are_learnt() {
    let set = clouds(90);
    let mut trainer = ClassifierTrainer::new(mlp(), test_recipe(30), (0..90).collect()).unwrap();
    let steps = finish(&mut trainer, &set);
    assert_eq!(steps.len(), 30 * 12);
    assert!(steps[0].loss > 0.9 && trainer.epoch_done());
    assert!(trainer.classifier().accuracy(&set, trainer.members()).unwrap() > 0.9);
    let message = trainer.step(&set).unwrap_err().to_string();
    assert!(message.contains("`steps`") && message.contains("361"), "{message}");
}

/// Logistic regression is convex: at the optimum the mean gradient is minus the decay, wherever one came from.
#[test]
fn logistic_regression_reaches_its_optimum() {
    let set = clouds(60);
    let config = ClassifierConfig::new([1, 1, 2], 3, ClassifierKind::LogisticRegression);
    let ids: Vec<u32> = (0..60).collect();
    for seed in [1, 2] {
        let recipe = ClassifierRecipe {
            batch: 60,
            lr: 0.5,
            schedule: Schedule::Constant,
            weight_decay: 0.01,
            seed,
            ..test_recipe(400)
        };
        let mut trainer = ClassifierTrainer::new(config.clone(), recipe, ids.clone()).unwrap();
        finish(&mut trainer, &set);
        let model = trainer.into_classifier();
        let mean = model.gradients(&set, &ids, Objective::LOSS).unwrap().mean_axis(ndarray::Axis(0)).unwrap();
        for (g, p) in mean.iter().zip(model.parameters()) {
            assert!((g + 0.01 * p).abs() < 1e-5, "{g} {p}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for name in ["mlp", "resnet9-pooled"] {
        let f = Fixture::open(name);
        // Enough images for several groups.
        let members: Vec<u32> = f.ids();
        let recipe = ClassifierRecipe { batch: 19, steps: Some(3), lr: 0.01, ..test_recipe(1) };
        let work = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut trainer =
                    ClassifierTrainer::from_classifier(f.model.clone(), recipe.clone(), members.clone()).unwrap();
                let steps = finish(&mut trainer, &f.set);
                (bits(trainer.classifier().parameters()), bits(trainer.classifier().buffers()), steps)
            })
        };
        assert_eq!(work(1), work(2), "{name}");
        assert_eq!(work(1), work(5), "{name}");
    }
}

fn adam() -> ClassifierRecipe {
    ClassifierRecipe { optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, lr: 0.01, ..test_recipe(2) }
}

#[test]
fn a_stopped_run_goes_on_without_a_trace() {
    for name in ["lr", "resnet9-strided"] {
        let f = Fixture::open(name);
        for recipe in [ClassifierRecipe { batch: 4, ..test_recipe(3) }, ClassifierRecipe { batch: 5, ..adam() }] {
            let config = f.model.config().clone();
            let mut whole = ClassifierTrainer::new(config.clone(), recipe.clone(), f.ids()).unwrap();
            finish(&mut whole, &f.set);
            let dir = tempfile::tempdir().unwrap();
            let mut first = ClassifierTrainer::new(config.clone(), recipe.clone(), f.ids()).unwrap();
            for _ in 0..3 {
                first.step(&f.set).unwrap();
            }
            assert!(!ClassifierTrainer::has_state(dir.path()));
            first.save_state(dir.path()).unwrap();
            assert!(ClassifierTrainer::has_state(dir.path()));
            let mut second = ClassifierTrainer::resume(config, recipe, f.ids(), dir.path()).unwrap();
            assert_eq!(second.step_count(), 3);
            finish(&mut second, &f.set);
            assert_eq!(bits(second.classifier().parameters()), bits(whole.classifier().parameters()), "{name}");
            assert_eq!(bits(second.classifier().buffers()), bits(whole.classifier().buffers()), "{name}");
            assert_eq!(bits(second.second_moments()), bits(whole.second_moments()), "{name}");
        }
    }
}

#[test]
fn states_of_other_runs_and_changed_files_are_refused() {
    let (set, dir) = (clouds(20), tempfile::tempdir().unwrap());
    let members: Vec<u32> = (0..20).collect();
    let mut trainer = ClassifierTrainer::new(mlp(), test_recipe(2), members.clone()).unwrap();
    trainer.step(&set).unwrap();
    trainer.save_state(dir.path()).unwrap();
    let resume = |config: ClassifierConfig, recipe: ClassifierRecipe, members: &[u32]| {
        ClassifierTrainer::resume(config, recipe, members.to_vec(), dir.path()).map(|t| t.step_count())
    };
    assert_eq!(resume(mlp(), test_recipe(2), &members).unwrap(), 1);
    let refused = |result: Result<u64, ModelError>, part: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refused(resume(mlp(), test_recipe(3), &members), "recipe of the saved state");
    refused(resume(mlp(), test_recipe(2), &members[1..]), "members of the saved state");
    let wider = ClassifierConfig::new([1, 1, 2], 3, ClassifierKind::Mlp { widths: vec![7, 5] });
    refused(resume(wider, test_recipe(2), &members), "model shape of the saved state");
    let path = dir.path().join("classifier-state.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut changed = whole.clone();
    let last = changed.len() - 2;
    changed[last] ^= 1;
    std::fs::write(&path, &changed).unwrap();
    refused(resume(mlp(), test_recipe(2), &members), "SHA-256");
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused(resume(mlp(), test_recipe(2), &members), "safetensors");
}

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/classifier-state/v{version}"))
}

/// State files of every version open for ever. `write_golden` made the files.
#[test]
fn old_states_open() {
    let trainer = ClassifierTrainer::resume(mlp(), adam(), (0..20).collect(), &golden(1)).unwrap();
    assert_eq!(trainer.step_count(), 2);
    assert!(trainer.second_moments().iter().any(|&v| v > 0.0));
}

/// Run by hand for a new version: `cargo test --release -p ascribe-models write_golden -- --ignored`.
#[test]
#[ignore = "writes into the source tree"]
fn write_golden() {
    let set = clouds(20);
    let mut trainer = ClassifierTrainer::new(mlp(), adam(), (0..20).collect()).unwrap();
    for _ in 0..2 {
        trainer.step(&set).unwrap();
    }
    trainer.save_state(&golden(state::CLASSIFIER_STATE_FORMAT_VERSION)).unwrap();
}

/// Leaving an image out keeps the order of the others; steps go on over the end of an epoch where the recipe counts steps.
#[test]
fn an_order_is_kept_when_images_are_left_out() {
    let trainer = |members: Vec<u32>, recipe| ClassifierTrainer::new(mlp(), recipe, members).unwrap();
    let epoch = |members: Vec<u32>, epoch: u64| {
        let mut t = trainer(members, test_recipe(3));
        let per_epoch = t.recipe.steps_per_epoch(t.members.len());
        (epoch * per_epoch..(epoch + 1) * per_epoch).flat_map(|step| t.batch(step)).collect::<Vec<u32>>()
    };
    let all = epoch((0..30).collect(), 1);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..30).collect::<Vec<u32>>());
    assert_ne!(all, epoch((0..30).collect(), 0));
    let without: Vec<u32> = all.iter().copied().filter(|id| *id != 7).collect();
    assert_eq!(epoch((0..30).filter(|id| *id != 7).collect(), 1), without);
    assert_eq!(epoch((0..30).rev().collect(), 1), all, "members are a set");

    let counted = ClassifierRecipe { steps: Some(4), ..test_recipe(1) };
    let mut t = trainer((0..12).collect(), counted);
    let seen: Vec<u32> = (0..3).flat_map(|step| t.batch(step)).collect();
    let mut t = trainer((0..12).collect(), ClassifierRecipe { batch: 12, ..test_recipe(2) });
    assert_eq!(seen, [t.batch(0), t.batch(1)].concat());
}

#[test]
fn a_bank_holds_the_models_of_single_runs() {
    let set = clouds(40);
    let jobs: Vec<BankJob> = (0..5).map(|i| BankJob { members: (i..40).collect(), seed: u64::from(i % 2) }).collect();
    let parameters = |_: usize, trainer: &ClassifierTrainer| Ok(bits(trainer.classifier().parameters()));
    let bank = train_bank(&mlp(), &test_recipe(2), &set, &jobs, parameters).unwrap();
    for (job, got) in jobs.iter().zip(&bank) {
        let recipe = ClassifierRecipe { seed: job.seed, ..test_recipe(2) };
        let mut alone = ClassifierTrainer::new(mlp(), recipe, job.members.clone()).unwrap();
        finish(&mut alone, &set);
        assert_eq!(&bits(alone.classifier().parameters()), got);
    }
    assert_ne!(bank[0], bank[1]);
    let broken = [jobs[0].clone(), BankJob { members: vec![], seed: 0 }, BankJob { members: vec![99], seed: 0 }];
    let message = train_bank(&mlp(), &test_recipe(1), &set, &broken, parameters).unwrap_err().to_string();
    assert!(message.contains("members"), "{message}");
}

#[test]
fn a_diverged_step_leaves_the_weights() {
    let set = clouds(20);
    let mut trainer =
        ClassifierTrainer::new(mlp(), ClassifierRecipe { lr: 1e30, ..test_recipe(9) }, (0..20).collect()).unwrap();
    let (error, before) = loop {
        let before = bits(trainer.classifier().parameters());
        if let Err(error) = trainer.step(&set) {
            break (error, before);
        }
    };
    assert!(matches!(error, ModelError::Diverged { .. }), "{error}");
    assert_eq!(bits(trainer.classifier().parameters()), before);
    let huge = ClassifierRecipe { batch: u32::MAX, steps: Some(1), ..test_recipe(1) };
    assert!(ClassifierTrainer::new(mlp(), huge, vec![0]).unwrap_err().to_string().contains("`batch`"));
}

#[test]
fn second_moments_are_written_under_their_names() {
    let (set, dir) = (clouds(20), tempfile::tempdir().unwrap());
    let mut trainer = ClassifierTrainer::new(mlp(), adam(), (0..20).collect()).unwrap();
    trainer.step(&set).unwrap();
    let path = dir.path().join("moments.safetensors");
    trainer.save_second_moments(&path, RowType::F32).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("fc2.weight").unwrap().shape(), [5, 6]);
    let sgd = ClassifierTrainer::new(mlp(), test_recipe(1), vec![0]).unwrap();
    assert!(sgd.save_second_moments(&path, RowType::F32).is_err());
}
