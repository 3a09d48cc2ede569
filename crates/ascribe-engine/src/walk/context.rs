//! What every station needs: the registry checked against the training run, the corpus, the model's checkpoints, the
//! settings, the run folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, ExampleId, Progress, QueryId};
use ascribe_corpus::{BpeTokenizer, Corpus};
use ascribe_methods::aggregate::sizes;
use ascribe_methods::controls::ngram::Bigrams;
use ascribe_models::{Decoder, Sequence};
use ascribe_registry::{Registry, RunRecord, VerifyReport};

use crate::bank::{Bank, query_sequences};
use crate::error::EngineError;
use crate::files;
use crate::home::Home;
use crate::recipe::{Attribution, Recipe};
use crate::train::run::{RUN_RECORD_FILE, checkpoint_file, dataset_parts, tokenizer};

/// A kept checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Name, as in feature specs.
    pub name: String,
    /// Weights file, relative to the model folder.
    pub file: String,
    /// `η_c` of TracInCP: the sum of the learning rates of the steps that this checkpoint stands for (those up to it
    /// since the one before).
    pub weight: f64,
}

/// Everything that stations share.
pub struct Context {
    /// Name of the model folder.
    pub model_name: String,
    /// Model folder.
    pub model_dir: PathBuf,
    /// Run folder.
    pub out: PathBuf,
    /// What was trained.
    pub recipe: Recipe,
    /// How it is attributed.
    pub attribution: Attribution,
    /// The registry, verified.
    pub registry: Registry,
    /// What verification found.
    pub verified: VerifyReport,
    /// The model's training run.
    pub run_record: RunRecord,
    /// Tokenizer.
    pub tokenizer: BpeTokenizer,
    /// Examples and held-out windows.
    pub corpus: Corpus,
    /// Checkpoints, first to last; the last is the model.
    pub checkpoints: Vec<Checkpoint>,
    /// Digest of every input by name.
    pub inputs: BTreeMap<String, Digest>,
}

impl Context {
    /// Stations 1 and 2: verifies the registry against the model's training run, checks every file of the model against
    /// the run's record, and builds the corpus.
    ///
    /// # Errors
    /// A changed record, licence, model file or recipe; a licence newer than the run; what the corpus refuses.
    pub fn open(home: &Home, model: &str, out: &Path, progress: &dyn Progress) -> Result<Self, EngineError> {
        let model_dir = home.model(model);
        let recipe = Recipe::read(&model_dir.join("recipe.toml"))?;
        let attribution = Attribution::read(&model_dir.join("attribution.toml"))?;
        let run_record = RunRecord::read(&model_dir.join(RUN_RECORD_FILE))?;
        let registry = Registry::open(&home.datasets())?;
        let verified = registry.verify(Some(&run_record), progress)?;
        check_model_files(&model_dir, &run_record, &recipe)?;
        progress.start("corpus", 0, "");
        if !recipe.datasets.is_empty() {
            // Ordinals of the walk are those of the registry, down to the payees.
            let (expected, found) = ("a model of all registered datasets".to_owned(), recipe.datasets.join(", "));
            return Err(EngineError::Setting { setting: "datasets of the recipe", expected, found });
        }
        let parts = dataset_parts(&registry)?;
        let tokenizer = tokenizer(&model_dir, &parts, &recipe)?;
        let corpus = Corpus::build(parts, &tokenizer, recipe.corpus.clone())?;
        let (n, q) = (corpus.examples.len(), corpus.queries.len());
        progress.finish(&format!("{n} examples, {q} held-out responses"));
        let mut inputs = BTreeMap::from([
            ("registry".to_owned(), registry.digest()),
            ("licence_log".to_owned(), registry.log().head().root),
            ("recipe".to_owned(), recipe.digest()),
            ("attribution".to_owned(), attribution.digest()),
            ("corpus".to_owned(), corpus.manifest.digest()),
            ("training_run".to_owned(), files::digest(&model_dir.join(RUN_RECORD_FILE))?),
        ]);
        inputs.extend(run_record.subjects.iter().map(|s| (format!("model/{}", s.name), s.sha256)));
        let checkpoints = checkpoints(&recipe);
        let (model_name, out) = (model.to_owned(), out.to_path_buf());
        Ok(Self {
            model_name,
            model_dir,
            out,
            recipe,
            attribution,
            registry,
            verified,
            run_record,
            tokenizer,
            corpus,
            checkpoints,
            inputs,
        })
    }

