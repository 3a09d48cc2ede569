//! Payout formats: what leaves the house for banks, chains and accountants. Values in, bytes out, through any writer; formats
//! that carry numbers back in have a reader that recomputes what it can and refuses what its own writer would not have written.

pub mod books;
pub mod chain;
pub mod csv;
pub mod merkle;
pub mod pain001;
pub mod safe;
pub mod splits;
pub mod uniswap;
