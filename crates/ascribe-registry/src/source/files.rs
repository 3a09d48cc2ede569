//! Which files of a folder are a dataset, in which order, in which format.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::files::{parse_json, read_small};

/// Most files of a folder.
const FILES_CAP: usize = 1_000_000;

/// Deepest folder that is entered.
const DEPTH_CAP: usize = 16;

/// Names, without extension, of files that describe a dataset and are no part of it.
const DESCRIPTIONS: [&str; 8] =
    ["readme", "license", "licence", "copying", "notice", "terms", "dataset_info", "dataset_dict"];

/// A format of source files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma- or tab-separated values with a header.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, file or stream.
    Arrow,
    /// One text a file.
    Text,
}

impl SourceFormat {
    /// The format that a file's name promises, with `.gz` and `.zst` taken off; `None` for other files.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let bare = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        let compressed = bare.len() != name.len();
        let format = match bare.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Self::Jsonl,
            "csv" | "tsv" => Self::Csv,
            "parquet" => Self::Parquet,
            "arrow" | "feather" => Self::Arrow,
            "txt" | "text" | "md" | "rst" => Self::Text,
            _ => return None,
        };
        // The two columnar formats compress within; a compressed one as a whole could not be read from its end.
        (!compressed || !matches!(format, Self::Parquet | Self::Arrow)).then_some(format)
    }
}

/// The files of a dataset, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSet {
    /// The folder, or the one file.
    pub root: PathBuf,
    /// Their format.
    pub format: SourceFormat,
    /// The files, in the byte order of their paths (in the order of the state file for a saved Hugging Face folder).
    pub files: Vec<PathBuf>,
    /// Bytes of all files as they lie.
    pub len_bytes: u64,
}

impl SourceSet {
    /// Finds the files of `root`, a folder or one file.
    ///
    /// A folder saved by Hugging Face `datasets` (`state.json` or `dataset_dict.json`) names its files itself. Of other
    /// folders, all files of one data format are taken as parts; without any, every text file is a record. Hidden files,
    /// links, and files that describe a dataset (README, LICENSE, …) are left out.
    ///
    /// # Errors
    /// [`RegistryError::Missing`], [`RegistryError::BadSource`] for a folder without data or with two formats.
    pub fn find(root: &Path) -> Result<Self, RegistryError> {
        let metadata = fs::metadata(root).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                RegistryError::Missing { path: root.to_owned(), what: "folder with records" }
            }
            _ => RegistryError::io(root, "reading")(source),
        })?;
        if metadata.is_file() {
            let format = SourceFormat::of(root).ok_or_else(|| nothing(root))?;
            return Self::new(root, format, vec![root.to_owned()]);
        }
        if root.join("state.json").is_file() || root.join("dataset_dict.json").is_file() {
            return Self::new(root, SourceFormat::Arrow, saved_files(root)?);
        }
        let mut found = Vec::new();
        walk(root, 0, &mut found)?;
        found.sort();
        let mut formats: Vec<SourceFormat> =
            found.iter().map(|(_, format)| *format).filter(|format| *format != SourceFormat::Text).collect();
        formats.sort();
        formats.dedup();
        let format = match formats.as_slice() {
            [] if found.is_empty() => return Err(nothing(root)),
            [] => SourceFormat::Text,
            [format] => *format,
            several => {
                let reason =
                    format!("expected data files of one format, found {several:?} (hint: name one file or folder)");
                return Err(RegistryError::BadSource { path: root.to_owned(), reason });
            }
        };
        let files = found.into_iter().filter(|(_, of)| *of == format).map(|(path, _)| path).collect();
        Self::new(root, format, files)
    }

    /// A registry's own record file.
    pub(crate) fn strict(path: &Path) -> Result<Self, RegistryError> {
        // Opened first for the error that a missing record file has always had.
        drop(crate::files::open(path, "record file")?);
        Self::new(path, SourceFormat::Jsonl, vec![path.to_owned()])
    }

    /// Files that were found before, in the same order.
    ///
    /// # Errors
    /// A file that is not there any more.
    pub(crate) fn again(root: &Path, format: SourceFormat, files: Vec<PathBuf>) -> Result<Self, RegistryError> {
        Self::new(root, format, files)
    }

    fn new(root: &Path, format: SourceFormat, files: Vec<PathBuf>) -> Result<Self, RegistryError> {
        let mut len_bytes = 0;
        for file in &files {
            len_bytes += fs::metadata(file).map_err(RegistryError::io(file, "reading"))?.len();
        }
        Ok(Self { root: root.to_owned(), format, files, len_bytes })
    }
}

fn nothing(root: &Path) -> RegistryError {
    let reason = "expected records, found no file named *.jsonl, *.csv, *.tsv, *.parquet, *.arrow, *.txt, *.md or *.rst \
                  (the first three and texts also with .gz or .zst)";
    RegistryError::BadSource { path: root.to_owned(), reason: reason.to_owned() }
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<(PathBuf, SourceFormat)>) -> Result<(), RegistryError> {
    for entry in fs::read_dir(dir).map_err(RegistryError::io(dir, "listing"))? {
        let entry = entry.map_err(RegistryError::io(dir, "listing"))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(RegistryError::io(dir, "listing"))?);
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if kind.is_dir() && depth < DEPTH_CAP {
            walk(&path, depth + 1, found)?;
        } else if kind.is_file()
            && !describes(&path)
            && let Some(format) = SourceFormat::of(&path)
        {
            found.push((path, format));
        }
        if found.len() > FILES_CAP {
            let reason = format!("expected at most {FILES_CAP} files, found more");
            return Err(RegistryError::BadSource { path: dir.to_owned(), reason });
        }
    }
    Ok(())
}

fn describes(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    DESCRIPTIONS.contains(&stem)
}

/// Part of `state.json` that names the data files.
#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    data_files: Vec<DataFile>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

#[derive(Deserialize)]
struct Splits {
    splits: Vec<String>,
}

/// The Arrow files of a folder that `datasets` saved, split by split.
fn saved_files(root: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let dict = root.join("dataset_dict.json");
    let folders = if dict.is_file() {
        let splits: Splits = parse_json(&dict, &read_small(&dict, "list of splits")?)?;
        splits.splits.iter().map(|split| below(root, &dict, split)).collect::<Result<Vec<_>, _>>()?
    } else {
        vec![root.to_owned()]
    };
    let mut files = Vec::new();
    for folder in folders {
        let path = folder.join("state.json");
        let state: State = parse_json(&path, &read_small(&path, "state of a saved dataset")?)?;
        for file in &state.data_files {
            files.push(below(&folder, &path, &file.filename)?);
        }
    }
    if files.is_empty() { Err(nothing(root)) } else { Ok(files) }
}

/// A file that a state file names, which must lie in its folder.
fn below(folder: &Path, named_by: &Path, name: &str) -> Result<PathBuf, RegistryError> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
    if plain {
        Ok(folder.join(name))
    } else {
        Err(RegistryError::field(named_by, "file name", "a plain name in the same folder", format!("{name:?}")))
    }
}
