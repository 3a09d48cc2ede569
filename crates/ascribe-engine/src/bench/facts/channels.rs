//! What finds records for a query: words, hidden states, gradients, chance.
//!
//! A channel is fitted on the records once and then scores blocks of queries. Here never lives: measures (`mod`).

use std::collections::HashSet;
use std::ops::Range;

use ascribe_core::Progress;
use ascribe_methods::block_fisher::{Covariance, row_weights, self_influence, unit_queries};
use ascribe_methods::controls::bm25::{B, Bm25, K1};
use ascribe_methods::controls::{embedding, random, text::terms};
use ascribe_methods::dot;
use ascribe_models::TapConfig;
use ndarray::{Array2, s};
use serde_json::{Value, json};

use super::data::{Query, Records};
use super::passages::{self, MemoryRows, Passages};
use crate::bench::report::cpu_of;
use crate::error::EngineError;
use crate::lab::model::{LabModel, Subject};

/// Seed of projectors and of the random control.
const SEED: u64 = 7;
/// Columns kept on either side of every module.
const GRADIENT_K: usize = 16;
/// Damping of the curvature, relative to each block's mean diagonal.
pub const DAMPING_REL: f64 = 0.1;
/// Below every cosine: what a record gets that has no tokens to compare.
const NOTHING: f32 = -2.0;
/// Bytes of one posting of an inverted index as it lies in memory: a record number and a weight.
const POSTING_BYTES: usize = 16;

/// A way to find records, fitted and ready.
pub struct Channel {
    /// Bytes kept per record.
    pub bytes_per_record: f64,
    /// CPU seconds of the fit.
    pub cpu_fit: f64,
    /// CPU seconds spent on all queries before the first block.
    pub cpu_queries: f64,
    /// Settings, for the report.
    pub settings: Value,
    body: Body,
}

enum Body {
    Words { index: Bm25, questions: Vec<Vec<String>> },
    Hidden { passages: Passages, records: Array2<f32>, queries: Array2<f32> },
    Gradients { passages: Passages, rows: Box<MemoryRows>, weights: Vec<f64>, queries: Array2<f64> },
    Chance,
}

impl Channel {
    /// BM25; the query's words are its question, or question and answer.
    ///
    /// # Errors
    /// No records.
    pub fn words(records: &Records, queries: &[Query], with_answer: bool) -> Result<Self, EngineError> {
        let (fitted, cpu_fit) = cpu_of(|| {
            let documents: Vec<Vec<String>> = records.texts.iter().map(|text| terms(text)).collect();
            let distinct = |words: &Vec<String>| words.iter().collect::<HashSet<_>>().len();
            let postings: usize = documents.iter().map(distinct).sum();
            Bm25::build(&documents).map(|index| (index, postings))
        });
        let (index, postings) = fitted?;
        let (questions, cpu_queries) = cpu_of(|| {
            let words = |q: &Query| match with_answer {
                true => terms(&format!("{}\n{}", q.query, q.answer)),
                false => terms(&q.query),
            };
            queries.iter().map(words).collect()
        });
        Ok(Self {
            bytes_per_record: (postings * POSTING_BYTES) as f64 / records.len() as f64,
            cpu_fit,
            cpu_queries,
            settings: json!({ "k1": K1, "b": B, "answer": with_answer }),
            body: Body::Words { index, questions },
        })
    }

    /// Cosine of mean hidden states of a model, the records' mean taken out.
    ///
    /// # Errors
    /// The model's and the tokenizer's.
    pub fn hidden(
        records: &Records,
        queries: &[Query],
        model: &LabModel,
        progress: &dyn Progress,
    ) -> Result<Self, EngineError> {
        let (tokenizer, context) = (model.tokenizer(Default::default())?, model.context());
        let (fitted, cpu_fit) = cpu_of(|| -> Result<_, EngineError> {
            let passages = Passages::cut(&tokenizer, &records.texts, context, 1)?;
            let rows = passages::embed(model.decoder(), &passages, progress)?;
            Ok((passages, rows))
        });
        let (passages, rows) = fitted?;
        let (asked, cpu_queries) = cpu_of(|| {
            let asked = passages::ask(&tokenizer, queries, context)?;
            passages::embed_queries(model.decoder(), &asked, progress)
        });
        Ok(Self {
            bytes_per_record: (4 * rows.len()) as f64 / records.len() as f64,
            cpu_fit,
            cpu_queries,
            settings: json!({ "model": model_name(model), "windows": passages.len(), "width": rows.ncols() }),
            body: Body::Hidden { passages, records: rows, queries: asked? },
        })
    }

