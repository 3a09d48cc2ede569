//! Golden files of the walk: a cell of the retrain bank, an evaluation, the calibrated method, shares with intervals, a sealed run
//! file.

use std::collections::BTreeMap;
use std::fs;

use ascribe_core::Digest;
use ascribe_engine::bank::BankCell;
use ascribe_engine::run_file::RunFile;
use ascribe_engine::walk::calibrated_file;
use ascribe_engine::walk::evaluate::Evaluation;
use ascribe_engine::walk::intervals::{INTERVALS_FILE, Intervals, Parts};
use ascribe_methods::combine::{
    CalibratedMethod, Calibration, Channel, ChannelSpec, Conformal, HeldOut, Origin, Transform,
};
use ascribe_tests::golden;
use ndarray::arr2;

/// What the golden run file says, before its seal.
const RUN: &str = r#"
format_version = 1
ascribe_version = "0.1.0"
command = "ascribe demo --out out/demo"
model = "wren"

[inputs]
registry = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

[attribution]
seed = 1
k_in = 16
k_out = 16
embedding = true
norms = false
row_type = "bf16"
damping_rel = 0.5
trajectory_damping_rel = 0.25
channels = ["block_fisher", "embedding"]
top_k = 10
hnsw_dim = 64
interval_level = 0.9
pool = "1000.00 USD"
period = "2026-11-01/2026-11-30"
token = "0x0000000000000000000000000000000000000001"

[summary]
datasets = 2
records = 42
examples = 70
queries = 2
seconds = 1.5
peak_rss_mib = 100.25
default_method = "calibrated"
conservation = true
coverage_ppm = 800000
hnsw_recall_at_10 = 1.0
retraining_seeds = 2
ceiling_share_error = 0.125
ceiling_spearman = 0.875

[summary.methods.calibrated]
share_error = 0.25
share_error_low = 0.125
share_error_high = 0.375
calibrated = 0.25
calibrated_low = 0.125
calibrated_high = 0.375
calibrated_unseen_datasets = 0.5
spearman = 0.75
low = 0.5
high = 0.875
spearman_others = 0.5
top1 = 0.875
top1_low = 0.75
top1_high = 1.0
control = false

[[timings]]
stage = "corpus"
seconds = 0.5
note = "70 examples"

[outputs]
"shares.json" = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"#;

#[test]
#[ignore = "writes the golden folder"]
fn make_golden_run() {
    let run: RunFile = toml::from_str(RUN).unwrap();
    fs::create_dir_all(golden("run", 1)).unwrap();
    run.write(&golden("run", 1)).unwrap();
}

/// Opens `formats/run/v1`: its seal holds and it says what it said.
#[test]
fn the_first_run_file_opens_for_ever() {
    let run = RunFile::read(&golden("run", 1)).unwrap();
    let wanted: RunFile = toml::from_str(RUN).unwrap();
    assert_eq!(toml::to_string(&run).unwrap(), toml::to_string(&wanted).unwrap());
    assert_eq!(run.outputs.len(), 1);
    assert_eq!(run.summary.methods["calibrated"].share_error_high, 0.375);
}

/// Opens `formats/bank/v1`: a measured cell reads and writes back to the same bytes.
#[test]
fn the_first_bank_cell_opens_for_ever() {
    let text = fs::read_to_string(golden("bank", 1).join("seed7-without-harbour.json")).unwrap();
    let cell: BankCell = serde_json::from_str(&text).unwrap();
    assert_eq!((cell.seed, cell.removed.as_deref(), cell.n_examples), (7, Some("harbour"), 12));
    assert_eq!(cell.query_nats, [41.25, 38.5]);
    assert_eq!(serde_json::to_string_pretty(&cell).unwrap() + "\n", text);
}

/// Opens `formats/eval/v1`, the evaluation of a tiny walk (three datasets, twelve responses, two seeds), and applies what it
/// fitted.
#[test]
fn the_first_evaluation_opens_for_ever() {
    let evaluation = Evaluation::read(&golden("eval", 1)).unwrap();
    assert_eq!((evaluation.format_version, evaluation.seeds.as_slice(), evaluation.usable), (1, &[1, 2][..], 12));
    assert_eq!(evaluation.default_method, "calibrated");
    evaluation.calibration.validate().unwrap();
    for row in &evaluation.shares {
        // Shares sum to 1 to the rounding of their decimals.
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
    }
    let text = fs::read_to_string(golden("eval", 1).join("eval.json")).unwrap();
    let (again, wanted): (serde_json::Value, serde_json::Value) =
        (serde_json::to_value(&evaluation).unwrap(), serde_json::from_str(&text).unwrap());
    assert_eq!(again, wanted);
}

