//! Fine-tuning: a model of somebody else's, tuned on records of registered datasets, as a bench trains it again and again.
//!
//! Here lives: which records are taken, how they become tokens, and one tuning. The model is no part of the repository: a setting
//! says what fetches it. Here never lives: what methods see of it (`lab`).

use std::path::PathBuf;

use ascribe_core::{Digest, Progress};
use ascribe_corpus::SpecialTokens;
use ascribe_linalg::Stream;
use ascribe_models::lora::{Adapter, LoraConfig, Targets};
use ascribe_models::{Decoder, Sequence, TrainRecipe, Trainer};
use ascribe_registry::Registry;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::home::Home;
use crate::lab::model::LabModel;
use crate::train::order::Sampler;
use crate::train::run::dataset_parts;

/// Tokens that a record must have beyond a query's prompt, so that there is something to predict.
const MIN_RESPONSE: usize = 16;

/// A model that is tuned on registered datasets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunedSubject {
    /// Model folder or GGUF file, relative to the home folder.
    pub model: PathBuf,
    /// The command that puts it there.
    pub fetch: String,
    /// Datasets by name, in the order of their ordinals here.
    pub datasets: Vec<String>,
    /// Training records of every dataset, one window each.
    pub records_per_dataset: usize,
    /// Held-out records of every dataset.
    pub queries_per_dataset: usize,
    /// Longest window, in tokens.
    pub max_len: usize,
    /// Tokens of a query that are context: what follows is explained.
    pub prompt_len: usize,
    /// Width of a LoRA on all linear modules; without one all weights are tuned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,
    /// The tuning.
    pub train: TrainRecipe,
}

/// A window of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunedWindow {
    /// Ordinal of its dataset in the setting.
    pub dataset: u32,
    /// Tokens.
    pub tokens: Vec<u32>,
    /// The record's text, as much of it as the tokens stand for.
    pub text: String,
}

/// A setting of fine-tuning, opened.
pub struct TunedData {
    /// What is tuned, and how.
    pub subject: TunedSubject,
    /// The model before it is tuned.
    pub base: Decoder,
    /// Training windows, dataset after dataset.
    pub examples: Vec<TunedWindow>,
    /// Held-out windows, dataset after dataset.
    pub queries: Vec<TunedWindow>,
    /// SHA-256 over the model's weights and all windows.
    pub digest: Digest,
}

