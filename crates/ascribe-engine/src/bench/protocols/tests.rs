//! Protocols on forty images of two classes that a line separates. Their figures on real settings are the bench's.

use ascribe_core::{Digest, NoProgress};
use ascribe_linalg::Stream;
use ascribe_models::vision::{ClassifierConfig, ClassifierKind, ImageSet, Normalization, Objective};
use ndarray::{Array2, arr2};

use super::removal::{Train, remove_and_train};
use super::*;
use crate::bench::images::places;
use crate::bench::lab::Lab;
use crate::bench::setting::{ImageSubject, Images};

const N: usize = 40;
const Q: usize = 6;

fn set(n: usize, name: &str) -> ImageSet {
    let mut stream = Stream::new(5, name);
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 2).collect();
    let pixel = |&label: &u32| [f64::from(label) - 0.5, 0.5 - f64::from(label), 0.0].map(|v| v + 0.3 * 0.5);
    let mut pixels: Vec<f32> = labels.iter().flat_map(pixel).map(|v| v as f32).collect();
    pixels.iter_mut().for_each(|v| *v += 0.3 * stream.normal() as f32);
    ImageSet::from_f32([1, 1, 3], pixels, labels, &Normalization::default()).unwrap()
}

fn lab() -> ImageLab {
    let subject: ImageSubject = toml::from_str(
        "model = { kind = 'lr' }\ndata = { images = 'a', labels = 'b' }\nqueries = { images = 'c', labels = 'd' }\n\
         [train]\nepochs = 4\nbatch = 4\nlr = 0.05\nschedule = 'constant'\n\
         optimizer = { kind = 'sgd', momentum = 0.0 }",
    )
    .unwrap();
    let config = ClassifierConfig::new([1, 1, 3], 2, ClassifierKind::LogisticRegression);
    let images = Images { config, train: set(N, "train"), queries: set(Q, "query"), digest: Digest::of(b"toy") };
    ImageLab::new(subject, images).unwrap()
}

/// +1 for the query's own class, −1 for the other.
fn same_class(lab: &ImageLab) -> Array2<f32> {
    Array2::from_shape_fn((Q, N), |(q, i)| {
        if lab.images.queries.labels()[q] == lab.images.train.labels()[i] { 1.0 } else { -1.0 }
    })
}

#[test]
fn planted_errors_are_found_by_their_loss_and_not_by_chance() {
    let lab = lab();
    let planted = mislabel(&lab, 0.1, 3).unwrap();
    assert_eq!(planted.flipped.iter().filter(|f| **f).count(), 4);
    for (i, flipped) in planted.flipped.iter().enumerate() {
        let same = planted.lab.images.train.labels()[i] == lab.images.train.labels()[i];
        assert_eq!(same, !flipped, "image {i}");
    }
    assert_ne!(planted.lab.digest(), lab.digest(), "kept scores must not mix");
    let model = &planted.lab.train(0, None).unwrap();
    let losses = model.losses(&planted.lab.images.train, &places(&lab.images.train), Objective::LOSS).unwrap();
    let found = detect(&losses, &planted.flipped).unwrap();
    assert!(found.auc.mean > 0.9 && found.found_area.mean > 0.85, "{found:?}");
    let chance: Vec<f64> = (0..N).map(|i| (i * 17 % 13) as f64).collect();
    assert!(detect(&chance, &planted.flipped).unwrap().auc.mean < 0.9);
    for part in [0.0, 1.0, f64::NAN] {
        assert!(mislabel(&lab, part, 3).is_err_and(|e| e.to_string().contains("part of the labels")));
    }
}

