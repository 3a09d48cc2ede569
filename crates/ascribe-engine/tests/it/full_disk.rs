//! The system refuses to write, for real: files may not grow beyond `ulimit -f`. The walk runs in this test binary,
//! started again under that limit.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ascribe_core::NoProgress;
use ascribe_engine::recipe::Recipe;
use ascribe_engine::run_file::RunFile;
use ascribe_engine::train::run::RUN_RECORD_FILE;
use ascribe_engine::walk::report::REPORT_FILE;
use ascribe_engine::{EngineError, Home, demo, files, train};
use ascribe_registry::Registry;

use crate::common::{MODEL, Tiny, assert_nothing_half_written, different, finished, timeless};

const HOME_VARIABLE: &str = "ASCRIBE_TEST_HOME";
/// Set when the child trains instead of walking.
const TRAIN_VARIABLE: &str = "ASCRIBE_TEST_TRAIN";
/// Exit code of a walk that ended with an error.
const REFUSED: i32 = 42;
/// Bytes of one unit of `ulimit -f`.
const BLOCK_BYTES: u64 = 512;

/// Not a test of its own: the child process of the tests below.
#[test]
#[ignore = "started by the other tests of this file, with a folder in its environment"]
fn child_walk() {
    let root = PathBuf::from(std::env::var_os(HOME_VARIABLE).expect("the parent sets the folder"));
    let home = Home::find(Some(&root)).unwrap();
    let outcome = match std::env::var_os(TRAIN_VARIABLE) {
        None => demo::run(&home, MODEL, &root.join("out"), &NoProgress).map(drop),
        Some(model) => train(&home, Path::new(&model)),
    };
    if let Err(error) = outcome {
        println!("refused: {error}");
        std::process::exit(REFUSED);
    }
}

fn train(home: &Home, model: &Path) -> Result<(), EngineError> {
    let recipe = Recipe::read(&home.model(MODEL).join("recipe.toml"))?;
    train::run::run(&Registry::open(&home.datasets())?, &recipe, model, &NoProgress).map(drop)
}

fn child_with_limit(root: &Path, model: Option<&Path>, limit_blocks: u64) -> Output {
    // Without the trap the system would end the process instead of refusing the write.
    let script = format!("trap '' XFSZ; ulimit -f {limit_blocks}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(std::env::current_exe().unwrap());
    command.args(["full_disk::child_walk", "--exact", "--ignored", "--nocapture"]);
    command.envs(model.map(|dir| (TRAIN_VARIABLE, dir)));
    command.env(HOME_VARIABLE, root).output().unwrap()
}

/// What the child was refused for.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let talk = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(REFUSED), "{text} {talk}");
    text.lines().find_map(|l| l.split("refused: ").nth(1)).unwrap().to_owned()
}

/// Runs under the limit, expects a refusal that names a file of the run, and looks for anything half written.
fn assert_refused(tiny: &Tiny, limit_blocks: u64) -> String {
    let message = refusal(&child_with_limit(tiny.root(), None, limit_blocks));
    assert!(message.contains(&tiny.out().display().to_string()), "no file named: {message}");
    assert_nothing_half_written(&tiny.out());
    let whole = timeless(&finished().tiny.out());
    // The log of shards and the stamps grow while a run goes on; every other file is there whole or not at all.
    for (name, digest) in timeless(&tiny.out()) {
        if !name.ends_with("/manifest.log") && name != "stations.json" {
            assert_eq!(whole.get(&name), Some(&digest), "limit {limit_blocks}: {name} is not what it should be");
        }
    }
    message
}

fn assert_finishes(tiny: &Tiny) {
    tiny.demo(&tiny.out()).unwrap();
    assert_eq!(different(&timeless(&tiny.out()), &timeless(&finished().tiny.out())), Vec::<String>::new());
    RunFile::read(&tiny.out()).unwrap();
}

#[test]
fn a_walk_from_nothing_on_a_full_disk() {
    let tiny = finished().tiny.copy();
    assert_refused(&tiny, 0);
    let shard = "store/step-000015/shards/s-000000.safetensors";
    let len_bytes = fs::metadata(finished().tiny.out().join(shard)).unwrap().len();
    let message = assert_refused(&tiny, len_bytes / BLOCK_BYTES / 2);
    assert!(message.contains(shard) && message.contains("no room to write") && message.contains("hint"), "{message}");
    assert_finishes(&tiny);
}

#[test]
fn every_later_file_on_a_full_disk() {
    let tiny = finished().tiny.copy_with_run();
    let out = tiny.out();
    let graph = "index/hnsw/graph-000.bin";
    for target in ["factors/step-000015.safetensors", "scores.parquet", graph, "eval.json", "shares.json", REPORT_FILE]
    {
        let path = out.join(target);
        let len_bytes = fs::metadata(&path).unwrap().len();
        // Its station makes it again, with room for half of it.
        fs::remove_file(&path).unwrap();
        let message = assert_refused(&tiny, len_bytes / BLOCK_BYTES / 2);
        assert!(!path.exists(), "{target} was written: {message}");
        // A graph is written in a folder of another name; whichever file of it came first is named.
        let named = if target == graph { "index/hnsw" } else { target };
        assert!(message.contains(named), "not {target}: {message}");
        assert_finishes(&tiny);
    }
}

#[test]
fn a_training_on_a_full_disk() {
    let tiny = finished().tiny.copy();
    let again = tiny.root().join("models/again");
    let blocks = |name: &str| fs::metadata(tiny.model().join(name)).unwrap().len() / BLOCK_BYTES;
    let checkpoint = "checkpoints/step-000015.safetensors";
    let cases = [(0, ".state"), (blocks("tokenizer.json") / 2, "tokenizer.json"), (blocks(checkpoint) - 1, checkpoint)];
    for (limit, named) in cases.into_iter().chain([(blocks("model.safetensors") - 1, "model.safetensors")]) {
        let message = refusal(&child_with_limit(tiny.root(), Some(&again), limit));
        assert!(message.contains(named), "limit {limit}: {message}");
        assert_nothing_half_written(&again);
        assert!(!again.join(RUN_RECORD_FILE).exists(), "a folder with a record is a whole model");
    }
    train(&tiny.home(), &again).unwrap();
    for name in files::list(&again).unwrap().iter().filter(|n| *n != RUN_RECORD_FILE) {
        assert_eq!(fs::read(again.join(name)).unwrap(), fs::read(tiny.model().join(name)).unwrap(), "{name}");
    }
}
