//! What datasets are worth as groups, and what examples do upon themselves, on the tiny run.

use ascribe_core::NoProgress;
use ascribe_engine::upon::{self, UponRequest, UponSource};
use ascribe_engine::values::{self, Draws, GameKind, ValueKind, ValuesReport, ValuesRequest};
use ascribe_store::{Level, read_scores};

use crate::common::{DATASETS, MODEL, finished};

fn request(game: GameKind, value: ValueKind) -> ValuesRequest {
    ValuesRequest {
        model: MODEL.into(),
        out: finished().tiny.out(),
        game,
        value,
        split: vec![],
        queries: Some(5),
        draws: Draws { sizes: 8, pairs: 24, ..Draws::default() },
        write: None,
    }
}

fn run(request: &ValuesRequest) -> ValuesReport {
    values::run(&finished().tiny.home(), request, &NoProgress).unwrap()
}

#[test]
fn a_dataset_registered_in_parts_gains_nothing() {
    let split = vec![(DATASETS[0].0.to_owned(), 5)];
    let with = |game, value| run(&ValuesRequest { split: split.clone(), ..request(game, value) });
    // Second order: sums over examples, so equal but for f64 and the f32 of scores.
    let influence = with(GameKind::Influence, ValueKind::Fgsv);
    let gain = &influence.splits[0];
    let size: f64 = influence.players.iter().map(|p| p.value.abs()).sum();
    assert!(influence.exact && gain.parts == 5 && gain.gain.abs() < 1e-5 * size, "{gain:?}");
    assert!(influence.efficiency_residual < 1e-9 && influence.additivity_residual > 0.0);
    assert_eq!(influence.players.len(), DATASETS.len() + 4);
    // Leaving one out at a time is no such value.
    let alone = &with(GameKind::Influence, ValueKind::LeaveOneOut).splits[0];
    assert!(alone.gain.abs() > 100.0 * gain.gain.abs(), "{alone:?} {gain:?}");
    // Drawn: within the error of the drawing.
    let drawn = with(GameKind::Bigram, ValueKind::Fgsv);
    let gain = &drawn.splits[0];
    assert!(!drawn.exact && gain.gain.abs() < 4.0 * gain.std_error, "{gain:?}");
    // With datasets as players a split moves the value by more than nothing.
    let players = &with(GameKind::Bigram, ValueKind::Shapley).splits[0];
    assert!(players.gain.abs() > 1e-6, "{players:?}");
}

#[test]
fn values_become_a_score_file_and_wrong_questions_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("values.parquet");
    let asked = ValuesRequest { write: Some(path.clone()), ..request(GameKind::Influence, ValueKind::Shapley) };
    let report = run(&asked);
    let file = read_scores(&path).unwrap();
    let table = file.datasets("influence_shapley").unwrap();
    assert_eq!(table.values.dim(), (5, DATASETS.len()));
    for (k, player) in report.players.iter().enumerate() {
        assert!((table.values.column(k).mean().unwrap() - player.value).abs() < 1e-9 * player.value.abs().max(1.0));
    }
    // In a game of second order Shapley, Banzhaf and the split-proof value are one.
    let same = run(&request(GameKind::Influence, ValueKind::Fgsv));
    assert_eq!(same.players, report.players);
    let error =
        |request: ValuesRequest| values::run(&finished().tiny.home(), &request, &NoProgress).unwrap_err().to_string();
    let split = |name: &str, parts| vec![(name.to_owned(), parts)];
    let base = || request(GameKind::Bigram, ValueKind::Fgsv);
    assert!(error(ValuesRequest { split: split("nobody", 2), ..base() }).contains("--split: expected a dataset among"));
    assert!(error(ValuesRequest { split: split(DATASETS[0].0, 2), write: Some(path), ..base() }).contains("--write"));
    let elsewhere = ValuesRequest { out: dir.path().into(), ..request(GameKind::Influence, ValueKind::Fgsv) };
    assert!(error(elsewhere).contains("hint: ascribe features --out"));
}

#[test]
fn examples_upon_themselves_of_a_run_and_of_its_store() {
    let tiny = &finished().tiny;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("self.parquet");
    let of = |source, write| upon::run(&tiny.home(), &UponRequest { source, top: 3, write }, &NoProgress).unwrap();
    let source = UponSource::Run { model: MODEL.into(), out: tiny.out() };
    let report = of(source.clone(), Some(path.clone()));
    let names: Vec<&str> = report.methods.iter().map(|m| m.method.as_str()).collect();
    assert_eq!(names, ["grad_dot", "tracin_cp", "block_fisher", "trajectory_fisher"]);
    for method in &report.methods {
        assert!(method.top.len() == 3 && method.top.windows(2).all(|w| w[0].value >= w[1].value), "{method:?}");
        assert!(method.top.iter().all(|e| e.record.is_some()) && method.records.len() == 3);
        assert_eq!(method.datasets.iter().map(|d| d.dataset.as_str()).collect::<Vec<_>>(), DATASETS.map(|d| d.0));
        assert!(method.datasets.iter().all(|d| d.median > 0.0 && d.largest >= d.mean));
    }
    let file = read_scores(&path).unwrap();
    let rows: Vec<_> = file.rows_of("block_fisher", Level::Example).collect();
    assert_eq!(rows.len(), report.methods[2].examples);
    assert!((rows[0].score - report.methods[2].top[0].value).abs() < 1e-5 * rows[0].score.abs());
    // The last checkpoint's store has the same lengths, and the same influence under the same damping.
    let store = of(UponSource::Store { dir: tiny.out().join("store/final"), damping_rel: 0.01 }, None);
    assert_eq!(store.methods[0].top[0].value, report.methods[0].top[0].value);
    let (a, b) = (store.methods[1].top[0].value, report.methods[2].top[0].value);
    assert!((a - b).abs() < 1e-6 * a, "{a} {b}");
    let json = dir.path().join("self.json");
    of(source.clone(), Some(json.clone()));
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(whole["methods"][0]["top"].as_array().unwrap().len(), report.methods[0].examples);
    let ask = |source, write| upon::run(&tiny.home(), &UponRequest { source, top: 3, write }, &NoProgress);
    let error = ask(source, Some(dir.path().join("self.csv"))).unwrap_err().to_string();
    assert!(error.contains("--write: expected a file that ends with .parquet or .json"), "{error}");
    let nowhere = UponSource::Run { model: MODEL.into(), out: dir.path().into() };
    assert!(ask(nowhere, None).unwrap_err().to_string().contains("hint: ascribe features --out"));
}
