//! Certified search: equal to brute force on whatever rows, and honest about what it looked at again.

use ascribe_core::{ExampleId, FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_index::{Certificate, CertifiedIndex, Effort, Filter, Hit, IndexError, VectorIndex};
use ascribe_linalg::{Cholesky, Stream};
use ascribe_store::features::{Deletion, delete, make_companion};
use ascribe_store::{FeatureStore, FeatureWriter};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;

use crate::contract::{brute_force, clustered, contract, queries};

/// A store on disk with its companion.
struct Kept {
    dir: tempfile::TempDir,
    precise: FeatureStore,
    companion: Option<FeatureStore>,
}

impl Kept {
    fn new(reader: &MemoryReader, precise: RowType, companion: Option<RowType>) -> Result<Self, IndexError> {
        // Shards of 100 rows: parts end at shards, and rows count on over them.
        Self::in_shards(reader, precise, companion, 100)
    }

    fn in_shards(
        reader: &MemoryReader,
        precise: RowType,
        companion: Option<RowType>,
        rows_per_shard: u32,
    ) -> Result<Self, IndexError> {
        let failed = |error| IndexError::Reader(Box::new(error));
        let dir = tempfile::tempdir().unwrap();
        let writer =
            FeatureWriter::create_or_resume(dir.path(), reader.spec(), precise, rows_per_shard, reader.n_rows());
        let mut writer = writer.map_err(failed)?;
        writer.push(reader.ids(), reader.rows().view()).map_err(failed)?;
        let precise = writer.finish().map_err(failed)?;
        let companion = companion.map(|row_type| make_companion(&precise, row_type, &NoProgress)).transpose();
        Ok(Self { dir, precise, companion: companion.map_err(failed)? })
    }

    fn certified(&self, queries: ArrayView2<'_, f32>, k: usize) -> (Vec<Vec<Hit>>, Certificate) {
        let index = CertifiedIndex::new(&self.precise, self.companion.as_ref()).unwrap();
        index.search_certified(queries, k, &Filter::default()).unwrap()
    }
}

impl VectorIndex for Kept {
    fn n_rows(&self) -> u64 {
        self.precise.n_rows()
    }

    fn dim(&self) -> usize {
        self.precise.spec().dim
    }

    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        CertifiedIndex::new(&self.precise, self.companion.as_ref())?.search_filtered(queries, k, effort, filter)
    }
}

/// A store without rows is refused by its index, not by the store.
fn of_rows<'r>(reader: &'r MemoryReader, companion: Option<RowType>) -> Result<Box<dyn VectorIndex + 'r>, IndexError> {
    let kept = Kept::new(reader, RowType::F32, companion.filter(|_| reader.n_rows() > 0))?;
    CertifiedIndex::new(&kept.precise, kept.companion.as_ref())?;
    Ok(Box::new(kept))
}

contract!(by_itself, |reader| of_rows(reader, None));
contract!(through_int8, |reader| of_rows(reader, Some(RowType::Int8)));
contract!(through_int4, |reader| of_rows(reader, Some(RowType::Int4)));
contract!(through_bf16, |reader| of_rows(reader, Some(RowType::Bf16)));

fn reader_of(rows: Array2<f32>, n_datasets: u32) -> MemoryReader {
    let ids = (0..rows.nrows() as u32).map(|i| ExampleId { dataset: i % n_datasets, idx: i / n_datasets }).collect();
    MemoryReader::new(gradient_spec(&[rows.ncols()]), ids, rows, 64)
}

