//! What the gradient methods refuse, word for word where a person reads it.

use std::io;

use ascribe_core::{ExampleId, FeatureReader, FeatureSpec, Features, NoProgress, Progress};
use ascribe_methods::block_fisher::{self, Covariance};
use ascribe_methods::{MethodError, dot};
use ascribe_testkit::{MemoryReader, gradient_spec};
use ndarray::{Array2, s};

use crate::support::{queries, reader};

fn with_value(row: usize, column: usize, value: f32) -> MemoryReader {
    let plain = reader(600, &[4, 3], 2);
    let mut rows = plain.rows().clone();
    rows[(row, column)] = value;
    MemoryReader::new(plain.spec().clone(), plain.ids().to_vec(), rows, 100)
}

#[test]
fn nan_names_row_block_example_and_module() {
    let error = Covariance::fit(&with_value(555, 5, f32::NAN), &NoProgress).unwrap_err();
    assert_eq!(
        error.to_string(),
        "training rows, row 555 (block 5, example 1:255), module block.1 (its column 1): expected a finite number, found NaN"
    );
    let query = queries(1, 7).mapv(f64::from);
    let infinite = with_value(3, 0, f32::NEG_INFINITY);
    let error = dot::score(&infinite, query.view(), None, &NoProgress).unwrap_err().to_string();
    assert!(error.starts_with("training rows, row 3 (block 0, example 0:3), module block.0"), "{error}");
    assert!(error.ends_with("found -inf"), "{error}");
}

#[test]
fn a_nan_query_is_named() {
    let factors = Covariance::fit(&reader(50, &[4, 3], 2), &NoProgress).unwrap().cholesky(0.1).unwrap();
    let mut query = queries(3, 7);
    query[(2, 1)] = f32::NAN;
    let error = block_fisher::precondition(&factors, query.view()).unwrap_err().to_string();
    assert!(error.contains("query rows, row 2") && error.contains("module block.0 (its column 1)"), "{error}");
    let error = block_fisher::precondition(&factors, queries(1, 6).view()).unwrap_err().to_string();
    assert_eq!(error, "columns of the query rows: expected 7, found 6");
}

#[test]
fn rank_deficiency_without_damping_names_module_and_pivot() {
    // Two equal columns in the second module.
    let plain = reader(50, &[2, 2], 1);
    let mut rows = plain.rows().clone();
    let copy = rows.slice(s![.., 2]).to_owned();
    rows.slice_mut(s![.., 3]).assign(&copy);
    let rows = MemoryReader::new(plain.spec().clone(), plain.ids().to_vec(), rows, 50);
    let covariance = Covariance::fit(&rows, &NoProgress).unwrap();
    let error = covariance.cholesky(0.0).unwrap_err();
    assert!(error.to_string().contains("curvature of module block.1 cannot be inverted"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("pivot 1 of 2 is not positive"), "{source}");
    let error = covariance.spectrum().unwrap().damped(0.0).unwrap_err();
    assert!(error.to_string().contains("module block.1"), "{error}");
    assert!(covariance.cholesky(1e-6).is_ok());
    assert!(covariance.spectrum().unwrap().damped(1e-6).is_ok());
}

#[test]
fn damping_must_be_a_number() {
    let covariance = Covariance::fit(&reader(50, &[4], 2), &NoProgress).unwrap();
    for bad in [f64::NAN, -0.1, f64::INFINITY] {
        let error = covariance.cholesky(bad).unwrap_err().to_string();
        assert!(error.starts_with("damping_rel must be finite and not negative, found"), "{error}");
        assert!(covariance.spectrum().unwrap().damped(bad).is_err());
    }
}

#[test]
fn no_rows_is_an_error() {
    let empty = MemoryReader::new(gradient_spec(&[3]), Vec::new(), Array2::zeros((0, 3)), 5);
    assert_eq!(Covariance::fit(&empty, &NoProgress).unwrap_err().to_string(), "the set of training rows is empty");
}

#[test]
fn one_dataset_and_more_datasets_than_rows_work() {
    let one = reader(5, &[3], 1);
    let sums = dot::dataset_sums(&one, 1, None, &NoProgress).unwrap();
    let query = queries(2, 3).mapv(f64::from);
    assert_eq!(dot::dataset_scores(query.view(), sums.view()).unwrap().dim(), (2, 1));
    let sums = dot::dataset_sums(&one, 9, None, &NoProgress).unwrap();
    assert!(sums.slice(s![1.., ..]).iter().all(|&v| v == 0.0));
    let error = dot::dataset_sums(&reader(10, &[3], 5), 4, None, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("dataset ordinal: expected \"below 4\""), "{error}");
}

#[test]
fn column_groups_must_cover_the_row() {
    let mut spec = gradient_spec(&[2, 3]);
    spec.columns[1].start = 3;
    let rows = MemoryReader::new(spec, vec![ExampleId { dataset: 0, idx: 0 }], Array2::zeros((1, 5)), 1);
    let error = Covariance::fit(&rows, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("a group that starts at 2") && error.contains("block.1 at 3"), "{error}");
}

/// A reader whose second block cannot be read.
struct Torn(MemoryReader);

impl FeatureReader for Torn {
    type Error = io::Error;
    fn spec(&self) -> &FeatureSpec {
        self.0.spec()
    }
    fn n_rows(&self) -> u64 {
        self.0.n_rows()
    }
    fn n_blocks(&self) -> usize {
        self.0.n_blocks()
    }
    fn block(&self, block_idx: usize) -> io::Result<Features<'_>> {
        match block_idx {
            1 => Err(io::Error::other("shard 1 is torn")),
            _ => Ok(self.0.block(block_idx).unwrap_or_else(|never| match never {})),
        }
    }
}

#[test]
fn a_torn_block_keeps_its_cause() {
    let error = Covariance::fit(&Torn(reader(30, &[3], 1).with_rows_per_block(10)), &NoProgress).unwrap_err();
    assert_eq!(error.to_string(), "block 1 of the feature rows cannot be read");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "shard 1 is torn");
}

/// A user who asks to stop at once.
struct Impatient;

impl Progress for Impatient {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self, _: &str) {}
    fn stop_requested(&self) -> bool {
        true
    }
}

#[test]
fn a_request_to_stop_is_heard() {
    assert!(matches!(Covariance::fit(&reader(30, &[3], 1), &Impatient), Err(MethodError::Stopped)));
}
