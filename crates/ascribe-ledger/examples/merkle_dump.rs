//! Payout trees for the outside check in `tests/conformance/merkle`.
//!
//! `merkle_dump N` writes, for trees of 1 to N leaves, one JSON line each with the bytes of the dump, the root and all
//! proofs. `merkle_dump < merkle.json` reads a dump through the verifying reader and writes one such line for it.

use std::error::Error;
use std::io::{self, Read as _, Write as _};

use ascribe_ledger::payout::merkle::hash_text;
use ascribe_ledger::{EvmAddress, PayoutLeaf, PayoutTree};
use sha3::{Digest as _, Keccak256};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = io::stdout().lock();
    if let Some(most) = std::env::args().nth(1) {
        for n_leaves in 1..=most.parse::<u32>()? {
            writeln!(out, "{}", line(&PayoutTree::build((0..n_leaves).map(leaf).collect())?)?)?;
        }
    } else {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        writeln!(out, "{}", line(&PayoutTree::from_json(&bytes)?)?)?;
    }
    Ok(())
}

/// A leaf from a counter: addresses by hash, amounts from 0 to 2^128 - 1, two tokens.
fn leaf(n: u32) -> PayoutLeaf {
    let hash = Keccak256::digest(n.to_be_bytes());
    let (mut account, mut amount) = ([0u8; 20], [0u8; 16]);
    account.copy_from_slice(&hash[..20]);
    amount.copy_from_slice(&hash[16..]);
    let amount = match n {
        0 => 0,
        1 => u128::MAX,
        _ => u128::from_be_bytes(amount) >> (n % 128),
    };
    PayoutLeaf { account: EvmAddress(account), token: EvmAddress([n as u8 % 2; 20]), amount }
}

fn line(tree: &PayoutTree) -> Result<String, Box<dyn Error>> {
    let proofs: Vec<Vec<String>> = (0..tree.leaves().len())
        .map(|idx| tree.proof(idx).unwrap_or_default().iter().map(hash_text).collect())
        .collect();
    let dump = String::from_utf8(tree.to_json()?)?;
    let line = serde_json::json!({ "dump": dump, "root": hash_text(&tree.root()), "proofs": proofs });
    Ok(line.to_string())
}