/// Every row type for precise rows and companions: hits are those of brute force over the precise rows as stored.
#[test]
fn every_pair_of_row_types_equals_brute_force() {
    let reader = clustered(333, 70, 6, 41);
    let queries = queries(&reader, 9, 42);
    for precise in [RowType::F32, RowType::Bf16, RowType::F16, RowType::Int8, RowType::Int4] {
        for companion in [None, Some(RowType::F16), Some(RowType::Int8), Some(RowType::Int4)] {
            if companion.is_some_and(|c| c.bits() >= precise.bits()) {
                continue;
            }
            let kept = Kept::new(&reader, precise, companion).unwrap();
            // Rows as stored, widened by the store itself.
            let mut rows = Array2::zeros((0, 70));
            for block in 0..kept.precise.n_blocks() {
                rows.append(ndarray::Axis(0), kept.precise.block(block).unwrap().rows.view()).unwrap();
            }
            let stored = MemoryReader::new(reader.spec().clone(), reader.ids().to_vec(), rows, 64);
            for n_queries in [1, 9] {
                let (hits, certificate) = kept.certified(queries.slice(ndarray::s![..n_queries, ..]), 10);
                for (query, hits) in queries.rows().into_iter().zip(&hits) {
                    assert_eq!(*hits, brute_force(&stored, query, 10), "{precise:?} {companion:?}");
                }
                assert_eq!(certificate.rows, 333);
                assert_eq!(certificate.scanned, companion.unwrap_or(precise));
                assert!(certificate.rescored.iter().all(|&n| (10..=333).contains(&n)));
            }
        }
    }
}

#[test]
fn few_rows_are_looked_at_again_and_their_number_does_not_depend_on_threads() {
    let mut stream = Stream::new(1, "certified-test");
    let rows = Array2::from_shape_fn((3000, 256), |_| stream.normal() as f32);
    let reader = reader_of(rows, 3);
    let queries = queries(&reader, 6, 43);
    let kept = Kept::new(&reader, RowType::F32, Some(RowType::Int8)).unwrap();
    let (hits, certificate) = kept.certified(queries.view(), 5);
    for (query, hits) in queries.rows().into_iter().zip(&hits) {
        assert_eq!(*hits, brute_force(&reader, query, 5));
    }
    // A bound of 1.4 % of the norms against cosines that spread by 6 %: some dozen rows of 3,000.
    assert!(certificate.rescored.iter().all(|&n| n < 300), "{certificate:?}");
    for n_threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        assert_eq!(pool.install(|| kept.certified(queries.view(), 5)), (hits.clone(), certificate.clone()));
    }
}

/// A store with an int8 companion and an int4 one above it: hits are those of brute force whichever was scanned in the end.
struct Coarse(Kept, FeatureStore);

impl Coarse {
    fn new(reader: &MemoryReader) -> Result<Self, IndexError> {
        let kept = Kept::new(reader, RowType::F32, Some(RowType::Int8).filter(|_| reader.n_rows() > 0))?;
        CertifiedIndex::new(&kept.precise, kept.companion.as_ref())?;
        let coarse = make_companion(&kept.precise, RowType::Int4, &NoProgress);
        let coarse = coarse.map_err(|error| IndexError::Reader(Box::new(error)))?;
        Ok(Self(kept, coarse))
    }

    fn certified(&self, queries: ArrayView2<'_, f32>, k: usize) -> (Vec<Vec<Hit>>, Certificate) {
        let index = CertifiedIndex::new(&self.0.precise, self.0.companion.as_ref()).unwrap();
        index.with_coarse(Some(&self.1)).unwrap().search_certified(queries, k, &Filter::default()).unwrap()
    }
}

impl VectorIndex for Coarse {
    fn n_rows(&self) -> u64 {
        self.0.n_rows()
    }

    fn dim(&self) -> usize {
        self.0.dim()
    }

    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        let index = CertifiedIndex::new(&self.0.precise, self.0.companion.as_ref())?.with_coarse(Some(&self.1))?;
        index.search_filtered(queries, k, effort, filter)
    }
}

contract!(through_int4_then_int8, |reader| Ok(Box::new(Coarse::new(reader)?)));

