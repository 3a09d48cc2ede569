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