#[test]
fn taking_out_the_own_class_hurts_and_the_other_helps() {
    let lab = lab();
    let scores = same_class(&lab);
    let options = RemovalOptions { parts: vec![0.25, 0.45], n_queries: 4, seeds: vec![1, 2] };
    let of = |scores: &Array2<f32>| removal(&lab, scores.view(), &options, &NoProgress).unwrap();
    let (own, other) = (of(&scores), of(&-&scores));
    for (own, other) in own.parts.iter().zip(&other.parts) {
        assert!(own.effect.mean > 0.05 && other.effect.mean < -0.05, "{own:?} {other:?}");
    }
    let figures = own.figures();
    assert_eq!(figures["removal_effect@0.25"], Some(own.parts[0].effect.mean));
    assert_eq!(figures["removal_effect"], Some(own.parts[1].effect.mean), "the largest part gives the name");
    assert_eq!(figures["brittleness_high"], own.parts[1].brittleness.map(|e| e.high));
    assert_eq!(other.figures()["removals_to_flip"], None, "without the other class nothing turns");
    assert_eq!(of(&scores), own, "the same trainings give the same figures");
    let own = own.parts;
    assert_eq!((own[0].n_removed, own[1].n_removed), (10, 18));
    assert!(own[1].effect.mean > own[0].effect.mean);
    assert!(own[1].brittleness.unwrap().mean >= other.parts[1].brittleness.unwrap().mean);
    let refused =
        |options: RemovalOptions| removal(&lab, scores.view(), &options, &NoProgress).unwrap_err().to_string();
    assert!(refused(RemovalOptions { parts: vec![1.0], ..options.clone() }).contains("part removed"));
    assert!(refused(RemovalOptions { n_queries: 7, ..options.clone() }).contains("queries: expected 1 to 6"));
    assert!(refused(RemovalOptions { seeds: vec![], ..options.clone() }).contains("seeds"));
    for parts in [vec![], vec![0.2, 0.2], vec![0.4, 0.1]] {
        assert!(refused(RemovalOptions { parts, ..options.clone() }).contains("numbers that rise"));
    }
}

#[test]
fn a_step_on_the_own_class_raises_the_probability() {
    let lab = lab();
    let (scores, model) = (same_class(&lab), lab.train(0, None).unwrap());
    let patch = |scores: &Array2<f32>| tail_patch(&lab, &model, scores.view(), 3).unwrap().mean;
    assert!(patch(&scores) > 1e-3 && patch(&-&scores) < -1e-3);
    for k in [0, N + 1] {
        assert!(tail_patch(&lab, &model, scores.view(), k).is_err_and(|e| e.to_string().contains("--k")));
    }
    assert_eq!(class_detection(&lab, scores.view()).unwrap().unwrap().mean, 1.0);
    assert_eq!(class_detection(&lab, (-&scores).view()).unwrap().unwrap().mean, 0.0);
    assert_eq!(class_detection(&lab, Array2::zeros((Q, N)).view()).unwrap(), None);
}

