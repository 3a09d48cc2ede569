//! The tiny home, its finished run, and copies of both for tests that spoil them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ascribe_core::{Digest, NoProgress, Progress};
use ascribe_corpus::Corpus;
use ascribe_engine::demo::is_output;
use ascribe_engine::recipe::Recipe;
use ascribe_engine::run_file::RUN_FILE;
use ascribe_engine::summary::DemoSummary;
use ascribe_engine::train::run::{RUN_RECORD_FILE, dataset_parts, tokenizer};
use ascribe_engine::walk::Context;
use ascribe_engine::walk::report::REPORT_FILE;
use ascribe_engine::{EngineError, Home, bank, demo, files, train};
use ascribe_registry::prepare::{Grant, NewDataset, demo_account, license_dataset, write_dataset};
use ascribe_registry::{LicenceDigest, LicenceKey, Payee, Registry, RunRecord, Source, read_records};
use tempfile::TempDir;

/// Name of the tiny model.
pub const MODEL: &str = "tiny";
/// Seeds of its bank.
pub const SEEDS: [u64; 2] = [1, 2];
/// The datasets and their owners: English, code and Chinese, so that tokens split characters too.
pub const DATASETS: [(&str, &str); 3] =
    [("austen-novels", "Ada"), ("python-stdlib-code", "Bo"), ("zh-classics", "Chen")];
/// The one whose licence permits that its texts are shown.
pub const SHOWN: &str = DATASETS[0].0;
/// Bytes of text taken of each shipped dataset: together a little more than one shard of examples, so that a run can be
/// stopped between two shards.
const TEXT_BYTES: usize = 58_000;
/// Start of every licence: long before any test runs.
const VALID_FROM: u64 = 1_700_000_000;

const RECIPE: &str = r#"
name = "tiny"
seed = 1
[corpus]
seq_len = 32
prompt_len = 8
queries_per_dataset = 4
validation_per_dataset = 2
vocab_size = 400
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
[train]
steps = 40
batch = 8
micro_batch = 4
lr_peak = 1e-2
lr_floor = 1e-3
warmup_steps = 4
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
clip_norm = 1.0
checkpoint_steps = [15, 30, 40]
"#;

const ATTRIBUTION: &str = r#"
seed = 7
k_in = 6
k_out = 6
embedding = true
norms = true
row_type = "f32"
damping_rel = 0.01
trajectory_damping_rel = 0.01
channels = ["trajectory_fisher", "embedding", "bm25"]
top_k = 20
hnsw_dim = 32
interval_level = 0.8
pool = "1000.00 USDC"
period = "2026-11-01/2026-11-30"
token = "0x1111111111111111111111111111111111111111"
"#;

/// A home in a temporary folder.
pub struct Tiny {
    dir: TempDir,
}

/// The whole walk, finished once per test process. Nobody writes here; tests take copies.
pub struct Finished {
    /// Its home.
    pub tiny: Tiny,
    /// What the walk printed.
    pub summary: DemoSummary,
}

static FINISHED: LazyLock<Finished> = LazyLock::new(|| {
    let tiny = Tiny::build();
    let summary = tiny.demo(&tiny.out()).unwrap();
    Finished { tiny, summary }
});

/// The finished run.
pub fn finished() -> &'static Finished {
    &FINISHED
}

/// A temporary folder below the target folder. Statics are never dropped, so what an earlier test process left there is
/// removed here once it is old.
pub fn temp_dir() -> TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let old = |entry: &fs::DirEntry| {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        entry.file_name().to_string_lossy().starts_with("walk-") && age > Some(Duration::from_secs(3600))
    };
    for entry in fs::read_dir(parent).unwrap().flatten().filter(old) {
        let _ = fs::remove_dir_all(entry.path()); // another process may be faster
    }
    tempfile::Builder::new().prefix("walk-").tempdir_in(parent).unwrap()
}