impl TunedSubject {
    /// Opens model and datasets and takes the records: of every dataset, in an order shuffled by the stream
    /// `bench/tuned/NAME`, first the held-out ones, then those to train on; records too short for a response are passed over.
    ///
    /// # Errors
    /// A model that is not there (with the command that fetches it); an unknown dataset, or one with too few records; windows
    /// that do not fit the model.
    pub fn open(&self, home: &Home) -> Result<TunedData, EngineError> {
        let path = home.root().join(&self.model);
        if !path.exists() {
            let (expected, found) =
                ("the model that this setting tunes".into(), format!("nothing; hint: {}", self.fetch));
            return Err(EngineError::Content { path, expected, found });
        }
        let model = LabModel::open(&path)?;
        let refuse = |setting, expected: String, found: usize| {
            Err(EngineError::Setting { setting, expected, found: found.to_string() })
        };
        if self.max_len > model.context() || self.prompt_len + MIN_RESPONSE > self.max_len {
            let expected = format!("{} to the model's context {}", self.prompt_len + MIN_RESPONSE, model.context());
            return refuse("max_len", expected, self.max_len);
        }
        let tokenizer = model.tokenizer(SpecialTokens::None)?;
        let registry = Registry::open(&home.datasets())?;
        let parts = dataset_parts(&registry)?;
        let (mut examples, mut queries) = (Vec::new(), Vec::new());
        for (ordinal, name) in self.datasets.iter().enumerate() {
            let Some(part) = parts.iter().find(|part| part.name == *name) else {
                let names: Vec<&str> = parts.iter().map(|p| p.name.as_str()).collect();
                let expected = format!("names out of {}", names.join(", "));
                return Err(EngineError::Setting { setting: "datasets", expected, found: name.clone() });
            };
            let mut order: Vec<usize> = (0..part.records.len()).collect();
            Stream::new(0, &format!("bench/tuned/{name}")).shuffle(&mut order);
            let wanted = self.queries_per_dataset + self.records_per_dataset;
            let mut windows = Vec::with_capacity(wanted);
            for record in order.into_iter().map(|i| &part.records[i]) {
                if windows.len() == wanted {
                    break;
                }
                let tokens = tokenizer.encode(&record.text).map_err(|found| EngineError::Content {
                    path: TokenPlace(name, &record.id).path(),
                    expected: "a text that the tokenizer takes".into(),
                    found,
                })?;
                if tokens.len() < self.prompt_len + MIN_RESPONSE {
                    continue;
                }
                let kept = &tokens[..tokens.len().min(self.max_len)];
                let end = kept.last().map_or(0, |t| t.byte_end as usize);
                let text = record.text.get(..end).unwrap_or(&record.text).to_owned();
                let tokens = kept.iter().map(|t| t.id).collect();
                windows.push(TunedWindow { dataset: ordinal as u32, tokens, text });
            }
            if windows.len() < wanted {
                let expected = format!("{wanted} records of {name} with {} tokens", self.prompt_len + MIN_RESPONSE);
                return refuse("records_per_dataset", expected, windows.len());
            }
            examples.extend(windows.split_off(self.queries_per_dataset));
            queries.extend(windows);
        }
        let base = model.into_decoder();
        let tokens = |windows: &[TunedWindow]| windows.iter().map(|w| w.tokens.clone()).collect::<Vec<_>>();
        let digest = Digest::of_json(&(base.weights_digest(), &self.datasets, tokens(&examples), tokens(&queries)))?;
        Ok(TunedData { subject: self.clone(), base, examples, queries, digest })
    }

    /// SHA-256 of what decides a tuning besides model, data and seed.
    pub fn recipe_digest(&self) -> Digest {
        let train = TrainRecipe { init_seed: 0, ..self.train.clone() };
        Digest::of_json(&(&self.lora_rank, train)).expect("numbers always serialise")
    }
}

/// Where a record stands, as a path for errors.
struct TokenPlace<'a>(&'a str, &'a str);

impl TokenPlace<'_> {
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("datasets/{}/{}", self.0, self.1))
    }
}

