//! The whole walk: what it leaves, and that its bytes depend on nothing but its inputs.

use std::collections::BTreeMap;
use std::fs;

use ascribe_core::{FeatureReader as _, NoProgress};
use ascribe_engine::run_file::{RUN_FILE, RunFile};
use ascribe_engine::walk::evaluate::COMBINED;
use ascribe_engine::walk::features::{self, load_rows, open_train, taps_of};
use ascribe_engine::walk::pay::JOURNAL_FILE;
use ascribe_engine::walk::score::METHODS;
use ascribe_engine::walk::usage::USAGE_DIR;
use ascribe_engine::{EngineError, demo};
use ascribe_ledger::{Journal, Memo};
use ascribe_models::GradientStage;
use ascribe_registry::{SignedUsage, UsageSalts, demo_usage_signer, salted_hash, verify_usage_log};
use ndarray::{Array2, Axis, concatenate};

use crate::common::{DATASETS, MODEL, StopAfter, different, digests, finished, timeless};

#[test]
fn a_finished_run_holds_every_file_and_every_figure_of_the_contract() {
    let run = finished();
    let out = run.tiny.out();
    for file in ["scores.parquet", "shares.json", "payout/payout.csv", "payout/merkle.json", "report.html", RUN_FILE] {
        assert!(fs::metadata(out.join(file)).unwrap().len() > 0, "{file} is empty");
    }
    assert!(out.join("store").is_dir());
    let json = serde_json::to_value(&run.summary).unwrap();
    let keys = ["datasets", "records", "examples", "queries", "seconds", "peak_rss_mib", "methods", "conservation"];
    for key in keys {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(json["conservation"], true);
    assert_eq!((run.summary.datasets, run.summary.queries), (3, 12));
    let records: u64 = run.tiny.registry().datasets().iter().map(|d| d.manifest.record_count).sum();
    assert_eq!(run.summary.records, records);
    assert_eq!(run.summary.examples, run.tiny.corpus().examples.len() as u64);

    let methods = json["methods"].as_object().unwrap();
    assert_eq!(methods.len(), METHODS.len() + 1);
    for control in ["embedding", "bm25", "gradient_norm", "random"] {
        assert_eq!(methods[control]["control"], true, "{control}");
    }
    for name in METHODS.iter().map(|m| m.name).chain([COMBINED]) {
        for key in
            ["share_error", "share_error_low", "share_error_high", "spearman", "low", "high", "top1", "calibrated"]
        {
            let value = methods[name][key].as_f64().unwrap_or(f64::NAN);
            assert!((-1.0..=1.0).contains(&value), "{name}.{key} = {value}");
        }
        let error = |key: &str| methods[name][key].as_f64().unwrap();
        let (low, mean, high) = (error("share_error_low"), error("share_error"), error("share_error_high"));
        assert!(0.0 <= low && low <= mean && mean <= high, "{name}: {low} {mean} {high}");
    }
    let written = RunFile::read(&out).unwrap();
    assert_eq!(written.summary, run.summary);
    assert_eq!(written.attribution, run.tiny.context(&out).unwrap().attribution);
}

#[test]
fn the_pool_is_paid_to_the_licensed_accounts_and_to_nobody_else() {
    let run = finished();
    let csv = fs::read_to_string(run.tiny.out().join("payout/payout.csv")).unwrap();
    let registry = run.tiny.registry();
    let accounts: Vec<String> =
        registry.datasets().iter().flat_map(|d| d.manifest.payees.iter().map(|p| p.account.clone())).collect();
    assert_eq!(accounts.len(), DATASETS.len() + 1, "Bo and Eve share a dataset");
    let lower = csv.to_lowercase();
    let found = lower.matches("eip155:").count();
    let known: usize = accounts.iter().map(|a| lower.matches(&a.to_lowercase()).count()).sum();
    assert!(found > 0 && found == known, "{csv}");
}

/// 1,000 USDC over twelve responses; what datasets earned by each is what the journal says.
#[test]
fn every_response_leaves_a_receipt_that_is_the_journals_money() {
    let run = finished();
    let dir = run.tiny.out().join(USAGE_DIR);
    let key = ascribe_tlog::read_key(&dir.join("log")).unwrap();
    let audit = verify_usage_log(&dir, &key, &[], &NoProgress).unwrap();
    assert_eq!((audit.receipts, audit.erased), (run.summary.queries, 0));
    assert_eq!(audit.revenue, [("USDC".to_owned(), "1000000000".to_owned())]);
    let journal = Journal::from_json(&fs::read(run.tiny.out().join(JOURNAL_FILE)).unwrap()).unwrap();
    let mut expected: BTreeMap<(String, String), u128> = BTreeMap::new();
    for transfer in journal.transfers() {
        if let Memo::Accrual { response, dataset } = &transfer.memo {
            *expected.entry((format!("{MODEL}/{response}"), dataset.clone())).or_default() += transfer.amount.0;
        }
    }
    let text = fs::read_to_string(dir.join("receipts/0.jsonl")).unwrap();
    let receipts: Vec<_> = text.lines().map(|line| SignedUsage::parse(line.as_bytes()).unwrap().receipt).collect();
    let earned =
        receipts.iter().flat_map(|r| r.shares.iter().map(|s| ((r.request_id.clone(), s.dataset.clone()), s.weight)));
    assert_eq!(earned.collect::<BTreeMap<_, _>>(), expected);
    assert!(!expected.is_empty());
    let context = run.tiny.context(&run.tiny.out()).unwrap();
    let weights = context.run_record.subjects.iter().find(|s| s.name == context.last().file).unwrap().sha256;
    for (receipt, query) in receipts.iter().zip(&context.corpus.queries) {
        let output = context.tokenizer.decode(&query.tokens);
        let salt = UsageSalts::of(demo_usage_signer().key()).salt(&receipt.request_id);
        assert_eq!(receipt.output_salted_sha256, salted_hash(&salt, output.as_bytes()));
        assert_eq!((receipt.model_sha256, receipt.settled_on.as_str()), (weights, "2026-11-30T00:00:00Z"));
        assert_eq!(receipt.weight_total, 1_000_000_000 * 1_000_000 / u128::from(run.summary.queries));
    }
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    let run = finished();
    for n_threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let dir = crate::common::temp_dir();
        let summary = pool.install(|| run.tiny.demo(dir.path())).unwrap();
        assert_eq!(summary.methods, run.summary.methods);
        assert_eq!(different(&timeless(dir.path()), &timeless(&run.tiny.out())), Vec::<String>::new());
    }
}