    /// Block-Fisher influence of records on the answer given the question, as a cosine in the curvature's metric.
    ///
    /// # Errors
    /// The model's, the tokenizer's, the method's.
    pub fn gradients(
        records: &Records,
        queries: &[Query],
        model: &LabModel,
        progress: &dyn Progress,
    ) -> Result<Self, EngineError> {
        let (tokenizer, context) = (model.tokenizer(Default::default())?, model.context());
        let stage = model.stage(&TapConfig::all(SEED, GRADIENT_K), &Subject::default())?;
        let (fitted, cpu_fit) = cpu_of(|| -> Result<_, EngineError> {
            let passages = Passages::cut(&tokenizer, &records.texts, context, 2)?;
            let rows = passages::gradients(&stage, &passages, progress)?;
            let rows = MemoryRows::new(stage.spec("final", records.digest), rows);
            let factors = Covariance::fit(&rows, progress)?.cholesky(DAMPING_REL)?;
            let weights = row_weights(&self_influence(&rows, &factors, progress)?);
            Ok((passages, rows, factors, weights))
        });
        let (passages, rows, factors, weights) = fitted?;
        let (queries, cpu_queries) = cpu_of(|| -> Result<_, EngineError> {
            let asked = passages::ask(&tokenizer, queries, context)?;
            Ok(unit_queries(&factors, passages::query_gradients(&stage, &asked, progress)?.view())?)
        });
        let settings = json!({
            "model": model_name(model), "windows": passages.len(), "k_in": GRADIENT_K, "k_out": GRADIENT_K,
            "dim": rows.rows.ncols(), "damping_rel": DAMPING_REL, "normalised": "both sides"
        });
        Ok(Self {
            bytes_per_record: (4 * rows.rows.len()) as f64 / records.len() as f64,
            cpu_fit,
            cpu_queries,
            settings,
            body: Body::Gradients { passages, rows: Box::new(rows), weights, queries: queries? },
        })
    }

    /// Normal numbers.
    pub fn chance() -> Self {
        Self {
            bytes_per_record: 0.0,
            cpu_fit: 0.0,
            cpu_queries: 0.0,
            settings: json!({ "seed": SEED }),
            body: Body::Chance,
        }
    }

    /// Scores of a block of queries, `[q, n_records]`.
    ///
    /// # Errors
    /// The method's.
    pub fn score(&self, block: Range<usize>, n_records: usize) -> Result<Array2<f32>, EngineError> {
        Ok(match &self.body {
            Body::Words { index, questions } => index.score_all(&questions[block]),
            Body::Hidden { passages, records, queries } => {
                let scores = embedding::score(queries.slice(s![block, ..]), records.view(), true)?;
                passages.best(&scores, n_records, NOTHING)
            }
            Body::Gradients { passages, rows, weights, queries } => {
                let queries = queries.slice(s![block, ..]);
                let scores = dot::score(rows.as_ref(), queries, Some(weights), &ascribe_core::NoProgress)?;
                passages.best(&scores.values, n_records, NOTHING)
            }
            Body::Chance => {
                let mut scores = Array2::zeros((block.len(), n_records));
                for (mut row, query) in scores.rows_mut().into_iter().zip(block) {
                    row.assign(&random::score(SEED.wrapping_add(query as u64), 1, n_records).row(0));
                }
                scores
            }
        })
    }
}

fn model_name(model: &LabModel) -> String {
    model.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
