//! Payout formats: what leaves the house for banks, chains and accountants. Values in, bytes out; each format has a
//! reader that recomputes what it can and refuses a file that its own writer would not have written.

pub mod csv;
pub mod merkle;