#[test]
fn coarse_rows_answer_where_they_rule_most_rows_out_and_are_given_up_elsewhere() {
    // Gathered around centres the best stand far above the rest; in general position int4's bound is wider than what is between.
    let (n, dim) = (24_000, 512);
    let mut stream = Stream::new(2, "certified-test");
    let far = Array2::from_shape_fn((n, dim), |_| stream.normal() as f32);
    let near = Array2::from_shape_fn((n, dim), |(i, j)| far[(i % 60, j)] + 0.7 * stream.normal() as f32);
    let (near, far) = (reader_of(near, 3), reader_of(far, 3));
    for (reader, scanned) in [(&near, RowType::Int4), (&far, RowType::Int8)] {
        let index = Coarse::new(reader).unwrap();
        let queries = queries(reader, 5, 48);
        for query in 0..2 {
            let one = queries.slice(ndarray::s![query..query + 1, ..]);
            let (hits, certificate) = index.certified(one, 10);
            assert_eq!(hits[0], brute_force(reader, one.row(0), 10));
            assert_eq!(certificate.scanned, scanned);
            assert!(certificate.rescored[0] < n as u64 / 10, "{certificate:?}");
            for n_threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                assert_eq!(pool.install(|| index.certified(one, 10)), (hits.clone(), certificate.clone()));
            }
        }
        // Many queries are bound by arithmetic: the finer rows at once.
        assert_eq!(index.certified(queries.view(), 10).1.scanned, RowType::Int8);
    }
}

/// Rows that are long where queries are short, as gradients are under a curvature: in the curvature's own metric the bound of int8
/// rules nearly all of them out, in theirs nearly none; the hits are those of brute force either way.
#[test]
fn a_companion_in_another_basis_finds_the_same_rows_and_looks_at_fewer() {
    let (n, dim, k) = (2000, 96, 7);
    // Both sides are rounded to f32 once, from f64.
    const SLACK: f64 = 1e-6;
    let mut stream = Stream::new(5, "certified/turned");
    // L: columns of falling size over six decades, and something beside the diagonal.
    let size = |i: usize| 10f64.powf(-6.0 * i as f64 / dim as f64);
    let lower = Array2::from_shape_fn((dim, dim), |(i, j)| match i.cmp(&j) {
        std::cmp::Ordering::Less => 0.0,
        std::cmp::Ordering::Equal => size(j),
        std::cmp::Ordering::Greater => 0.1 * size(i) * stream.normal(),
    });
    let factor = Cholesky::from_lower(lower.view()).unwrap();
    let even = Array2::from_shape_fn((n, dim), |_| stream.normal());
    let rows = even.dot(&lower.t()).mapv(|x| x as f32);
    // Queries A⁻¹g of gradients that are rows with something added.
    let mut queries =
        Array2::from_shape_fn((3, dim), |(q, j)| f64::from(rows[(100 * q, j)]) + size(j) * stream.normal());
    factor.solve_rows(queries.view_mut());
    let queries = queries.mapv(|x| x as f32);
    let turned_queries = queries.mapv(f64::from).dot(&lower).mapv(|x| x as f32);
    let mut turned = rows.mapv(f64::from);
    factor.whiten_rows(turned.view_mut());

    let reader = reader_of(rows, 3);
    let plain = Kept::new(&reader, RowType::F32, Some(RowType::Int8)).unwrap();
    let turned = reader_of(turned.mapv(|x| x as f32), 3);
    let turned = Kept::new(&turned, RowType::Int8, None).unwrap();
    let index = CertifiedIndex::new(&plain.precise, Some(&turned.precise)).unwrap();
    let (_, before) = plain.certified(queries.view(), k);
    for (queries, turned) in [
        (queries.view(), turned_queries.view()),
        (queries.slice(ndarray::s![..1, ..]), turned_queries.slice(ndarray::s![..1, ..])),
    ] {
        let (hits, certificate) = index.search_turned(queries, turned, SLACK, k, &Filter::default()).unwrap();
        for (query, hits) in queries.rows().into_iter().zip(&hits) {
            assert_eq!(*hits, brute_force(&reader, query, k));
        }
        assert_eq!((certificate.rows, certificate.scanned), (n as u64, RowType::Int8));
        for (few, many) in certificate.rescored.iter().zip(&before.rescored) {
            assert!(*few < 300 && 4 * few < *many, "{certificate:?} {before:?}");
        }
        let some = Filter::datasets([1]);
        let (hits, _) = index.search_turned(queries, turned, SLACK, k, &some).unwrap();
        assert!(hits.iter().flatten().all(|hit| hit.id.dataset == 1) && hits.iter().all(|hits| hits.len() == k));
    }
    let one = turned_queries.slice(ndarray::s![..1, ..]);
    let refused = |index: &CertifiedIndex<'_>| {
        index.search_turned(queries.view(), one, SLACK, k, &Filter::default()).unwrap_err()
    };
    assert!(matches!(refused(&index), IndexError::NoCompanion { .. }));
    assert!(matches!(refused(&CertifiedIndex::new(&plain.precise, None).unwrap()), IndexError::NoCompanion { .. }));
}