/// Root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Tiny {
    /// Registers the datasets, trains the model, builds the bank.
    fn build() -> Self {
        let tiny = Self { dir: temp_dir() };
        let shipped = Registry::open(&repository().join("datasets")).unwrap();
        for (name, owner) in DATASETS {
            let mut left = TEXT_BYTES;
            let mut records = read_records(shipped.dataset(name).unwrap()).unwrap();
            records.retain(|record| {
                let fits = record.text.len() <= left;
                left -= if fits { record.text.len() } else { left };
                fits
            });
            let pairs = records.iter().map(|r| (r.id.as_str(), r.text.as_str()));
            write_dataset(&tiny.datasets(), &new_dataset(name, owner), pairs).unwrap();
            license_dataset(&tiny.datasets(), name, &LicenceKey::demo(owner), grant(1)).unwrap();
        }
        fs::create_dir_all(tiny.model()).unwrap();
        fs::write(tiny.model().join("recipe.toml"), RECIPE).unwrap();
        fs::write(tiny.model().join("attribution.toml"), ATTRIBUTION).unwrap();
        train::run::run(&tiny.registry(), &tiny.recipe(), &tiny.model(), &NoProgress).unwrap();
        let n = tiny.build_bank();
        assert_eq!(n, 2 * (1 + DATASETS.len() as u64));
        tiny
    }

    /// A copy of the home, without its run.
    pub fn copy(&self) -> Self {
        let copy = Self { dir: temp_dir() };
        copy_folder(&self.datasets(), &copy.datasets());
        copy_folder(&self.model(), &copy.model());
        copy
    }

    /// A copy of the home with its run.
    pub fn copy_with_run(&self) -> Self {
        let copy = self.copy();
        copy_folder(&self.out(), &copy.out());
        copy
    }

    /// The root.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The home.
    pub fn home(&self) -> Home {
        Home::find(Some(self.dir.path())).unwrap()
    }

    /// `datasets/`.
    pub fn datasets(&self) -> PathBuf {
        self.dir.path().join("datasets")
    }

    /// The model folder.
    pub fn model(&self) -> PathBuf {
        self.dir.path().join("models").join(MODEL)
    }

    /// The run folder.
    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// The registry.
    pub fn registry(&self) -> Registry {
        Registry::open(&self.datasets()).unwrap()
    }

    /// The recipe.
    pub fn recipe(&self) -> Recipe {
        Recipe::read(&self.model().join("recipe.toml")).unwrap()
    }

    /// The corpus.
    pub fn corpus(&self) -> Corpus {
        corpus(&self.registry(), &self.recipe(), &self.model())
    }

    /// Trains what is missing of the bank.
    pub fn build_bank(&self) -> u64 {
        let dir = self.model().join("bank");
        bank::build(&dir, &self.corpus(), &self.recipe(), &SEEDS, (0, 1), &NoProgress).unwrap()
    }

    /// Opens the walk.
    pub fn context(&self, out: &Path) -> Result<Context, EngineError> {
        Context::open(&self.home(), MODEL, out, &NoProgress)
    }

    /// The whole walk.
    pub fn demo(&self, out: &Path) -> Result<DemoSummary, EngineError> {
        demo::run(&self.home(), MODEL, out, &NoProgress)
    }

    /// Writes today's digests of the model's files into its training-run record, as somebody would who wants a changed
    /// file to pass.
    pub fn forge_record(&self) {
        let path = self.model().join(RUN_RECORD_FILE);
        let mut record = RunRecord::read(&path).unwrap();
        for subject in &mut record.subjects {
            subject.sha256 = files::digest(&self.model().join(&subject.name)).unwrap();
        }
        record.write(&path).unwrap();
    }
}

/// The corpus of a model folder.
pub fn corpus(registry: &Registry, recipe: &Recipe, model: &Path) -> Corpus {
    let parts = dataset_parts(registry).unwrap();
    let tokenizer = tokenizer(model, &parts, recipe).unwrap();
    Corpus::build(parts, &tokenizer, recipe.corpus.clone()).unwrap()
}

