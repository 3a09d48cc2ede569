//! What a store promises: same rows, same files; what is read is what was written; sums are sums.

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, RowType};
use ascribe_store::features::BLOCK_ROWS;
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};
use half::{bf16, f16};
use ndarray::{Array1, Array2, Axis, concatenate};
use proptest::prelude::*;

use crate::common::{folder, ids, rows, spec};

fn write(dir: &std::path::Path, n: usize, dim: usize, row_type: RowType, per_shard: u32, push: usize) -> FeatureStore {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(dim), row_type, per_shard, n as u64).unwrap();
    for start in (0..n).step_by(push) {
        let range = start..(start + push).min(n);
        writer.push(&ids(range.clone()), rows(range, dim).view()).unwrap();
    }
    writer.finish().unwrap()
}

fn read(store: &FeatureStore) -> (Vec<ExampleId>, Array2<f32>) {
    let blocks: Vec<_> = (0..store.n_blocks()).map(|i| store.block(i).unwrap()).collect();
    let ids = blocks.iter().flat_map(|b| b.ids.iter().copied()).collect();
    let views: Vec<_> = blocks.iter().map(|b| b.rows.view()).collect();
    (ids, concatenate(Axis(0), &views).unwrap())
}

fn rounded(x: f32, row_type: RowType) -> f32 {
    match row_type {
        RowType::F32 => x,
        RowType::Bf16 => bf16::from_f32(x).to_f32(),
        RowType::F16 => f16::from_f32(x).to_f32(),
        RowType::Int8 | RowType::Int4 => unreachable!("codes depend on their row"),
    }
}

#[test]
fn what_is_read_is_what_was_written_rounded_once() {
    for row_type in [RowType::F32, RowType::Bf16, RowType::F16] {
        let dir = tempfile::tempdir().unwrap();
        let store = write(dir.path(), 2500, 9, row_type, 1100, 777);
        let (got_ids, got) = read(&store);
        assert_eq!(got_ids, ids(0..2500));
        assert_eq!(got, rows(0..2500, 9).mapv(|x| rounded(x, row_type)));
        assert_eq!(store.n_rows(), 2500);
        // 1,100 rows are two blocks, the last shard of 300 is one.
        assert_eq!(store.n_blocks(), 5);
        assert!((0..5).all(|i| store.block(i).unwrap().ids.len() <= BLOCK_ROWS));
        assert!(matches!(store.block(5), Err(StoreError::Shape { .. })));
        assert_eq!(store.verify().unwrap().n_rows, 2500);
        let norm = |row: ndarray::ArrayView1<f32>| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32;
        let norms: Vec<(f32, f32)> = store.norms().zip(got.rows().into_iter().map(norm)).collect();
        assert!(norms.len() == 2500 && norms.iter().all(|(a, b)| (a - b).abs() <= b * f32::EPSILON));
        assert!(store.ids().eq(got_ids.iter().copied()));
    }
}

#[test]
fn sums_per_dataset_are_those_of_the_stored_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = write(dir.path(), 100, 7, RowType::Bf16, 16, 100);
    let (ids, stored) = read(&store);
    let sums = store.dataset_sums().unwrap();
    assert_eq!(sums.counts, [34, 33, 33]);
    for k in 0..3u32 {
        // A second route: one column at a time, in the order of the rows, in plain f64.
        let by_column = Array1::from_shape_fn(7, |j| {
            let pairs = ids.iter().zip(stored.column(j));
            pairs.filter(|(id, _)| id.dataset == k).fold(0.0, |sum, (_, &x)| sum + f64::from(x))
        });
        assert!((&sums.sums().row(k as usize) - &by_column).iter().all(|gap| gap.abs() < 1e-12));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// The files depend on rows and settings only: not on how the rows were cut into pushes, not on interruptions.
    #[test]
    fn files_do_not_depend_on_pushes_or_interruptions(
        n in 1usize..60, per_shard in 1u32..20, push in 1usize..70, cuts in prop::collection::vec(0usize..60, 0..3),
    ) {
        let plain = tempfile::tempdir().unwrap();
        write(plain.path(), n, 5, RowType::F32, per_shard, n);
        let broken = tempfile::tempdir().unwrap();
        for cut in cuts {
            // A writer that is dropped before its end: what waits for a full shard is lost, shards stay.
            let mut writer =
                FeatureWriter::create_or_resume(broken.path(), &spec(5), RowType::F32, per_shard, n as u64).unwrap();
            let from = writer.n_committed() as usize;
            let range = from..cut.clamp(from, n);
            writer.push(&ids(range.clone()), rows(range, 5).view()).unwrap();
        }
        let mut writer =
            FeatureWriter::create_or_resume(broken.path(), &spec(5), RowType::F32, per_shard, n as u64).unwrap();
        let from = writer.n_committed() as usize;
        for start in (from..n).step_by(push) {
            let range = start..(start + push).min(n);
            writer.push(&ids(range.clone()), rows(range, 5).view()).unwrap();
        }
        writer.finish().unwrap();
        prop_assert_eq!(folder(plain.path()), folder(broken.path()));
    }
}

