//! The approximate index: recall, and settings.

use ascribe_core::ExampleId;
use ascribe_index::{
    Effort, ExactIndex, GraphBuilder, HnswIndex, HnswParams, IndexError, Metric, VectorIndex, recall_at_k,
};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array1, Array2};

use crate::contract::{clustered, queries};

#[test]
fn recall_is_high_grows_with_effort_and_is_one_at_full_effort() {
    // 300 numbers projected to 63: the graph sees an approximation and the exact scores decide.
    let reader = clustered(1500, 300, 12, 11);
    let queries = queries(&reader, 40, 12);
    let exact = ExactIndex::new(&reader).unwrap();
    let params = HnswParams { point_dim: 64, n_graphs: 3, ..HnswParams::default() };
    let index = HnswIndex::build(&reader, params).unwrap();
    assert_eq!(index.n_graphs(), 3);
    let recall = |ef| recall_at_k(&index, &exact, queries.view(), 10, Effort::new(ef)).unwrap();
    let (low, high, full) = (recall(10), recall(100), recall(600));
    assert!(low.mean < high.mean, "{} {}", low.mean, high.mean);
    // Three times 100 nominees of 1,500 rows, by a projection with a standard error of 0.125: a random choice would have
    // a recall of 0.2.
    assert!(high.mean > 0.8, "{}", high.mean);
    assert_eq!(full.min, 1.0, "every row was nominated");
    assert!(high.min <= high.mean && high.per_query.len() == 40);
    assert!(matches!(
        recall_at_k(&index, &exact, queries.view(), 0, Effort::default()),
        Err(IndexError::BadSetting { .. })
    ));
}

#[test]
fn an_index_has_full_recall_against_itself() {
    let reader = clustered(200, 40, 5, 13);
    let exact = ExactIndex::new(&reader).unwrap();
    let recall = recall_at_k(&exact, &exact, queries(&reader, 9, 14).view(), 7, Effort::default()).unwrap();
    assert_eq!((recall.mean, recall.min), (1.0, 1.0));
}

#[test]
fn settings_out_of_range_are_refused_before_the_library_sees_them() {
    let reader = clustered(20, 40, 2, 15);
    let good = HnswParams::default();
    for bad in [
        HnswParams { n_neighbours: 1, ..good },
        HnswParams { n_neighbours: 256, ..good },
        HnswParams { ef_construction: 0, ..good },
        HnswParams { point_dim: 0, ..good },
        HnswParams { n_graphs: 0, ..good },
    ] {
        let error = HnswIndex::build(&reader, bad).unwrap_err();
        assert!(matches!(error, IndexError::BadSetting { .. }), "{bad:?}: {error}");
    }
}

#[test]
fn one_row_makes_an_index() {
    let reader = clustered(1, 40, 1, 16);
    let index = HnswIndex::build(&reader, HnswParams::default()).unwrap();
    let exact = ExactIndex::new(&reader).unwrap();
    let recall = recall_at_k(&index, &exact, queries(&reader, 3, 17).view(), 1, Effort::new(1)).unwrap();
    assert_eq!(recall.min, 1.0);
}

#[test]
fn rows_that_no_graph_leads_to_are_found_all_the_same() {
    // Equal rows look alike to a graph: a search for one of 300 ends at the same hundred, whichever was meant.
    let dim = 30;
    let rows =
        Array2::from_shape_fn((360, dim), |(i, j)| if i < 300 { 1.0 } else { ((i * 31 + j * 7) % 11) as f32 - 5.0 });
    let ids = (0..360).map(|idx| ExampleId { dataset: 0, idx }).collect();
    let reader = MemoryReader::new(gradient_spec(&[dim]), ids, rows, 64);
    let index = HnswIndex::build(&reader, HnswParams { n_graphs: 1, ..HnswParams::default() }).unwrap();
    let n_equal = index.orphans().iter().filter(|&&row| row < 300).count();
    assert!(n_equal >= 200, "{index:?}");
    let query = Array1::from_elem(dim, 1.0f32);
    let hits = index.search(query.view(), 1, Effort::new(100)).unwrap();
    assert!(hits[0].score == 30.0);
    let all = index.search(query.view(), 300, Effort::new(100)).unwrap();
    assert!(all.iter().zip(0..).all(|(hit, row)| hit.row == row && hit.score == 30.0));
}

