//! A JSONL file of records becomes windows of tokens, each knowing its record and its place there.
//!
//! One record per line, an object with one of
//! * `text`: tokenised with the model's tokenizer,
//! * `prompt` and `completion`: tokenised as one text; the loss begins with the first token that holds a byte of the
//!   completion,
//! * `input_ids` or `tokens`: used as they are (they win over text that stands beside them);
//!
//! and, if wanted, `id` (text or number; else the line number), `loss_from` (first token whose prediction counts) and the
//! name of a dataset. Other fields are nobody's business here. Files are hostile: every line is checked before anything
//! is written, and the first bad one is named with its field.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, ExampleId, Progress};
use ascribe_corpus::TextTokenizer;
use ascribe_models::Sequence;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::lines::{Lines, refuse};
use crate::error::EngineError;

/// Lines tokenised in parallel before the next are read.
const BATCH_LINES: usize = 4096;
/// Most windows: an example's position is a 32-bit number.
const MAX_WINDOWS: usize = u32::MAX as usize;
/// Name of the dataset of records that name none.
pub const DEFAULT_DATASET: &str = "data";

/// How records are read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataOptions {
    /// Longest window; longer records are cut.
    pub max_len: usize,
    /// Field that names a record's dataset.
    pub dataset_field: String,
    /// Read at most so many records.
    pub limit: Option<usize>,
    /// Leave out records in which nothing can be predicted, instead of refusing them.
    pub skip_empty: bool,
}

impl DataOptions {
    /// Windows of `max_len` tokens, everything else as usual.
    pub fn new(max_len: usize) -> Self {
        Self { max_len, dataset_field: "dataset".into(), limit: None, skip_empty: false }
    }
}

/// A record of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LabRecord {
    /// Its id.
    pub id: String,
    /// Line, from 1.
    pub line: u64,
    /// Ordinal of its dataset.
    pub dataset: u32,
}

/// One sequence of the model: a record or a piece of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// Its id: the dataset's ordinal and the position within it.
    pub id: ExampleId,
    /// Position of its record in [`LabData::records`].
    pub record: usize,
    /// First token within the record.
    pub token_start: u64,
    /// First token of the window whose prediction counts.
    pub loss_from: usize,
    /// Place of the tokens.
    tokens: Range<usize>,
}

/// Everything that was read.
#[derive(Clone, Debug)]
pub struct LabData {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes, as far as it was read.
    pub file_sha256: Digest,
    /// Names of datasets, in order of appearance.
    pub datasets: Vec<String>,
    /// Records, in order.
    pub records: Vec<LabRecord>,
    /// Windows, in order.
    pub windows: Vec<Window>,
    tokens: Vec<u32>,
}

impl LabData {
    /// Reads the records of `path`.
    ///
    /// `tokenizer` is asked for when the first record with text comes, so files of ids need none. The result does not
    /// depend on threads.
    ///
    /// # Errors
    /// [`EngineError::Record`] naming file, line, field, expected and found; an empty file; what `tokenizer` says.
    pub fn read(
        path: &Path,
        options: &DataOptions,
        vocab_size: usize,
        tokenizer: &dyn Fn() -> Result<TextTokenizer, EngineError>,
        progress: &dyn Progress,
    ) -> Result<Self, EngineError> {
        let mut lines = Lines::open(path)?;
        let mut data = Self {
            path: path.into(),
            file_sha256: Digest::default(),
            datasets: vec![],
            records: vec![],
            windows: vec![],
            tokens: vec![],
        };
        let mut builder = Builder { options, ordinals: HashMap::new(), counts: vec![] };
        let mut loaded = None;
        progress.start("read records", 0, "records");
        loop {
            let left = options.limit.map_or(BATCH_LINES, |limit| (limit - data.records.len()).min(BATCH_LINES));
            let batch = lines.batch(left)?;
            if batch.is_empty() {
                break;
            }
            let parsed: Vec<Result<Record, EngineError>> =
                batch.par_iter().map(|line| Record::parse(path, line.number, &line.text, options)).collect();
            // The first bad line is the one that is told, whether its words or its tokens are wrong.
            let (parsed, failure) = up_to_failure(parsed);
            if loaded.is_none() && parsed.iter().any(|record| matches!(record.body, Body::Text { .. })) {
                loaded = Some(tokenizer()?);
            }
            let tokenised: Vec<Result<Tokens, EngineError>> =
                parsed.par_iter().map(|r| r.tokens(path, loaded.as_ref(), vocab_size)).collect();
            for (record, tokens) in parsed.into_iter().zip(tokenised) {
                builder.add(&mut data, record, tokens?)?;
            }
            if let Some(error) = failure {
                return Err(error);
            }
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
        }
        data.file_sha256 = lines.digest();
        if data.windows.is_empty() {
            let expected = "at least one record".into();
            return Err(EngineError::Content { path: path.into(), expected, found: "none".into() });
        }
        progress.finish(&format!("{} records, {} tokens", data.records.len(), data.n_tokens()));
        Ok(data)
    }

