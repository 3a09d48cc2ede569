//! Row types, conversions, modules, subsets and exports: what is read is what was stored, by whatever way.

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{ExportFormat, convert, export};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};
use ndarray::Array2;

use crate::common::{folder, ids, rows, spec};

const N: usize = 37;
/// No multiple of anything, so that every row is padded and the last int4 byte is half empty.
const DIM: usize = 33;

fn build(dir: &std::path::Path, row_type: RowType) -> FeatureStore {
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), row_type, 8, N as u64).unwrap();
    writer.push(&ids(0..N), rows(0..N, DIM).view()).unwrap();
    writer.finish().unwrap()
}

fn read<R: FeatureReader>(reader: &R) -> (Vec<ExampleId>, Array2<f32>) {
    let (mut all_ids, mut numbers) = (Vec::new(), Vec::new());
    for i in 0..reader.n_blocks() {
        let block = reader.block(i).unwrap();
        all_ids.extend(block.ids.iter().copied());
        numbers.extend(block.rows.iter().copied());
    }
    let shape = (all_ids.len(), reader.spec().dim);
    (all_ids, Array2::from_shape_vec(shape, numbers).unwrap())
}

#[test]
fn every_row_type_keeps_the_rows_within_its_bound() {
    let precise = rows(0..N, DIM);
    for row_type in RowType::ALL {
        let dir = tempfile::tempdir().unwrap();
        let store = build(dir.path(), row_type);
        store.verify().unwrap();
        let (found_ids, found) = read(&store);
        assert_eq!(found_ids, ids(0..N));
        let mut at = 0;
        for i in 0..store.n_shards() {
            let view = store.shard_view(i).unwrap();
            assert_eq!(view.stride_bytes % 64, 0);
            assert_eq!(view.rows.as_ptr().addr() % 64, 0, "rows start on a cache line");
            assert_eq!((view.scale.is_some(), view.error.is_some()), (row_type.has_scale(), row_type != RowType::F32));
            for row in 0..view.n_rows {
                let (a, b) = (precise.row(at), found.row(at));
                let gap = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
                let error = view.error.map_or(0.0, |e| f64::from(e[row]));
                assert!(gap <= error * (1.0 + 1e-5), "{row_type:?}, row {at}: {gap} above {error}");
                assert!(
                    error
                        <= f64::from(view.norm[row])
                            * [0.0, 0.004, 0.0005, 0.01, 0.2]
                                [RowType::ALL.iter().position(|t| *t == row_type).unwrap()]
                );
                assert_eq!((view.id(row), view.dataset(row)), (ids(at..at + 1)[0], (at % 3) as u32));
                at += 1;
            }
        }
        assert_eq!(at, N);
    }
}

#[test]
fn conversions_are_lossless_where_they_can_be() {
    for narrow in RowType::ALL {
        let (dir, wide_dir, back_dir) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = build(dir.path(), narrow);
        let wide = convert(&store, wide_dir.path(), RowType::F32, &NoProgress).unwrap();
        assert_eq!(read(&wide), read(&store), "{narrow:?} to f32");
        let back = convert(&wide, back_dir.path(), narrow, &NoProgress).unwrap();
        // Codes of a row that was coded before are the same but for the last bit of their scale; a fitted int4 scale may come
        // out otherwise.
        let tolerance = if narrow == RowType::Int8 { 1e-6 } else { 0.0 };
        if narrow != RowType::Int4 {
            let gaps = (read(&back).1 - read(&store).1).mapv(f32::abs);
            assert!(
                gaps.iter().zip(&read(&store).1).all(|(gap, x)| *gap <= tolerance * x.abs()),
                "{narrow:?} from f32"
            );
        }
        let same_dir = tempfile::tempdir().unwrap();
        convert(&store, same_dir.path(), narrow, &NoProgress).unwrap();
        assert_eq!(folder(same_dir.path()), folder(dir.path()), "the same row type is a copy, byte for byte");
    }
    // bf16 to int8: the bound is to the row that was pushed first.
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let coded = convert(&build(dir.path(), RowType::Bf16), out.path(), RowType::Int8, &NoProgress).unwrap();
    let (found, precise) = (read(&coded).1, rows(0..N, DIM));
    let errors: Vec<f32> =
        (0..coded.n_shards()).flat_map(|i| coded.shard_view(i).unwrap().error.unwrap().to_vec()).collect();
    for ((a, b), error) in precise.rows().into_iter().zip(found.rows()).zip(errors) {
        let gap = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt();
        assert!(gap <= f64::from(error));
    }
}

