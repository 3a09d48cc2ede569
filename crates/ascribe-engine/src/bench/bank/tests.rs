//! Banks are made, stopped, shared, packed and refused; golden folders open. Real trainings never happen here.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ascribe_core::NoProgress;

use super::*;

fn plan(players: Players, draw: Draw) -> BankPlan {
    BankPlan {
        format_version: RETRAIN_BANK_FORMAT_VERSION,
        setting: "toy".into(),
        players,
        draw,
        recipe: Digest::of(b"recipe"),
        data: Digest::of(b"data"),
        n_queries: 2,
        measure: "margin".into(),
        command: "ascribe bench bank toy".into(),
    }
}

fn halves() -> BankPlan {
    plan(Players::Examples(11), Draw::Random { m: 5, alpha: 0.5, seed: 7 })
}

/// A training that is a sum: eighths, so that f32 keeps them.
fn outcome(job: Job<'_>) -> Vec<f64> {
    let kept = job.kept.iter().enumerate().map(|(i, &k)| if k { i as f64 } else { 0.0 }).sum::<f64>();
    vec![kept + job.seed as f64 / 8.0, -kept]
}

fn build_all(dir: &Path, plan: &BankPlan, seeds: &[u64]) -> usize {
    build(dir, plan, seeds, (0, 1), 2, &NoProgress, |job| Ok(outcome(job))).unwrap()
}

fn read(dir: &Path) -> RetrainBank {
    RetrainBank::read(dir).unwrap().expect("a complete seed")
}

struct StopAt(AtomicUsize);

impl Progress for StopAt {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, n: u64) {
        self.0.fetch_sub(n as usize, Ordering::Relaxed);
    }
    fn finish(&self, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn outcomes_are_those_of_the_trainings() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(build_all(dir.path(), &halves(), &[4, 9]), 10);
    let bank = read(dir.path());
    assert_eq!((bank.seeds.as_slice(), bank.kept.dim(), bank.outcomes.dim()), (&[4, 9][..], (5, 11), (2, 5, 2)));
    for (s, &seed) in bank.seeds.iter().enumerate() {
        for m in 0..5 {
            let kept = bank.kept.row(m).to_vec();
            assert_eq!(kept.iter().filter(|&&k| k).count(), 6, "half of 11, rounded");
            let want = outcome(Job { subset: m, kept: &kept, seed });
            assert_eq!(bank.outcomes.slice(ndarray::s![s, m, ..]).to_vec(), want);
        }
    }
    let mean = bank.mean();
    assert_eq!(mean[(3, 0)], (bank.outcomes[(0, 3, 0)] + bank.outcomes[(1, 3, 0)]) / 2.0);
}

#[test]
fn a_stopped_build_goes_on_and_ends_with_the_same_bytes() {
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build_all(whole.path(), &halves(), &[1]);
    let stop = StopAt(AtomicUsize::new(2));
    let error = build(cut.path(), &halves(), &[1], (0, 1), 1, &stop, |job| Ok(outcome(job))).unwrap_err();
    assert!(matches!(error, EngineError::Stopped));
    assert!(RetrainBank::read(cut.path()).unwrap().is_none(), "no seed is complete yet");
    assert_eq!(build_all(cut.path(), &halves(), &[1]), 3, "two were kept");
    assert_eq!(build_all(cut.path(), &halves(), &[1]), 0);
    for name in files::list(whole.path()).unwrap() {
        assert_eq!(files::read(&whole.path().join(&name)).unwrap(), files::read(&cut.path().join(&name)).unwrap());
    }
    assert_eq!(read(whole.path()).digest, read(cut.path()).digest);
}

#[test]
fn shards_make_one_bank_and_packing_changes_nothing() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    build_all(whole.path(), &halves(), &[1, 2]);
    let seen = Mutex::new(Vec::new());
    for shard in 0..3 {
        build(parts.path(), &halves(), &[1, 2], (shard, 3), 1, &NoProgress, |job| {
            seen.lock().unwrap().push((job.seed, job.subset));
            Ok(outcome(job))
        })
        .unwrap();
    }
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (1..3).flat_map(|s| (0..5).map(move |m| (s, m))).collect::<Vec<_>>(), "each training once");
    let before = read(parts.path());
    assert_eq!((before.digest, &before.outcomes), (read(whole.path()).digest, &read(whole.path()).outcomes));
    pack(parts.path()).unwrap();
    assert_eq!(read(parts.path()).digest, before.digest);
    assert_eq!(files::list(parts.path()).unwrap(), files::list(whole.path()).unwrap());
}

#[test]
fn another_plan_is_refused_but_a_moved_folder_is_not() {
    let dir = tempfile::tempdir().unwrap();
    build_all(dir.path(), &halves(), &[1]);
    let others = [
        BankPlan { recipe: Digest::of(b"other recipe"), ..halves() },
        BankPlan { data: Digest::of(b"other data"), ..halves() },
        BankPlan { draw: Draw::Random { m: 5, alpha: 0.5, seed: 8 }, ..halves() },
        BankPlan { n_queries: 3, ..halves() },
    ];
    for other in &others {
        let error = build(dir.path(), other, &[1], (0, 1), 1, &NoProgress, |job| Ok(outcome(job))).unwrap_err();
        assert!(error.to_string().contains("bank.json: expected the plan"), "{error}");
    }
    let moved = BankPlan { command: "another word".into(), ..halves() };
    assert_eq!(build_all(dir.path(), &moved, &[1]), 0);
    // Outcomes of one bank in the folder of another.
    let foreign = tempfile::tempdir().unwrap();
    build_all(foreign.path(), &others[0], &[1]);
    std::fs::copy(foreign.path().join("seed-1.safetensors"), dir.path().join("seed-3.safetensors")).unwrap();
    let error = RetrainBank::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("seed-3.safetensors"), "{error}");
}

