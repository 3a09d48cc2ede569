//! Score files.