#[test]
fn self_influence_is_a_score_upon_oneself() {
    let planted = mislabel(&lab(), 0.1, 3).unwrap().asked_about(6).unwrap();
    let wrong: Vec<bool> = planted.asked.iter().map(|&i| planted.flipped[i as usize]).collect();
    assert_eq!(wrong, [true, false, true, false, true, false], "as many of either as long as there are both");
    assert_eq!(mislabel(&lab(), 0.1, 3).unwrap().asked_about(1000).unwrap().asked.len(), N);
    for (q, &i) in planted.asked.iter().enumerate() {
        assert_eq!(planted.lab.images.queries.labels()[q], planted.lab.images.train.labels()[i as usize]);
    }
    // Every image upon itself has its own number, upon others nothing.
    let scores =
        Array2::from_shape_fn((6, N), |(q, i)| if planted.asked[q] as usize == i { 1.0 + q as f32 } else { 0.0 });
    let own = planted.self_influence(&scores.view());
    assert_eq!(own, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    // Wrong ones hold 1, 3, 5; right ones 2, 4, 6: of nine pairs the wrong one is higher in 0 + 1 + 2.
    let figures = planted.figures(&own).unwrap();
    assert_eq!(figures["mislabel_auc"], Some(3.0 / 9.0));
    // A tenth of all labels is wrong: 0.9/3 + 0.05, which is what all labels would show if they went on like this.
    assert!((figures["mislabel_found_area"].unwrap() - 0.35).abs() < 1e-12);
    let (scores, labels) = ([3.0, 1.0, 4.0, 1.5], [true, false, false, false]);
    let both = detect(&scores, &labels).unwrap();
    assert!((both.found_area.mean - (0.75 * both.auc.mean + 0.125)).abs() < 1e-12, "the identity behind it");
    let constant = planted.figures(&[1.0; 6]).unwrap();
    assert_eq!(constant["mislabel_auc"], Some(0.5), "equal scores find nothing");
    assert!(planted.figures(&[f64::NAN; 6]).unwrap_err().to_string().contains("row 0"));
    assert!(planted.figures(&[1.0]).unwrap_err().to_string().contains("is empty"), "one kind only");
    assert!(mislabel(&lab(), 0.1, 3).unwrap().asked_about(0).is_err());
}

#[test]
fn merged_classes_keep_the_own_ones_aside() {
    let four = |set: ImageSet| {
        let labels = (0..set.len() as u32).map(|i| i % 4).collect();
        set.with_labels(labels).unwrap()
    };
    let mut lab = lab();
    lab.images.config = ClassifierConfig::new([1, 1, 3], 4, ClassifierKind::LogisticRegression);
    (lab.images.train, lab.images.queries) = (four(lab.images.train), four(lab.images.queries));
    let merged = merge(&lab, 2, 4).unwrap();
    assert_eq!(merged.lab.images.queries.labels(), [0, 0, 1, 1]);
    assert_eq!((merged.queries.as_slice(), merged.train.len()), (&[0u32, 1, 2, 3][..], N));
    assert_ne!(merged.lab.digest(), lab.digest());
    // The first query's top example is of its class, the second's of its merged class only.
    let mut scores = Array2::zeros((2, N));
    (scores[(0, 4)], scores[(1, 4)]) = (1.0, 1.0);
    assert_eq!(merged.figures(scores.view()).unwrap()["subclass_top1"], Some(0.5));
    for every in [0, 1, 4] {
        assert!(merge(&lab, every, 4).is_err_and(|e| e.to_string().contains("merge: expected a number from 2")));
    }
}

#[test]
fn protocols_are_chosen_by_name_and_only_those_there_are() {
    let settings: ProtocolSettings = toml::from_str(
        "[mislabel]\npart = 0.1\nqueries = 5\nseed = 1\n[removal]\nparts = [0.1]\nqueries = 2\nseeds = [1]\nmethods = ['x']",
    )
    .unwrap();
    assert_eq!(settings.names(), ["mislabel", "removal"]);
    let chosen = |names: &[&str]| settings.chosen(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    assert_eq!(chosen(&["all"]).unwrap(), [Protocol::Mislabel, Protocol::Removal]);
    assert_eq!(chosen(&["removal"]).unwrap(), [Protocol::Removal]);
    assert_eq!(chosen(&[]).unwrap(), []);
    for wrong in ["tail_patch", "tail-patch", "magic"] {
        let error = chosen(&[wrong]).unwrap_err().to_string();
        assert!(error.contains("--protocols: expected all or some of mislabel, removal"), "{error}");
    }
    let none = ProtocolSettings::default().chosen(&["removal".to_owned()]).unwrap_err().to_string();
    assert!(none.contains("this setting has none"), "{none}");
    let unknown = toml::from_str::<ProtocolSettings>("[removal]\nparts = [0.1]\nqueries = 2\nseeds = [1]\npart = 3");
    assert!(unknown.unwrap_err().to_string().contains("part"));
    assert_eq!(top(arr2(&[[1.0f32, 3.0, 3.0, 2.0]]).row(0), 3), [1, 2, 3], "the first of equals first");
}

/// Outcomes are sums over the kept examples: what a removal costs is known to the last digit. As log-likelihoods they are never
/// positive, so nothing turns.
#[test]
fn an_additive_world_loses_what_was_taken_out() {
    let mut stream = Stream::new(9, "removal-test");
    let worth = Array2::from_shape_fn((5, N), |_| stream.uniform() as f32);
    let outcomes: &Train<'_> = &|kept, _| {
        let sum = |q: usize| (0..N).filter(|&i| kept[i]).map(|i| f64::from(worth[(q, i)])).sum::<f64>() - 100.0;
        Ok((0..5).map(sum).collect())
    };
    let options = RemovalOptions { parts: vec![0.1, 0.25], n_queries: 2, seeds: vec![3] };
    let report = remove_and_train(N, worth.view(), &[1, 4], &options, outcomes, &NoProgress).unwrap();
    assert_eq!(report.median_to_flip, None);
    for (figure, n_removed) in report.parts.iter().zip([4usize, 10]) {
        assert_eq!((figure.n_removed, figure.brittleness), (n_removed, None));
        let mut order: Vec<usize> = (0..N).collect();
        Stream::new(3, &format!("bench/removal/{n_removed}")).shuffle(&mut order);
        let cost = |q: usize| {
            let mut row: Vec<f64> = worth.row(q).iter().map(|&w| f64::from(w)).collect();
            let random: f64 = order[..n_removed].iter().map(|&i| row[i]).sum();
            row.sort_by(f64::total_cmp);
            row.iter().rev().take(n_removed).sum::<f64>() - random
        };
        assert!((figure.effect.mean - (cost(1) + cost(4)) / 2.0).abs() < 1e-9, "{figure:?}");
    }
}
