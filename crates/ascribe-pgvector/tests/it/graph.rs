//! Where the graph is asked: recall, filters, deletions, long rows, coming back, rows that come and go.

mod postgres {
    use ascribe_core::{ExampleId, FeatureReader};
    use ascribe_index::{Effort, ExactIndex, Filter, IndexError, VectorIndex, recall_at_k};
    use ascribe_linalg::Stream;
    use ascribe_pgvector::{PgParams, PgVectorIndex, Plan};
    use ascribe_testkit::{MemoryReader, gradient_spec};
    use ndarray::{Array2, Axis};

    use crate::contract::{clustered, queries};
    use crate::{address, built, name};

    /// Asks the graph whatever the size.
    fn eager() -> PgParams {
        PgParams { scan_rows: 0, ..PgParams::default() }
    }

    #[test]
    #[ignore = "needs a server: tests/conformance/pgvector/run.sh"]
    fn the_graph_is_asked_and_its_recall_was_measured() {
        let reader = clustered(3000, 48, 12, 51);
        let index = built(&reader, eager()).unwrap();
        let plan = index.plan(64, 512, 3000);
        assert_eq!(plan, Plan::Graph(64));
        let words = index.explain(plan, 512, &Filter::default()).unwrap();
        assert!(words.contains("Index Scan using") && words.contains("point_idx"), "{words}");
        let sorted = index.explain(Plan::Sort, 512, &Filter::default()).unwrap();
        assert!(!sorted.contains("point_idx"), "{sorted}");
        let queries = queries(&reader, 30, 52);
        let exact = ExactIndex::new(&reader).unwrap();
        let effort = index.effort_for(0.99).expect("some effort reached it");
        let recall = recall_at_k(&index, &exact, queries.view(), 10, effort).unwrap();
        assert!(recall.mean >= 0.95, "{recall:?} {:?}", index.curve());
        assert!(index.curve().k == 10 && index.curve().n_queries == 64);
        // Whatever was found was scored by the store.
        let truth = exact.search_many(queries.view(), 3000, Effort::default()).unwrap();
        for (found, truth) in index.search_many(queries.view(), 10, effort).unwrap().iter().zip(&truth) {
            assert!(found.iter().all(|hit| truth.contains(hit)));
        }
    }

    #[test]
    #[ignore = "needs a server: tests/conformance/pgvector/run.sh"]
    fn filters_and_deletions_hold_on_the_graph_and_for_those_who_come_later() {
        let (reader, name) = (clustered(2400, 32, 8, 53), name());
        let mut index = PgVectorIndex::build(&reader, &address(), &name, eager()).unwrap();
        let queries = queries(&reader, 8, 54);
        let exact = ExactIndex::new(&reader).unwrap();
        let gone: Vec<ExampleId> =
            exact.search_many(queries.view(), 3, Effort::new(1)).unwrap().concat().iter().map(|hit| hit.id).collect();
        index.delete(gone.clone()).unwrap();
        index.delete(gone.clone()).unwrap();
        let reopened = PgVectorIndex::open(&reader, &address(), &name).unwrap().unwrap();
        assert!(reopened.deleted().eq(index.deleted()) && reopened.unknown().is_empty());
        assert_eq!(reopened.curve(), index.curve());
        for filter in [Filter::default(), Filter::datasets([1]), Filter::datasets([0, 2]).without([gone[0]])] {
            let all = filter.clone().without(gone.iter().copied());
            let truth = exact.search_filtered(queries.view(), 10, Effort::new(1), &all).unwrap();
            for index in [&index, &reopened] {
                let found = index.search_filtered(queries.view(), 10, Effort::new(60), &filter).unwrap();
                let n_common: usize = (truth.iter().zip(&found))
                    .map(|(truth, found)| truth.iter().filter(|hit| found.contains(hit)).count())
                    .sum();
                assert!(n_common >= 76, "{n_common} of 80 under {filter:?}");
                assert!(found.iter().flatten().all(|hit| all.allows(hit.id)));
            }
        }
        assert!(PgVectorIndex::open(&reader, &address(), "never_built").unwrap().is_none());
    }

    #[test]
    #[ignore = "needs a server: tests/conformance/pgvector/run.sh"]
    fn rows_longer_than_pgvector_indexes_are_projected() {
        let (dim, n) = (4300, 300);
        let mut stream = Stream::new(55, "pgvector-test/rows");
        let rows = Array2::from_shape_fn((n, dim), |_| stream.normal() as f32);
        let ids = (0..n as u32).map(|i| ExampleId { dataset: i % 2, idx: i }).collect();
        let reader = MemoryReader::new(gradient_spec(&[dim]), ids, rows, 100);
        let index = built(&reader, eager()).unwrap();
        assert_eq!(index.point_dim(), ascribe_pgvector::POINT_DIM_PROJECTED);
        // A row is its own best hit by far, in whatever projection.
        let asked = reader.rows().slice(ndarray::s![..60, ..]);
        let found = index.search_many(asked, 1, Effort::new(16)).unwrap();
        let n_right = found.iter().enumerate().filter(|(row, hits)| hits[0].row == *row as u64).count();
        assert!(n_right >= 58, "{n_right} of 60");
        let whole = clustered(40, ascribe_pgvector::POINT_DIM_MAX, 3, 56);
        assert_eq!(built(&whole, eager()).unwrap().point_dim(), ascribe_pgvector::POINT_DIM_MAX);
    }

