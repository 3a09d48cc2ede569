//! Verbatim evidence: which runs of a response's tokens stand word for word in the registered records, and where.
//!
//! Here lives a token suffix array over records, cut into shards that are built one by one, kept in files and mapped: the
//! longest runs, their exact counts, every record that holds them. Here never lives: tokenisation (corpus), whose a record
//! is (registry), or what a run is worth. A run that stands in the data shows that a source was *available*, not that it
//! *caused* the response: this stands beside influence, never instead of it.
//!
//! A *span* of a response is a run of its tokens that stands in some record and cannot be made longer on either side, the
//! maximal spans of OLMoTrace (arXiv:2504.07096); they are found in a suffix array as infini-gram does (arXiv:2401.17377).
//! Records are closed by a separator that no response has, so a match never crosses from one record into the next.
//!
//! ```
//! use ascribe_core::{Digest, RecordId};
//! use ascribe_verbatim::{FindOptions, IndexSettings, Source, VerbatimIndex, VerbatimWriter};
//!
//! let dir = std::env::temp_dir().join(format!("ascribe-verbatim-doc-{}", std::process::id()));
//! let source = Source { name: "toy".into(), id: Digest::of(b"toy"), path: "toy.jsonl".into() };
//! let settings = IndexSettings { tokenizer: Digest::of(b"letters"), vocab_size: 26, shard_tokens: 1 << 20 };
//! let mut writer = VerbatimWriter::open(&dir, settings, vec![source])?;
//! writer.push(RecordId { dataset: 0, row: 0 }, 0, &[1, 2, 3, 4])?;
//! writer.push(RecordId { dataset: 0, row: 1 }, 40, &[9, 2, 3, 4])?;
//! writer.finish()?;
//!
//! let index = VerbatimIndex::open(&dir)?;
//! let found = index.find(&[7, 2, 3, 4, 9], &FindOptions { min_tokens: 2, ..FindOptions::default() })?;
//! let span = &found.spans[0];
//! assert_eq!((span.start, span.end, span.count, span.records), (1, 4, 2, 2));
//! assert_eq!(span.occurrences[1].record, RecordId { dataset: 0, row: 1 });
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok::<(), ascribe_verbatim::VerbatimError>(())
//! ```
//!
//! # Size, and how it grows
//!
//! Six bytes a token for vocabularies below 65,535 (eight above), 12 bytes a record, one part in a thousand for checksums;
//! nothing but the checksums is read when an index is opened. Building holds one shard: its tokens, four bytes a token of
//! suffixes, the same again for a moment while the file is written. A response of `m` tokens costs `m` binary searches in each
//! of `S` shards of `n` tokens, `O(S·m·log n)` places of the files that are read, whatever the data's length: with warm pages
//! microseconds each, with cold ones a disk access each. `docs/VERBATIM.md` says what that means for 4.6 · 10¹² tokens.

mod error;
mod find;
mod index;
mod layout;
mod matching;
mod pages;
mod runs;
mod shard;
mod text;
mod writer;

pub use error::VerbatimError;
pub use find::{DatasetCount, FindOptions, Found, Occurrence, Rank, Span};
pub use index::VerbatimIndex;
pub use layout::{IndexSettings, MANIFEST_FILE, Source, VERBATIM_FORMAT_VERSION};
pub use runs::Run;
pub use writer::VerbatimWriter;
