//! Factor files.