/// Where everything ties, nothing can be ruled out: candidates are thinned out as they come, and ties go by id.
#[test]
fn forty_thousand_equal_rows_are_ranked_by_id() {
    let reader = reader_of(Array2::from_elem((40_000, 16), 0.3), 7);
    let kept = Kept::new(&reader, RowType::F32, Some(RowType::Int8)).unwrap();
    let query = Array2::from_elem((1, 16), 1.0f32);
    let (hits, certificate) = kept.certified(query.view(), 20);
    assert_eq!(hits[0], brute_force(&reader, query.row(0), 20));
    assert!(certificate.rescored[0] >= 40_000 - 20);
}

#[test]
fn deleted_rows_are_not_shown_and_others_keep_their_places() {
    let reader = clustered(333, 40, 6, 44);
    let queries = queries(&reader, 4, 45);
    let kept = Kept::new(&reader, RowType::F32, Some(RowType::Int8)).unwrap();
    let gone: Vec<ExampleId> = brute_force(&reader, queries.row(0), 4).iter().map(|hit| hit.id).collect();
    delete(kept.dir.path(), &Deletion { datasets: [1].into(), examples: gone.iter().copied().collect() }).unwrap();
    let precise = FeatureStore::open(kept.dir.path(), None).unwrap();
    let companion = precise.companion(RowType::Int8).unwrap();
    let index = CertifiedIndex::new(&precise, Some(&companion)).unwrap();
    let left: Vec<usize> =
        (0..333).filter(|&i| reader.ids()[i].dataset != 1 && !gone.contains(&reader.ids()[i])).collect();
    let ids = left.iter().map(|&i| reader.ids()[i]).collect();
    let rows = reader.rows().select(ndarray::Axis(0), &left);
    let expected = MemoryReader::new(reader.spec().clone(), ids, rows, 64);
    for (query, hits) in queries.rows().into_iter().zip(index.search_many(queries.view(), 10, Effort::new(1)).unwrap())
    {
        assert_eq!(hits, brute_force(&expected, query, 10));
    }
}

/// Where the tensor `name` begins and ends in a shard file, and where its first number lies.
fn tensor(bytes: &[u8], name: &str) -> std::ops::Range<usize> {
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[8..head]).unwrap();
    let entry = &text[text.find(&format!("\"{name}\":{{")).unwrap()..];
    let offsets = &entry[entry.find("\"data_offsets\":[").unwrap() + 16..];
    let mut ends = offsets[..offsets.find(']').unwrap()].split(',').map(|n| head + n.trim().parse::<usize>().unwrap());
    ends.next().unwrap()..ends.next().unwrap()
}