#[test]
fn rows_do_not_depend_on_the_batch_that_they_were_made_in() {
    let tiny = &finished().tiny;
    let context = tiny.context(&tiny.out()).unwrap();
    let sequences = context.example_sequences();
    let n = 301; // not a multiple of any batch below, nor of the walk's own
    for checkpoint in [&context.checkpoints[0], context.last()] {
        let stored = open_train(&context, &checkpoint.name).unwrap();
        let expected = stored.block(0).unwrap().rows.slice(ndarray::s![..n, ..]).to_owned();
        let decoder = context.decoder(checkpoint).unwrap();
        let stage = GradientStage::new(&decoder, taps_of(&context.attribution)).unwrap();
        for batch in [1, 7, 64, n] {
            let parts: Vec<Array2<f32>> = sequences[..n]
                .chunks(batch)
                .map(|part| {
                    let mut rows = Array2::zeros((part.len(), stage.dim()));
                    stage.rows(part, rows.view_mut(), None).unwrap();
                    rows
                })
                .collect();
            let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
            let rows = concatenate(Axis(0), &views).unwrap();
            let same = rows.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "batch {batch} at {}", checkpoint.name);
        }
    }
}

#[test]
fn a_run_that_was_stopped_again_and_again_ends_with_the_same_bytes() {
    let run = finished();
    let dir = crate::common::temp_dir();
    let out = dir.path();
    let n_examples = run.summary.examples;
    assert!(n_examples > 2048 + 256, "{n_examples} examples: the test needs more than a shard and a chunk");
    // In the first shard; after it, with a chunk of the second under way; in the second checkpoint's store. Resuming
    // counts what is there already, so each limit is one of the whole stage.
    for limit in [300, 12 + 2048 + 200, 2 * 12 + n_examples + 600] {
        let stop = StopAfter::new("gradients", limit);
        let error = demo::run(&run.tiny.home(), MODEL, out, &stop).unwrap_err();
        assert!(matches!(error, EngineError::Stopped), "{error}");
        assert!(error.to_string().contains("run the same command again"), "{error}");
        assert!(!out.join(RUN_FILE).exists(), "a folder with a run file is a whole run");
        crate::common::assert_nothing_half_written(out);
    }
    let context = run.tiny.context(out).unwrap();
    let tokens = features::run(&context, &NoProgress).unwrap();
    let seq_len = context.recipe.corpus.seq_len as u64;
    // One store was finished before the last stop, the second had not filled its first shard.
    assert_eq!(tokens, 2 * n_examples * seq_len);
    run.tiny.demo(out).unwrap();
    assert_eq!(different(&timeless(out), &timeless(&run.tiny.out())), Vec::<String>::new());
}

#[test]
fn a_stop_within_a_store_keeps_its_finished_shards() {
    let tiny = &finished().tiny;
    let dir = crate::common::temp_dir();
    let context = tiny.context(dir.path()).unwrap();
    let error = features::run(&context, &StopAfter::new("gradients", 12 + 2048 + 200)).unwrap_err();
    assert!(matches!(error, EngineError::Stopped), "{error}");
    let tokens = features::run(&context, &NoProgress).unwrap();
    let (n, seq_len) = (context.corpus.examples.len() as u64, context.recipe.corpus.seq_len as u64);
    assert_eq!(tokens, (3 * n - 2048) * seq_len);
    let made = load_rows(&open_train(&context, &context.last().name).unwrap()).unwrap();
    let finished = tiny.context(&tiny.out()).unwrap();
    assert_eq!(made, load_rows(&open_train(&finished, &finished.last().name).unwrap()).unwrap());
}

#[test]
fn a_second_run_does_nothing_again() {
    let run = finished();
    let tiny = run.tiny.copy_with_run();
    let out = tiny.out();
    let before = digests(&out);
    let modified = |name: &str| fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let stamps: Vec<_> = before.keys().map(|name| (name.clone(), modified(name))).collect();
    let context = tiny.context(&out).unwrap();
    assert_eq!(features::run(&context, &NoProgress).unwrap(), 0, "gradients were made again");
    let again = tiny.demo(&out).unwrap();
    assert_eq!(again.methods, run.summary.methods);
    assert_eq!(different(&timeless(&out), &timeless(&run.tiny.out())), Vec::<String>::new());
    // What is cheaper to make than to check is written again: payout files, stamps, and the two files with seconds.
    let rewritten = ["payout/", "stations.json", "report.html", RUN_FILE];
    for (name, time) in stamps.iter().filter(|(name, _)| !rewritten.iter().any(|r| name.starts_with(r))) {
        assert_eq!(modified(name), *time, "{name} was written again");
    }
    let timings = RunFile::read(&out).unwrap().timings;
    assert!(timings.iter().any(|t| t.note.contains("finished earlier")), "{timings:?}");
}
