//! Projection matrices and random words, so that a collector in another language draws what Rust draws.

use ascribe_core::FeatureSpec;
use ascribe_linalg::{Stream, TwoSided};
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::prelude::*;

use crate::error::{OrRaise, value_error};

/// `P_in` and `P_out`.
type Sides<'py> = (Bound<'py, PyArray2<f32>>, Bound<'py, PyArray2<f32>>);

/// Sides larger than this are no layer's.
const FAN_MAX: usize = 1 << 24;

/// The pair `(P_in [fan_in, k_in], P_out [fan_out, k_out])` of a module's two-sided projection: `P_outᵀ·G·P_in`. A side that is not
/// wider than its k is the identity.
#[pyfunction]
pub fn two_sided<'py>(
    py: Python<'py>,
    seed: u64,
    module: &str,
    fan_in: usize,
    fan_out: usize,
    k_in: usize,
    k_out: usize,
) -> PyResult<Sides<'py>> {
    for (what, width) in [("fan_in", fan_in), ("fan_out", fan_out), ("k_in", k_in), ("k_out", k_out)] {
        if width == 0 || width > FAN_MAX {
            return Err(value_error(what, format!("1 to {FAN_MAX}"), width));
        }
    }
    let TwoSided { p_in, p_out } = py.detach(|| TwoSided::new(seed, module, fan_in, fan_out, k_in, k_out));
    Ok((p_in.into_pyarray(py), p_out.into_pyarray(py)))
}

/// Words `first .. first + n` of the stream `name` under `seed`.
#[pyfunction]
pub fn stream_words<'py>(
    py: Python<'py>,
    seed: u64,
    name: &str,
    first: u64,
    n: usize,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    if n > 1 << 30 {
        return Err(value_error("n", "at most 2^30", n));
    }
    let stream = Stream::new(seed, name);
    let words = py.detach(|| (0..n as u64).map(|i| stream.at(first.wrapping_add(i))).collect::<Vec<_>>());
    Ok(words.into_pyarray(py))
}

/// A feature spec out of its JSON. Columns that no row has are refused here: a writer would take them, a reader would not.
pub fn parse_spec(json: &str) -> PyResult<FeatureSpec> {
    let wrong = |error| value_error("feature spec", "the JSON of a feature spec", error);
    let spec: FeatureSpec = serde_json::from_str(json).map_err(wrong)?;
    let beyond = |end: Option<usize>| end.is_none_or(|end| end > spec.dim);
    if let Some(column) = spec.columns.iter().find(|column| beyond(column.start.checked_add(column.len))) {
        let found = format!("`{}` from {} on, {} of them", column.name, column.start, column.len);
        return Err(value_error("feature spec", format!("columns below {}", spec.dim), found));
    }
    Ok(spec)
}

/// The spec as canonical JSON, and its SHA-256 in hex.
#[pyfunction]
pub fn spec_hash(json: &str) -> PyResult<(String, String)> {
    let spec = parse_spec(json)?;
    Ok((serde_json::to_string(&spec).or_raise()?, spec.hash().to_string()))
}
