//! The walk: one function per station, from registered records to paid shares.

pub mod report;