#[test]
fn recall_is_measured_at_build_and_effort_chosen_by_it() {
    let reader = clustered(1500, 300, 12, 18);
    let params = HnswParams { point_dim: 64, n_graphs: 3, ..HnswParams::default() };
    let index = HnswIndex::build(&reader, params).unwrap();
    let curve = index.curve();
    assert!(curve.k == 10 && curve.n_queries == 64 && curve.points.is_sorted_by(|a, b| a.ef < b.ef));
    let effort = index.effort_for(0.9).unwrap();
    let point = curve.points.iter().find(|point| point.ef == effort.ef).unwrap();
    assert!(point.recall >= 0.9 && curve.points.iter().all(|p| p.ef >= effort.ef || p.recall < 0.9));
    assert!(index.effort_for(1.1).is_none(), "what no effort reached is not promised");
    // The measurement itself, on queries of our own.
    let queries = queries(&reader, 20, 19);
    let own = index.measure_with(queries.view()).unwrap();
    let exact = ExactIndex::new(&reader).unwrap();
    for point in &own.points {
        let effort = Effort { ef: point.ef, n_exact: point.n_exact };
        assert_eq!(recall_at_k(&index, &exact, queries.view(), 10, effort).unwrap().mean, point.recall);
    }
}

#[test]
fn cosines_rank_by_angle_whatever_the_norms() {
    let reader = clustered(400, 40, 6, 20);
    let params = HnswParams { metric: Metric::Cosine, ..HnswParams::default() };
    let index = HnswIndex::build(&reader, params).unwrap();
    assert_eq!(index.n_graphs(), 1);
    let queries = queries(&reader, 8, 21);
    for (query, hits) in queries.rows().into_iter().zip(index.search_many(queries.view(), 7, Effort::new(400)).unwrap())
    {
        let cosine = |row: usize| {
            let x = reader.rows().row(row);
            let product: f64 = x.iter().zip(&query).map(|(&x, &q)| f64::from(x) * f64::from(q)).sum();
            let norm = |v: ndarray::ArrayView1<'_, f32>| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            product / (norm(x) * norm(query))
        };
        let mut order: Vec<usize> = (0..400).collect();
        order.sort_by(|&a, &b| cosine(b).total_cmp(&cosine(a)));
        assert_eq!(hits.iter().map(|hit| hit.row as usize).collect::<Vec<_>>(), order[..7]);
        assert!(hits.iter().all(|hit| (hit.score - cosine(hit.row as usize)).abs() < 1e-12));
    }
}

#[test]
fn batches_find_as_much_as_the_library_and_do_not_depend_on_threads() {
    let reader = clustered(4000, 64, 40, 23);
    let queries = queries(&reader, 64, 24);
    let library = HnswParams { n_graphs: 1, metric: Metric::Cosine, ..HnswParams::default() };
    let ours = HnswParams { builder: GraphBuilder::Batches, ..library };
    let recall = |params| {
        let index = HnswIndex::build(&reader, params).unwrap();
        let truth = index.measure_with(queries.view()).unwrap();
        assert!(index.orphans().len() < 40, "{index:?}");
        truth.points.iter().map(|p| (p.ef, p.recall)).collect::<Vec<_>>()
    };
    for ((ef, theirs), (_, found)) in recall(library).into_iter().zip(recall(ours)) {
        // Of 640 true neighbours, four standard errors of their number at a recall of 0.9.
        assert!(found >= theirs - 0.05, "at {ef}: {found}, the library {theirs}");
    }
    let dir = tempfile::tempdir().unwrap();
    let graph = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let path = dir.path().join(threads.to_string());
        pool.install(|| HnswIndex::build(&reader, ours).unwrap().save(&path).unwrap());
        std::fs::read(path.join("graph-000.bin")).unwrap()
    };
    assert!(graph(1) == graph(3), "the graph depends on threads");
}