impl TunedData {
    /// The queries as the model sees them: loss on what follows the prompt.
    pub fn query_sequences(&self) -> Vec<Sequence<'_>> {
        let loss_from = self.subject.prompt_len;
        self.queries.iter().map(|q| Sequence { tokens: &q.tokens, loss_from }).collect()
    }

    /// Training windows as sequences.
    pub fn sequences(&self) -> Vec<Sequence<'_>> {
        self.examples.iter().map(|e| Sequence::whole(&e.tokens)).collect()
    }

    /// The model after `steps` steps (all, without a number) on the windows `members`; the number of steps is the recipe's
    /// whatever is kept. Without any member the model is as it was.
    ///
    /// # Errors
    /// The trainer's; [`EngineError::Stopped`].
    pub fn tune(
        &self,
        seed: u64,
        members: Vec<u32>,
        steps: Option<u32>,
        progress: &dyn Progress,
    ) -> Result<Decoder, EngineError> {
        let base = self.base.clone();
        if members.is_empty() {
            return Ok(base);
        }
        let mut recipe = self.subject.train.clone();
        recipe.init_seed = seed;
        let mut sampler = Sampler::new(seed, members);
        let mut trainer = match self.subject.lora_rank {
            None => Trainer::from_decoder(base, recipe)?,
            Some(rank) => {
                let config = LoraConfig::new(rank, 2.0 * rank as f64, Targets::AllLinear);
                let adapter = Adapter::init(&base, config, seed)?;
                Trainer::from_adapter(base, adapter, recipe)?
            }
        };
        let steps = u64::from(steps.unwrap_or(self.subject.train.steps));
        while trainer.step_count() < steps {
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
            let picks = sampler.batch(trainer.step_count(), self.subject.train.batch as usize);
            let batch: Vec<&[u32]> = picks.iter().map(|&i| self.examples[i as usize].tokens.as_slice()).collect();
            trainer.step(&batch)?;
        }
        Ok(trainer.into_decoder())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ascribe_core::NoProgress;

    use super::*;

    /// The shipped model finch, tuned on a handful of records.
    fn subject() -> TunedSubject {
        toml::from_str(
            r#"
model = "models/finch"
fetch = "benches/models/fetch.sh finch"
datasets = ["kjv-bible", "jargon-file"]
records_per_dataset = 4
queries_per_dataset = 2
max_len = 48
prompt_len = 16
[train]
steps = 3
batch = 2
micro_batch = 1
lr_peak = 1e-3
lr_floor = 1e-4
warmup_steps = 1
weight_decay = 0.0
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
clip_norm = 1.0
checkpoint_steps = [2, 3]
"#,
        )
        .unwrap()
    }

    fn home() -> Home {
        Home::find(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))).unwrap()
    }

    #[test]
    fn records_become_windows_and_a_tuning_depends_on_its_members_alone() {
        let data = subject().open(&home()).unwrap();
        assert_eq!((data.examples.len(), data.queries.len()), (8, 4));
        let owners: Vec<u32> = data.examples.iter().map(|e| e.dataset).collect();
        assert_eq!(owners, [0, 0, 0, 0, 1, 1, 1, 1]);
        for window in data.examples.iter().chain(&data.queries) {
            assert!((32..=48).contains(&window.tokens.len()), "{}", window.tokens.len());
            assert!(!window.text.is_empty());
        }
        assert!(data.queries.iter().all(|q| data.examples.iter().all(|e| e.tokens != q.tokens)), "held out");
        assert_eq!(subject().open(&home()).unwrap().digest, data.digest);

        let tune = |members: &[u32], steps| data.tune(1, members.to_vec(), steps, &NoProgress).unwrap();
        let all: Vec<u32> = (0..8).collect();
        assert_eq!(tune(&[], None).parameters(), data.base.parameters(), "without a record nothing is tuned");
        let tuned = tune(&all, None);
        assert_eq!(tuned.parameters(), tune(&all, Some(3)).parameters());
        assert_ne!(tuned.parameters(), tune(&all, Some(2)).parameters());
        assert_ne!(tuned.parameters(), tune(&all[..4], None).parameters());
        let loss = |model: &Decoder| model.losses(&data.sequences()).unwrap().iter().sum::<f64>();
        assert!(loss(&tuned) < loss(&data.base), "it learns what it is tuned on");
        let adapted = TunedData { subject: TunedSubject { lora_rank: Some(2), ..data.subject.clone() }, ..data };
        let lora = adapted.tune(1, all, None, &NoProgress).unwrap();
        assert_ne!(lora.parameters(), tuned.parameters());
        assert_ne!(adapted.subject.recipe_digest(), subject().recipe_digest());
    }

    #[test]
    fn what_cannot_be_tuned_is_told() {
        let refused = |change: &dyn Fn(&mut TunedSubject)| {
            let mut subject = subject();
            change(&mut subject);
            subject.open(&home()).err().expect("refused").to_string()
        };
        let error = refused(&|s| s.model = "out/models/nothing".into());
        assert!(
            error.contains("out/models/nothing") && error.contains("hint: benches/models/fetch.sh finch"),
            "{error}"
        );
        let error = refused(&|s| s.datasets[1] = "bible".into());
        assert!(error.contains("datasets: expected names out of austen-novels") && error.contains("bible"), "{error}");
        let error = refused(&|s| s.records_per_dataset = 1_000_000);
        assert!(error.contains("records_per_dataset: expected 1000002 records of kjv-bible"), "{error}");
        for (max_len, prompt_len) in [(4096, 16), (30, 16)] {
            let error = refused(&|s| (s.max_len, s.prompt_len) = (max_len, prompt_len));
            assert!(error.contains("max_len: expected 32 to the model's context 128"), "{error}");
        }
    }
}
