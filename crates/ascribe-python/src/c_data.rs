//! Arrow's C data interface, by hand: structs whose memory is ours until the reader releases it.
//!
//! Layout: Arrow columnar format, "The Arrow C data interface" and "The Arrow C stream interface". A table goes out as one struct
//! array whose children are its columns, or as a stream of that one array for readers that know streams alone (DuckDB); buffers are
//! those of the table itself, kept alive by the array.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use pyo3::ffi;
use pyo3::prelude::*;

use crate::table::{Column, Columns};

const SCHEMA_NAME: &CStr = c"arrow_schema";
const ARRAY_NAME: &CStr = c"arrow_array";
const STREAM_NAME: &CStr = c"arrow_array_stream";

#[repr(C)]
struct ArrowSchema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut ArrowSchema,
    dictionary: *mut ArrowSchema,
    release: Option<unsafe extern "C" fn(*mut ArrowSchema)>,
    private_data: *mut c_void,
}

#[repr(C)]
struct ArrowArray {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut ArrowArray,
    dictionary: *mut ArrowArray,
    release: Option<unsafe extern "C" fn(*mut ArrowArray)>,
    private_data: *mut c_void,
}

#[repr(C)]
struct ArrowArrayStream {
    get_schema: Option<unsafe extern "C" fn(*mut ArrowArrayStream, *mut ArrowSchema) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut ArrowArrayStream, *mut ArrowArray) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut ArrowArrayStream) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut ArrowArrayStream)>,
    private_data: *mut c_void,
}

/// What an exported stream owns: its table, and whether the one array is still to come.
struct StreamParts {
    table: Arc<Columns>,
    to_come: bool,
}

/// What an exported schema owns.
struct SchemaParts {
    _format: CString,
    _name: CString,
    children: Vec<*mut ArrowSchema>,
}

/// What an exported array owns: its buffers' list, its children, and a hold on the table.
struct ArrayParts {
    _table: Arc<Columns>,
    buffers: Vec<*const c_void>,
    children: Vec<*mut ArrowArray>,
}

// SAFETY: for readers alone, who call it once, with a schema that `schema_of` filled.
unsafe extern "C" fn release_schema(schema: *mut ArrowSchema) {
    // SAFETY: the interface calls this once, with a struct that `schema_of` filled; `private_data` is the box that it leaked,
    // and each child is a box of its own whose `release` is null once a reader has moved it out.
    unsafe {
        let parts = Box::from_raw((*schema).private_data.cast::<SchemaParts>());
        for &child in &parts.children {
            free_schema(&mut Box::from_raw(child));
        }
        (*schema).release = None;
    }
}

// SAFETY: for readers alone, who call it once, with an array that `array_of` filled.
unsafe extern "C" fn release_array(array: *mut ArrowArray) {
    // SAFETY: as `release_schema`, for a struct that `array_of` filled.
    unsafe {
        let parts = Box::from_raw((*array).private_data.cast::<ArrayParts>());
        for &child in &parts.children {
            free_array(&mut Box::from_raw(child));
        }
        (*array).release = None;
    }
}

fn free_schema(schema: &mut ArrowSchema) {
    if let Some(release) = schema.release {
        // SAFETY: not released yet, so this is the one call.
        unsafe { release(schema) }
    }
}

fn free_array(array: &mut ArrowArray) {
    if let Some(release) = array.release {
        // SAFETY: not released yet, so this is the one call.
        unsafe { release(array) }
    }
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

fn schema_of(format: &str, name: &str, children: Vec<ArrowSchema>) -> ArrowSchema {
    let children = children.into_iter().map(|child| Box::into_raw(Box::new(child))).collect();
    let mut parts = Box::new(SchemaParts { _format: c_string(format), _name: c_string(name), children });
    ArrowSchema {
        format: parts._format.as_ptr(),
        name: parts._name.as_ptr(),
        metadata: ptr::null(),
        flags: 0,
        n_children: parts.children.len() as i64,
        children: parts.children.as_mut_ptr(),
        dictionary: ptr::null_mut(),
        release: Some(release_schema),
        private_data: Box::into_raw(parts).cast(),
    }
}

fn array_of(table: &Arc<Columns>, length: usize, buffers: Vec<*const c_void>, children: Vec<ArrowArray>) -> ArrowArray {
    let children = children.into_iter().map(|child| Box::into_raw(Box::new(child))).collect();
    let mut parts = Box::new(ArrayParts { _table: Arc::clone(table), buffers, children });
    ArrowArray {
        length: length as i64,
        null_count: 0,
        offset: 0,
        n_buffers: parts.buffers.len() as i64,
        n_children: parts.children.len() as i64,
        buffers: parts.buffers.as_mut_ptr(),
        children: parts.children.as_mut_ptr(),
        dictionary: ptr::null_mut(),
        release: Some(release_array),
        private_data: Box::into_raw(parts).cast(),
    }
}

fn column_array(table: &Arc<Columns>, column: &Column) -> ArrowArray {
    // The first buffer is the validity bitmap: none, nothing is null.
    let buffers = match column {
        Column::U32(values) => vec![ptr::null(), values.as_ptr().cast()],
        Column::U64(values) => vec![ptr::null(), values.as_ptr().cast()],
        Column::F32(values) => vec![ptr::null(), values.as_ptr().cast()],
        Column::F64(values) => vec![ptr::null(), values.as_ptr().cast()],
        Column::Text { offsets, bytes } => vec![ptr::null(), offsets.as_ptr().cast(), bytes.as_ptr().cast()],
    };
    array_of(table, column.len(), buffers, vec![])
}

/// The pair of capsules (schema, array) of a table.
///
/// # Errors
/// No memory.
pub fn capsules<'py>(py: Python<'py>, table: &Arc<Columns>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let array = Box::new(table_array(table));
    // SAFETY: the capsule takes the box; its destructor frees it, after releasing what no reader has taken.
    let array = unsafe { capsule(py, Box::into_raw(array).cast(), ARRAY_NAME, drop_array)? };
    Ok((schema_capsule(py, table)?, array))
}

