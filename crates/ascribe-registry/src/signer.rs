//! What signs: one trait, whatever holds the key (a keystore file, a demo key; hardware and cloud keys later).

use crate::error::RegistryError;

/// Somebody who can sign. A secret never leaves it.
pub trait Signer {
    /// The licensor that its signatures prove: an EIP-55 address or a `did:key`.
    fn licensor(&self) -> String;

    /// Signs: for an address, the 32 bytes of an EIP-712 digest (r ‖ s ‖ v, low s); for a `did:key`, the bytes as they
    /// are (Ed25519, 64 bytes). The same bytes give the same signature.
    ///
    /// # Errors
    /// Whatever keeps the holder of the key from signing.
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, RegistryError>;
}
