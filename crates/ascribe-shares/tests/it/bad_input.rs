//! What the policy step must refuse, and in which words.

use ascribe_core::QueryId;
use ascribe_shares::{DatasetEntry, Evidence, InfluenceProportional, OwnerMap, SharePolicy, SharesError, Values};
use ndarray::{Array2, Array3};

use crate::toy::{intervals, owners, provenance, queries};

struct Inputs {
    queries: Vec<QueryId>,
    values: Array2<f64>,
    intervals: Array3<f64>,
    coverage: f64,
    noise_floor: Option<f64>,
}

impl Inputs {
    fn good() -> Self {
        let (values, intervals) = (Array2::from_elem((3, 4), 0.25), intervals(3, 0.1, 0.6));
        Self { queries: queries(3), values, intervals, coverage: 0.5, noise_floor: None }
    }

    fn run(&self) -> Result<(), SharesError> {
        let values = match self.noise_floor {
            None => Values::Calibrated(self.values.view()),
            Some(noise_floor) => Values::Raw { scores: self.values.view(), noise_floor },
        };
        let (queries, intervals, coverage) = (&self.queries, self.intervals.view(), self.coverage);
        let evidence = Evidence { queries, values, intervals, coverage, provenance: provenance() };
        InfluenceProportional::default().shares(&evidence, &owners()).map(|_| ())
    }
}

fn refuses(change: impl FnOnce(&mut Inputs), words: &str) {
    let mut inputs = Inputs::good();
    inputs.run().unwrap();
    change(&mut inputs);
    let error = inputs.run().unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} lacks {words:?}");
}

#[test]
fn numbers_that_are_none() {
    refuses(|i| i.values[[1, 2]] = f64::NAN, "share of response 1, dataset 2: NaN is not a finite number");
    refuses(|i| i.values[[2, 3]] = f64::INFINITY, "share of response 2, dataset 3: inf is not a finite number");
    refuses(
        |i| {
            i.noise_floor = Some(0.0);
            i.values[[0, 0]] = f64::NEG_INFINITY;
        },
        "score of response 0, dataset 0: -inf is not a finite number",
    );
    refuses(|i| i.values[[1, 2]] = -1e-300, "calibrated share of response 1, dataset 2 is -0.00");
    refuses(|i| i.intervals[[0, 1, 0]] = f64::NAN, "lower end of the interval of response 0, dataset 1: NaN");
    refuses(|i| i.intervals[[0, 1, 1]] = f64::INFINITY, "upper end of the interval of response 0, dataset 1: inf");
    refuses(|i| i.intervals[[0, 1, 0]] = 0.7, "response 0, dataset 1: lower end 0.7 is above upper end 0.6");
    for bad in [f64::NAN, -0.1, 1.1] {
        refuses(|i| i.coverage = bad, "coverage: expected a number from 0 to 1");
    }
    for bad in [f64::NAN, -0.1, f64::INFINITY] {
        refuses(|i| i.noise_floor = Some(bad), "noise floor: expected a finite number of at least 0");
    }
}

#[test]
fn shapes_and_labels() {
    refuses(|i| i.values = Array2::zeros((3, 5)), "scores: expected shape [3, 4], found [3, 5]");
    refuses(|i| i.values = Array2::zeros((2, 4)), "scores: expected shape [3, 4], found [2, 4]");
    refuses(|i| i.intervals = Array3::zeros((3, 4, 1)), "intervals: expected shape [3, 4, 2], found [3, 4, 1]");
    refuses(|i| i.queries[2] = i.queries[0], "duplicate response 10");
}

#[test]
fn owner_maps() {
    let refuses = |change: fn(&mut Vec<DatasetEntry>), words: &str| {
        let mut entries = owners().datasets().to_vec();
        change(&mut entries);
        let error = OwnerMap::new(entries).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
    };
    refuses(|e| e[1].uuid = e[0].uuid.clone(), "duplicate dataset uuid urn:uuid:");
    refuses(|e| e[1].name = e[0].name.clone(), "duplicate dataset name set-0");
    refuses(|e| e[1].owner = String::new(), "bad owner \"\"");
    refuses(|e| e[1].owner = "Ada ".into(), "bad owner \"Ada \"");
    refuses(|e| e[1].owner = "a\u{7}".into(), "bad owner");
    let unknown = owners().dataset(4).unwrap_err();
    assert_eq!(unknown.to_string(), "unknown dataset ordinal 4; the registry has 4");
}