/// A method whose numbers are all exact in binary.
fn method() -> CalibratedMethod {
    let channel = |name: &str, transform| ChannelSpec { name: name.into(), transform };
    CalibratedMethod {
        calibration: Calibration {
            format_version: 1,
            channels: vec![channel("trajectory_fisher", Transform::ZScore), channel("bm25_top20", Transform::Rank)],
            weights: vec![0.75, 0.25],
            temperature: 0.5,
        },
        origin: Origin::Bank { digest: "0123456789abcdef".repeat(4), seeds: vec![1, 2, 3], responses: 12 },
        queries: HeldOut { share_error: 0.125, low: 0.0625, high: 0.25 },
        datasets: Some(HeldOut { share_error: 0.1875, low: 0.125, high: 0.25 }),
        conformal: Conformal { level: 0.875, quantile: 0.5, n_residuals: 36 },
    }
}

/// Three datasets, two responses, one of them without shares.
fn intervals() -> Intervals {
    let (shares, variance) = (arr2(&[[0.5, 0.25, 0.25], [0.0; 3]]), arr2(&[[0.0625, 0.015625, 0.015625], [0.0; 3]]));
    let datasets = ["harbour", "margin", "quay"].map(String::from).into();
    let variances = BTreeMap::from([("checkpoints".to_owned(), variance)]);
    let additivity = [0.125, -0.0625];
    let parts = Parts {
        method: method(),
        shares: &shares,
        variances: &variances,
        additivity: &additivity,
        datasets,
        threshold: 0.5,
        seed: 7,
    };
    Intervals::new(parts).unwrap()
}

#[test]
#[ignore = "writes the golden folder"]
fn make_golden_calibrated() {
    calibrated_file::write(&golden("calibrated", 1).join("calibrated.safetensors"), &method(), Digest::of(b"scores"))
        .unwrap();
    fs::create_dir_all(golden("intervals", 1)).unwrap();
    intervals().write(&golden("intervals", 1)).unwrap();
}

/// Opens `formats/calibrated/v1`: weights, temperature, bank and held-out figures are what they were, and give the same shares.
#[test]
fn the_first_calibrated_method_opens_for_ever() {
    let path = golden("calibrated", 1).join("calibrated.safetensors");
    let read = calibrated_file::read(&path, Some(Digest::of(b"scores"))).unwrap();
    assert_eq!(read, method());
    let (influence, words) = (arr2(&[[1.0, 2.0, 3.0]]), arr2(&[[5.0, 5.0, 5.0]]));
    let channels = [
        Channel { name: "bm25_top20", scores: words.view() },
        Channel { name: "trajectory_fisher", scores: influence.view() },
    ];
    let logits = [-1.5f64.sqrt() * 1.5, 0.0, 1.5f64.sqrt() * 1.5];
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    for (share, logit) in read.calibration.predict(&channels).unwrap().iter().zip(logits) {
        assert!((share - logit.exp() / total).abs() < 1e-12);
    }
    // Written again it is the same file.
    let dir = tempfile::tempdir().unwrap();
    let again = dir.path().join("again.safetensors");
    calibrated_file::write(&again, &read, Digest::of(b"scores")).unwrap();
    assert_eq!(fs::read(again).unwrap(), fs::read(path).unwrap());
}

/// Opens `formats/intervals/v1`: shares, ends and verdicts are what they were.
#[test]
fn the_first_intervals_open_for_ever() {
    let read = Intervals::read(&golden("intervals", 1)).unwrap();
    assert_eq!(read, intervals());
    assert_eq!((read.n_too_noisy(), read.responses[0].verdict.is_payable()), (1, true));
    let text = fs::read_to_string(golden("intervals", 1).join(INTERVALS_FILE)).unwrap();
    assert_eq!(serde_json::to_string_pretty(&read).unwrap() + "\n", text);
}
