//! Stores of factored rows (LoRIF): how a row is laid out, and rows multiplied out for whoever takes inner products of them.

use std::borrow::Cow;
use std::path::Path;

use ascribe_core::{ExampleId, FeatureReader, FeatureSpec, Features, ProjectorSpec};
use ascribe_methods::MethodError;
use ascribe_methods::lorif::{Expanded, Layout};
use ascribe_store::{FeatureStore, StoreError};
use ndarray::{ArrayView2, CowArray, Ix2};
use pyo3::prelude::*;

use crate::error::{OrRaise, SearchError, value_error};

/// File in a store's folder: per module `[o, i]` of the matrix that is kept as factors, or null where columns are kept whole. A spec
/// alone does not tell the shape of a module that is narrower than the projection.
pub const FILE: &str = "layout.json";

/// A layout longer than this is no model's.
const LEN_MAX: u64 = 64 << 20;

/// The layout of the rows of the store in `path`; none if they are no factors.
///
/// # Errors
/// A layout file that does not fit the spec.
pub fn of(spec: &FeatureSpec, path: &Path) -> PyResult<Option<Layout>> {
    let ProjectorSpec::Factored { rank, .. } = spec.projector else { return Ok(None) };
    let file = path.join(FILE);
    let shapes: Vec<Option<[usize; 2]>> = match std::fs::metadata(&file) {
        Err(_) => return Ok(Some(Layout::of_spec(spec).or_raise()?)),
        Ok(found) if found.len() > LEN_MAX => return Err(value_error(FILE, "a small file", found.len())),
        Ok(_) => serde_json::from_slice(&std::fs::read(&file)?)
            .map_err(|error| value_error(FILE, "a shape or null per module", error))?,
    };
    if shapes.iter().flatten().flatten().any(|&side| side == 0 || side > 1 << 24) {
        return Err(value_error(FILE, "sides of 1 to 2^24", "others"));
    }
    Ok(Some(Layout::new(&spec.columns, &shapes, rank).or_raise()?))
}

/// Keeps the layout file with the rows: `to` gets what `from` has.
///
/// # Errors
/// The disk's.
pub fn carry(from: &Path, to: &Path) -> PyResult<()> {
    if from.join(FILE).exists() {
        std::fs::copy(from.join(FILE), to.join(FILE))?;
    }
    Ok(())
}

/// Refuses what reads stored rows as gradients: `what` it is that was asked for.
///
/// # Errors
/// `SearchError` where rows are factors.
pub fn refuse_factors(what: &str, spec: &FeatureSpec) -> PyResult<()> {
    if matches!(spec.projector, ProjectorSpec::Factored { .. }) {
        let text = format!(
            "{what}: expected rows that are gradients as they lie, found factors (LoRIF); hint: score() multiplies them out, as \
             expand() does"
        );
        return Err(SearchError::new_err(text));
    }
    Ok(())
}

/// The rows of a store as methods read them: as they are, or factors multiplied out.
pub enum Rows<'a> {
    /// As stored.
    Stored(&'a FeatureStore),
    /// Multiplied out.
    Expanded(Box<Expanded<'a, FeatureStore>>),
}

impl<'a> Rows<'a> {
    /// Reads `store`, whose layout is `layout`.
    ///
    /// # Errors
    /// A layout of other columns.
    pub fn new(store: &'a FeatureStore, layout: Option<&'a Layout>) -> Result<Self, MethodError> {
        Ok(match layout {
            Some(layout) => Self::Expanded(Box::new(Expanded::new(store, layout)?)),
            None => Self::Stored(store),
        })
    }
}

impl FeatureReader for Rows<'_> {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        match self {
            Self::Stored(store) => store.spec(),
            Self::Expanded(rows) => rows.spec(),
        }
    }

    fn n_rows(&self) -> u64 {
        match self {
            Self::Stored(store) => store.n_rows(),
            Self::Expanded(rows) => rows.n_rows(),
        }
    }

    fn n_blocks(&self) -> usize {
        match self {
            Self::Stored(store) => store.n_blocks(),
            Self::Expanded(rows) => rows.n_blocks(),
        }
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, Self::Error> {
        match self {
            Self::Stored(store) => store.block(block_idx),
            Self::Expanded(rows) => rows.block(block_idx),
        }
    }

    fn block_ids(&self, block_idx: usize) -> Result<Cow<'_, [ExampleId]>, Self::Error> {
        match self {
            Self::Stored(store) => store.block_ids(block_idx),
            Self::Expanded(rows) => rows.block_ids(block_idx),
        }
    }

    fn rows_at(&self, block_idx: usize, places: &[u32]) -> Result<Features<'_>, Self::Error> {
        match self {
            Self::Stored(store) => store.rows_at(block_idx, places),
            Self::Expanded(rows) => rows.rows_at(block_idx, places),
        }
    }
}

/// Queries as methods take them: factors are multiplied out, rows that already are stay as they are.
///
/// # Errors
/// None for what has the stored width.
pub fn queries<'a>(layout: Option<&Layout>, rows: ArrayView2<'a, f32>) -> Result<CowArray<'a, f32, Ix2>, MethodError> {
    match layout {
        Some(layout) if rows.ncols() == layout.stored_dim() => Ok(layout.expand_rows(rows)?.into()),
        _ => Ok(rows.into()),
    }
}