/// The capsule of a table's schema.
///
/// # Errors
/// No memory.
pub fn schema_capsule<'py>(py: Python<'py>, table: &Arc<Columns>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as in `capsules`.
    unsafe { capsule(py, Box::into_raw(Box::new(table_schema(table))).cast(), SCHEMA_NAME, drop_schema) }
}

/// The capsule of a stream that brings the table as one array.
///
/// # Errors
/// No memory.
pub fn stream_capsule<'py>(py: Python<'py>, table: &Arc<Columns>) -> PyResult<Bound<'py, PyAny>> {
    let parts = Box::new(StreamParts { table: Arc::clone(table), to_come: true });
    let stream = Box::new(ArrowArrayStream {
        get_schema: Some(stream_schema),
        get_next: Some(stream_next),
        get_last_error: Some(stream_error),
        release: Some(release_stream),
        private_data: Box::into_raw(parts).cast(),
    });
    // SAFETY: as in `capsules`.
    unsafe { capsule(py, Box::into_raw(stream).cast(), STREAM_NAME, drop_stream) }
}

fn table_schema(table: &Columns) -> ArrowSchema {
    let fields = table.names.iter().zip(&table.columns);
    schema_of("+s", "", fields.map(|(name, column)| schema_of(column.format(), name, vec![])).collect())
}

fn table_array(table: &Arc<Columns>) -> ArrowArray {
    let children = table.columns.iter().map(|column| column_array(table, column)).collect();
    array_of(table, table.n_rows, vec![ptr::null()], children)
}

// SAFETY: for readers, with a stream of `stream_capsule` that is not released, and room for a schema.
unsafe extern "C" fn stream_schema(stream: *mut ArrowArrayStream, out: *mut ArrowSchema) -> c_int {
    // SAFETY: an unreleased stream holds its parts; `out` is the reader's and uninitialised, so it is written, not assigned.
    unsafe {
        let parts = (*stream).private_data.cast::<StreamParts>();
        out.write(table_schema(&(*parts).table));
    }
    0
}

// SAFETY: as `stream_schema`. A reader calls one function of a stream at a time, as the interface demands.
unsafe extern "C" fn stream_next(stream: *mut ArrowArrayStream, out: *mut ArrowArray) -> c_int {
    // SAFETY: as in `stream_schema`.
    unsafe {
        let parts = (*stream).private_data.cast::<StreamParts>();
        if std::mem::replace(&mut (*parts).to_come, false) {
            out.write(table_array(&(*parts).table));
        } else {
            // An array that is released already is the end; all zeros is one.
            out.write_bytes(0, 1);
        }
    }
    0
}

/// Nothing in a stream can fail.
extern "C" fn stream_error(_: *mut ArrowArrayStream) -> *const c_char {
    ptr::null()
}

// SAFETY: for readers, who call it once.
unsafe extern "C" fn release_stream(stream: *mut ArrowArrayStream) {
    // SAFETY: the parts are a leaked box of `stream_capsule`; without `release` nobody frees them again.
    unsafe {
        drop(Box::from_raw((*stream).private_data.cast::<StreamParts>()));
        (*stream).release = None;
    }
}

// SAFETY: for the interpreter alone, which calls it once, with a capsule of `stream_capsule`.
unsafe extern "C" fn drop_stream(capsule: *mut ffi::PyObject) {
    // SAFETY: only made by `stream_capsule`, so the pointer under this name is its box; a reader that took the stream left `release`
    // empty.
    unsafe {
        let pointer = ffi::PyCapsule_GetPointer(capsule, STREAM_NAME.as_ptr()).cast::<ArrowArrayStream>();
        if !pointer.is_null() {
            let mut stream = Box::from_raw(pointer);
            if let Some(release) = stream.release {
                release(&raw mut *stream);
            }
        }
    }
}

// SAFETY: the caller hands over a leaked box and the destructor that frees such a box.
unsafe fn capsule<'py>(
    py: Python<'py>,
    pointer: *mut c_void,
    name: &'static CStr,
    destructor: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: `name` is static, `pointer` a leaked box that `destructor` frees; a null result is an exception.
    unsafe {
        let object = ffi::PyCapsule_New(pointer, name.as_ptr(), Some(destructor));
        Bound::from_owned_ptr_or_err(py, object)
    }
}

// SAFETY: for the interpreter alone, which calls it once, with a capsule of `schema_capsule`.
unsafe extern "C" fn drop_schema(capsule: *mut ffi::PyObject) {
    // SAFETY: only made by `schema_capsule`, so the pointer under this name is its box.
    unsafe {
        let pointer = ffi::PyCapsule_GetPointer(capsule, SCHEMA_NAME.as_ptr()).cast::<ArrowSchema>();
        if !pointer.is_null() {
            free_schema(&mut Box::from_raw(pointer));
        }
    }
}

// SAFETY: for the interpreter alone, which calls it once, with a capsule of `capsules`.
unsafe extern "C" fn drop_array(capsule: *mut ffi::PyObject) {
    // SAFETY: only made by `capsules`, so the pointer under this name is its box.
    unsafe {
        let pointer = ffi::PyCapsule_GetPointer(capsule, ARRAY_NAME.as_ptr()).cast::<ArrowArray>();
        if !pointer.is_null() {
            free_array(&mut Box::from_raw(pointer));
        }
    }
}
