//! Commands on somebody's own model folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{ascribe, repository, run, stderr, stdout};

fn wren() -> String {
    repository().join("models/wren").display().to_string()
}

/// A file of short records in several forms.
fn records(dir: &Path, n: usize) -> PathBuf {
    let path = dir.join("records.jsonl");
    let line = |i: usize| match i % 3 {
        0 => {
            json!({ "id": format!("r{i}"), "text": format!("In the year {i} the king spoke to the people. ").repeat(4) })
        }
        1 => json!({ "prompt": "Who was it? ", "completion": format!("It was number {i}, I think."), "dataset": "qa" }),
        _ => {
            json!({ "input_ids": (0..20 + i as u32 % 200).map(|t| 1 + (t * 37 + i as u32) % 2000).collect::<Vec<_>>() })
        }
    };
    let lines: Vec<String> = (0..n).map(|i| line(i).to_string()).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn features(data: &Path, out: &Path, extra: &[&str]) -> Output {
    let (model, data, out) = (wren(), data.display().to_string(), out.display().to_string());
    let args = ["features", "--model", &model, "--data", &data, "--out", &out, "--format", "json"];
    run(&[&args[..], extra].concat())
}

fn object(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap()
}

/// The shards of a store, as bytes.
fn shards(store: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(store.join("shards")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn features_of_records_say_what_was_done_and_what_each_row_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 30);
    let store = dir.path().join("store");
    let said = object(&features(&data, &store, &["--threads", "1"]));
    // One record of three has 20 to 49 tokens of its own, all fit the context of 128.
    assert_eq!((&said["examples"], &said["records"], &said["examples_done"]), (&json!(30), &json!(30), &json!(30)));
    let number = |key: &str| said[key].as_f64().unwrap();
    assert!(number("tokens") > 600.0 && number("cpu_seconds") > 0.0 && number("peak_rss_mib") > 5.0, "{said}");
    assert!((number("tokens_per_cpu_second") * number("cpu_seconds") / number("tokens") - 1.0).abs() < 1e-9);
    let lines = fs::read_to_string(store.join("examples.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 30);
    assert_eq!(
        (&lines[0]["record"], &lines[0]["dataset"], &lines[0]["line"]),
        (&json!("r0"), &json!("data"), &json!(1))
    );
    assert_eq!((&lines[1]["record"], &lines[1]["dataset"]), (&json!("2"), &json!("qa")));
    assert!(lines[1]["loss_from"].as_u64().unwrap() > 2, "the prompt is masked: {}", lines[1]);
    let tokens: u64 = lines.iter().map(|l| l["token_end"].as_u64().unwrap() - l["token_start"].as_u64().unwrap()).sum();
    assert_eq!(said["tokens"], tokens);

    // Other threads, the same bytes; a second call has nothing left to do.
    let other = dir.path().join("other");
    object(&features(&data, &other, &["--threads", "2"]));
    assert_eq!(shards(&store), shards(&other));
    let again = object(&features(&data, &store, &[]));
    assert_eq!((&again["examples"], &again["examples_done"]), (&json!(30), &json!(0)));
    assert_eq!(again["spec_sha256"], said["spec_sha256"]);

    // Another setting does not get into the same store.
    let output = features(&data, &store, &["--projection", "8x4"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("projector"), "{}", stderr(&output));
}

#[test]
fn a_bad_record_stops_everything_before_the_store_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    fs::write(&data, "{\"text\": \"a good one\"}\n{\"txt\": \"a bad one\"}\n").unwrap();
    let store = dir.path().join("store");
    let output = features(&data, &store, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("data.jsonl, line 2, field `text`: expected") && said.contains("found fields txt"), "{said}");
    assert!(!store.exists());
    let output = features(&data, &store, &["--max-len", "129"]);
    assert!(stderr(&output).contains("--max-len: expected 2 to the model's context 128, found 129"));
    let output = features(&data, &store, &["--taps", "no.such.module"]);
    assert_eq!(output.status.code(), Some(1));
    let output = run(&["features", "--limit", "3"]);
    assert!(stderr(&output).contains("--data"), "a lab's option without a lab's data: {}", stderr(&output));
}

#[test]
fn interrupted_features_go_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 2600);
    let (store, whole) = (dir.path().join("store"), dir.path().join("whole"));
    let mut command = ascribe();
    command.args(["features", "--model", &wren(), "--data"]).arg(&data).arg("--out").arg(&store);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    // Rows that the first call commits are not made again by the second.
    let committed = || fs::metadata(store.join("manifest.log")).is_ok_and(|file| file.len() > 0);
    while !committed() && Instant::now() < deadline {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it had committed a shard");
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped on request"), "{}", stderr(&output));
    assert!(!store.join("MANIFEST-000000.json").exists());
    let done = object(&features(&data, &store, &[]))["examples_done"].as_u64().unwrap();
    assert!((1..2600).contains(&done), "{done}");
    object(&features(&data, &whole, &["--threads", "1"]));
    assert_eq!(shards(&store), shards(&whole));
}

#[test]
fn parts_of_a_build_merge_to_the_bytes_of_any_other_cut() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 100);
    let path = |name: &str| dir.path().join(name);
    object(&features(&data, &path("one"), &[]));
    // A build keeps the order of the records, a merge that of the examples, dataset by dataset: one part is a cut, too.
    let [one, whole] = ["one", "whole"].map(|name| path(name).display().to_string());
    let output = run(&["store", "merge", &one, "--out", &whole]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut merge = vec!["store".to_owned(), "merge".to_owned()];
    for (shard, out) in [("2/3", "part2"), ("0/3", "part0"), ("1/3", "part1")] {
        let said = object(&features(&data, &path(out), &["--shard", shard]));
        assert!((33..=34).contains(&said["examples"].as_u64().unwrap()), "{said}");
        merge.push(path(out).display().to_string());
    }
    merge.extend(["--out".to_owned(), path("merged").display().to_string()]);
    let output = run(&merge.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    for name in ["store.json", "MANIFEST-000000.json", "manifest.log", "examples.jsonl", "lab.json"] {
        let bytes = |store: &str| fs::read(path(store).join(name)).unwrap();
        assert_eq!(bytes("merged"), bytes("whole"), "{name}");
    }
    assert_eq!(shards(&path("merged")), shards(&path("whole")));
    let output = features(&data, &path("none"), &["--shard", "0/101"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("at most the 100 rows"), "{}", stderr(&output));
}

/// A changed bit in the notes of a build is found by whoever reads them, wherever the store went.
#[test]
fn notes_of_a_build_travel_and_a_changed_bit_in_them_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (data, path) = (records(dir.path(), 12), |name: &str| dir.path().join(name));
    let at = |name: &str| path(name).display().to_string();
    object(&features(&data, &path("one"), &["--shard", "0/2"]));
    object(&features(&data, &path("two"), &["--shard", "1/2"]));
    let [one, two, merged, bucket, pulled] = ["one", "two", "merged", "bucket", "pulled"].map(at);
    let done = |args: &[&str]| {
        let output = run(args);
        assert!(output.status.success(), "{}", stderr(&output));
    };
    done(&["store", "merge", &one, &two, "--out", &merged]);
    done(&["store", "push", &merged, "--to", &bucket]);
    done(&["store", "pull", &bucket, "--out", &pulled]);
    done(&["store", "add", &one, &two]);
    for store in ["one", "merged", "pulled"] {
        let verified = object(&run(&["store", "verify", &at(store), "--format", "json"]));
        assert_eq!(verified["beside"], json!(["examples.jsonl", "lab.json"]), "{store}");
        for name in ["examples.jsonl", "lab.json", "notes.json"] {
            let file = path(store).join(name);
            let whole = fs::read(&file).unwrap();
            if store == "pulled" {
                assert_eq!(whole, fs::read(path("merged").join(name)).unwrap(), "{name}");
            }
            let mut changed = whole.clone();
            let middle = changed.len() / 2;
            changed[middle] ^= 1;
            fs::write(&file, changed).unwrap();
            let output = run(&["store", "verify", &at(store)]);
            assert_eq!(output.status.code(), Some(1), "{store}: {name}");
            assert!(stderr(&output).contains(&file.display().to_string()), "{store}: {}", stderr(&output));
            fs::write(&file, whole).unwrap();
        }
    }
}

#[test]
fn nll_of_records_is_that_of_their_texts() {
    let dir = tempfile::tempdir().unwrap();
    let sentence = "It was not till the evening that she was able to speak of what had happened.";
    let (text, data) = (dir.path().join("t.txt"), dir.path().join("t.jsonl"));
    fs::write(&text, sentence).unwrap();
    fs::write(&data, json!({ "text": sentence }).to_string()).unwrap();
    let of = |flag: &str, path: &Path| {
        object(&run(&["nll", "--model", &wren(), flag, path.to_str().unwrap(), "--format", "json"]))
    };
    assert_eq!(of("--text", &text), of("--data", &data));
}

#[test]
fn folders_that_are_no_models_are_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("t.txt");
    fs::write(&text, "some words").unwrap();
    let nll = |model: &Path| {
        let output = run(&["nll", "--model", model.to_str().unwrap(), "--text", text.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        stderr(&output)
    };
    let said = nll(&dir.path().join("none"));
    assert!(said.contains("a Hugging Face model folder") && said.contains("found nothing"), "{said}");
    // Weights and configuration, no tokenizer; then one with more tokens than the model.
    let model = dir.path().join("model");
    fs::create_dir(&model).unwrap();
    let fixture = repository().join("crates/ascribe-models/tests/fixtures/gqa-tied");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(file), model.join(file)).unwrap();
    }
    let said = nll(&model);
    assert!(said.contains("tokenizer.json") && said.contains("hint:"), "{said}");
    fs::copy(repository().join("models/wren/tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let said = nll(&model);
    assert!(said.contains("vocab_size") && said.contains("has id"), "{said}");
}

/// A folder of `config.json` and weights of a fixture, and records of ids for it.
fn small_model(dir: &Path) -> (String, String) {
    let model = repository().join("crates/ascribe-models/tests/fixtures/gqa-tied");
    let vocab: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let vocab = vocab["vocab_size"].as_u64().unwrap();
    let data = dir.join("ids.jsonl");
    let ids = |i: u64| (0..8 + i % 5).map(|t| (t * 3 + i % 4) % vocab).collect::<Vec<u64>>();
    let lines: Vec<String> = (0..40).map(|i| json!({ "input_ids": ids(i) }).to_string()).collect();
    fs::write(&data, lines.join("\n")).unwrap();
    (model.display().to_string(), data.display().to_string())
}

fn finetune(model: &str, data: &str, out: &Path, extra: &[&str]) -> Output {
    let out = out.display().to_string();
    let args = ["finetune", "--model", model, "--data", data, "--out", &out, "--format", "json", "--lr", "0.01"];
    run(&[&args[..], &["--epochs", "6", "--held-out", data, "--checkpoint-every", "10"], extra].concat())
}

#[test]
fn finetuning_learns_writes_a_model_folder_and_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = small_model(dir.path());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let said = object(&finetune(&model, &data, &one, &["--threads", "1"]));
    // 240 sequences in batches of 8.
    assert_eq!((&said["steps"], &said["examples"]), (&json!(30), &json!(40)));
    assert_eq!(said["parameters"], said["trained_parameters"]);
    let (before, after) = (said["held_out_before"].as_f64().unwrap(), said["held_out_after"].as_f64().unwrap());
    assert!(after < 0.7 * before, "{said}");
    let other = object(&finetune(&model, &data, &two, &["--threads", "2"]));
    assert_eq!(said["weights_sha256"], other["weights_sha256"]);
    // The result is a model folder, and so is a checkpoint; the loss that was told is the one that the folder gives.
    let nll = |model: &Path| {
        let args = ["nll", "--model", model.to_str().unwrap(), "--data", &data, "--format", "json"];
        object(&run(&args))["nll"].as_f64().unwrap()
    };
    assert_eq!(nll(&one), after);
    let checkpoint = one.join("checkpoints/step-000010");
    assert!(nll(&checkpoint) > after && nll(&checkpoint) < before);
    assert!(checkpoint.join("second_moments.safetensors").exists() && !one.join(".state").exists());
    assert_eq!(fs::read_to_string(one.join("train_log.jsonl")).unwrap().lines().count(), 30);
    // A finished run is told again; other settings do not overwrite it.
    let again = object(&finetune(&model, &data, &one, &[]));
    assert_eq!(again, said);
    let output = finetune(&model, &data, &one, &["--train-seed", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a finished run of other settings"), "{}", stderr(&output));
    let output = finetune(&model, &data, Path::new(&model), &[]);
    assert!(stderr(&output).contains("another folder than the model's own"), "{}", stderr(&output));
}

#[test]
fn a_lora_leaves_the_weights_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = small_model(dir.path());
    let out = dir.path().join("adapter");
    let said = object(&finetune(&model, &data, &out, &["--lora-rank", "2", "--lora-targets", "q_proj", "v_proj"]));
    let count = |key: &str| said[key].as_u64().unwrap();
    assert!(count("trained_parameters") < count("parameters") / 2, "{said}");
    assert!(said["held_out_after"].as_f64().unwrap() < said["held_out_before"].as_f64().unwrap(), "{said}");
    assert!(out.join("adapter_config.json").exists() && out.join("adapter_model.safetensors").exists());
    assert!(!out.join("model.safetensors").exists());
    // Every door takes the adapter: merged in, and as what rows are about.
    let (adapter, store) = (out.display().to_string(), dir.path().join("rows").display().to_string());
    let nll = object(&run(&["nll", "--model", &model, "--data", &data, "--adapter", &adapter, "--format", "json"]));
    assert_eq!(nll["nll"], said["held_out_after"]);
    let args = ["features", "--model", &model, "--data", &data, "--out", &store, "--adapter", &adapter];
    let rows = object(&run(&[&args[..], &["--adapter-weights", "--projection", "full", "--format", "json"]].concat()));
    assert_eq!(rows["dim"], said["trained_parameters"]);
}

#[test]
fn features_divided_by_the_moments_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = small_model(dir.path());
    let out = dir.path().join("run");
    object(&finetune(&model, &data, &out, &[]));
    let moments = out.join("second_moments.safetensors").display().to_string();
    let of = |name: &str, extra: &[&str]| {
        let store = dir.path().join(name).display().to_string();
        let args = ["features", "--model", &model, "--data", &data, "--out", &store, "--format", "json"];
        object(&run(&[&args[..], extra].concat()))
    };
    let (plain, divided) = (of("plain", &[]), of("divided", &["--moments", &moments]));
    assert_eq!(plain["dim"], divided["dim"]);
    assert_ne!(plain["spec_sha256"], divided["spec_sha256"], "rows of different scalings must not be compared");
}

#[test]
fn a_new_model_is_trained_from_a_config() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = small_model(dir.path());
    let (config, out) = (format!("{model}/config.json"), dir.path().join("new"));
    let out_text = out.display().to_string();
    let args = ["train", "--config", &config, "--data", &data, "--out", &out_text, "--steps", "12", "--lr", "0.01"];
    let said = object(&run(&[&args[..], &["--format", "json", "--schedule", "cosine"]].concat()));
    assert!(said["last_loss"].as_f64().unwrap() < said["first_loss"].as_f64().unwrap(), "{said}");
    assert!(out.join("model.safetensors").exists());
}

#[test]
fn an_interrupted_finetuning_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = small_model(dir.path());
    let (out, whole) = (dir.path().join("out"), dir.path().join("whole"));
    let long = ["--steps", "4000", "--train-seed", "3"];
    let mut command = ascribe();
    command
        .args(["finetune", "--model", &model, "--data", &data, "--out"])
        .arg(&out)
        .args(["--lr", "0.001"])
        .args(long);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !out.join(".state/settings.json").exists() && Instant::now() < deadline {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it had begun");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(60));
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(out.join(".state/train-state.safetensors").exists());
    let finish = |out: &Path, threads: &str| {
        let out = out.display().to_string();
        let args = ["finetune", "--model", &model, "--data", &data, "--out", &out, "--format", "json", "--lr", "0.001"];
        object(&run(&[&args[..], &long, &["--threads", threads]].concat()))
    };
    let (resumed, straight) = (finish(&out, "2"), finish(&whole, "1"));
    assert!(resumed["tokens"].as_u64() < straight["tokens"].as_u64());
    assert_eq!(resumed["weights_sha256"], straight["weights_sha256"]);
}

/// The planned memory is neither less than what is taken nor a multiple of it, for a small model and a larger one.
#[test]
fn planned_memory_is_that_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": 4000,
        "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 8, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let data = dir.path().join("ids.jsonl");
    let ids = |i: u64| (0..200).map(|t| (t * 31 + i * 7) % 2000).collect::<Vec<u64>>();
    let lines: Vec<String> = (0..6).map(|i| json!({ "input_ids": ids(i) }).to_string()).collect();
    fs::write(&data, lines.join("\n")).unwrap();
    let data = data.display().to_string();
    let text = |path: &Path| path.display().to_string();
    let json = ["--format", "json", "--threads", "2"];
    // The training of the larger model is the first run to be held against its plan.
    let args = ["train", "--config", &text(&dir.path().join("config.json")), "--data", &data, "--out", &text(&large)];
    let trained = object(&run(&[&args[..], &json, &["--steps", "2", "--batch", "2", "--micro-batch", "1"]].concat()));
    let taken = |said: &Value| said["peak_rss_mib"].as_f64().unwrap();
    let stage = |plan: &Value, name: &str| {
        let stages = plan["stages"].as_array().unwrap();
        stages.iter().find(|s| s["stage"] == name).unwrap()["ram_bytes"].as_f64().unwrap() / f64::from(1 << 20)
    };
    for model in [PathBuf::from(wren()), large.clone()] {
        let data = if model == large { data.clone() } else { text(&records(dir.path(), 60)) };
        let args = ["plan", "--model", &text(&model), "--data", &data, "--out", &text(dir.path())];
        let plan = object(&run(&[&args[..], &json, &["--batch", "2", "--micro-batch", "1"]].concat()));
        assert_eq!(plan["problems"], json!([]));
        let store = dir.path().join(format!("store-{}", plan["parameters"]));
        let args = ["features", "--model", &text(&model), "--data", &data, "--out", &text(&store)];
        let found = taken(&object(&run(&[&args[..], &json].concat())));
        let ratio = stage(&plan, "features") / found;
        assert!((0.8..2.5).contains(&ratio), "planned over measured {ratio}: {found} MiB, {plan}");
        if model == large {
            let ratio = stage(&plan, "finetune") / taken(&trained);
            assert!((0.8..2.0).contains(&ratio), "planned over measured {ratio}: {trained}, {plan}");
        }
        for stage in plan["stages"].as_array().unwrap() {
            assert!(stage["tokens_per_cpu_second"].as_f64().unwrap() > 0.0 && stage["seconds"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn a_plan_that_cannot_fit_is_refused_and_names_the_setting() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 60);
    // A billion checkpoints fit no disk.
    let args = ["plan", "--model", &wren(), "--data", data.to_str().unwrap(), "--format", "json"];
    let output = run(&[&args[..], &["--steps", "4000000000", "--checkpoint-every", "1000"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let plan: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let problem = plan["problems"][0].as_str().unwrap();
    assert!(problem.contains("of disk, found") && problem.contains("--checkpoint-every"), "{problem}");
    assert!(stderr(&output).contains(problem));
    // The command itself refuses the same, before anything is written.
    let out = dir.path().join("out");
    let args = ["finetune", "--model", &wren(), "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let output = run(&[&args[..], &["--steps", "4000000000", "--checkpoint-every", "1000"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("finetune: expected") && stderr(&output).contains("of disk"),
        "{}",
        stderr(&output)
    );
    assert!(!out.exists());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so_and_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 3);
    let store = dir.path().join("store");
    let refused = features(&data, &store, &["--device", "cuda:1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--features cuda"), "{}", stderr(&refused));
    assert!(!store.exists());
}

/// Two classes that one pixel tells apart: a logistic regression must get all of them.
#[test]
fn a_recipe_of_images_trains_a_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let npy = |name: &str, shape: &str, data: &[u8]| {
        let mut header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let head = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat();
        fs::write(dir.path().join(name), [&head, data].concat()).unwrap();
    };
    let images: Vec<u8> = (0..40u32).flat_map(|i| [if i % 2 == 0 { 250 } else { 5 }, (i * 6) as u8, 9, 90]).collect();
    let labels: Vec<u8> = (0..40).map(|i| i % 2).collect();
    npy("images.npy", "(40, 2, 2)", &images);
    npy("labels.npy", "(40,)", &labels);
    let recipe = "[model]\nkind = \"lr\"\n[data]\nimages = \"images.npy\"\nlabels = \"labels.npy\"\n[train]\nepochs = 40\n\
                  batch = 8\nlr = 0.5\nschedule = \"constant\"\nweight_decay = 0.0\n\
                  optimizer = { kind = \"sgd\", momentum = 0.9 }\n";
    let path = dir.path().join("lr.toml");
    fs::write(&path, recipe).unwrap();
    let out = dir.path().join("model");
    let train =
        || run(&["train", &path.display().to_string(), "--out", &out.display().to_string(), "--format", "json"]);
    let said = object(&train());
    assert_eq!((&said["images"], &said["train"]["accuracy"]), (&json!(40), &json!(1.0)), "{said}");
    assert!(out.join("model.safetensors").exists());
    fs::remove_file(dir.path().join("labels.npy")).unwrap();
    fs::remove_dir_all(&out).unwrap();
    let refused = train();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("labels.npy"), "{}", stderr(&refused));
}

/// An encoder has no next tokens: its rows are mean hidden states, those of the library.
#[test]
fn an_encoder_gives_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let model = repository().join("crates/ascribe-models/tests/fixtures/bert");
    let tokens: [&[u32]; 2] = [&[3, 5, 7, 11], &[2, 4, 8, 16, 1, 9]];
    let data = dir.path().join("data.jsonl");
    fs::write(&data, tokens.map(|t| json!({ "input_ids": t }).to_string()).join("\n")).unwrap();
    let store = dir.path().join("store");
    let features = |extra: &[&str]| {
        let [model, data, store] = [&model, &data, &store].map(|path| path.display().to_string());
        let args = ["features", "--model", &model, "--data", &data, "--out", &store, "--format", "json"];
        run(&[&args[..], extra].concat())
    };
    let refused = features(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--embeddings") && !store.exists(), "{}", stderr(&refused));
    // What only gradients have is not silently left out.
    let both = features(&["--embeddings", "--precision", "bf16"]);
    assert!(!both.status.success() && stderr(&both).contains("--precision"), "{}", stderr(&both));
    let said = object(&features(&["--embeddings"]));
    let decoder = ascribe_models::Decoder::open(&model).unwrap();
    assert_eq!(said["dim"], json!(decoder.config().hidden_size));
    let expected = decoder.mean_hidden(&tokens.map(ascribe_models::Sequence::whole)).unwrap();
    let expected: Vec<u8> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shard = shards(&store).concat();
    assert!(shard.windows(expected.len()).any(|bytes| bytes == expected), "the rows stand in the shard");
}

/// Factors in one call are those of rows that were made and converted; what is there is held to what is asked for.
#[test]
fn factors_of_records_are_those_of_rows_that_are_converted() {
    let dir = tempfile::tempdir().unwrap();
    let data = records(dir.path(), 24);
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    let taps = ["--projection", "6x5", "--taps", "*.down_proj"];
    let all = |more: &[&'static str]| [&taps[..], more].concat();
    let convert = |from: &str, to: &str| {
        let args = ["store", "convert", from, "--rows", "int8", "--factors", "2", "--damping", "0.05", "--out", to];
        object(&run(&[&args[..], &["--format", "json"]].concat()))
    };
    object(&features(&data, &at("rows"), &taps));
    convert(&text("rows"), &text("two"));
    let factors = all(&["--factors", "2", "--damping", "0.05", "--factor-rows", "int8"]);
    let made = object(&features(&data, &at("one"), &factors));
    assert_eq!((&made["features"]["examples_done"], &made["n_rows"]), (&json!(24), &json!(24)));
    let files = |name: &str| {
        let mut names: Vec<String> =
            fs::read_dir(at(name)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names.retain(|file| at(name).join(file).is_file());
        names.into_iter().map(|file| (fs::read(at(name).join(&file)).unwrap(), file)).collect::<Vec<_>>()
    };
    assert_eq!(files("one"), files("two"));
    assert_eq!(shards(&at("one")), shards(&at("two")));
    assert_eq!(
        fs::read(at("one").join("examples.jsonl")).unwrap(),
        fs::read(at("rows").join("examples.jsonl")).unwrap()
    );
    assert!(!at("one.dense").exists(), "the dense rows stayed");

    // Nothing is left to do; another rank or other records are refused, and nothing is made.
    let again = object(&features(&data, &at("one"), &factors));
    assert_eq!((&again["features"], &again["n_rows"]), (&Value::Null, &json!(24)));
    let fewer = all(&["--factors", "2", "--damping", "0.05", "--factor-rows", "int8", "--limit", "20"]);
    for (more, word) in [
        (all(&["--factors", "3", "--damping", "0.05", "--factor-rows", "int8"]), "rank 2, damping 0.05, int8"),
        (fewer, "a folder of these records"),
        (all(&["--factors", "6"]), "a rank from 1 to 5"),
        (vec!["--projection", "full", "--factors", "2"], "two-sided projections"),
        (all(&["--factors", "2", "--shard", "0/2"]), "the whitening is of all of them"),
    ] {
        let output = features(&data, &at("one"), &more);
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        assert!(stderr(&output).contains(word), "{more:?}: {}", stderr(&output));
        assert!(!at("one.dense").exists(), "{more:?}");
    }

    // Lines of deleted rows stay behind, the others are numbered anew.
    object(&run(&["store", "delete", &text("rows"), "--example", "0:1", "--format", "json"]));
    convert(&text("rows"), &text("fewer"));
    let lines = |name: &str| -> Vec<Value> {
        let text = fs::read_to_string(at(name).join("examples.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (before, after) = (lines("rows"), lines("fewer"));
    let left: Vec<&Value> = before.iter().filter(|line| line["example_id"] != json!(1)).collect();
    assert_eq!((left.len(), after.len()), (23, 23));
    for (row, (line, left)) in after.iter().zip(left).enumerate() {
        assert_eq!((&line["row"], &line["record"]), (&json!(row), &left["record"]));
    }
    object(&run(&["store", "verify", &text("fewer"), "--format", "json"]));
}
