//! The default method as it is kept: fitted on a bank or documented, by channels that are whole methods or parts of them, with
//! intervals that say what cannot be paid.

use std::fs;

use ascribe_core::NoProgress;
use ascribe_engine::respond::{Ask, Filter, Input, Material, Responder};
use ascribe_engine::walk::calibrate::{Tables, channels_of};
use ascribe_engine::walk::calibrated_file::{self, CALIBRATED_FILE};
use ascribe_engine::walk::evaluate::{COMBINED, Evaluation};
use ascribe_engine::walk::intervals::{INTERVALS_FILE, Intervals};
use ascribe_engine::walk::noise::{Replicates, SOURCES};
use ascribe_engine::walk::score::SCORES_FILE;
use ascribe_engine::walk::stamps::Stamps;
use ascribe_engine::walk::{calibrate, evaluate, score, shares};
use ascribe_engine::{EngineError, Origin};
use ascribe_methods::combine::CalibratedMethod;
use ascribe_methods::controls::ngram::{Bigrams, FOLLOWER_PSEUDO_COUNT};
use ascribe_store::scores::read_scores;

use crate::common::{DATASETS, SEEDS, Tiny, finished};

/// Other channels in `attribution.toml`.
fn with_channels(tiny: &Tiny, channels: &str) {
    let path = tiny.model().join("attribution.toml");
    let text = fs::read_to_string(&path).unwrap();
    let old = text.lines().find(|l| l.starts_with("channels")).unwrap().to_owned();
    fs::write(path, text.replace(&old, &format!("channels = {channels}"))).unwrap();
}

