//! x402: HTTP 402 quotes, signed authorisations (scheme `exact`, EIP-3009), settlement on a chain.
//!
//! Source: the x402 specification, versions 1 and 2, with its `exact` scheme for EVM chains; EIP-3009; EIP-712; EIP-155. The order is
//! quote → verify → answer → settle → credit: nothing is credited before the chain's receipt says that the money has moved.

pub mod authorization;
pub mod chain;
pub mod node;
pub mod paywall;
pub mod transaction;
pub mod wire;

pub use authorization::{Authorization, TokenDomain};
pub use chain::{Chain, Receipt};
pub use node::{Node, Relayer};
pub use paywall::{Offer, Paywall, Settlement, Verified};
pub use wire::{Payment, Resource};