/// A licence's window and number.
pub fn grant(nonce: u64) -> Grant {
    Grant { valid_from: VALID_FROM, valid_until: 0, nonce, supersedes: LicenceDigest::default() }
}

fn new_dataset(name: &str, owner: &str) -> NewDataset {
    let payee = |party: &str, share_ppm| Payee { account: demo_account(party), share_ppm };
    let payees = match owner {
        "Bo" => vec![payee("Bo", 600_000), payee("Eve", 400_000)],
        _ => vec![payee(owner, 1_000_000)],
    };
    NewDataset {
        name: name.to_owned(),
        title: format!("Cut out of {name}"),
        owner: owner.to_owned(),
        language: "en".to_owned(),
        licence: licence_of(owner).to_owned(),
        permits: ["ai-train", "search"][..if name == SHOWN { 2 } else { 1 }].iter().map(|p| (*p).to_owned()).collect(),
        prohibits: vec![],
        payees,
        source: Source { registry: "deb".to_owned(), package: name.to_owned(), version: "1".to_owned() },
        notes: String::new(),
        terms: format!("Terms of {name}.\n"),
    }
}

/// SPDX expression of an owner's dataset.
pub fn licence_of(owner: &str) -> &'static str {
    if owner == "Chen" { "CC-BY-4.0" } else { "MIT" }
}

/// Copies a folder with everything below it.
pub fn copy_folder(from: &Path, to: &Path) {
    for name in files::list(from).unwrap() {
        let target = to.join(&name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(from.join(&name), target).unwrap();
    }
}

/// Digest of every file of a run folder.
pub fn digests(out: &Path) -> BTreeMap<String, Digest> {
    let names = files::list(out).unwrap().into_iter().filter(|n| is_output(n) || n == RUN_FILE);
    names.map(|n| (n.clone(), files::digest(&out.join(&n)).unwrap())).collect()
}

/// The same without the two files that hold seconds.
pub fn timeless(out: &Path) -> BTreeMap<String, Digest> {
    let mut all = digests(out);
    all.retain(|name, _| name != RUN_FILE && name != REPORT_FILE);
    all
}

/// Files whose content differs, by name: a readable failure.
pub fn different(a: &BTreeMap<String, Digest>, b: &BTreeMap<String, Digest>) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().filter(|n| a.get(*n) != b.get(*n)).cloned().collect()
}

/// No file that was begun and not finished.
pub fn assert_nothing_half_written(out: &Path) {
    if out.exists() {
        let names = files::list(out).unwrap();
        let half: Vec<&String> = names.iter().filter(|n| n.split('/').any(|part| part.ends_with(".tmp"))).collect();
        assert!(half.is_empty(), "half written: {half:?}");
    }
}

/// Asks for a stop once so many units of the stages whose name begins with a prefix are done.
pub struct StopAfter {
    prefix: &'static str,
    limit: u64,
    counting: std::sync::atomic::AtomicBool,
    done: AtomicU64,
}

impl StopAfter {
    /// `limit` units of stages that begin with `prefix`.
    pub fn new(prefix: &'static str, limit: u64) -> Self {
        Self { prefix, limit, counting: false.into(), done: AtomicU64::new(0) }
    }
}

impl Progress for StopAfter {
    fn start(&self, stage: &str, _total: u64, _unit: &str) {
        self.counting.store(stage.starts_with(self.prefix), Ordering::SeqCst);
    }

    fn advance(&self, n: u64) {
        if self.counting.load(Ordering::SeqCst) {
            self.done.fetch_add(n, Ordering::SeqCst);
        }
    }

    fn finish(&self, _note: &str) {}

    fn stop_requested(&self) -> bool {
        self.done.load(Ordering::SeqCst) >= self.limit
    }
}
