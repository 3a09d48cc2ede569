//! A shard's rows as they lie in the map: what scan kernels read, without a copy.

use ascribe_core::{ExampleId, RowType};

use super::shard::widen_row;

/// The rows of one shard, borrowed from the map; its bytes have been hashed.
///
/// Row `i` is the `stride_bytes` bytes from `i · stride_bytes` on: its numbers (little-endian; int4: two to a byte, the
/// first in the low half), then zeros up to the stride, which is a multiple of 64 in stores of version 2 or later, as is
/// the address of the first row. Row `i` of the `s`-th shard of a companion is row `i` of the `s`-th shard of its store.
///
/// ```
/// # use ascribe_core::{Column, Digest, ExampleId, FeatureSink, FeatureSpec, ProjectorSpec, RowType};
/// # use ascribe_store::{FeatureStore, FeatureWriter};
/// # let columns = vec![Column { name: "mlp".into(), start: 0, len: 3 }];
/// # let spec = FeatureSpec { model: Digest::of(b"w"), checkpoint: "final".into(), quantity: "gradient".into(),
/// #     loss: "nll".into(), normalizer: "none".into(), projector: ProjectorSpec::Identity, columns, dim: 3,
/// #     corpus: Digest::of(b"c") };
/// # let folder = tempfile::tempdir()?;
/// # let mut writer = FeatureWriter::create_or_resume(folder.path(), &spec, RowType::Int8, 8, 1)?;
/// # writer.push(&[ExampleId { dataset: 2, idx: 5 }], ndarray::arr2(&[[127.0, 0.5, -64.0]]).view())?;
/// let store: FeatureStore = writer.finish()?;
/// let view = store.shard_view(0)?;
/// assert_eq!((view.n_rows, view.stride_bytes, view.dataset(0)), (1, 64, 2));
/// assert_eq!(&view.row(0)[..3], [127, 0, -64i8 as u8]);
/// assert_eq!(view.scale.unwrap(), [1.0]);
/// assert!(view.error.unwrap()[0] >= 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ShardView<'a> {
    /// How numbers are kept.
    pub row_type: RowType,
    /// Rows, dead ones too.
    pub n_rows: usize,
    /// Numbers of a row.
    pub dim: usize,
    /// Bytes from one row to the next.
    pub stride_bytes: usize,
    /// All rows, `n_rows · stride_bytes` bytes.
    pub rows: &'a [u8],
    /// Scale of each row's codes; int8 and int4 only. A stored number is `scale · code`, exactly.
    pub scale: Option<&'a [f32]>,
    /// Euclidean norm of each row as stored, rounded to nearest.
    pub norm: &'a [f32],
    /// Upper bound of each row's distance to the precise row: of a companion to its store's row, else to the row that was
    /// pushed. `None` where nothing is lost (f32) or nobody wrote it down (version 1).
    pub error: Option<&'a [f32]>,
    /// [`ExampleId::to_u64`] of each row: the dataset's ordinal in the high half.
    pub ids: &'a [u64],
    /// Deleted rows, ascending. They must not be shown.
    pub dead: &'a [u32],
}

impl<'a> ShardView<'a> {
    /// Bytes of row `i`, padding included.
    pub fn row(&self, i: usize) -> &'a [u8] {
        &self.rows[i * self.stride_bytes..(i + 1) * self.stride_bytes]
    }

    /// Example of row `i`.
    pub fn id(&self, i: usize) -> ExampleId {
        ExampleId::from_u64(self.ids[i])
    }

    /// Ordinal of the dataset of row `i`.
    pub fn dataset(&self, i: usize) -> u32 {
        (self.ids[i] >> 32) as u32
    }

    /// False if row `i` is deleted. Cost `log(dead)`; a scan walks along `dead` instead.
    pub fn is_live(&self, i: usize) -> bool {
        self.dead.binary_search(&(i as u32)).is_err()
    }

    /// Row `i` as f32 numbers, rounded once where the type is wider than f32's steps.
    ///
    /// # Panics
    /// If `out` has another length than `dim`.
    pub fn widen(&self, i: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.dim, "a row has the store's width");
        widen_row(self.row_type, self.row(i), self.scale.map_or(1.0, |s| s[i]), out);
    }
}
