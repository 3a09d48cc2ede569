//! Tables: columns of one length, for numpy, Arrow and everything that reads either.
#![allow(unsafe_code)]

use std::sync::Arc;

use ndarray::ArrayView1;
use numpy::{Element, PyArray1};
use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::c_data;
use crate::error::{AscribeError, value_error};

/// One column. Nothing in it is null.
#[derive(Debug)]
pub enum Column {
    /// Unsigned, 32 bits.
    U32(Vec<u32>),
    /// Unsigned, 64 bits.
    U64(Vec<u64>),
    /// Single precision.
    F32(Vec<f32>),
    /// Double precision.
    F64(Vec<f64>),
    /// UTF-8, end to end; one offset more than there are texts.
    Text {
        /// Where each text begins.
        offsets: Vec<i32>,
        /// The texts.
        bytes: Vec<u8>,
    },
}

impl Column {
    /// A column of texts.
    ///
    /// # Errors
    /// More than 2³¹ bytes of them.
    pub fn text<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> PyResult<Self> {
        let (mut offsets, mut bytes) = (vec![0], Vec::new());
        for text in texts {
            bytes.extend_from_slice(text.as_ref().as_bytes());
            let end = i32::try_from(bytes.len());
            offsets.push(end.map_err(|_| AscribeError::new_err("a column of texts has more than 2 GiB"))?);
        }
        Ok(Self::Text { offsets, bytes })
    }

    /// Rows.
    pub fn len(&self) -> usize {
        match self {
            Self::U32(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Text { offsets, .. } => offsets.len() - 1,
        }
    }

    /// Arrow's word for the type.
    pub const fn format(&self) -> &'static str {
        match self {
            Self::U32(_) => "I",
            Self::U64(_) => "L",
            Self::F32(_) => "f",
            Self::F64(_) => "g",
            Self::Text { .. } => "u",
        }
    }
}

/// What a table holds.
#[derive(Debug)]
pub struct Columns {
    /// Names of the columns.
    pub names: Vec<String>,
    /// The columns.
    pub columns: Vec<Column>,
    /// Their length.
    pub n_rows: usize,
}

/// Columns of one length. `column(name)` borrows numbers as a read-only numpy array; `__arrow_c_array__` and
/// `__arrow_c_stream__` hand all of it to pyarrow, polars or DuckDB without a copy.
#[pyclass(frozen, module = "ascribe")]
pub struct Table {
    inner: Arc<Columns>,
}

impl Table {
    /// A table of named columns.
    ///
    /// # Panics
    /// If columns have different lengths, which would be a defect here.
    pub fn of(columns: Vec<(&str, Column)>) -> Self {
        let n_rows = columns.first().map_or(0, |(_, column)| column.len());
        assert!(columns.iter().all(|(_, column)| column.len() == n_rows), "columns of a table have one length");
        let (names, columns) = columns.into_iter().map(|(name, column)| (name.to_owned(), column)).unzip();
        Self { inner: Arc::new(Columns { names, columns, n_rows }) }
    }
}

#[pymethods]
impl Table {
    #[getter]
    fn names(&self) -> Vec<String> {
        self.inner.names.clone()
    }

    #[getter]
    fn n_rows(&self) -> usize {
        self.inner.n_rows
    }

    fn __len__(&self) -> usize {
        self.inner.n_rows
    }

    /// Numbers as a read-only array that lies in the table; texts as a list.
    fn column<'py>(slf: &Bound<'py, Self>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let table = slf.get();
        let Some(i) = table.inner.names.iter().position(|n| n == name) else {
            let names = table.inner.names.join(", ");
            return Err(PyKeyError::new_err(format!("no column {name:?}; there are: {names}")));
        };
        match &table.inner.columns[i] {
            Column::U32(values) => borrowed(slf, values),
            Column::U64(values) => borrowed(slf, values),
            Column::F32(values) => borrowed(slf, values),
            Column::F64(values) => borrowed(slf, values),
            Column::Text { offsets, bytes } => {
                let texts =
                    offsets.windows(2).map(|ends| String::from_utf8_lossy(&bytes[ends[0] as usize..ends[1] as usize]));
                Ok(texts.collect::<Vec<_>>().into_pyobject(slf.py())?.into_any())
            }
        }
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        // The protocol lets a producer ignore a wish that it cannot fulfil.
        let _ = requested_schema;
        c_data::capsules(py, &self.inner)
    }

    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = requested_schema; // as above
        c_data::stream_capsule(py, &self.inner)
    }

    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        c_data::schema_capsule(py, &self.inner)
    }
}

fn borrowed<'py, T: Element>(table: &Bound<'py, Table>, values: &[T]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the numbers live as long as the table, which the array holds; a frozen class never changes them.
    let array = unsafe { PyArray1::borrow_from_array(&ArrayView1::from(values), table.clone().into_any()) };
    read_only(array.into_any())
}

/// Takes the right to write from an array that lies in memory of ours.
///
/// # Errors
/// What numpy refuses.
pub fn read_only(array: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let arguments = PyDict::new(array.py());
    arguments.set_item("write", false)?;
    array.call_method("setflags", (), Some(&arguments))?;
    Ok(array)
}

/// A figure of `[0, 1]` or the like that must be a number.
///
/// # Errors
/// `ValueError`.
pub fn finite(what: &str, value: f64) -> PyResult<f64> {
    if value.is_finite() { Ok(value) } else { Err(value_error(what, "a finite number", value)) }
}
