//! Attribution of records that were not there before: gradient rows at every checkpoint of the model, through the run's own factors,
//! beside the scores of everything that was registered.

use ascribe_core::{Progress, RecordId};
use ascribe_corpus::chunk::{Window, windows};
use ascribe_corpus::tokenizer::Token;
use ascribe_methods::block_fisher::precondition;
use ascribe_methods::controls::{bm25::Bm25, embedding, text::terms};
use ascribe_methods::dot;
use ascribe_methods::trajectory::{self, CheckpointRows};
use ascribe_models::{GradientStage, Sequence};
use ascribe_store::FeatureStore;
use ndarray::{Array2, Axis, concatenate, s};
use rayon::prelude::*;

use crate::error::EngineError;
use crate::walk::features::{HIDDEN_DIRS, load_rows, open_train, query_dir, taps_of};
use crate::walk::{Context, fit};

/// Rows made at once.
const CHUNK: usize = 256;

/// Records that somebody adds, cut into windows as the corpus cuts.
pub struct Records {
    /// Id and text.
    pub records: Vec<(String, String)>,
    /// Windows; record rows count from 0.
    pub windows: Vec<Window>,
}

impl Records {
    /// Tokenises and cuts.
    ///
    /// # Errors
    /// A text that cannot be encoded.
    pub fn new(context: &Context, records: Vec<(String, String)>) -> Result<Self, EngineError> {
        let mut tokens: Vec<(RecordId, Vec<Token>)> = Vec::with_capacity(records.len());
        for (row, (id, text)) in (0u32..).zip(&records) {
            let encoded = context.tokenizer.encode(text).map_err(|why| EngineError::Content {
                path: id.into(),
                expected: "a text that can be encoded".into(),
                found: why,
            })?;
            tokens.push((RecordId { dataset: 0, row }, encoded));
        }
        let seq_len = context.corpus.manifest.config.seq_len;
        let windows = windows(tokens.iter().map(|(id, tokens)| (*id, tokens.as_slice())), seq_len);
        Ok(Self { records, windows })
    }

    /// Row of the record that fills most of a window.
    pub fn main_record(window: &Window) -> u32 {
        let longest = window.spans.iter().rev().max_by_key(|span| span.token_end - span.token_start);
        longest.map_or(0, |span| span.record.row)
    }

    fn words(&self, window: &Window) -> Vec<String> {
        let mut text = String::new();
        for span in &window.spans {
            let record = &self.records[span.record.row as usize].1;
            text.push_str(record.get(span.byte_start as usize..span.byte_end as usize).unwrap_or_default());
            text.push('\n');
        }
        terms(&text)
    }
}

/// What the model says about added windows.
#[derive(Clone)]
pub struct Rows {
    /// Influence of each window on each response, `[Q, M]`.
    pub influence: Array2<f32>,
    last: Array2<f32>,
    /// Gradient lengths at the first checkpoint.
    pub norms: Vec<f32>,
    hidden: Array2<f32>,
    documents: Vec<Vec<String>>,
    tokens: Vec<Vec<u32>>,
}

impl Rows {
    /// Number of windows.
    pub fn count(&self) -> usize {
        self.norms.len()
    }

    /// Some of the windows.
    pub fn select(&self, picked: &[usize]) -> Self {
        Self {
            influence: self.influence.select(Axis(1), picked),
            last: self.last.select(Axis(1), picked),
            norms: picked.iter().map(|&i| self.norms[i]).collect(),
            hidden: self.hidden.select(Axis(0), picked),
            documents: picked.iter().map(|&i| self.documents[i].clone()).collect(),
            tokens: picked.iter().map(|&i| self.tokens[i].clone()).collect(),
        }
    }
}

/// Example scores of all channels, `[Q, N + M]` each.
pub struct Tables {
    /// Block-Fisher influence summed over checkpoints.
    pub influence: Array2<f32>,
    /// Block-Fisher influence at the last checkpoint.
    pub last: Array2<f32>,
    /// BM25.
    pub bm25: Array2<f32>,
    /// Cosine of hidden states.
    pub embedding: Array2<f32>,
    /// What bigrams are counted on, by column.
    pub tokens: Vec<Vec<u32>>,
    /// Responses and the first of their tokens that is predicted.
    pub predicted: Vec<(Vec<u32>, usize)>,
    /// Words of the tokenizer.
    pub vocab_size: usize,
}

/// A run's responses, ready to score anything.
pub struct Scorer<'a> {
    context: &'a Context,
    solved: Vec<Array2<f64>>,
    hidden: Array2<f32>,
    hidden_queries: Array2<f32>,
    documents: Vec<Vec<String>>,
    questions: Vec<Vec<String>>,
    influence: Array2<f32>,
    last: Array2<f32>,
}