#[test]
fn a_query_may_use_some_modules() {
    let dir = tempfile::tempdir().unwrap();
    let store = build(dir.path(), RowType::F32);
    let cut = DIM / 2;
    let second = store.modules(&["layers.0.mlp"]).unwrap();
    assert_eq!(
        (second.spec().dim, second.spec().columns.len(), second.ranges()),
        (DIM - cut, 1, std::slice::from_ref(&(cut..DIM)))
    );
    assert_ne!(second.spec().hash(), store.spec().hash());
    let whole = rows(0..N, DIM);
    assert_eq!(read(&second).1, whole.slice(ndarray::s![.., cut..]));
    let both = store.modules(&["layers.0"]).unwrap();
    assert_eq!((both.ranges(), read(&both).1), (std::slice::from_ref(&(0..DIM)), whole.clone()));
    // A masked query scans whole rows as if they were cut.
    let query = rows(90..91, DIM);
    let masked = whole.dot(&second.mask(query.view()).row(0));
    let cut_scores = read(&second).1.dot(&second.cut(query.view()).row(0));
    assert!((masked - cut_scores).iter().all(|gap| gap.abs() < 1e-2));
    let error = store.modules(&["layers.0.ml"]).unwrap_err();
    assert!(matches!(&error, StoreError::Malformed { what: "module", .. }), "{error}");
}

#[test]
fn a_subset_is_the_rows_that_were_picked() {
    let dir = tempfile::tempdir().unwrap();
    let store = build(dir.path(), RowType::F32);
    let some = store.subset(|id| id.dataset == 1);
    let (found_ids, found) = read(&some);
    let kept: Vec<usize> = (0..N).filter(|i| i % 3 == 1).collect();
    assert_eq!(some.n_rows() as usize, kept.len());
    for (at, &i) in kept.iter().enumerate() {
        assert_eq!((found_ids[at], found.row(at)), (ids(i..i + 1)[0], rows(0..N, DIM).row(i)));
    }
    assert_eq!(read(&store.subset(|_| false)).0.len(), 0);
}

#[test]
fn exports_hold_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = build(dir.path(), RowType::Int8);
    let (found_ids, found) = read(&store);
    let out = tempfile::tempdir().unwrap();
    for name in ["rows.npy", "rows.safetensors", "rows.arrow", "rows.arrows", "rows.parquet"] {
        let path = out.path().join(name);
        let files = export(&store, &path, ExportFormat::of(&path).unwrap(), &NoProgress).unwrap();
        assert!(files.iter().all(|f| f.exists()) && files[0] == path);
    }
    let packed: Vec<u64> = found_ids.iter().map(|id| id.to_u64()).collect();
    let bytes = std::fs::read(out.path().join("rows.npy")).unwrap();
    assert_eq!(bytes.len() % 64, (N * DIM * 4) % 64, "numpy pads its head to 64 bytes");
    let numbers: Vec<f32> =
        bytes[bytes.len() - 4 * N * DIM..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(numbers, found.iter().copied().collect::<Vec<_>>());
    let bytes = std::fs::read(out.path().join("rows.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("grad").unwrap().shape(), [N, DIM]);
    assert_eq!(file.tensor("grad").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&numbers));
    assert_eq!(file.tensor("example_id").unwrap().data(), bytemuck::cast_slice::<u64, u8>(&packed));
    let batches = |name: &str| -> Vec<arrow::array::RecordBatch> {
        let file = std::fs::File::open(out.path().join(name)).unwrap();
        match name {
            "rows.arrow" => arrow::ipc::reader::FileReader::try_new(file, None).unwrap().map(Result::unwrap).collect(),
            "rows.arrows" => {
                arrow::ipc::reader::StreamReader::try_new(file, None).unwrap().map(Result::unwrap).collect()
            }
            _ => parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(file, 4096)
                .unwrap()
                .map(Result::unwrap)
                .collect(),
        }
    };
    for name in ["rows.arrow", "rows.arrows", "rows.parquet"] {
        let (mut got_ids, mut got) = (Vec::new(), Vec::new());
        for batch in batches(name) {
            use arrow::array::AsArray;
            use arrow::datatypes::{Float32Type, UInt64Type};
            got_ids.extend(batch.column(0).as_primitive::<UInt64Type>().values().iter().copied());
            let lists = batch.column(3).as_fixed_size_list();
            got.extend(lists.values().as_primitive::<Float32Type>().values().iter().copied());
        }
        assert_eq!((got_ids, got), (packed.clone(), numbers.clone()), "{name}");
    }
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 6, "something half written stayed");
}

#[test]
fn stats_say_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = build(dir.path(), RowType::Int4);
    let stats = store.stats().unwrap();
    assert_eq!((stats.n_rows, stats.n_shards, stats.dim, stats.stride_bytes), (N as u64, 5, DIM, 64));
    assert_eq!(stats.datasets.iter().map(|d| d.rows).collect::<Vec<_>>(), [13, 12, 12]);
    assert!(stats.norms[0] > 0.0 && stats.norms[0] <= stats.norms[1] && stats.norms[1] <= stats.norms[2]);
    assert!(stats.error_rel.unwrap()[0] < 0.2);
    assert_eq!(stats.modules[1], ("layers.0.mlp.up".to_owned(), DIM / 2, DIM - DIM / 2));
}
