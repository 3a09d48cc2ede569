//! The report: one self-contained HTML page that a person reads.
//!
//! [`render`] turns [`ReportData`] into the page: checked at the door (`check`), numbers and texts written (`format`),
//! figures laid out (`figures`), all of it gathered in the order of the page (`view`), drawn by `template.html` with
//! `style.css` and `script.js` inside. Here never lives measurement: what the page shows was computed upstream, and a
//! figure that is not in [`ReportData`] is either a plain mean of what is there or not on the page.
//!
//! The page fetches nothing and is complete with scripts off; the script adds a filter, a switch that
//! opens every response, and jumps from the map.

mod check;
pub mod data;
mod figures;
mod format;
pub(crate) mod page;
#[cfg(test)]
mod tests;
mod view;

pub use check::{MAX_DATASETS, MAX_RESPONSES};
pub use data::ReportData;

/// Why a report was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A number is NaN or infinite.
    #[error(
        "report field `{field}` must be a finite number, found {found}; the station that measured it has to say why"
    )]
    NotFinite {
        /// Path of the field in [`ReportData`].
        field: String,
        /// The number.
        found: f64,
    },
    /// A number lies outside its range.
    #[error("report field `{field}` must lie between {low} and {high}, found {found}")]
    OutOfRange {
        /// Path of the field in [`ReportData`].
        field: String,
        /// The number.
        found: f64,
        /// Least value allowed.
        low: f64,
        /// Greatest value allowed.
        high: f64,
    },
    /// A list has the wrong length.
    #[error("report list `{field}` must have {least} to {most} entries, found {found}")]
    Length {
        /// Path of the list in [`ReportData`].
        field: String,
        /// Its length.
        found: usize,
        /// Least length allowed.
        least: usize,
        /// Greatest length allowed.
        most: usize,
    },
    /// An ordinal names no dataset.
    #[error("report field `{field}` names dataset {found}, expected an ordinal below {n_datasets}")]
    UnknownDataset {
        /// Path of the field in [`ReportData`].
        field: String,
        /// The ordinal.
        found: u32,
        /// Number of registered datasets.
        n_datasets: usize,
    },
    /// The default method is not among the measured ones.
    #[error("report names `{found}` as the default method, expected one of: {expected}")]
    UnknownDefault {
        /// The name.
        found: String,
        /// The measured methods.
        expected: String,
    },
    /// The page could not be drawn: a fault of the template, not of the data.
    #[error("the report template failed: {0}")]
    Template(#[from] minijinja::Error),
    /// The values could not be handed to the template.
    #[error("the report values could not be handed to the template: {0}")]
    Values(#[from] serde_json::Error),
}

/// Draws the page.
///
/// Every text is escaped, and characters that are invisible or that reorder their neighbours are shown as what they
/// are. The page carries a content policy that allows no request and no script but its own, so that an escape gone
/// wrong still runs nothing. Same data, same bytes. Cost: about 12 kB and 0.2 ms per response.
///
/// # Errors
/// [`ReportError::NotFinite`], [`ReportError::OutOfRange`], [`ReportError::Length`], [`ReportError::UnknownDataset`] or
/// [`ReportError::UnknownDefault`], each with the path of the field, if the data cannot be shown as it is. The
/// `calibrated*` fields of the ceiling row are not shown and may hold anything.
pub fn render(data: &ReportData) -> Result<String, ReportError> {
    check::check(data)?;
    page::draw(&view::page(data))
}
