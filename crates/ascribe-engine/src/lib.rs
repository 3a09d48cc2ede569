//! The walk: one function per station, from registered records to paid shares.
//!
//! Here lives the order of things: what reads what, what is resumed, what an audit recomputes. Here never lives:
//! mathematics (methods, eval), policy (shares), bytes of a format (store, ledger), terminals or HTTP (doors).

pub mod attacks;
pub mod audit;
pub mod bank;
pub mod bench;
pub mod demo;
pub mod error;
pub mod evidence;
pub mod files;
pub mod home;
pub mod lab;
pub mod machine;
pub mod nll;
pub mod outside;
pub mod recipe;
pub mod report;
pub mod reputation;
pub mod respond;
pub mod run_file;
pub mod search;
pub mod speed;
pub mod store;
pub mod summary;
pub mod tokens;
pub mod train;
pub mod upon;
pub mod values;
pub mod verbatim;
pub mod walk;

pub use ascribe_eval::Estimate;
pub use ascribe_methods::combine::{HeldOut, Origin};
pub use error::EngineError;
pub use home::Home;

/// The model that the demo explains.
pub const DEFAULT_MODEL: &str = "wren";
