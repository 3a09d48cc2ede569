//! The feature store: rows of one spec in immutable shards, committed one by one, readable from many threads.
//!
//! ```text
//! store/
//!   store.json                      version, uuid, spec and its hash, row type, stride, rows per shard
//!   manifest.log                    one line per committed shard: {json}\tcrc32\n
//!   shards/s-000000.safetensors     grad [n, stride] f32|bf16|f16|i8|u8, example_id u64 [n], norm f32 [n], scale, error
//!   shards/s-000000.leaves          of a large shard: its hash taken apart, so that a few rows can be checked; may be deleted
//!   side/s-000000.parquet           example_id, dataset_id, shard, row, norm
//!   MANIFEST-000000.json            a generation: live shards, deleted rows, sums; its presence commits it
//!   CURRENT                         number of a committed generation; the newest follows it without a gap
//!   dataset_sums-000000.safetensors sum, rest f64 [K, dim], count u64 [K]: exact sums of the rows as stored
//!   tombstones-000001.safetensors   dead u64 [n]: rows that were deleted
//!   datasets-000001.json            names, owners and licences of the datasets, if the store was told
//!   owner_sums-000001.safetensors   the sums added up by owner
//!   PENDING.json                    an append under way
//!   int8/, int4/, bf16/, f16/       companions: the same rows in fewer bits
//!   writer.lock                     empty; the operating system's lock on it keeps a second writer out
//! ```
//!
//! `docs/STORE.md` says it to the byte. A shard counts from the moment its manifest line is on disk: file written beside its
//! place, renamed, synced, folder synced, line appended, line synced. A kill at any point leaves whole shards and perhaps one
//! torn line, which the next writer cuts off. Same rows, same files, whatever the sizes of the pushes and however often the
//! writer was killed. A finished store changes by generations: [`FeatureWriter::append`], [`add`], [`delete`],
//! [`relicense`], [`compact`] write what is
//! new beside what is there and commit it by the manifest's name; a reader keeps the generation that it opened.
//!
//! ```
//! use ascribe_core::{Column, Digest, ExampleId, FeatureReader, FeatureSink, FeatureSpec, ProjectorSpec, RowType};
//! use ascribe_store::{FeatureStore, FeatureWriter};
//!
//! let spec = FeatureSpec {
//!     model: Digest::of(b"weights"),
//!     checkpoint: "final".into(),
//!     quantity: "gradient".into(),
//!     loss: "next_token_nll_sum".into(),
//!     normalizer: "none".into(),
//!     projector: ProjectorSpec::Identity,
//!     columns: vec![Column { name: "mlp".into(), start: 0, len: 2 }],
//!     dim: 2,
//!     corpus: Digest::of(b"manifest"),
//! };
//! # let folder = tempfile::tempdir()?;
//! # let dir = folder.path();
//! let mut writer = FeatureWriter::create_or_resume(dir, &spec, RowType::F32, 1024, 2)?;
//! assert_eq!(writer.n_committed(), 0);
//! let ids = [ExampleId { dataset: 0, idx: 0 }, ExampleId { dataset: 1, idx: 0 }];
//! writer.push(&ids, ndarray::arr2(&[[1.0, 2.0], [3.0, 4.0]]).view())?;
//! writer.finish()?;
//!
//! let store = FeatureStore::open(dir, Some(&spec))?;
//! assert_eq!(store.block(0)?.rows[(1, 0)], 3.0);
//! assert_eq!(store.dataset_sums()?.counts, [1, 1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An `example_id` on disk is [`ascribe_core::ExampleId::to_u64`]: dataset ordinal in the high half, position in the low.

mod add;
mod appender;
mod buffer;
mod compact;
mod convert;
mod copies;
mod delete;
mod export;
mod files;
mod fit;
mod generation;
mod int4_scale;
mod layout;
mod leaves;
mod manifest;
mod merge;
mod modules;
mod notes;
mod quant;
#[cfg(target_arch = "x86_64")]
mod quant_avx512;
mod reader;
mod relicense;
mod remote;
pub mod sealed;
mod seen;
mod shard;
mod snapshot;
mod stats;
mod subset;
mod sum_rows;
mod sums;
mod terms;
mod tombstones;
mod verify;
mod view;
mod whole_sums;
mod writer;

pub use add::{Numbering, add, numbering};
pub use compact::compact;
pub use convert::{convert, make_companion};
pub use copies::{Beside, RowCopies};
pub use delete::{Deletion, delete};
pub use export::{ExportFormat, export};
pub use generation::{Generation, Part};
pub use layout::{CompanionOf, StoreHeader};
pub use leaves::LEAVES_MIN_BYTES;
pub use manifest::ShardEntry;
pub use merge::merge;
pub use modules::Modules;
pub use notes::{NOTES_FILE, pull_notes, push_notes, read_note, verify_notes, write_note};
pub use reader::FeatureStore;
pub use relicense::relicense;
pub use remote::{FolderObjects, Objects, RemoteStore, pull, push};
pub use snapshot::{SingleShard, Snapshot};
pub use stats::{DatasetStats, OwnerStats, StoreStats};
pub use subset::Subset;
pub use sums::DatasetSums;
pub use terms::{DatasetTerms, OwnerSums, Terms};
pub use verify::VerifyReport;
pub use view::ShardView;
pub use writer::FeatureWriter;

/// Version of the layout above. Stores of version 1 open, too; [`convert`] makes them anew.
pub const FEATURES_FORMAT_VERSION: u32 = 2;
/// Rows of one block that a reader hands out: 1,024 rows of 4,096 f32 numbers are 16 MiB.
pub const BLOCK_ROWS: usize = 1024;
/// Every row starts at a multiple of this many bytes: a cache line, and the width of the widest vector registers.
pub const ROW_ALIGN: usize = 64;
