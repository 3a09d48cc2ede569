//! Exactness: a dataset's influence is the sum of its examples', and exact search finds what looking at every row finds.

use ascribe_core::{ExampleId, NoProgress};
use ascribe_engine::walk::features::{load_rows, open_train, query_dir};
use ascribe_engine::walk::index::{INDEX_DIR, IndexReport};
use ascribe_engine::walk::score::SCORES_FILE;
use ascribe_engine::walk::{Context, fit};
use ascribe_index::{Effort, ExactIndex, HnswIndex, VectorIndex, recall_at_k};
use ascribe_methods::block_fisher::precondition;
use ascribe_methods::dot;
use ascribe_store::FeatureStore;
use ascribe_store::scores::read_scores;
use ndarray::Array2;

use crate::common::finished;

fn context() -> Context {
    let tiny = &finished().tiny;
    tiny.context(&tiny.out()).unwrap()
}

/// Preconditioned gradients of the responses at the last checkpoint, `[Q, D]`.
fn queries(context: &Context) -> Array2<f64> {
    let store = FeatureStore::open(&context.out.join(query_dir(&context.last().name)), None).unwrap();
    precondition(&fit::read(context, context.last()).unwrap(), load_rows(&store).unwrap().view()).unwrap()
}

#[test]
fn a_datasets_influence_is_the_sum_of_its_examples() {
    let context = context();
    let store = open_train(&context, &context.last().name).unwrap();
    let examples = dot::score(&store, queries(&context).view(), None, &NoProgress).unwrap();
    let file = read_scores(&context.out.join(SCORES_FILE)).unwrap();
    let datasets = file.datasets("block_fisher").unwrap().values;
    assert_eq!(datasets.dim(), (12, 3));
    for q in 0..12 {
        for k in 0..3 {
            let of_dataset = examples.examples.iter().zip(examples.values.row(q)).filter(|(id, _)| id.dataset == k);
            let (mut sum, mut size, mut n) = (0.0f64, 0.0f64, 0);
            for (_, &score) in of_dataset {
                sum += f64::from(score);
                size += f64::from(score).abs();
                n += 1;
            }
            // Each example's score was rounded to f32 once: half a unit in the last place of each, added up. Both sides
            // were summed in f64, whose own rounding is eight orders below.
            let tolerance = size * f64::from(f32::EPSILON) / 2.0 * 1.001;
            let found = datasets[(q, k as usize)];
            assert!((sum - found).abs() <= tolerance, "response {q}, dataset {k}: {sum} and {found} (n = {n})");
            assert!(n > 500 && size > 0.0);
        }
    }
}

#[test]
fn the_top_examples_of_the_score_file_are_the_best_of_all_examples() {
    let context = context();
    let store = open_train(&context, &context.last().name).unwrap();
    let all = dot::score(&store, queries(&context).view(), None, &NoProgress).unwrap();
    let file = read_scores(&context.out.join(SCORES_FILE)).unwrap();
    for query in context.query_ids() {
        let mut expected: Vec<(f32, ExampleId)> =
            all.values.row(query.0 as usize).iter().copied().zip(all.examples.iter().copied()).collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let found: Vec<(f32, ExampleId)> =
            file.top_examples("block_fisher", query).map(|row| (row.score as f32, row.example().unwrap())).collect();
        assert_eq!(found.len(), context.attribution.top_k);
        assert_eq!(found, expected[..found.len()], "response {}", query.0);
        // Every hit leads to a record of its own dataset.
        for row in file.top_examples("block_fisher", query) {
            let (id, record) = (row.example().unwrap(), row.record().unwrap());
            let example = context.corpus.examples.iter().find(|e| e.id == id).unwrap();
            assert!(example.spans.iter().any(|s| s.record == record));
        }
    }
}

#[test]
fn exact_search_is_a_look_at_every_row_and_the_index_is_measured_against_it() {
    const K: usize = 10;
    let context = context();
    let store = open_train(&context, &context.last().name).unwrap();
    let queries = queries(&context).mapv(|x| x as f32);
    let exact = ExactIndex::new(&store).unwrap();
    let rows = load_rows(&store).unwrap();
    let ids: Vec<ExampleId> = store.ids().collect();
    let found = exact.search_many(queries.view(), K, Effort::default()).unwrap();
    for (query, hits) in queries.rows().into_iter().zip(&found) {
        let product = |row: ndarray::ArrayView1<'_, f32>| -> f64 {
            row.iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut all: Vec<(f64, ExampleId)> = rows.rows().into_iter().map(product).zip(ids.iter().copied()).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let found: Vec<ExampleId> = hits.iter().map(|h| h.id).collect();
        let expected: Vec<ExampleId> = all[..K].iter().map(|(_, id)| *id).collect();
        assert_eq!(found, expected);
        for (hit, (score, _)) in hits.iter().zip(&all) {
            // Two orders of one f64 sum.
            assert!((hit.score - score).abs() <= 1e-10 * score.abs().max(1.0), "{} and {score}", hit.score);
        }
    }
    let report = IndexReport::read(&context.out).unwrap();
    assert!((0.0..=1.0).contains(&report.recall_at_10) && report.recall_at_10_worst <= report.recall_at_10);
    let index = HnswIndex::open(&store, &context.out.join(INDEX_DIR)).unwrap();
    let recall = recall_at_k(&index, &exact, queries.view(), K, Effort::default()).unwrap();
    assert_eq!((recall.mean, recall.min), (report.recall_at_10, report.recall_at_10_worst));
    assert_eq!(report.rows, context.corpus.examples.len() as u64);
}