#[test]
fn bad_outcomes_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let with = |row: fn(usize) -> Vec<f64>| {
        build(dir.path(), &halves(), &[1], (0, 1), 1, &NoProgress, |job| Ok(row(job.subset))).unwrap_err().to_string()
    };
    let error = with(|m| vec![0.0, if m == 3 { f64::NAN } else { 0.0 }]);
    assert!(error.contains("subset 3") && error.contains("NaN for query 1"), "{error}");
    let error = with(|_| vec![0.0; 5]);
    assert!(error.contains("expected 2 outcomes") && error.contains("found 5"), "{error}");
}

#[test]
fn a_changed_subset_or_a_lying_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    build_all(dir.path(), &halves(), &[1]);
    let path = dir.path().join(SUBSETS_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    for (bad, want) in [
        (text.replacen(&text[..1], if text.starts_with('f') { "0" } else { "f" }, 1), "others"),
        (text.replacen(&text[..4], "zzzz", 1), "hex digits on line 1"),
        (text.replacen(&text[..4], "00", 1), "the bits of 11 players on line 1"),
        (format!("-99\n{text}"), "players below 11"),
    ] {
        std::fs::write(&path, bad).unwrap();
        let error = RetrainBank::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains(SUBSETS_FILE), "{error}");
    }
    std::fs::write(&path, text).unwrap();
    let renamed = dir.path().join("seed-8.safetensors");
    std::fs::rename(dir.path().join("seed-1.safetensors"), &renamed).unwrap();
    let error = RetrainBank::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("outcomes of seed 8"), "{error}");
}

#[test]
fn plans_that_cannot_be_carried_out() {
    let examples = |n| Players::Examples(n);
    let names = |n: usize| Players::Datasets((0..n).map(|k| format!("d{k}")).collect());
    for (players, how, want) in [
        (examples(0), Draw::PowerSet, "players: expected at least one"),
        (names(13), Draw::PowerSet, "at most 12"),
        (examples(4), Draw::Random { m: 3, alpha: 1.0, seed: 1 }, "alpha"),
        (examples(4), Draw::Random { m: 0, alpha: 0.5, seed: 1 }, "subsets"),
        (examples(4), Draw::LeaveOneOut { m: 5, seed: 1 }, "players left out"),
    ] {
        let error = draw(&plan(players, how)).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    // One player only: it is kept, or nothing is.
    assert_eq!(draw(&plan(names(1), Draw::PowerSet)).unwrap(), ndarray::arr2(&[[false], [true]]));
    assert_eq!(draw(&plan(examples(1), Draw::Random { m: 2, alpha: 0.5, seed: 1 })).unwrap().dim(), (2, 1));
}

#[test]
fn leaving_out_starts_with_all() {
    let kept = draw(&plan(Players::Examples(30), Draw::LeaveOneOut { m: 4, seed: 3 })).unwrap();
    assert_eq!(kept.dim(), (5, 30));
    assert!(kept.row(0).iter().all(|&k| k));
    let out: Vec<usize> = (1..5).map(|m| kept.row(m).iter().position(|&k| !k).unwrap()).collect();
    assert!(
        out.windows(2).all(|pair| pair[0] < pair[1])
            && kept.rows().into_iter().skip(1).all(|row| { row.iter().filter(|&&k| !k).count() == 1 })
    );
}

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/retrain_bank/v{version}"))
}

fn golden_plans() -> [(&'static str, BankPlan); 2] {
    let datasets = Players::Datasets(vec!["kjv".into(), "foldoc".into()]);
    [("halves", halves()), ("all", plan(datasets, Draw::PowerSet))]
}

/// Banks of every version open for ever. `write_golden_bank` made the files.
#[test]
fn banks_of_version_1_open() {
    for (name, plan) in golden_plans() {
        let bank = read(&golden(1).join(name)); // tests/formats/retrain_bank/v1
        assert_eq!((&bank.plan, bank.seeds.as_slice()), (&plan, &[1, 2][..]));
        assert_eq!(bank.kept, draw(&plan).unwrap());
        for (s, &seed) in bank.seeds.iter().enumerate() {
            for (m, kept) in bank.kept.rows().into_iter().enumerate() {
                let want = outcome(Job { subset: m, kept: &kept.to_vec(), seed });
                assert_eq!(bank.outcomes.slice(ndarray::s![s, m, ..]).to_vec(), want);
            }
        }
    }
}

/// Run by hand for a new version: `cargo test --release -p ascribe-engine write_golden_bank -- --ignored`.
#[test]
#[ignore = "writes the golden files of a new format version"]
fn write_golden_bank() {
    for (name, plan) in golden_plans() {
        let dir = golden(RETRAIN_BANK_FORMAT_VERSION).join(name);
        build_all(&dir, &plan, &[1, 2]);
    }
}