/// What a proof stands on: codes, scales, norms and error bounds of a companion. A changed byte anywhere in them is an error that
/// names the shard, or lies where the search did not look; never other hits.
#[test]
fn a_changed_byte_of_a_companion_is_named_and_never_believed() {
    // 1 MiB and more to a shard has leaves: groups of 16 KiB are checked one by one.
    for (row_type, n, dim, rows_per_shard, leaves) in [
        (RowType::Int8, 240, 40, 100, false),
        (RowType::Int4, 240, 40, 100, false),
        (RowType::Int8, 1800, 1024, 1100, true),
    ] {
        let reader = clustered(n, dim, 6, 47);
        let queries = queries(&reader, 2, 48);
        let kept = Kept::in_shards(&reader, RowType::F32, Some(row_type), rows_per_shard).unwrap();
        let truth: Vec<_> = queries.rows().into_iter().map(|query| brute_force(&reader, query, 5)).collect();
        assert_eq!(kept.certified(queries.view(), 5).0, truth);
        let shard = kept.dir.path().join(row_type.name()).join("shards/s-000000.safetensors");
        assert_eq!(shard.with_extension("leaves").exists(), leaves);
        let bytes = std::fs::read(&shard).unwrap();
        let row = tensor(&bytes, "grad").len() / rows_per_shard as usize;
        let mut caught = 0;
        for name in ["grad", "scale", "norm", "error"] {
            let at = tensor(&bytes, name);
            // First, middle and last row; in `grad` a number of it and not the room after it.
            let step = if name == "grad" { row } else { 4 };
            for number in [0, rows_per_shard as usize / 2, rows_per_shard as usize - 1] {
                let place = at.start + number * step + 3;
                let mut changed = bytes.clone();
                // In a float the sign or the exponent, in a code its greatest bits.
                changed[place] ^= 0x60;
                std::fs::write(&shard, changed).unwrap();
                let search = || -> Result<_, IndexError> {
                    let precise = FeatureStore::open(kept.dir.path(), None)?;
                    let companion = precise.companion(row_type)?;
                    let index = CertifiedIndex::new(&precise, Some(&companion))?;
                    Ok(index.search_certified(queries.view(), 5, &Filter::default())?.0)
                };
                match search() {
                    Ok(hits) => assert_eq!(hits, truth, "{row_type:?} {name} {number}"),
                    Err(error) => {
                        assert!(error.to_string().contains("s-000000"), "{row_type:?} {name} {number}: {error}");
                        caught += 1;
                    }
                }
            }
        }
        // A scan without a filter reads the numbers and facts of every row.
        assert_eq!(caught, 12, "{row_type:?}");
        std::fs::write(&shard, bytes).unwrap();
    }
}

#[test]
fn a_companion_of_other_rows_is_refused() {
    let (a, b) = (clustered(120, 40, 3, 46), clustered(119, 40, 3, 46));
    let a = Kept::new(&a, RowType::F32, Some(RowType::Int8)).unwrap();
    let b = Kept::new(&b, RowType::F32, Some(RowType::Int8)).unwrap();
    let error = CertifiedIndex::new(&a.precise, b.companion.as_ref()).unwrap_err();
    assert!(matches!(error, IndexError::NoCompanion { .. }), "{error}");
    // An f32 store knows no error of its rows: it certifies nothing.
    let error = CertifiedIndex::new(&a.precise, Some(&a.precise)).unwrap_err();
    assert!(error.to_string().contains("error of each row"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Rows out of a small set of hostile numbers: many ties and near ties, norms over 70 decades, zeros.
    #[test]
    fn adversarial_rows_equal_brute_force(
        picks in prop::collection::vec(0usize..9, 12 * 60),
        sizes in prop::collection::vec(-30i32..18, 60),
        nudge in -1e-6f32..1e-6,
        k in 1usize..40,
        kind in 0usize..3,
    ) {
        let numbers = [0.0f32, 1.0, 1.0 + nudge, -1.0, 0.5, 127.0, 127.5, -127.0, 1e-7];
        let rows = Array2::from_shape_fn((60, 12), |(i, j)| {
            let size = if i % 3 == 0 { 2f32.powi(sizes[i]) } else { 1.0 };
            numbers[picks[i * 12 + j]] * size
        });
        let reader = reader_of(rows, 4);
        let companion = [RowType::Int8, RowType::Int4, RowType::Bf16][kind];
        let kept = Kept::new(&reader, RowType::F32, Some(companion)).unwrap();
        let queries = Array2::from_shape_fn((6, 12), |(q, j)| numbers[picks[(q * 97 + j * 31) % picks.len()]]);
        let (hits, _) = kept.certified(queries.view(), k);
        for (query, hits) in queries.rows().into_iter().zip(&hits) {
            prop_assert_eq!(hits, &brute_force(&reader, query, k));
        }
        let coarse = Coarse::new(&reader).unwrap();
        let few = queries.slice(ndarray::s![..3, ..]);
        for (query, hits) in few.rows().into_iter().zip(coarse.certified(few, k).0) {
            prop_assert_eq!(hits, brute_force(&reader, query, k));
        }
    }
}
