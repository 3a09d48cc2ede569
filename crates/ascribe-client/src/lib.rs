//! A blocking client of an Ascribe server, typed after its contract (`/openapi.json`).
//!
//! ```no_run
//! use ascribe_client::{AttributionRequest, Client};
//!
//! let client = Client::new("http://127.0.0.1:8080")?;
//! let answer = client.attribute(&AttributionRequest::of("The capital of France is", " Paris.").with_receipt())?;
//! for share in answer.shares.iter().take(3) {
//!     println!("{} {:.1} % [{:.1}, {:.1}]", share.dataset, 100.0 * share.share, 100.0 * share.low, 100.0 * share.high);
//! }
//! # Ok::<(), ascribe_client::ClientError>(())
//! ```
//!
//! Here live the contract's types and one function per route. Here never lives what the server knows: no model, no money, no
//! signature is checked here (the receipt is handed on as the bytes that were signed; `ascribe log` checks it). Nothing of the
//! workspace is used, so that an inference stack pays for an HTTP client and nothing else.

mod client;
mod error;
mod rows;
mod sold;
mod types;

pub use client::{Client, ClientBuilder, Lines};
pub use error::{ClientError, Problem};
pub use rows::Rows;
pub use sold::{Balance, Customer, PaidIn, Pay};
pub use types::{
    Approx, Attribution, AttributionRequest, Audit, AuditLine, Dataset, Datasets, Earned, Example, Examples, Filter,
    Health, Hit, Index, IndexRef, Keys, Method, OperatorKey, Receipt, Reloaded, Revenue, Share, Source, Span,
    Statement, StatementRow, Token, VerbatimRun,
};
