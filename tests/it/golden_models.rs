//! Golden files of numbers: the state of an unfinished training, a fitted calibration.

use std::fs;

use ascribe_methods::combine::{Calibration, Channel};
use ascribe_models::{DecoderConfig, Schedule, TrainRecipe, Trainer};
use ascribe_tests::golden;
use ndarray::arr2;

fn config() -> DecoderConfig {
    DecoderConfig::llama(32, 8, 16, 1, 2, 2, 16)
}

fn recipe() -> TrainRecipe {
    TrainRecipe {
        steps: 6,
        batch: 2,
        micro_batch: 1,
        lr_peak: 1e-2,
        lr_floor: 1e-3,
        warmup_steps: 2,
        schedule: Schedule::Cosine,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        clip_norm: 1.0,
        init_seed: 5,
        checkpoint_steps: vec![3, 6],
    }
}

/// Two sequences that count up, in steps of one and of three.
fn batch() -> [Vec<u32>; 2] {
    [(0..16).collect(), (0..16).map(|i| 3 * i % 32).collect()]
}

fn step(trainer: &mut Trainer) -> f64 {
    let batch = batch();
    trainer.step(&[&batch[0], &batch[1]]).unwrap().loss
}

#[test]
#[ignore = "writes the golden folders"]
fn make_golden_train_state() {
    let folder = golden("train_state", 1);
    fs::create_dir_all(&folder).unwrap();
    let mut trainer = Trainer::new(config(), recipe()).unwrap();
    for _ in 0..3 {
        step(&mut trainer);
    }
    trainer.save_state(&folder).unwrap();
}

/// Opens `formats/train_state/v1`: the run goes on where it stopped.
#[test]
fn the_first_training_state_resumes_for_ever() {
    let mut trainer = Trainer::resume(config(), recipe(), &golden("train_state", 1)).unwrap();
    assert_eq!(trainer.step_count(), 3);
    assert_eq!(trainer.decoder().weights_digest().to_string(), WEIGHTS_SHA256);
    // Another processor may add in another order within a product: f32 rounding, not meaning.
    let loss = step(&mut trainer);
    assert!((loss - NEXT_LOSS).abs() < 1e-5, "{loss}");
}

/// Opens `formats/calibration/v1`: the same scores give the same shares.
#[test]
fn the_first_calibration_predicts_the_same_for_ever() {
    let text = fs::read_to_string(golden("calibration", 1).join("calibration.json")).unwrap();
    let calibration: Calibration = serde_json::from_str(&text).unwrap();
    calibration.validate().unwrap();
    let (influence, embedding) = (arr2(&[[1.0, 2.0, 3.0]]), arr2(&[[5.0, 5.0, 5.0]]));
    let channels = [
        Channel { name: "embedding", scores: embedding.view() },
        Channel { name: "block_fisher", scores: influence.view() },
    ];
    // z-scores of 1, 2, 3 are −√1.5, 0, √1.5; the constant channel says nothing; weight 0.75 over temperature 0.5.
    let logits = [-1.5f64.sqrt() * 1.5, 0.0, 1.5f64.sqrt() * 1.5];
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    let shares = calibration.predict(&channels).unwrap();
    for (share, logit) in shares.iter().zip(logits) {
        assert!((share - logit.exp() / total).abs() < 1e-12, "{shares}");
    }
}

const WEIGHTS_SHA256: &str = "f0800fa40aaa5a9f1a20782a2f79ca2483fe61fc45d0fbda0bc2aa0987e84244";
/// Mean nats per token of the batch under the saved weights, from PyTorch's `transformers`.
const NEXT_LOSS: f64 = 3.2930627;