    /// A window as the model sees it.
    pub fn sequence(&self, window: &Window) -> Sequence<'_> {
        Sequence { tokens: &self.tokens[window.tokens.clone()], loss_from: window.loss_from }
    }

    /// All windows as the model sees them.
    pub fn sequences(&self) -> Vec<Sequence<'_>> {
        self.windows.iter().map(|window| self.sequence(window)).collect()
    }

    /// Tokens of all windows.
    pub fn n_tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.tokens.len() as u64).sum()
    }

    /// Tokens of the longest window.
    pub fn longest(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).max().unwrap_or(0)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        let records: usize = self.records.iter().map(|r| size_of::<LabRecord>() + r.id.capacity()).sum();
        (4 * self.tokens.capacity() + size_of::<Window>() * self.windows.capacity() + records) as u64
    }

    /// SHA-256 over all windows: their ids, tokens and losses, and the datasets' names.
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        for name in &self.datasets {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
        }
        for window in &self.windows {
            let sequence = self.sequence(window);
            for number in [window.id.to_u64(), window.loss_from as u64, sequence.tokens.len() as u64] {
                hasher.update(number.to_le_bytes());
            }
            sequence.tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        }
        Digest(hasher.finalize().into())
    }
}

fn up_to_failure<T, E>(results: Vec<Result<T, E>>) -> (Vec<T>, Option<E>) {
    let mut good = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) => return (good, Some(error)),
        }
    }
    (good, None)
}

/// What a record brings.
#[derive(Debug)]
pub(crate) enum Body {
    /// Ids as they are.
    Ids(Vec<u32>),
    /// Text, of which the first bytes are a prompt.
    Text { text: String, prompt_bytes: usize },
}

/// A line, understood.
#[derive(Debug)]
pub(crate) struct Record {
    line: u64,
    /// Its id: what the line says, or its number.
    pub id: String,
    dataset: String,
    loss_from: Option<usize>,
    pub body: Body,
}

/// A record's tokens and the first that counts.
pub(crate) struct Tokens {
    pub ids: Vec<u32>,
    pub loss_from: usize,
}

impl Record {
    /// Understands a line.
    pub fn parse(path: &Path, line: u64, text: &str, options: &DataOptions) -> Result<Self, EngineError> {
        let fields: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| refuse(path, line, "line", "a JSON object", format!("{e}: {}", short(text))))?;
        let reader = Fields { path, line, fields: &fields };
        let id = match reader.get("id") {
            None => line.to_string(),
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(other) => return Err(reader.fail("id", "a text or a number", short(&other.to_string()))),
        };
        let dataset = match reader.get(&options.dataset_field) {
            None => DEFAULT_DATASET.to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                return Err(reader.fail(&options.dataset_field, "a dataset's name", short(&other.to_string())));
            }
        };
        let loss_from = reader.get("loss_from").map(|value| {
            let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
            number.ok_or_else(|| reader.fail("loss_from", "a token position from 0", short(&value.to_string())))
        });
        reader.refuse_padding()?;
        Ok(Self { line, id, dataset, loss_from: loss_from.transpose()?, body: reader.body()? })
    }

    /// Its tokens; `tokenizer` may be `None` only for a record of ids.
    pub fn tokens(
        &self,
        path: &Path,
        tokenizer: Option<&TextTokenizer>,
        vocab_size: usize,
    ) -> Result<Tokens, EngineError> {
        let fail = |field: &str, expected: &str, found: String| refuse(path, self.line, field, expected, found);
        let (ids, mut loss_from, field) = match &self.body {
            Body::Ids(ids) => (ids.clone(), 0, "input_ids"),
            Body::Text { text, prompt_bytes } => {
                let tokenizer = tokenizer.expect("the caller loads it before the first record with text");
                let tokens = tokenizer.encode(text).map_err(|why| fail("text", "a text that can be tokenised", why))?;
                let counts = |t: &ascribe_corpus::tokenizer::Token| t.byte_end as usize > *prompt_bytes;
                let loss_from = match prompt_bytes {
                    0 => 0,
                    _ => tokens.iter().position(counts).unwrap_or(tokens.len()),
                };
                (tokens.iter().map(|t| t.id).collect(), loss_from, "text")
            }
        };
        if let Some(at) = ids.iter().position(|&id| id as usize >= vocab_size) {
            let found = format!("{} at position {at}", ids[at]);
            return Err(fail(field, &format!("token ids below the model's vocab_size {vocab_size}"), found));
        }
        if let Some(given) = self.loss_from {
            if given >= ids.len() {
                let expected = format!("a position below the record's {} tokens", ids.len());
                return Err(fail("loss_from", &expected, given.to_string()));
            }
            loss_from = given;
        }
        Ok(Tokens { ids, loss_from })
    }
}