impl<'a> Scorer<'a> {
    /// Reads rows, factors and hidden states of a finished run and scores what was registered.
    ///
    /// # Errors
    /// A run folder without them.
    pub fn open(context: &'a Context, progress: &dyn Progress) -> Result<Self, EngineError> {
        let mut solved = Vec::new();
        let mut stores = Vec::new();
        for checkpoint in &context.checkpoints {
            let rows = load_rows(&FeatureStore::open(&context.out.join(query_dir(&checkpoint.name)), None)?)?;
            solved.push(precondition(&fit::read(context, checkpoint)?, rows.view())?);
            stores.push(open_train(context, &checkpoint.name)?);
        }
        let parts = context.checkpoints.iter().zip(&stores).zip(&solved);
        let rows: Vec<CheckpointRows<'_, FeatureStore>> =
            parts.map(|((c, reader), q)| CheckpointRows { reader, queries: q.view(), weight: c.weight }).collect();
        let influence = trajectory::score(&rows, progress)?.values;
        let (reader, queries) = (stores.last().expect("checked to have one"), solved.last().expect("the same"));
        let last = dot::score(reader, queries.view(), None, progress)?.values;
        drop(rows);
        let words = |spans: &[ascribe_core::RecordSpan]| terms(&context.corpus.text_of(spans));
        Ok(Self {
            context,
            solved,
            hidden: load_rows(&FeatureStore::open(&context.out.join(HIDDEN_DIRS[0]), None)?)?,
            hidden_queries: load_rows(&FeatureStore::open(&context.out.join(HIDDEN_DIRS[1]), None)?)?,
            documents: context.corpus.examples.par_iter().map(|e| words(&e.spans)).collect(),
            questions: context.corpus.queries.par_iter().map(|q| words(&q.spans)).collect(),
            influence,
            last,
        })
    }

    /// Runs added windows through every checkpoint of the model.
    ///
    /// # Errors
    /// From the model; a stop on request.
    pub fn score(&self, added: &Records, progress: &dyn Progress) -> Result<Rows, EngineError> {
        let context = self.context;
        let n = added.windows.len();
        let sequences: Vec<Sequence<'_>> = added.windows.iter().map(|w| Sequence::whole(&w.tokens)).collect();
        let mut influence = Array2::<f64>::zeros((self.solved[0].nrows(), n));
        let mut last = Array2::<f32>::zeros(influence.dim());
        let mut norms = vec![0f32; n];
        let mut hidden = None;
        progress.start("gradients of added records", (n * context.checkpoints.len()) as u64, "rows");
        for (c, checkpoint) in context.checkpoints.iter().enumerate() {
            let decoder = context.decoder(checkpoint)?;
            let stage = GradientStage::new(&decoder, taps_of(&context.attribution))?;
            for (at, chunk) in (0..).step_by(CHUNK).zip(sequences.chunks(CHUNK)) {
                if progress.stop_requested() {
                    return Err(EngineError::Stopped);
                }
                let mut rows = Array2::zeros((chunk.len(), stage.dim()));
                let lengths = (c == 0).then(|| &mut norms[at..at + chunk.len()]);
                stage.rows(chunk, rows.view_mut(), lengths)?;
                let scores = self.solved[c].dot(&rows.mapv(f64::from).t());
                influence.slice_mut(s![.., at..at + chunk.len()]).scaled_add(checkpoint.weight, &scores);
                if c + 1 == context.checkpoints.len() {
                    last.slice_mut(s![.., at..at + chunk.len()]).assign(&scores.mapv(|v| v as f32));
                }
                progress.advance(chunk.len() as u64);
            }
            if c + 1 == context.checkpoints.len() {
                hidden = Some(decoder.mean_hidden(&sequences)?);
            }
        }
        progress.finish(&format!("{n} windows"));
        Ok(Rows {
            influence: influence.mapv(|v| v as f32),
            last,
            norms,
            hidden: hidden.unwrap_or_else(|| Array2::zeros((0, self.hidden.ncols()))),
            documents: added.windows.par_iter().map(|w| added.words(w)).collect(),
            tokens: added.windows.iter().map(|w| w.tokens.clone()).collect(),
        })
    }

    /// Scores of everything registered, followed by the added windows, with the similarities computed over all of them.
    ///
    /// # Errors
    /// From the methods.
    pub fn tables(&self, added: &[&Rows]) -> Result<Tables, EngineError> {
        let mut influence = vec![self.influence.view()];
        let mut last = vec![self.last.view()];
        let mut hidden = vec![self.hidden.view()];
        let mut documents = self.documents.clone();
        let mut tokens: Vec<Vec<u32>> = self.context.corpus.examples.iter().map(|e| e.tokens.clone()).collect();
        for rows in added {
            tokens.extend(rows.tokens.iter().cloned());
            influence.push(rows.influence.view());
            last.push(rows.last.view());
            hidden.push(rows.hidden.view());
            documents.extend(rows.documents.iter().cloned());
        }
        let hidden = concatenate(Axis(0), &hidden).expect("hidden states have one width");
        Ok(Tables {
            influence: concatenate(Axis(1), &influence).expect("scores have one row a response"),
            last: concatenate(Axis(1), &last).expect("scores have one row a response"),
            bm25: Bm25::build(&documents)?.score_all(&self.questions),
            embedding: embedding::score(self.hidden_queries.view(), hidden.view(), true)?,
            tokens,
            predicted: self.context.predicted().into_iter().map(|(tokens, from)| (tokens.to_vec(), from)).collect(),
            vocab_size: self.context.recipe.corpus.vocab_size,
        })
    }

    /// Mean influence of every registered example over the responses.
    pub fn mean_influence(&self) -> Vec<f32> {
        self.influence.mean_axis(Axis(0)).map_or_else(Vec::new, |mean| mean.to_vec())
    }

    /// Registered examples.
    pub fn n_base(&self) -> usize {
        self.documents.len()
    }
}
