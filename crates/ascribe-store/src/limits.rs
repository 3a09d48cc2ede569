//! How much a reader believes before it has checked anything. Every length that comes from a file meets a cap here.

/// A store header: a spec with ten thousand modules is below 2 MiB.
pub const HEADER_MAX_BYTES: u64 = 16 << 20;
/// What a store knows of its datasets: 65,536 of them with a kibibyte each.
pub const TERMS_MAX_BYTES: u64 = 64 << 20;
/// What says which notes lie beside a store: a few hundred bytes a note.
pub const NOTES_MAX_BYTES: u64 = 1 << 20;
/// A manifest: 300 bytes a shard, so more than three million shards.
pub const MANIFEST_MAX_BYTES: u64 = 1 << 30;
/// The JSON head of a tensor file.
pub const TENSOR_HEAD_MAX_BYTES: usize = 16 << 20;
/// Numbers in a row.
pub const DIM_MAX: usize = 1 << 24;
/// Rows of one shard.
pub const ROWS_PER_SHARD_MAX: u32 = 1 << 24;
/// Bytes of one shard: it is assembled in memory before it is written.
pub const SHARD_MAX_BYTES: u64 = 4 << 30;
/// Datasets of one corpus: sums per dataset are dense.
pub const DATASETS_MAX: u32 = 1 << 16;
/// Rows of a score file.
pub const SCORE_ROWS_MAX: u64 = 1 << 31;
/// Generations of a store.
pub const GENERATIONS_MAX: u64 = 1 << 32;
