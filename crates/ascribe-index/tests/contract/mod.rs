//! What every index promises, as one suite for all of them. `contract!` makes the tests of one implementation; a back end
//! in another crate takes this folder in by `#[path]`. Effort is high enough that an approximate index finds all.

mod rows;

use ascribe_core::{ExampleId, FeatureReader};
use ascribe_index::{Effort, Filter, Hit, IndexError, VectorIndex};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array1, Array2, ArrayView2, s};

pub use rows::{brute_force, clustered, queries};

/// More candidates than any of these fixtures has rows.
pub const ALL: Effort = Effort::new(400);

/// Builds an index over the rows of a reader.
pub type Make = dyn for<'r> Fn(&'r MemoryReader) -> Result<Box<dyn VectorIndex + 'r>, IndexError> + Sync;

/// The tests of one implementation: `contract!(exact, |reader| Ok(Box::new(ExactIndex::new(reader)?)));`
macro_rules! contract {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn made(
                reader: &ascribe_testkit::MemoryReader,
            ) -> Result<Box<dyn ascribe_index::VectorIndex + '_>, ascribe_index::IndexError> {
                $crate::contract::cast($make)(reader)
            }

            $crate::contract::contract!(@tests
                hits_are_those_of_sorting_everything,
                hits_do_not_depend_on_the_batch_or_the_threads,
                ties_go_to_the_lower_id_even_among_equal_rows,
                opponents_are_the_proponents_of_the_negated_query,
                extreme_sizes_are_searched_like_any_other,
                a_filter_takes_rows_out_and_changes_nothing_else,
                what_cannot_be_searched_is_refused_by_name,
                rows_that_cannot_be_searched_are_refused
            );
        }
    };
    (@tests $($test:ident),*) => {
        $(#[test]
        fn $test() {
            $crate::contract::$test(&made);
        })*
    };
}
pub(crate) use contract;

/// Names the type of a closure that borrows from its argument.
pub fn cast<F>(make: F) -> F
where
    F: for<'r> Fn(&'r MemoryReader) -> Result<Box<dyn VectorIndex + 'r>, IndexError>,
{
    make
}

pub fn hits_are_those_of_sorting_everything(make: &Make) {
    let reader = clustered(333, 40, 6, 1);
    let queries = queries(&reader, 45, 2);
    let index = make(&reader).unwrap();
    assert_eq!((index.n_rows(), index.dim()), (333, 40));
    for k in [1, 7, 333] {
        let hits = index.search_many(queries.view(), k, ALL).unwrap();
        for (query, hits) in queries.rows().into_iter().zip(&hits) {
            assert_eq!(*hits, brute_force(&reader, query, k), "k = {k}");
        }
    }
}

pub fn hits_do_not_depend_on_the_batch_or_the_threads(make: &Make) {
    let reader = clustered(500, 40, 6, 3);
    let queries = queries(&reader, 70, 4);
    let search = |queries: ArrayView2<'_, f32>| {
        // A low effort: also what an approximate search misses must be the same.
        make(&reader).unwrap().search_many(queries, 10, Effort::new(10)).unwrap()
    };
    let whole = search(queries.view());
    for alone in [0, 33, 69] {
        assert_eq!(search(queries.slice(s![alone..=alone, ..]))[0], whole[alone], "query {alone} alone");
    }
    for n_threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        assert_eq!(pool.install(|| search(queries.view())), whole, "{n_threads} threads");
    }
}

pub fn ties_go_to_the_lower_id_even_among_equal_rows(make: &Make) {
    // 300 equal rows (more than one search returns), in falling order of their ids, among 100 others.
    let dim = 30;
    let rows = Array2::from_shape_fn((400, dim), |(i, j)| {
        if i < 300 { (j % 3) as f32 } else { ((i * 31 + j * 7) % 11) as f32 / 11.0 - 0.5 }
    });
    let ids = (0..400).map(|i| ExampleId { dataset: 0, idx: 1000 - i }).collect();
    let reader = MemoryReader::new(gradient_spec(&[dim]), ids, rows, 64);
    let query = Array1::from_elem(dim, 1.0f32);
    let hits = make(&reader).unwrap().search(query.view(), 5, ALL).unwrap();
    assert_eq!(hits.iter().map(|h| h.row).collect::<Vec<_>>(), [299, 298, 297, 296, 295]);
}