    /// Loads a checkpoint's weights.
    ///
    /// # Errors
    /// From the model.
    pub fn decoder(&self, checkpoint: &Checkpoint) -> Result<Decoder, EngineError> {
        Ok(Decoder::load(&self.model_dir, &checkpoint.file)?)
    }

    /// The last checkpoint: the model itself.
    pub fn last(&self) -> &Checkpoint {
        self.checkpoints.last().expect("a recipe has at least its last step as checkpoint")
    }

    /// Training examples as the model sees them.
    pub fn example_sequences(&self) -> Vec<Sequence<'_>> {
        self.corpus.examples.iter().map(|e| Sequence::whole(&e.tokens)).collect()
    }

    /// Responses as the model sees them: loss on the response only.
    pub fn query_sequences(&self) -> Vec<Sequence<'_>> {
        query_sequences(&self.corpus)
    }

    /// Ids of the responses.
    pub fn query_ids(&self) -> Vec<QueryId> {
        (0..self.corpus.queries.len() as u32).map(QueryId).collect()
    }

    /// Training examples of each dataset, `[K]`.
    ///
    /// # Errors
    /// Never: ordinals are those of the corpus.
    pub fn sizes(&self) -> Result<Vec<usize>, EngineError> {
        let ids: Vec<ExampleId> = self.corpus.examples.iter().map(|e| e.id).collect();
        Ok(sizes(&ids, self.corpus.n_datasets())?)
    }

    /// Responses as the bigram control reads them: tokens, and the first one that is predicted.
    pub fn predicted(&self) -> Vec<(&[u32], usize)> {
        let from = self.corpus.manifest.config.prompt_len;
        self.corpus.queries.iter().map(|q| (q.tokens.as_slice(), from)).collect()
    }

    /// Counts of the bigram control, by dataset.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn bigrams(&self) -> Result<Bigrams, EngineError> {
        let windows = self.corpus.examples.iter().map(|e| (e.id.dataset, e.tokens.as_slice()));
        Ok(Bigrams::build(self.recipe.corpus.vocab_size, self.corpus.n_datasets(), windows)?)
    }

    /// Ordinal of the dataset that each response was held out from.
    pub fn own(&self) -> Vec<u32> {
        self.corpus.queries.iter().map(|q| q.dataset).collect()
    }

    /// The retrain bank of the model.
    ///
    /// # Errors
    /// A bank of another recipe or corpus; no bank at all.
    pub fn bank(&self) -> Result<Bank, EngineError> {
        self.bank_if_any()?.ok_or_else(|| EngineError::Content {
            path: self.bank_dir(),
            expected: "one complete seed of the retrain bank".into(),
            found: format!("none; hint: ascribe bank build --model {}", self.model_name),
        })
    }

    /// The retrain bank of the model, if one complete seed of it is there.
    ///
    /// # Errors
    /// A bank of another recipe or corpus.
    pub fn bank_if_any(&self) -> Result<Option<Bank>, EngineError> {
        Bank::read(&self.bank_dir(), &self.corpus, &self.recipe)
    }

    fn bank_dir(&self) -> PathBuf {
        self.model_dir.join("bank")
    }
}

/// The kept checkpoints of a recipe, first to last, with the learning rates that they stand for.
pub(crate) fn checkpoints(recipe: &Recipe) -> Vec<Checkpoint> {
    let mut from = 0;
    let mut kept = recipe.train.checkpoint_steps.clone();
    if kept.last() != Some(&recipe.train.steps) {
        kept.push(recipe.train.steps);
    }
    let mut out = Vec::with_capacity(kept.len());
    for step in kept {
        let weight = (from..step).map(|s| recipe.train.learning_rate(s)).sum();
        let last = step == recipe.train.steps;
        let (name, file) = match last {
            true => ("final".to_owned(), "model.safetensors".to_owned()),
            false => (format!("step-{step:06}"), checkpoint_file(step)),
        };
        out.push(Checkpoint { name, file, weight });
        from = step;
    }
    out
}

fn check_model_files(dir: &Path, record: &RunRecord, recipe: &Recipe) -> Result<(), EngineError> {
    for subject in &record.subjects {
        let path = dir.join(&subject.name);
        let found = files::digest(&path)?;
        if found != subject.sha256 {
            let hint = "; hint: not the file that the training run wrote";
            return Err(EngineError::Digest { what: path, expected: subject.sha256, found, hint });
        }
    }
    if record.recipe_sha256 != recipe.digest() {
        return Err(EngineError::Digest {
            what: dir.join("recipe.toml"),
            expected: record.recipe_sha256,
            found: recipe.digest(),
            hint: "; hint: not the recipe that the training run used",
        });
    }
    Ok(())
}
