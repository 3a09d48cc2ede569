//! Vectors of texts by somebody else's encoder: a model folder that this program reads (any decoder, or a BERT), or files of
//! vectors that were made elsewhere.
//!
//! Similarity by an outside encoder is the control that knows nothing of the explained model. Here lives: how the vectors come about and
//! what is refused. Here never lives: what is made of them (`controls::embedding` of methods).

use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_models::Sequence;
use ascribe_models::vision::data::read_matrix;
use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;
use crate::lab::model::{LabModel, Subject};

/// Windows embedded between two looks at the stop flag.
const CHUNK: usize = 256;

/// Where vectors come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum Outside {
    /// A model folder: mean hidden states of a text's windows, each window counting by its tokens.
    Model {
        /// The folder.
        model: PathBuf,
    },
    /// Two files of rows (`.npy`), one vector per training example and one per query, in their order.
    Vectors {
        /// `[N, d]`.
        examples: PathBuf,
        /// `[Q, d]`.
        queries: PathBuf,
    },
}

/// Texts of training examples and queries, made when they are needed.
pub type Texts<'a> = &'a dyn Fn() -> Option<(Vec<String>, Vec<String>)>;

impl Outside {
    /// The same with paths from a folder on, where they are relative.
    #[must_use]
    pub fn below(&self, dir: &Path) -> Self {
        match self {
            Self::Model { model } => Self::Model { model: dir.join(model) },
            Self::Vectors { examples, queries } => {
                Self::Vectors { examples: dir.join(examples), queries: dir.join(queries) }
            }
        }
    }

    /// SHA-256 over the files that decide the vectors: scores of other vectors are not used again.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn digest(&self) -> Result<Digest, EngineError> {
        match self {
            Self::Model { model } => {
                let opened = LabModel::open_reader(model, &Subject::default())?;
                let tokenizer = files::digest(&opened.dir.join(ascribe_corpus::text_tokenizer::TOKENIZER_FILE))?;
                Ok(Digest::of_json(&(opened.decoder().weights_digest(), tokenizer))?)
            }
            Self::Vectors { examples, queries } => {
                Ok(Digest::of_json(&(files::digest(examples)?, files::digest(queries)?))?)
            }
        }
    }

    /// `[N, d]` and `[Q, d]`. Deterministic. Cost: of files their reading, of a model a forward pass of every window.
    ///
    /// # Errors
    /// Files of another number of rows, of two widths, or with a vector that is not finite (file, row and column named); a model or
    /// tokenizer that does not read; examples without text for a model; a request to stop.
    pub fn vectors(
        &self,
        (n_examples, n_queries): (usize, usize),
        texts: Texts<'_>,
        progress: &dyn Progress,
    ) -> Result<(Array2<f32>, Array2<f32>), EngineError> {
        match self {
            Self::Vectors { examples, queries } => {
                let kept = rows_of(examples, n_examples, "one vector for every training example")?;
                let asked = rows_of(queries, n_queries, "one vector for every query")?;
                if kept.ncols() != asked.ncols() {
                    return Err(EngineError::Content {
                        path: queries.clone(),
                        expected: format!("vectors of {} numbers, as in {}", kept.ncols(), examples.display()),
                        found: asked.ncols().to_string(),
                    });
                }
                Ok((kept, asked))
            }
            Self::Model { model } => {
                let (kept, asked) = texts().ok_or_else(|| EngineError::Setting {
                    setting: "encoder",
                    expected: "training examples that are text, or files of vectors".into(),
                    found: "examples without text".into(),
                })?;
                let model = LabModel::open_reader(model, &Subject::default())?;
                Ok((embed(&model, &kept, "examples", progress)?, embed(&model, &asked, "queries", progress)?))
            }
        }
    }
}

/// A file's rows, checked.
fn rows_of(path: &Path, n: usize, what: &str) -> Result<Array2<f32>, EngineError> {
    let rows = read_matrix(path)?;
    let refuse = |expected: String, found: String| EngineError::Content { path: path.into(), expected, found };
    if rows.nrows() != n || rows.ncols() == 0 {
        let found = format!("{} rows of {} numbers", rows.nrows(), rows.ncols());
        return Err(refuse(format!("{what}: {n} rows"), found));
    }
    match rows.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(rows),
        Some(((row, column), v)) => Err(refuse("finite numbers".into(), format!("{v} in row {row}, column {column}"))),
    }
}