#[test]
fn the_bank_and_the_held_out_figures_stand_beside_the_weights() {
    let tiny = &finished().tiny;
    let context = tiny.context(&tiny.out()).unwrap();
    let method = calibrated_file::read(&tiny.out().join(CALIBRATED_FILE), None).unwrap();
    let bank = context.bank().unwrap();
    let Origin::Bank { digest, seeds, responses } = &method.origin else { panic!("{:?}", method.origin) };
    assert_eq!((digest, seeds.as_slice()), (&bank.digest.to_string(), &SEEDS[..]));
    let evaluation = Evaluation::read(&tiny.out()).unwrap();
    let figures = &evaluation.methods[COMBINED];
    assert_eq!((method.queries.share_error, *responses), (figures.share_error, evaluation.usable));
    assert_eq!((method.queries.low, method.queries.high), (figures.share_error_low, figures.share_error_high));
    assert_eq!(method.datasets.unwrap().share_error, figures.calibrated_unseen_datasets);
    assert_eq!((&method.calibration, method.conformal), (&evaluation.calibration, evaluation.conformal));
    let names: Vec<&str> = method.calibration.channels.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, context.attribution.channels.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn every_share_has_an_interval_from_every_source() {
    let run = finished();
    let out = run.tiny.out();
    let found = Intervals::read(&out).unwrap();
    let names: Vec<&str> = found.sources.keys().map(String::as_str).collect();
    assert_eq!(names, ["bank_seeds", "checkpoints", "projection_inputs", "projection_outputs"]);
    assert!(found.sources.values().all(|e| e.is_finite() && *e > 0.0), "{:?}", found.sources);
    let evaluation = Evaluation::read(&out).unwrap();
    for (response, shares) in found.responses.iter().zip(&evaluation.shares) {
        assert_eq!(response.shares.len(), DATASETS.len());
        for (s, share) in response.shares.iter().zip(shares) {
            assert_eq!(s.share, *share);
            let (low, high) = found.method.conformal.interval(s.share);
            assert!(0.0 <= s.low && s.low <= low && high <= s.high && s.high <= 1.0, "{s:?}");
        }
    }
    let total: f64 = found.pool.iter().map(|p| p.share).sum();
    assert!((total - 1.0).abs() < 1e-9 && found.pool.iter().all(|p| p.low <= p.share && p.share <= p.high));
    // What the demo prints and the policy decides agree with the file.
    let summary = &run.summary;
    assert_eq!((summary.too_noisy_to_pay as usize, summary.noise_threshold), (found.n_too_noisy(), found.threshold));
    assert_eq!((summary.payable + summary.too_noisy_to_pay, &summary.pool), (summary.queries, &found.pool));
    let book = ascribe_shares::ShareBook::from_json(&fs::read(out.join(shares::SHARES_FILE)).unwrap()).unwrap();
    for (response, paid) in found.responses.iter().zip(&book.responses) {
        assert!(response.verdict.is_payable() || paid.verdict != ascribe_shares::Verdict::Payable);
    }
}

/// A threshold that no response meets: nothing is paid, and the verdict says why.
#[test]
fn what_is_too_noisy_is_not_paid() {
    let tiny = finished().tiny.copy_with_run();
    let path = tiny.model().join("attribution.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("noise_threshold = 1e-6\n{text}")).unwrap();
    let context = tiny.context(&tiny.out()).unwrap();
    let mut stamps = Stamps::read(&context.out);
    let book = shares::run(&context, &mut stamps, &NoProgress).unwrap();
    let found = Intervals::read(&context.out).unwrap();
    assert_eq!(found.n_too_noisy(), found.responses.len());
    assert_eq!(book.count(ascribe_shares::Verdict::Payable), 0);
    assert_eq!(shares::verdicts(&book)["payable"], 0);
    fs::write(&path, format!("noise_threshold = 1.5\n{text}")).unwrap();
    let error = shares::run(&tiny.context(&tiny.out()).unwrap(), &mut stamps, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("threshold of a payable share must be between 0 and 1, found 1.5"), "{error}");
}

#[test]
fn a_model_without_a_bank_has_the_documented_weights() {
    let tiny = finished().tiny.copy_with_run();
    fs::remove_dir_all(tiny.model().join("bank")).unwrap();
    let context = tiny.context(&tiny.out()).unwrap();
    let mut stamps = Stamps::read(&context.out);
    score::run(&context, &mut stamps, &NoProgress).unwrap();
    let found = calibrate::run(&context, &mut stamps, &NoProgress).unwrap();
    let defaults = CalibratedMethod::defaults();
    assert_eq!(found.method, defaults);
    assert_eq!(calibrated_file::read(&context.out.join(CALIBRATED_FILE), None).unwrap(), defaults);
    assert_eq!(found.coverage, 1.0 - defaults.queries.share_error);
    assert!(!found.sources.contains_key("bank_seeds") && found.sources.contains_key("checkpoints"));
    let file = read_scores(&context.out.join(SCORES_FILE)).unwrap();
    for response in &found.responses {
        assert!((response.shares.iter().map(|s| s.share).sum::<f64>() - 1.0).abs() < 1e-9);
    }
    for spec in &defaults.calibration.channels {
        assert_eq!(file.datasets(&spec.name).unwrap().values.nrows(), found.responses.len());
    }
    let book = shares::run(&context, &mut stamps, &NoProgress).unwrap();
    assert_eq!(book.responses.len(), found.responses.len());
    // What is measured against retraining needs retraining, and says so.
    let error = evaluate::run(&context, &mut stamps, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("hint: ascribe bank build"), "{error}");
}

#[test]
fn layers_checkpoints_and_copied_text_are_channels() {
    let tiny = finished().tiny.copy_with_run();
    let parts = ["trajectory_fisher/layers.0", "trajectory_fisher/embed_tokens", "trajectory_fisher/norm"];
    let names = [&parts[..], &["block_fisher/step-000015", "tracin", "verbatim", "embedding", "bm25"]].concat();
    with_channels(&tiny, &format!("{names:?}"));
    let context = tiny.context(&tiny.out()).unwrap();
    evaluate::check(&context).unwrap();
    let mut stamps = Stamps::read(&context.out);
    score::run(&context, &mut stamps, &NoProgress).unwrap();
    let found = calibrate::run(&context, &mut stamps, &NoProgress).unwrap();
    let fitted: Vec<&str> = found.method.calibration.channels.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(fitted, names);
    evaluate::run(&context, &mut stamps, &NoProgress).unwrap();
    // Layers add up to the whole method, at every source of variance too.
    let file = read_scores(&context.out.join(SCORES_FILE)).unwrap();
    let table = |name: &str| file.datasets(name).unwrap().values;
    let whole = table("trajectory_fisher");
    let sum = parts.iter().skip(1).fold(table(parts[0]), |sum, part| sum + table(part));
    let largest = whole.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    assert!((&whole - &sum).iter().all(|e| e.abs() < 1e-9 * largest));
    assert!(table("verbatim").iter().all(|v| *v >= 0.0 && v.fract() == 0.0), "runs are counted in tokens");
    let replicates = Replicates::read(&context).unwrap();
    assert!(!replicates.channels.contains_key("verbatim") && replicates.channels.contains_key("tracin"));
    for source in SOURCES {
        assert!(replicates.channels[parts[0]][source].len() >= 2, "{source}");
    }
    // A single checkpoint cannot go, and nothing is said of it.
    let early = &replicates.channels["block_fisher/step-000015"];
    assert!(early.contains_key("projection_inputs") && !early.contains_key("checkpoints"));
    assert!(found.sources["checkpoints"] > 0.0);
}

/// Of one checkpoint there is no deviation between checkpoints: an interval has the other sources, a response's as the walk's.
#[test]
fn a_single_checkpoint_has_no_deviation_between_checkpoints() {
    let tiny = finished().tiny.copy_with_run();
    with_channels(&tiny, r#"["block_fisher", "bm25_exchange", "embedding_exchange", "bigram"]"#);
    tiny.demo(&tiny.out()).unwrap();
    let found = Intervals::read(&tiny.out()).unwrap();
    let names: Vec<&str> = found.sources.keys().map(String::as_str).collect();
    assert_eq!(names, ["bank_seeds", "projection_inputs", "projection_outputs"]);
    assert!(found.sources.values().all(|e| *e > 0.0), "{:?}", found.sources);
}

/// Sums against what takes a dataset's place, and counted bigrams: scores by their formulas, and one response's shares are the walk's.
#[test]
fn exchanges_and_bigrams_are_channels_of_the_walk_and_of_answers() {
    let tiny = finished().tiny.copy_with_run();
    let parts = ["trajectory_fisher_exchange", "trajectory_fisher_exchange/layers.0"];
    let names = [&parts[..], &["bm25_exchange", "embedding_exchange", "bigram"]].concat();
    with_channels(&tiny, &format!("{names:?}"));
    tiny.demo(&tiny.out()).unwrap();
    let context = tiny.context(&tiny.out()).unwrap();
    let file = read_scores(&tiny.out().join(SCORES_FILE)).unwrap();
    let table = |name: &str| file.datasets(name).unwrap().values;
    // Example by example: its own dataset's count once, the others' as often as they make up for them.
    let sizes = context.sizes().unwrap();
    let (plain, exchanged, mean, bm25) =
        (table("trajectory_fisher"), table(parts[0]), table("bm25"), table("bm25_exchange"));
    let largest = |t: &ndarray::Array2<f64>| t.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for ((q, k), found) in exchanged.indexed_iter() {
        let others: f64 = (0..sizes.len()).filter(|&j| j != k).map(|j| plain[(q, j)]).sum();
        let n_others: usize = (0..sizes.len()).filter(|&j| j != k).map(|j| sizes[j]).sum();
        let expected = plain[(q, k)] - others * sizes[k] as f64 / n_others as f64;
        assert!((found - expected).abs() <= 1e-12 * largest(&plain), "{q} {k}: {found} {expected}");
        let others: f64 = (0..sizes.len()).filter(|&j| j != k).map(|j| mean[(q, j)] * sizes[j] as f64).sum();
        let expected = sizes[k] as f64 * (mean[(q, k)] - others / n_others as f64);
        assert!((bm25[(q, k)] - expected).abs() <= 1e-12 * largest(&bm25), "{q} {k}: {} {expected}", bm25[(q, k)]);
    }
    // A second count, of a dataset and of all others together: what the others alone would say.
    let bigram = table("bigram");
    for k in 0..sizes.len() {
        let windows =
            context.corpus.examples.iter().map(|e| (u32::from(e.id.dataset as usize == k), e.tokens.as_slice()));
        let two = Bigrams::build(context.recipe.corpus.vocab_size, 2, windows).unwrap();
        let utilities = two.utilities(&context.predicted(), FOLLOWER_PSEUDO_COUNT).unwrap();
        let expected = &utilities.row(3) - &utilities.row(1);
        assert_eq!(bigram.column(k), expected, "dataset {k}");
    }
    let replicates = Replicates::read(&context).unwrap();
    assert!(replicates.channels.contains_key(parts[1]) && !replicates.channels.contains_key("bigram"));
    let cache = crate::common::temp_dir();
    let material = Material::open(&tiny.home(), &tiny.out(), cache.path(), &NoProgress).unwrap();
    let responder = Responder::new(&material).unwrap();
    let walked: Tables = names.iter().map(|name| ((*name).to_owned(), table(name))).collect();
    let found = Intervals::read(&tiny.out()).unwrap();
    let shares = found.method.calibration.predict(&channels_of(&walked)).unwrap();
    for (q, response) in found.responses.iter().enumerate() {
        let ask = Ask {
            input: Input::Example(q),
            method: None,
            k: 1,
            min_score: None,
            filter: Filter::default(),
            tokens: false,
            verbatim: false,
        };
        let answer = responder.respond(&ask).unwrap();
        for (k, (mine, walk)) in answer.shares.iter().zip(&response.shares).enumerate() {
            assert!((mine.share - shares[(q, k)]).abs() < 1e-9, "response {q}: {} {}", mine.share, shares[(q, k)]);
            assert!((mine.std_error - walk.std_error).abs() <= 1e-9 + 1e-6 * walk.std_error, "response {q}");
        }
    }
}

#[test]
fn channels_that_are_not_there_are_refused_before_anything_is_done() {
    let tiny = finished().tiny.copy();
    for (channels, parts) in [
        (r#"["nonsense"]"#, ["channels among", "nonsense"]),
        (r#"["trajectory_fisher/layers.7"]"#, ["modules among", "layers.7"]),
        (r#"["bm25/step-000015"]"#, ["the whole of control \"bm25\"", "step-000015"]),
    ] {
        with_channels(&tiny, channels);
        let error = tiny.demo(&tiny.root().join("fresh")).unwrap_err();
        assert!(matches!(error, EngineError::Content { .. }), "{error}");
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)) && message.contains("attribution.toml"), "{message}");
    }
}

/// Calibrations of other scores and spoilt interval files do not pass for this run's.
#[test]
fn a_damaged_part_is_made_again() {
    let tiny = finished().tiny.copy_with_run();
    let context = tiny.context(&tiny.out()).unwrap();
    let mut stamps = Stamps::read(&context.out);
    let before = Intervals::read(&context.out).unwrap();
    for name in [INTERVALS_FILE, CALIBRATED_FILE] {
        let path = context.out.join(name);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(calibrate::run(&context, &mut stamps, &NoProgress).unwrap(), before);
        assert_eq!(fs::read(&path).unwrap(), bytes, "{name}");
    }
}
