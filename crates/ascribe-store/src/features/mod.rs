//! The feature store: rows of one spec in immutable shards, committed one by one, readable from many threads.
//!
//! ```text
//! store/
//!   store.json                    version, uuid, spec and its hash, row type, rows per shard, rows expected
//!   manifest.log                  one line per committed shard: {json}\tcrc32\n
//!   shards/s-000000.safetensors   grad [n, dim] f32|bf16|f16, example_id u64 [n], norm f32 [n]
//!   side/s-000000.parquet         example_id, dataset_id, shard, row, norm
//!   dataset_sums.safetensors      sum f64 [K, dim], count u64 [K]: exact sums of the rows as stored
//!   MANIFEST.json                 written last; its presence says that the store is complete
//!   writer.lock                   empty; the operating system's lock on it keeps a second writer out
//! ```
//!
//! A shard counts from the moment its manifest line is on disk: file written beside its place, synced, renamed, folder
//! synced, line appended, line synced. A kill at any point leaves whole shards and perhaps one torn line, which the next
//! writer cuts off. Same rows, same files, whatever the sizes of the pushes and however often the writer was killed.
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

mod layout;
mod manifest;
mod reader;
mod shard;
mod sums;
mod verify;
mod writer;

pub use layout::StoreHeader;
pub use manifest::ShardEntry;
pub use reader::FeatureStore;
pub use sums::DatasetSums;
pub use verify::VerifyReport;
pub use writer::FeatureWriter;

/// Version of the layout above.
pub const FEATURES_FORMAT_VERSION: u32 = 1;
/// Rows of one block that a reader hands out: 1,024 rows of 4,096 f32 numbers are 16 MiB.
pub const BLOCK_ROWS: usize = 1024;