/// `[n, d]`: mean hidden state over all tokens of each text; zeros for a text without tokens.
fn embed(model: &LabModel, texts: &[String], what: &str, progress: &dyn Progress) -> Result<Array2<f32>, EngineError> {
    let (tokenizer, context) = (model.tokenizer(Default::default())?, model.context());
    let mut windows: Vec<(usize, Vec<u32>)> = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let tokens = tokenizer.encode(text).map_err(|found| EngineError::Setting {
            setting: "encoder",
            expected: "texts that its tokenizer reads".into(),
            found,
        })?;
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        windows.extend(ids.chunks(context.max(1)).map(|window| (i, window.to_vec())));
    }
    let mut out = Array2::<f64>::zeros((texts.len(), model.decoder().config().hidden_size));
    let mut counted = vec![0.0f64; texts.len()];
    progress.start(&format!("encode {what}"), windows.len() as u64, "windows");
    for chunk in windows.chunks(CHUNK) {
        if progress.stop_requested() {
            return Err(EngineError::Stopped);
        }
        let sequences: Vec<Sequence<'_>> = chunk.iter().map(|(_, tokens)| Sequence::whole(tokens)).collect();
        let states = model.decoder().mean_hidden(&sequences)?;
        for ((i, tokens), state) in chunk.iter().zip(states.rows()) {
            let n = tokens.len() as f64;
            let add = |mut to: ndarray::ArrayViewMut1<'_, f64>, state: ArrayView1<'_, f32>| {
                to.zip_mut_with(&state, |to, &v| *to += n * f64::from(v));
            };
            add(out.row_mut(*i), state);
            counted[*i] += n;
        }
        progress.advance(chunk.len() as u64);
    }
    progress.finish(&format!("{} windows", windows.len()));
    for (mut row, n) in out.rows_mut().into_iter().zip(counted) {
        row.mapv_inplace(|v| if n > 0.0 { v / n } else { 0.0 });
    }
    Ok(out.mapv(|v| v as f32))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ascribe_core::NoProgress;

    /// A version-1 `.npy` of f32.
    pub fn npy(path: &Path, rows: &Array2<f32>) {
        let mut head =
            format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows.nrows(), rows.ncols());
        while !(10 + head.len() + 1).is_multiple_of(64) {
            head.push(' ');
        }
        head.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((head.len() as u16).to_le_bytes());
        bytes.extend(head.as_bytes());
        rows.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        files::write_atomic(path, &bytes).unwrap();
    }

    #[test]
    fn vectors_are_checked_by_row() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.npy"), dir.path().join("b.npy"));
        npy(&a, &Array2::from_shape_fn((3, 2), |(i, j)| (i + j) as f32));
        npy(&b, &Array2::from_shape_fn((2, 2), |(i, j)| (i * j) as f32));
        let outside = Outside::Vectors { examples: "a.npy".into(), queries: "b.npy".into() }.below(dir.path());
        let none = || None;
        let (kept, asked) = outside.vectors((3, 2), &none, &NoProgress).unwrap();
        assert_eq!((kept.dim(), asked.dim(), kept[(2, 1)]), ((3, 2), (2, 2), 3.0));
        let digest = outside.digest().unwrap();
        let text = |n| outside.vectors(n, &none, &NoProgress).unwrap_err().to_string();
        assert!(text((4, 2)).contains("a.npy: expected one vector for every training example: 4 rows, found 3 rows"));
        assert!(text((3, 9)).contains("b.npy: expected one vector for every query: 9 rows, found 2 rows"));
        npy(&b, &Array2::from_shape_fn((2, 2), |(i, j)| if i * j == 1 { f32::NAN } else { 0.0 }));
        assert_ne!(outside.digest().unwrap(), digest);
        assert!(
            text((3, 2)).contains("b.npy: expected finite numbers, found NaN in row 1, column 1"),
            "{}",
            text((3, 2))
        );
        npy(&b, &Array2::zeros((2, 3)));
        assert!(text((3, 2)).contains("vectors of 2 numbers"));
        let model = Outside::Model { model: dir.path().join("nowhere") };
        assert!(model.vectors((1, 1), &none, &NoProgress).unwrap_err().to_string().contains("examples without text"));
        let texts = || Some((vec!["a".to_owned()], vec!["b".to_owned()]));
        assert!(model.vectors((1, 1), &texts, &NoProgress).unwrap_err().to_string().contains("nowhere"));
    }
}
