//! The report: one self-contained HTML page. WIP

pub mod data;
pub use data::ReportData;