/// The fields of one line.
struct Fields<'a> {
    path: &'a Path,
    line: u64,
    fields: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn fail(&self, field: &str, expected: &str, found: String) -> EngineError {
        refuse(self.path, self.line, field, expected, found)
    }

    fn text(&self, name: &str) -> Result<Option<&str>, EngineError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.fail(name, "a text", short(&other.to_string()))),
        }
    }

    fn ids(&self, name: &str) -> Result<Option<Vec<u32>>, EngineError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let Some(list) = value.as_array() else {
            return Err(self.fail(name, "a list of token ids", short(&value.to_string())));
        };
        let id = |(at, value): (usize, &Value)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| {
                let found = format!("{} at position {at}", short(&value.to_string()));
                self.fail(name, "token ids (integers from 0)", found)
            })
        };
        list.iter().enumerate().map(id).collect::<Result<Vec<u32>, EngineError>>().map(Some)
    }

    /// Rows that were padded for a batch would teach the padding.
    fn refuse_padding(&self) -> Result<(), EngineError> {
        let Some(mask) = self.get("attention_mask") else { return Ok(()) };
        let is_whole = mask.as_array().is_some_and(|mask| mask.iter().all(|bit| bit == 1));
        if is_whole {
            return Ok(());
        }
        Err(self.fail("attention_mask", "ones only (sequences are not padded here)", short(&mask.to_string())))
    }

    fn body(&self) -> Result<Body, EngineError> {
        for name in ["input_ids", "tokens"] {
            if let Some(ids) = self.ids(name)? {
                return Ok(Body::Ids(ids));
            }
        }
        let text = |text: &str, prompt_bytes| Body::Text { text: text.to_owned(), prompt_bytes };
        match (self.text("text")?, self.text("prompt")?, self.text("completion")?) {
            (Some(whole), None, None) => Ok(text(whole, 0)),
            (None, Some(prompt), Some(completion)) => {
                if completion.is_empty() {
                    return Err(self.fail("completion", "a text that is not empty", "\"\"".into()));
                }
                Ok(text(&format!("{prompt}{completion}"), prompt.len()))
            }
            (None, Some(_), None) => Err(self.fail("completion", "a text beside `prompt`", "nothing".into())),
            (None, None, Some(_)) => Err(self.fail("prompt", "a text beside `completion`", "nothing".into())),
            (Some(_), _, _) => Err(self.fail("text", "`text` alone or `prompt` with `completion`", "both".into())),
            (None, None, None) => {
                let names: Vec<&str> = self.fields.keys().map(String::as_str).take(12).collect();
                let found = if names.is_empty() { "no field".into() } else { format!("fields {}", names.join(", ")) };
                Err(self.fail("text", "`text`, `prompt` with `completion`, `input_ids` or `tokens`", short(&found)))
            }
        }
    }
}

fn short(text: &str) -> String {
    let mut short: String = text.trim().chars().take(80).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    short
}

