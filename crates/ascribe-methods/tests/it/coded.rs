//! Coded rows: what scores keep, what bytes cost, what is refused.

use ascribe_core::{FeatureReader as _, NoProgress};
use ascribe_linalg::Code;
use ascribe_methods::block_fisher::{self, Covariance};
use ascribe_methods::coded::{CodedRows, Coding, Groups, whiten_queries};
use ascribe_methods::dot;
use ascribe_testkit::MemoryReader;
use ndarray::Array2;

use crate::support::{queries, reader, relative, with_threads};

fn correlation(a: &Array2<f32>, b: &Array2<f64>) -> f64 {
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&x, &y) in a.iter().zip(b) {
        let x = f64::from(x);
        (ab, aa, bb) = (ab + x * y, aa + x * x, bb + y * y);
    }
    ab / (aa * bb).sqrt()
}

const GROUPS: [usize; 2] = [64, 33];

fn coding(code: Code) -> Coding {
    Coding { code, groups: Groups::Row, rotation: Some(5) }
}

/// Whitened rows are isotropic: the scores' correlation with exact ones is that of the rows, √(1 − lost).
#[test]
fn whitened_rows_keep_influence_in_few_bits() {
    let (train, query) = (reader(900, &GROUPS, 3), queries(8, 97));
    let factors = Covariance::fit(&train, &NoProgress).unwrap().cholesky(0.01).unwrap();
    let solved = block_fisher::precondition(&factors, query.view()).unwrap();
    let exact = solved.dot(&train.rows().mapv(f64::from).t());
    let white = whiten_queries(&factors, query.view()).unwrap();
    for (code, bytes, lost) in [
        (Code::Int8, 101, 1e-4),
        (Code::Four, 53, 0.012),
        (Code::Two, 29, 0.13),
        (Code::Ternary, 24, 0.21),
        (Code::Sign, 17, 0.39),
    ] {
        let coded = CodedRows::encode(&train, coding(code), Some(&factors), &NoProgress).unwrap();
        assert_eq!((coded.bytes_per_example(), coded.bytes().len()), (bytes, 900 * bytes), "{code:?}");
        assert!(coded.lost() < lost, "{code:?}: {}", coded.lost());
        let found = dot::score(&coded, white.view(), None, &NoProgress).unwrap();
        assert_eq!(found.examples, train.ids());
        let (found, expected) = (correlation(&found.values, &exact), (1.0 - coded.lost()).sqrt());
        // 7,200 pairs of rows in 97 dimensions.
        assert!((found - expected).abs() < 0.02, "{code:?}: {found} {expected}");
        // The same bits spent on rows as they are: curvature magnifies what rounding did to the weak directions.
        if code != Code::Int8 {
            let plain = CodedRows::encode(&train, coding(code), None, &NoProgress).unwrap();
            let plain = dot::score(&plain, solved.view(), None, &NoProgress).unwrap();
            assert!(correlation(&plain.values, &exact) < found, "{code:?}");
        }
    }
}

#[test]
fn int8_without_whitening_is_the_row() {
    let train = reader(60, &GROUPS, 2);
    let how = Coding { code: Code::Int8, groups: Groups::Module, rotation: None };
    let coded = CodedRows::encode(&train, how, None, &NoProgress).unwrap();
    assert_eq!(coded.spec(), train.spec());
    assert_eq!(coded.bytes_per_example(), 97 + 8);
    let block = coded.block(0).unwrap();
    let (a, b) = (block.rows.mapv(f64::from), train.rows().mapv(f64::from));
    // Half a step of 1/127 of the largest number.
    assert!(relative(&a, &b) <= 0.5 / 127.0 + 1e-6);
}

#[test]
fn bytes_depend_on_neither_threads_nor_blocks() {
    let train = reader(1100, &GROUPS, 3);
    let factors = Covariance::fit(&train, &NoProgress).unwrap().cholesky(0.01).unwrap();
    let run = |rows: &MemoryReader| {
        CodedRows::encode(rows, coding(Code::Two), Some(&factors), &NoProgress).unwrap().bytes().to_vec()
    };
    let one = with_threads(1, || run(&train));
    for (threads, per_block) in [(2, 33), (3, 512), (1, 5000)] {
        assert_eq!(with_threads(threads, || run(&train.with_rows_per_block(per_block))), one);
    }
    let coded = CodedRows::encode(&train, coding(Code::Two), Some(&factors), &NoProgress).unwrap();
    let query = whiten_queries(&factors, queries(3, 97).view()).unwrap();
    let scores = |threads| with_threads(threads, || dot::score(&coded, query.view(), None, &NoProgress).unwrap());
    assert_eq!(scores(1), scores(3));
}

#[test]
fn parts_come_back_and_lies_are_named() {
    let train = reader(20, &GROUPS, 2);
    let factors = Covariance::fit(&train, &NoProgress).unwrap().cholesky(0.1).unwrap();
    let coded = CodedRows::encode(&train, coding(Code::Ternary), Some(&factors), &NoProgress).unwrap();
    assert_ne!(coded.spec().hash(), train.spec().hash());
    let (spec, ids, codec) = (coded.spec().clone(), coded.ids().to_vec(), coded.codec().clone());
    let parts = |bytes: Vec<u8>| CodedRows::from_parts(spec.clone(), ids.clone(), codec.clone(), bytes, coded.lost());
    let back = parts(coded.bytes().to_vec()).unwrap();
    assert_eq!(back.block(0).unwrap().rows, coded.block(0).unwrap().rows);
    assert!(parts(coded.bytes()[1..].to_vec()).unwrap_err().to_string().contains("bytes of the coded rows"));
    let mut bytes = coded.bytes().to_vec();
    let at = 7 * coded.bytes_per_example() + 4;
    bytes[at] = 255;
    assert!(parts(bytes).unwrap_err().to_string().contains("row 7"));
    // Whitened rows are not whitened again, and NaN has its name.
    assert!(CodedRows::encode(&coded, coding(Code::Sign), Some(&factors), &NoProgress).is_err());
    let mut rows = train.rows().clone();
    rows[(13, 70)] = f32::NAN;
    let nan = MemoryReader::new(train.spec().clone(), train.ids().to_vec(), rows, 100);
    let error = CodedRows::encode(&nan, coding(Code::Sign), None, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("row 13") && error.contains("block.1"), "{error}");
    let zeros = MemoryReader::new(train.spec().clone(), train.ids().to_vec(), Array2::zeros((20, 97)), 100);
    let none = CodedRows::encode(&zeros, coding(Code::Sign), None, &NoProgress).unwrap();
    assert_eq!(none.lost(), 0.0);
}