#[test]
fn a_sealed_store_can_be_opened_by_the_writer_again_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 30, 5, RowType::F32, 8, 30);
    let before = folder(dir.path());
    let mut writer = FeatureWriter::create_or_resume(dir.path(), &spec(5), RowType::F32, 8, 30).unwrap();
    assert_eq!(writer.n_committed(), 30);
    let error = writer.push(&ids(30..31), rows(30..31, 5).view()).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { limit: 30, found: 31, .. }), "{error}");
    writer.finish().unwrap();
    assert_eq!(folder(dir.path()), before);
}

#[test]
fn a_store_without_rows_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let writer = FeatureWriter::create_or_resume(dir.path(), &spec(5), RowType::F32, 8, 0).unwrap();
    let store = writer.finish().unwrap();
    assert_eq!((store.n_rows(), store.n_blocks()), (0, 0));
    assert_eq!(store.dataset_sums().unwrap().sums().dim(), (0, 5));
    assert_eq!(store.verify().unwrap().n_shards, 0);
}

#[test]
fn a_bad_row_refuses_its_whole_block_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = FeatureWriter::create_or_resume(dir.path(), &spec(6), RowType::F16, 4, 10).unwrap();
    writer.push(&ids(0..4), rows(0..4, 6).view()).unwrap();
    let mut block = rows(4..7, 6);
    block[(2, 5)] = f32::NAN;
    let error = writer.push(&ids(4..7), block.view()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::NotFinite { .. }));
    assert_eq!(text, "row 6 (example 0:2), column 5 (module `layers.0.mlp.up`): expected a finite number, found NaN");
    block[(2, 5)] = f32::NEG_INFINITY;
    assert!(matches!(writer.push(&ids(4..7), block.view()), Err(StoreError::NotFinite { .. })));
    for (value, fits) in [(65519.9, true), (-65519.9, true), (65520.0, false), (1e30, false)] {
        assert_eq!(f16::from_f32(value).is_finite(), fits);
        block[(2, 5)] = value;
        let result = writer.push(&ids(4..7), block.view());
        if fits {
            // Taken: undo by opening the store again, which forgets rows that no shard holds yet.
            result.unwrap();
            drop(writer);
            writer = FeatureWriter::create_or_resume(dir.path(), &spec(6), RowType::F16, 4, 10).unwrap();
            assert_eq!(writer.n_committed(), 4);
        } else {
            assert!(matches!(result, Err(StoreError::OutOfRange { row: 6, column: 5, .. })));
        }
    }
    assert!(matches!(writer.push(&ids(3..4), rows(3..4, 6).view()), Err(StoreError::DuplicateExample { row: 4, .. })));
    let twice = [ids(5..6), ids(5..6)].concat();
    assert!(matches!(writer.push(&twice, rows(5..7, 6).view()), Err(StoreError::DuplicateExample { row: 5, .. })));
    let error = writer.push(&ids(4..6), rows(4..6, 5).view()).unwrap_err();
    assert_eq!(error.to_string(), "block of rows: expected [2, 6], found [2, 5]");
    let far = [ExampleId { dataset: 1 << 16, idx: 0 }];
    assert!(matches!(writer.push(&far, rows(4..5, 6).view()), Err(StoreError::TooLarge { .. })));
    assert_eq!(writer.n_taken(), 4, "a refused block left rows behind");
    writer.push(&ids(4..10), rows(4..10, 6).view()).unwrap();
    writer.finish().unwrap().verify().unwrap();
}

/// What is refused leaves neither rows nor ids behind, whether it is found before or while rows are coded.
#[test]
fn a_refused_block_can_be_pushed_again_once_it_is_mended() {
    for row_type in RowType::ALL {
        let (plain, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(plain.path(), 12, 200, row_type, 5, 12);
        let mut writer = FeatureWriter::create_or_resume(again.path(), &spec(200), row_type, 5, 12).unwrap();
        // Within a shard; over the end of one.
        for part in [0..3, 3..12] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut block = rows(part.clone(), 200);
                block[(1, 133)] = bad;
                let error = writer.push(&ids(part.clone()), block.view()).unwrap_err();
                assert!(matches!(error, StoreError::NotFinite { .. }), "{row_type:?} {error}");
                assert_eq!(writer.n_taken(), part.start as u64);
            }
            writer.push(&ids(part.clone()), rows(part, 200).view()).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(folder(plain.path()), folder(again.path()), "{row_type:?}");
    }
}

#[test]
fn columns_in_any_memory_order_are_stored_the_same() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(a.path(), 12, 5, RowType::F32, 5, 12);
    let mut writer = FeatureWriter::create_or_resume(b.path(), &spec(5), RowType::F32, 5, 12).unwrap();
    let transposed = rows(0..12, 5).t().as_standard_layout().to_owned();
    writer.push(&ids(0..12), transposed.t()).unwrap();
    writer.finish().unwrap();
    assert_eq!(folder(a.path()), folder(b.path()));
}

#[test]
fn a_second_writer_is_kept_out_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let open = || FeatureWriter::create_or_resume(dir.path(), &spec(5), RowType::F32, 5, 12);
    let first = open().unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("held by another writer"));
    drop(first);
    open().unwrap();
}
