//! What a paywall asks of a chain.

use ascribe_ledger::EvmAddress;

use crate::error::BookError;
use crate::x402::authorization::Authorization;

/// What a chain says about a transaction that it has taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// False when it was reverted.
    pub success: bool,
    /// Blocks on it, itself included.
    pub confirmations: u64,
    /// True when the token says in its log that this very amount moved from payer to payee.
    pub moved: bool,
}

/// A chain with a token that knows EIP-3009.
pub trait Chain: Send + Sync {
    /// True once the token has seen the authorisation's nonce.
    ///
    /// # Errors
    /// [`BookError::Chain`].
    fn is_used(&self, token: EvmAddress, payer: EvmAddress, nonce: &[u8; 32]) -> Result<bool, BookError>;

    /// What an address holds.
    ///
    /// # Errors
    /// [`BookError::Chain`].
    fn balance(&self, token: EvmAddress, holder: EvmAddress) -> Result<u128, BookError>;

    /// Sends the authorisation to the token; returns the hash of the transaction.
    ///
    /// # Errors
    /// [`BookError::Chain`], also when the token would refuse it.
    fn send(&self, token: EvmAddress, what: &Authorization, signature: &[u8; 65]) -> Result<String, BookError>;

    /// The transaction in which the token used this authorisation, whoever sent it; nothing while it is unused.
    ///
    /// # Errors
    /// [`BookError::Chain`].
    fn find(&self, token: EvmAddress, what: &Authorization) -> Result<Option<String>, BookError>;

    /// The receipt of a transaction, once it is in a block.
    ///
    /// # Errors
    /// [`BookError::Chain`].
    fn receipt(&self, token: EvmAddress, what: &Authorization, transaction: &str)
    -> Result<Option<Receipt>, BookError>;
}
