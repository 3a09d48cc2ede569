//! What every index promises, checked on each implementation. Effort is high enough that the approximate one finds all.

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_index::{Effort, ExactIndex, HnswIndex, HnswParams, IndexError, VectorIndex};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array1, Array2, s};

use crate::common::{brute_force, clustered, queries};

const ALL: Effort = Effort::new(400);

fn small() -> HnswParams {
    HnswParams { point_dim: 24, n_graphs: 3, ..HnswParams::default() }
}

/// Runs `test` on an exact and on an approximate index over `reader`.
fn each(reader: &MemoryReader, test: impl Fn(&str, &dyn VectorIndex)) {
    test("exact", &ExactIndex::new(reader).unwrap());
    test("hnsw", &HnswIndex::build(reader, small()).unwrap());
}

#[test]
fn hits_are_those_of_sorting_everything() {
    let reader = clustered(333, 40, 6, 1);
    let queries = queries(&reader, 45, 2);
    each(&reader, |name, index| {
        assert_eq!((index.n_rows(), index.dim()), (333, 40), "{name}");
        for k in [1, 7, 333] {
            let hits = index.search_many(queries.view(), k, ALL).unwrap();
            for (query, hits) in queries.rows().into_iter().zip(&hits) {
                assert_eq!(*hits, brute_force(&reader, query, k), "{name}, k = {k}");
            }
        }
    });
}

#[test]
fn hits_do_not_depend_on_the_batch_the_blocks_or_the_threads() {
    let reader = clustered(500, 40, 6, 3);
    let queries = queries(&reader, 70, 4);
    for name in ["exact", "hnsw"] {
        let search = |reader: &MemoryReader, queries: &Array2<f32>| {
            let index: Box<dyn VectorIndex> = match name {
                "exact" => Box::new(ExactIndex::new(reader).unwrap()),
                _ => Box::new(HnswIndex::build(reader, small()).unwrap()),
            };
            // A low effort: also what an approximate search misses must be the same.
            index.search_many(queries.view(), 10, Effort::new(10)).unwrap()
        };
        let whole = search(&reader, &queries);
        let alone = queries.slice(s![33..34, ..]).to_owned();
        assert_eq!(search(&reader, &alone)[0], whole[33], "{name}: a query alone");
        for n_threads in [1, 3] {
            let pool = rayon_pool(n_threads);
            assert_eq!(pool.install(|| search(&reader, &queries)), whole, "{name}: {n_threads} threads");
        }
        if name == "exact" {
            for rows_per_block in [1, 17, 500] {
                assert_eq!(search(&reader.with_rows_per_block(rows_per_block), &queries), whole);
            }
        }
    }
}

fn rayon_pool(n_threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap()
}

#[test]
fn ties_go_to_the_lower_id_even_among_equal_rows() {
    // 300 equal rows (more than one search returns), in falling order of their ids, among 100 others.
    let dim = 30;
    let rows = Array2::from_shape_fn((400, dim), |(i, j)| {
        if i < 300 { (j % 3) as f32 } else { ((i * 31 + j * 7) % 11) as f32 / 11.0 - 0.5 }
    });
    let ids = (0..400).map(|i| ExampleId { dataset: 0, idx: 1000 - i }).collect();
    let reader = MemoryReader::new(gradient_spec(&[dim]), ids, rows, 64);
    let query = Array1::from_elem(dim, 1.0f32);
    each(&reader, |name, index| {
        let hits = index.search(query.view(), 5, ALL).unwrap();
        let expected: Vec<u64> = vec![299, 298, 297, 296, 295];
        assert_eq!(hits.iter().map(|h| h.row).collect::<Vec<_>>(), expected, "{name}");
    });
}

#[test]
fn opponents_are_the_proponents_of_the_negated_query() {
    let reader = clustered(200, 40, 4, 5);
    let query = queries(&reader, 1, 6).row(0).to_owned();
    let worst = brute_force(&reader, query.view(), 200).pop().unwrap();
    each(&reader, |name, index| {
        let hit = index.search((-&query).view(), 1, ALL).unwrap()[0];
        assert_eq!((hit.row, hit.score), (worst.row, -worst.score), "{name}");
    });
}

#[test]
fn extreme_sizes_are_searched_like_any_other() {
    // Products of these overflow f32; zero rows and a zero query have no direction.
    let mut rows = clustered(120, 40, 3, 7).rows().clone();
    rows.slice_mut(s![..40, ..]).mapv_inplace(|x| x * 1e19);
    rows.slice_mut(s![40..50, ..]).fill(0.0);
    let ids = (0..120).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let reader = MemoryReader::new(gradient_spec(&[40]), ids, rows, 32);
    let huge = reader.rows().row(3).mapv(|x| x * 1e18);
    let tiny = reader.rows().row(100).mapv(|x| x * 1e-30);
    let zero = Array1::zeros(40);
    each(&reader, |name, index| {
        for query in [&huge, &tiny, &zero] {
            let hits = index.search(query.view(), 120, ALL).unwrap();
            assert_eq!(hits, brute_force(&reader, query.view(), 120), "{name}");
        }
    });
}

#[test]
fn what_cannot_be_searched_is_refused_by_name() {
    let reader = clustered(60, 40, 3, 8);
    each(&reader, |name, index| {
        let good = Array2::<f32>::ones((2, 40));
        let error = index.search_many(good.view(), 61, ALL).unwrap_err();
        assert!(matches!(error, IndexError::TooMany { k: 61, n_rows: 60 }), "{name}: {error}");
        let mut bad = good.clone();
        bad[(1, 9)] = f32::NAN;
        let error = index.search_many(bad.view(), 3, ALL).unwrap_err();
        assert_eq!(error.to_string(), "query 1, column 9: expected a finite number, found NaN", "{name}");
        let error = index.search_many(good.slice(s![.., 1..]), 3, ALL).unwrap_err();
        assert!(matches!(error, IndexError::DimMismatch { expected: 40, found: 39, .. }), "{name}: {error}");
        assert_eq!(index.search_many(good.view(), 0, ALL).unwrap(), [vec![], vec![]], "{name}");
        assert!(index.search_many(good.slice(s![..0, ..]), 3, ALL).unwrap().is_empty(), "{name}");
    });
    let empty = MemoryReader::new(gradient_spec(&[40]), vec![], Array2::zeros((0, 40)), 8);
    assert!(matches!(ExactIndex::new(&empty).unwrap_err(), IndexError::EmptyStore));
    assert!(matches!(HnswIndex::build(&empty, small()).unwrap_err(), IndexError::EmptyStore));
}

#[test]
fn a_row_that_is_not_finite_is_named() {
    let mut rows = clustered(60, 40, 3, 9).rows().clone();
    rows[(37, 2)] = f32::NAN;
    let ids = (0..60).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let reader = MemoryReader::new(gradient_spec(&[40]), ids, rows, 16);
    let query = Array1::<f32>::ones(reader.spec().dim);
    let error = ExactIndex::new(&reader).unwrap().search(query.view(), 1, ALL).unwrap_err();
    assert!(matches!(error, IndexError::RowNotFinite { row: 37 }), "{error}");
    let error = HnswIndex::build(&reader, small()).unwrap_err();
    assert!(matches!(error, IndexError::RowNotFinite { row: 37 }), "{error}");
}
