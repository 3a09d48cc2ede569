//! numpy arrays in and out. What comes in is borrowed and must have the type that it is asked for: a silent conversion would be a
//! copy that nobody sees, and of f64 gradients also a rounding.

use numpy::{
    Element, PyArray1, PyArray2, PyArrayDescrMethods, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::error::{type_error, value_error};

/// Name of a number type as numpy has it.
pub trait Named: Element {
    /// `float32`, …
    const NAME: &'static str;
}

impl Named for f32 {
    const NAME: &'static str = "float32";
}

impl Named for f64 {
    const NAME: &'static str = "float64";
}

impl Named for u64 {
    const NAME: &'static str = "uint64";
}

impl Named for u32 {
    const NAME: &'static str = "uint32";
}

impl Named for bool {
    const NAME: &'static str = "bool";
}

fn checked<'a, 'py, T: Named>(what: &str, array: &'a Bound<'py, PyAny>, n_dims: usize) -> PyResult<()> {
    let Ok(untyped) = array.cast::<PyUntypedArray>() else {
        let found = array.get_type().name()?.to_string();
        return Err(type_error(what, format!("a numpy array of {}", T::NAME), found, "numpy.asarray(x)"));
    };
    if !untyped.dtype().is_equiv_to(&numpy::dtype::<T>(array.py())) {
        let hint = format!("x.astype(numpy.{})", T::NAME);
        return Err(type_error(what, T::NAME, untyped.dtype().str()?, &hint));
    }
    if untyped.ndim() != n_dims {
        let found = format!("{} dimensions, shape {:?}", untyped.ndim(), untyped.shape());
        return Err(value_error(what, format!("{n_dims} dimensions"), found));
    }
    if !untyped.is_c_contiguous() {
        let found = "an array that is not C-contiguous; hint: numpy.ascontiguousarray(x)";
        return Err(value_error(what, "rows side by side in memory", found));
    }
    Ok(())
}

/// A matrix `[n, m]`, borrowed.
///
/// # Errors
/// `TypeError` for another type, `ValueError` for another number of dimensions or gaps between numbers.
pub fn matrix<'py, T: Named>(what: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray2<'py, T>> {
    checked::<T>(what, array, 2)?;
    let array: &Bound<'py, PyArray2<T>> = array.cast()?;
    array.try_readonly().map_err(|_| value_error(what, "an array that nobody writes to", "one that is being written"))
}

/// A vector `[n]`, borrowed.
///
/// # Errors
/// As [`matrix`].
pub fn vector<'py, T: Named>(what: &str, array: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, T>> {
    checked::<T>(what, array, 1)?;
    let array: &Bound<'py, PyArray1<T>> = array.cast()?;
    array.try_readonly().map_err(|_| value_error(what, "an array that nobody writes to", "one that is being written"))
}
