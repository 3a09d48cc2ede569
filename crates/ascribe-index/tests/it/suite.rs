//! The contract, on every implementation of this crate, and what only some of them can be asked.

use ascribe_index::{Effort, ExactIndex, GraphBuilder, HnswIndex, HnswParams, IndexError, VectorIndex};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::Array2;

use crate::contract::{ALL, clustered, contract, queries};

fn small() -> HnswParams {
    HnswParams { point_dim: 24, n_graphs: 3, ..HnswParams::default() }
}

contract!(exact, |reader| Ok(Box::new(ExactIndex::new(reader)?)));
contract!(hnsw, |reader| Ok(Box::new(HnswIndex::build(reader, small())?)));
contract!(hnsw_in_batches, |reader| {
    let params = HnswParams { builder: GraphBuilder::Batches, ..small() };
    Ok(Box::new(HnswIndex::build(reader, params)?))
});

#[test]
fn exact_hits_do_not_depend_on_the_blocks() {
    let reader = clustered(500, 40, 6, 3);
    let queries = queries(&reader, 70, 4);
    let search = |reader: &MemoryReader| {
        ExactIndex::new(reader).unwrap().search_many(queries.view(), 10, Effort::new(10)).unwrap()
    };
    let whole = search(&reader);
    for rows_per_block in [1, 17, 500] {
        assert_eq!(search(&reader.with_rows_per_block(rows_per_block)), whole);
    }
}

#[test]
fn refusals_are_typed() {
    let empty = MemoryReader::new(gradient_spec(&[40]), vec![], Array2::zeros((0, 40)), 8);
    assert!(matches!(ExactIndex::new(&empty).unwrap_err(), IndexError::EmptyStore));
    assert!(matches!(HnswIndex::build(&empty, small()).unwrap_err(), IndexError::EmptyStore));
    let mut rows = clustered(60, 40, 3, 9).rows().clone();
    rows[(37, 2)] = f32::NAN;
    let ids = (0..60).map(|idx| ascribe_core::ExampleId { dataset: 0, idx }).collect();
    let reader = MemoryReader::new(gradient_spec(&[40]), ids, rows, 16);
    let query = ndarray::Array1::<f32>::ones(40);
    let error = ExactIndex::new(&reader).unwrap().search(query.view(), 1, ALL).unwrap_err();
    assert!(matches!(error, IndexError::RowNotFinite { row: 37 }), "{error}");
    let error = HnswIndex::build(&reader, small()).unwrap_err();
    assert!(matches!(error, IndexError::RowNotFinite { row: 37 }), "{error}");
}