/// Cuts records into windows.
struct Builder<'a> {
    options: &'a DataOptions,
    ordinals: HashMap<String, u32>,
    /// Windows per dataset so far.
    counts: Vec<u32>,
}

impl Builder<'_> {
    fn add(&mut self, data: &mut LabData, record: Record, tokens: Tokens) -> Result<(), EngineError> {
        let n_windows = data.windows.len();
        let dataset = *self.ordinals.entry(record.dataset).or_insert_with_key(|name| {
            data.datasets.push(name.clone());
            self.counts.push(0);
            (data.datasets.len() - 1) as u32
        });
        for (piece, ids) in tokens.ids.chunks(self.options.max_len).enumerate() {
            let token_start = piece * self.options.max_len;
            let window = Sequence { tokens: ids, loss_from: tokens.loss_from.saturating_sub(token_start) };
            if window.n_predictions() == 0 {
                continue;
            }
            let start = data.tokens.len();
            data.tokens.extend_from_slice(ids);
            let idx = self.counts[dataset as usize];
            self.counts[dataset as usize] += 1;
            data.windows.push(Window {
                id: ExampleId { dataset, idx },
                record: data.records.len(),
                token_start: token_start as u64,
                loss_from: window.loss_from,
                tokens: start..data.tokens.len(),
            });
        }
        if data.windows.len() == n_windows && !self.options.skip_empty {
            let found = format!("{} tokens, loss from {}", tokens.ids.len(), tokens.loss_from);
            let expected = "something to predict: at least two tokens, one of them counted";
            return Err(refuse(&data.path, record.line, "text", expected, found));
        }
        if data.windows.len() >= MAX_WINDOWS {
            let found = "more".to_owned();
            return Err(refuse(&data.path, record.line, "line", "fewer than 2^32 windows in one file", found));
        }
        data.records.push(LabRecord { id: record.id, line: record.line, dataset });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ascribe_core::NoProgress;
    use ascribe_corpus::SpecialTokens;

    use super::*;

    /// One token per word of a small vocabulary, with `<s>` in front.
    fn words() -> Result<TextTokenizer, EngineError> {
        let json = r#"{"version":"1.0","added_tokens":[],
            "pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":false},
            "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
                {"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},
                {"Sequence":{"id":"B","type_id":0}}],"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},
            "model":{"type":"WordLevel","unk_token":"?","vocab":{"?":0,"<s>":1,"a ":2,"b ":3,"c":4,"b":5}}}"#;
        Ok(TextTokenizer::from_json(json.into(), SpecialTokens::AsFile).unwrap())
    }

    fn read_with(text: &str, options: &DataOptions) -> Result<LabData, EngineError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        LabData::read(&path, options, 10, &words, &NoProgress)
    }

    fn read(text: &str) -> Result<LabData, EngineError> {
        read_with(text, &DataOptions::new(4))
    }

    #[test]
    fn every_form_of_record_gives_its_tokens() {
        let lines = [
            r#"{"text": "a b c", "meta": {"any": 1}}"#,
            "",
            r#"{"id": "two", "prompt": "a b ", "completion": "c", "dataset": "x"}"#,
            r#"{"id": 3, "input_ids": [7, 8, 9], "text": "ignored", "loss_from": 2, "attention_mask": [1, 1, 1]}"#,
            r#"{"tokens": [5, 6], "dataset": "x"}"#,
        ];
        let data = read(&lines.join("\n")).unwrap();
        let tokens: Vec<Vec<u32>> = data.sequences().iter().map(|s| s.tokens.to_vec()).collect();
        assert_eq!(tokens, [vec![1, 2, 3, 4], vec![1, 2, 3, 4], vec![7, 8, 9], vec![5, 6]]);
        let loss_from: Vec<usize> = data.windows.iter().map(|w| w.loss_from).collect();
        assert_eq!(loss_from, [0, 3, 2, 0]);
        let ids: Vec<(&str, u64)> = data.records.iter().map(|r| (r.id.as_str(), r.line)).collect();
        assert_eq!(ids, [("1", 1), ("two", 3), ("3", 4), ("5", 5)]);
        assert_eq!(data.datasets, [DEFAULT_DATASET, "x"]);
        let rows: Vec<(u32, u32)> = data.windows.iter().map(|w| (w.id.dataset, w.id.idx)).collect();
        assert_eq!(rows, [(0, 0), (1, 0), (0, 1), (1, 1)]);
        assert_eq!((data.n_tokens(), data.longest()), (13, 4));
    }

    #[test]
    fn a_token_across_the_border_counts() {
        // "b" and "c" are one word for the tokenizer, unknown and half completion.
        let data = read(r#"{"prompt": "a b", "completion": "c"}"#).unwrap();
        assert_eq!((data.sequences()[0].tokens, data.windows[0].loss_from), (&[1, 2, 0][..], 2));
    }

    #[test]
    fn long_records_are_cut_and_know_their_place() {
        let data = read(r#"{"input_ids": [0,1,2,3,4,5,6,7,8], "loss_from": 6}"#).unwrap();
        // The first window predicts nothing that counts, the last has one token.
        let windows: Vec<_> = data.windows.iter().map(|w| (w.token_start, w.loss_from)).collect();
        assert_eq!(windows, [(4, 2)]);
        assert_eq!(data.sequences()[0].tokens, [4, 5, 6, 7]);
        assert_eq!(data.sequences()[0].n_predictions(), 2);
    }

    #[test]
    fn bad_records_are_named_by_line_and_field() {
        let cases = [
            ("{\"text\": \"a b\"", "line", "a JSON object"),
            ("[1]", "line", "a JSON object"),
            (r#"{"content": "a"}"#, "text", "found fields content"),
            (r#"{"text": 7}"#, "text", "found 7"),
            (r#"{"prompt": "a "}"#, "completion", "found nothing"),
            (r#"{"text": "a b", "prompt": "a "}"#, "text", "found both"),
            (r#"{"prompt": "a ", "completion": ""}"#, "completion", "not empty"),
            (r#"{"input_ids": [1, -2]}"#, "input_ids", "found -2 at position 1"),
            (r#"{"input_ids": [1, 10]}"#, "input_ids", "vocab_size 10, found 10 at position 1"),
            (r#"{"tokens": [1, 4294967296]}"#, "tokens", "4294967296"),
            (r#"{"tokens": [1, 2], "attention_mask": [1, 0]}"#, "attention_mask", "ones only"),
            (r#"{"tokens": [1, 2], "loss_from": 2}"#, "loss_from", "below the record's 2 tokens, found 2"),
            (r#"{"tokens": [1, 2], "loss_from": "x"}"#, "loss_from", "a token position"),
            (r#"{"tokens": [1, 2], "id": []}"#, "id", "found []"),
            (r#"{"tokens": [1, 2], "dataset": 1}"#, "dataset", "a dataset's name"),
            (r#"{"tokens": [1]}"#, "text", "found 1 tokens"),
        ];
        for (line, field, said) in cases {
            let message = read(&format!("{{\"tokens\": [1, 2]}}\n{line}\n")).unwrap_err().to_string();
            assert!(message.contains("data.jsonl, line 2") && message.contains(said), "{message}");
            assert!(message.contains(&format!("field `{field}`")), "{field}: {message}");
        }
        assert!(read("\n\n").unwrap_err().to_string().contains("at least one record"));
        assert!(read("\"\u{0}\"").is_err());
    }

    #[test]
    fn empty_records_are_skipped_on_request_and_the_limit_is_kept() {
        let text = "{\"tokens\": [1]}\n{\"tokens\": [1, 2]}\n{\"tokens\": [3, 4]}\n";
        let options = DataOptions { skip_empty: true, ..DataOptions::new(4) };
        assert_eq!(read_with(text, &options).unwrap().windows.len(), 2);
        let options = DataOptions { limit: Some(2), ..options };
        assert_eq!(read_with(text, &options).unwrap().windows.len(), 1);
    }

    #[test]
    fn the_digest_sees_tokens_losses_and_datasets() {
        let digest = |text: &str| read(text).unwrap().digest();
        let base = digest("{\"tokens\": [1, 2]}");
        assert_eq!(base, digest("{\"id\": \"other\", \"tokens\": [1, 2]}"));
        for other in
            [r#"{"tokens": [1, 3]}"#, r#"{"tokens": [1, 2], "loss_from": 1}"#, r#"{"tokens": [1, 2], "dataset": "x"}"#]
        {
            assert_ne!(base, digest(other));
        }
    }
}
