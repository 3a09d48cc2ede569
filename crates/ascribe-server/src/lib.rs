//! HTTP over the engine: per-response attribution, receipts, shares, and the explorer page.
//!
//! Here lives what a wire needs: routes and their contract, who may ask and how often, queues and time limits, receipts that are
//! durable before an answer leaves, reloading without a failed request, an orderly end. Here never lives: how a response is
//! attributed (`ascribe_engine::respond`), what a receipt is (registry), who is paid what (ledger).
//!
//! The path of a request: `serve` accepts → `routes::observe` gives it an id, a place and a time limit → a route reads and checks
//! it → `generation` queues it for a worker of the material that is loaded now → `answer` turns the engine's answer into the wire's
//! and into a receipt → `receipts` makes that durable → the answer leaves.

pub mod answer;
pub mod app;
pub mod audit;
pub mod config;
pub mod earned;
pub mod error;
pub mod generation;
pub mod keys;
pub mod logging;
pub mod metrics;
pub mod openapi;
pub mod page;
mod params;
pub mod prepaid;
pub mod problem;
pub mod queue;
pub mod receipts;
pub mod routes;
pub mod serve;
pub mod shop;
pub mod socket;
pub mod traces;
pub mod wire;
pub mod x402;

pub use config::{Config, Settings};
pub use error::ServerError;
pub use generation::Source;
pub use serve::run;