pub fn opponents_are_the_proponents_of_the_negated_query(make: &Make) {
    let reader = clustered(200, 40, 4, 5);
    let query = queries(&reader, 1, 6).row(0).to_owned();
    let worst = brute_force(&reader, query.view(), 200).pop().unwrap();
    let hit = make(&reader).unwrap().search((-&query).view(), 1, ALL).unwrap()[0];
    assert_eq!((hit.row, hit.score), (worst.row, -worst.score));
}

pub fn extreme_sizes_are_searched_like_any_other(make: &Make) {
    // Products of these overflow f32; zero rows and a zero query have no direction.
    let mut rows = clustered(120, 40, 3, 7).rows().clone();
    rows.slice_mut(s![..40, ..]).mapv_inplace(|x| x * 1e19);
    rows.slice_mut(s![40..50, ..]).fill(0.0);
    rows.slice_mut(s![50..55, ..]).mapv_inplace(|x| x * 1e-38);
    let ids = (0..120).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let reader = MemoryReader::new(gradient_spec(&[40]), ids, rows, 32);
    let index = make(&reader).unwrap();
    let huge = reader.rows().row(3).mapv(|x| x * 1e18);
    let tiny = reader.rows().row(100).mapv(|x| x * 1e-30);
    for query in [&huge, &tiny, &Array1::zeros(40)] {
        let hits = index.search(query.view(), 120, ALL).unwrap();
        assert_eq!(hits, brute_force(&reader, query.view(), 120));
    }
}

pub fn a_filter_takes_rows_out_and_changes_nothing_else(make: &Make) {
    let reader = clustered(333, 40, 6, 31);
    let queries = queries(&reader, 6, 32);
    let index = make(&reader).unwrap();
    let best = brute_force(&reader, queries.row(0), 3).iter().map(|hit| hit.id).collect::<Vec<_>>();
    for filter in [
        Filter::default(),
        Filter::datasets([2]),
        Filter::datasets([0, 3]).without(best.clone()),
        Filter::default().without(best.clone()),
        Filter::datasets([99]),
    ] {
        let found = index.search_filtered(queries.view(), 7, ALL, &filter).unwrap();
        for (query, found) in queries.rows().into_iter().zip(found) {
            let mut expected: Vec<Hit> = brute_force(&reader, query, 333);
            expected.retain(|hit| filter.allows(hit.id));
            expected.truncate(7);
            assert_eq!(found, expected, "{filter:?}");
        }
    }
}

pub fn what_cannot_be_searched_is_refused_by_name(make: &Make) {
    let reader = clustered(60, 40, 3, 8);
    let index = make(&reader).unwrap();
    let good = Array2::<f32>::ones((2, 40));
    let error = index.search_many(good.view(), 61, ALL).unwrap_err();
    assert!(matches!(error, IndexError::TooMany { k: 61, n_rows: 60 }), "{error}");
    let mut bad = good.clone();
    bad[(1, 9)] = f32::NAN;
    let error = index.search_many(bad.view(), 3, ALL).unwrap_err();
    assert_eq!(error.to_string(), "query 1, column 9: expected a finite number, found NaN");
    let error = index.search_many(good.slice(s![.., 1..]), 3, ALL).unwrap_err();
    assert!(matches!(error, IndexError::DimMismatch { expected: 40, found: 39, .. }), "{error}");
    assert_eq!(index.search_many(good.view(), 0, ALL).unwrap(), [vec![], vec![]]);
    assert!(index.search_many(good.slice(s![..0, ..]), 3, ALL).unwrap().is_empty());
}

/// Refused when the index is made or, by one that holds nothing, when it searches; a store refuses them even earlier.
pub fn rows_that_cannot_be_searched_are_refused(make: &Make) {
    let empty = MemoryReader::new(gradient_spec(&[40]), vec![], Array2::zeros((0, 40)), 8);
    assert!(make(&empty).is_err());
    let mut rows = clustered(60, 40, 3, 9).rows().clone();
    rows[(37, 2)] = f32::NAN;
    let ids = (0..60).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let reader = MemoryReader::new(gradient_spec(&[40]), ids, rows, 16);
    let query = Array1::<f32>::ones(reader.spec().dim);
    let error = make(&reader).and_then(|index| index.search(query.view(), 1, ALL)).unwrap_err();
    assert!(error.to_string().contains("37"), "{error}");
}
