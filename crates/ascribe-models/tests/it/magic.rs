//! A run's derivative by its images' weights, worked out on paper: a classifier of one number, two steps.

use ascribe_models::vision::{
    Classifier, ClassifierConfig, ClassifierKind, ClassifierRecipe, ImageSet, Normalization, Objective, Optimizer,
    Replay, Schedule,
};

/// Two classes and one pixel that is always 1: all that counts is the logits' difference `s`, which four weights move at once, two
/// upwards and two downwards. With `p = σ(s)` a step of full batches is `s ← s − 4η/B Σ w_i (p − y_i)`, so
///
/// ```text
/// ds₁/dw_i = −4η/B (p₀ − y_i)
/// ds₂/dw_i = ds₁/dw_i (1 − 4η/B Σ_j w_j p₁(1 − p₁)) − 4η/B (p₁ − y_i)
/// ```
///
/// and a query's loss has the slope `(p₂ − y_q) ds₂/dw_i`. Weights of 1 and others.
#[test]
fn two_steps_of_one_number_by_hand() {
    let labels = [0u32, 1, 1, 1];
    let set = ImageSet::from_f32([1, 1, 1], vec![1.0; 4], labels.to_vec(), &Normalization::default()).unwrap();
    let config = ClassifierConfig::new([1, 1, 1], 2, ClassifierKind::LogisticRegression);
    let recipe = ClassifierRecipe {
        epochs: 2,
        batch: 4,
        drop_last: false,
        steps: None,
        optimizer: Optimizer::Sgd { momentum: 0.0 },
        lr: 0.25,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        seed: 3,
    };
    let start = Classifier::init(config.clone(), recipe.seed).unwrap();
    let difference = |p: &[f32]| -> f64 {
        assert_eq!(p.len(), 4, "two weights, two biases");
        f64::from(p[1]) - f64::from(p[0]) + f64::from(p[3]) - f64::from(p[2])
    };
    let sigmoid = |s: f64| 1.0 / (1.0 + (-s).exp());
    let y = labels.map(f64::from);
    let rate = 4.0 * 0.25 / 4.0;
    let replay = Replay::new(config, recipe, &set).unwrap();
    for weights in [[1.0f32; 4], [1.0, 0.5, 2.0, 0.0]] {
        let w = weights.map(f64::from);
        let step = |s: f64| s - rate * (0..4).map(|i| w[i] * (sigmoid(s) - y[i])).sum::<f64>();
        let s0 = difference(start.parameters());
        let s1 = step(s0);
        let s2 = step(s1);
        let (p0, p1, p2) = (sigmoid(s0), sigmoid(s1), sigmoid(s2));
        let bend = 1.0 - rate * w.iter().sum::<f64>() * p1 * (1.0 - p1);
        let meta = replay.metagradients(Some(&weights), &set, &[0, 1], Objective::LOSS).unwrap();
        assert!((difference(meta.classifier.parameters()) - s2).abs() < 1e-6, "the run itself");
        for q in 0..2 {
            for i in 0..4 {
                let first = -rate * (p0 - y[i]);
                let slope = (p2 - y[q]) * (first * bend - rate * (p1 - y[i]));
                let found = meta.values[(q, i)];
                assert!(slope.abs() > 1e-3 && (found - slope).abs() < 1e-6, "{weights:?} {q} {i}: {found} {slope}");
            }
        }
    }
}
