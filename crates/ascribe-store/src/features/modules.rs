//! A query may use some modules only: the columns of these, of all rows.

use std::borrow::Cow;
use std::ops::Range;

use ascribe_core::{Column, FeatureReader, FeatureSpec, Features};
use ndarray::{Array2, ArrayView2, s};

use super::reader::FeatureStore;
use crate::error::StoreError;

/// The columns of some modules of a store, as rows of their own. Their spec is another one (fewer columns), so that they are
/// not mistaken for whole rows.
#[derive(Debug)]
pub struct Modules<'a> {
    store: &'a FeatureStore,
    spec: FeatureSpec,
    ranges: Vec<Range<usize>>,
}

impl FeatureStore {
    /// The columns of the modules named: by whole names, or by what stands before a dot (`layers.0` is all of that layer), in
    /// the order of the store.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] if a name fits no module, listing some that there are.
    pub fn modules(&self, names: &[&str]) -> Result<Modules<'_>, StoreError> {
        let fits = |column: &Column, name: &str| {
            column.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let columns = &self.header().spec.columns;
        if let Some(name) = names.iter().find(|name| !columns.iter().any(|c| fits(c, name))) {
            let some: Vec<&str> = columns.iter().take(6).map(|c| c.name.as_str()).collect();
            let expected = format!("one of {} ({}, …)", columns.len(), some.join(", "));
            return Err(StoreError::malformed(&self.paths.header(), "module", expected, name));
        }
        let mut spec = self.header().spec.clone();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        (spec.columns, spec.dim) = (Vec::new(), 0);
        for column in columns.iter().filter(|c| names.iter().any(|name| fits(c, name))) {
            spec.columns.push(Column { name: column.name.clone(), start: spec.dim, len: column.len });
            spec.dim += column.len;
            match ranges.last_mut() {
                Some(last) if last.end == column.start => last.end += column.len,
                _ => ranges.push(column.start..column.start + column.len),
            }
        }
        Ok(Modules { store: self, spec, ranges })
    }
}

impl Modules<'_> {
    /// Columns of the store that are used, in order.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Rows `[n, dim of the store]` with zeros in all other columns: with such a query a scan of whole rows, and its error
    /// bound, is a scan of these modules.
    pub fn mask(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut out = Array2::zeros(rows.dim());
        for range in &self.ranges {
            out.slice_mut(s![.., range.clone()]).assign(&rows.slice(s![.., range.clone()]));
        }
        out
    }

    /// Whole rows cut to these modules.
    pub fn cut(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut out = Array2::zeros((rows.nrows(), self.spec.dim));
        let mut at = 0;
        for range in &self.ranges {
            out.slice_mut(s![.., at..at + range.len()]).assign(&rows.slice(s![.., range.clone()]));
            at += range.len();
        }
        out
    }
}

impl FeatureReader for Modules<'_> {
    type Error = StoreError;

    fn spec(&self) -> &FeatureSpec {
        &self.spec
    }

    fn n_rows(&self) -> u64 {
        self.store.n_rows()
    }

    fn n_blocks(&self) -> usize {
        self.store.n_blocks()
    }

    fn block(&self, block_idx: usize) -> Result<Features<'_>, StoreError> {
        let whole = self.store.block(block_idx)?;
        let ids = Cow::Owned(whole.ids.into_owned());
        Ok(Features { ids, rows: self.cut(whole.rows.view()).into() })
    }
}