    #[test]
    #[ignore = "needs a server: tests/conformance/pgvector/run.sh"]
    fn an_index_outlives_lost_and_new_rows_and_refuses_other_ones() {
        let name = name();
        let reader = clustered(400, 40, 6, 57);
        PgVectorIndex::build(&reader, &address(), &name, PgParams::default()).unwrap();
        let all = clustered(409, 40, 6, 57);
        let left: Vec<usize> = (0..409).filter(|i| *i >= 400 || i % 10 != 4).collect();
        let ids = left.iter().map(|&i| all.ids()[i]).collect();
        let later = MemoryReader::new(reader.spec().clone(), ids, all.rows().select(Axis(0), &left), 64);
        let index = PgVectorIndex::open(&later, &address(), &name).unwrap().unwrap();
        assert_eq!(index.unknown().len(), 9);
        let queries = queries(&later, 12, 58);
        let hits = |index: &dyn VectorIndex| index.search_many(queries.view(), 8, Effort::new(300)).unwrap();
        assert_eq!(hits(&index), hits(&ExactIndex::new(&later).unwrap()));
        let only = Filter::datasets([0]);
        let filtered =
            |index: &dyn VectorIndex| index.search_filtered(queries.view(), 8, Effort::new(300), &only).unwrap();
        assert_eq!(filtered(&index), filtered(&ExactIndex::new(&later).unwrap()));
        let mut spec = reader.spec().clone();
        spec.checkpoint = "other".into();
        let other = MemoryReader::new(spec, reader.ids().to_vec(), reader.rows().clone(), 64);
        let refused = |reader: &MemoryReader| PgVectorIndex::open(reader, &address(), &name).map(drop).unwrap_err();
        assert!(matches!(refused(&other), IndexError::SpecMismatch { .. }));
        assert!(matches!(refused(&clustered(500, 40, 6, 57)), IndexError::SpecMismatch { .. }));
        // A new build takes the place of the old one.
        PgVectorIndex::build(&later, &address(), &name, PgParams::default()).unwrap();
        assert!(PgVectorIndex::open(&later, &address(), &name).unwrap().unwrap().unknown().is_empty());
    }

    #[test]
    #[ignore = "needs a server: tests/conformance/pgvector/run.sh"]
    fn a_build_that_fails_leaves_the_index_as_it_was() {
        let name = name();
        let reader = clustered(200, 40, 4, 59);
        let index = PgVectorIndex::build(&reader, &address(), &name, PgParams::default()).unwrap();
        let broken = Broken(clustered(200, 40, 4, 60));
        let error = PgVectorIndex::build(&broken, &address(), &name, PgParams::default()).map(drop).unwrap_err();
        assert!(error.to_string().contains("cannot read"), "{error}");
        let queries = queries(&reader, 3, 61);
        let reopened = PgVectorIndex::open(&reader, &address(), &name).unwrap().unwrap();
        let hits = |index: &dyn VectorIndex| index.search_many(queries.view(), 8, Effort::new(30)).unwrap();
        assert_eq!(hits(&reopened), hits(&index));
        assert_eq!(reopened.curve(), index.curve());
    }

    /// A reader whose last block breaks when it is read for the second time: norms come first, then the build.
    struct Broken(MemoryReader);

    #[derive(Debug)]
    struct Gone;

    impl std::fmt::Display for Gone {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the disk is gone")
        }
    }

    impl std::error::Error for Gone {}

    static N_READ: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

    impl FeatureReader for Broken {
        type Error = Gone;
        fn spec(&self) -> &ascribe_core::FeatureSpec {
            self.0.spec()
        }
        fn n_rows(&self) -> u64 {
            self.0.n_rows()
        }
        fn n_blocks(&self) -> usize {
            self.0.n_blocks()
        }
        fn block_ids(&self, block_idx: usize) -> Result<std::borrow::Cow<'_, [ExampleId]>, Gone> {
            self.0.block_ids(block_idx).map_err(|_| Gone)
        }
        fn block(&self, block_idx: usize) -> Result<ascribe_core::Features<'_>, Gone> {
            if block_idx + 1 == self.n_blocks() && N_READ.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0 {
                return Err(Gone);
            }
            self.0.block(block_idx).map_err(|_| Gone)
        }
    }
}
