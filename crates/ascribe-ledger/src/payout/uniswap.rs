//! `uniswap.json`: the claims file of Uniswap's merkle distributor.
//!
//! Leaf = `keccak(encodePacked(uint256 index, address, uint256 amount))`, 84 bytes, hashed once. The index is the rank of the
//! mixed-case address text. Leaves are sorted by hash; a layer's odd last node moves up unchanged, which is another shape
//! than OpenZeppelin's. Amounts are hexadecimal in whole bytes.

use std::io::{self, Write};

use sha3::{Digest as _, Keccak256};

use crate::account::EvmAddress;
use crate::error::LedgerError;
use crate::payout::chain::ChainAmounts;
use crate::payout::merkle::{Hash, hash_text, parent, put_hash_line};

/// One claim of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    text: String,
    account: EvmAddress,
    amount: u128,
    /// Place of the leaf in the sorted bottom layer.
    place: usize,
}

/// The distributor's tree with its claims in the order of their indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniswapTree {
    claims: Vec<Claim>,
    total: u128,
    layers: Vec<Vec<Hash>>,
}

impl UniswapTree {
    /// Builds the tree. Cost: `2n` hashes and one sort.
    ///
    /// # Errors
    /// [`LedgerError::EmptyTree`], [`LedgerError::Overflow`] when the total passes 128 bits.
    pub fn build(amounts: &ChainAmounts) -> Result<Self, LedgerError> {
        if amounts.amounts.is_empty() {
            return Err(LedgerError::EmptyTree);
        }
        let claim =
            |&(account, amount): &(EvmAddress, u128)| Claim { text: account.to_string(), account, amount, place: 0 };
        let mut claims: Vec<Claim> = amounts.amounts.iter().map(claim).collect();
        claims.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        let leaf = |(index, claim): (usize, &Claim)| (leaf_hash(index as u64, claim.account, claim.amount), index);
        let mut bottom: Vec<(Hash, usize)> = claims.iter().enumerate().map(leaf).collect();
        bottom.sort_unstable();
        for (place, (_, index)) in bottom.iter().enumerate() {
            claims[*index].place = place;
        }
        let mut layers = vec![bottom.into_iter().map(|(hash, _)| hash).collect::<Vec<Hash>>()];
        while let Some(last) = layers.last().filter(|layer| layer.len() > 1) {
            let up = |pair: &[Hash]| if let [a, b] = pair { parent(a, b) } else { pair[0] };
            layers.push(last.chunks(2).map(up).collect());
        }
        Ok(Self { claims, total: amounts.total()?, layers })
    }

    /// What the contract is given.
    pub fn root(&self) -> Hash {
        self.layers[self.layers.len() - 1][0]
    }

    /// Account, amount and proof of the claim of that index.
    pub fn claim(&self, index: usize) -> Option<(EvmAddress, u128, Vec<Hash>)> {
        let claim = self.claims.get(index)?;
        Some((claim.account, claim.amount, self.proof(claim.place)))
    }

    fn proof(&self, place: usize) -> Vec<Hash> {
        self.siblings(place).copied().collect()
    }

    fn siblings(&self, place: usize) -> impl Iterator<Item = &Hash> {
        (0u32..).zip(&self.layers).filter_map(move |(level, layer)| layer.get((place >> level) ^ 1))
    }

    /// Writes what `JSON.stringify(parseBalanceMap(…), null, 2)` gives, and a line feed.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let (root, total) = (hash_text(&self.root()), hex_amount(self.total));
        write!(out, "{{\n  \"merkleRoot\": \"{root}\",\n  \"tokenTotal\": \"{total}\",\n  \"claims\": {{")?;
        for (index, claim) in self.claims.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let amount = hex_amount(claim.amount);
            write!(
                out,
                "{comma}\n    \"{}\": {{\n      \"index\": {index},\n      \"amount\": \"{amount}\",\n      \"proof\": [",
                claim.text
            )?;
            let mut n_hashes = 0;
            for hash in self.siblings(claim.place) {
                if n_hashes > 0 {
                    out.write_all(b",")?;
                }
                put_hash_line(8, hash, out)?;
                n_hashes += 1;
            }
            out.write_all(if n_hashes == 0 { b"]" } else { b"\n      ]" })?;
            out.write_all(b"\n    }")?;
        }
        out.write_all(b"\n  }\n}\n")
    }
}

/// `keccak(encodePacked(index, account, amount))`.
fn leaf_hash(index: u64, account: EvmAddress, amount: u128) -> Hash {
    let mut packed = [0u8; 84];
    packed[24..32].copy_from_slice(&index.to_be_bytes());
    packed[32..52].copy_from_slice(&account.0);
    packed[68..84].copy_from_slice(&amount.to_be_bytes());
    Keccak256::digest(packed).into()
}

/// `0x` and whole bytes, as ethers prints a big number.
fn hex_amount(amount: u128) -> String {
    let bytes = amount.to_be_bytes();
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(15);
    format!("0x{}", hex::encode(&bytes[first..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payout::chain::tests::toy;

    #[test]
    fn amounts_are_whole_bytes() {
        for (amount, text) in [(0, "0x00"), (1, "0x01"), (16, "0x10"), (256, "0x0100"), (0xabcdef, "0xabcdef")] {
            assert_eq!(hex_amount(amount), text);
        }
    }

    /// Every proof leads to the root, of every shape of tree, and a single claim has none.
    #[test]
    fn proofs_lead_to_the_root() {
        for n in 1..=33u8 {
            let tree =
                UniswapTree::build(&toy(&(1..=n).map(|n| (n, u128::from(n) * 1000)).collect::<Vec<_>>())).unwrap();
            for index in 0..usize::from(n) {
                let (account, amount, proof) = tree.claim(index).unwrap();
                let leaf = leaf_hash(index as u64, account, amount);
                assert_eq!(proof.iter().fold(leaf, |node, sibling| parent(&node, sibling)), tree.root());
                let forged = leaf_hash(index as u64, account, amount + 1);
                assert_ne!(proof.iter().fold(forged, |node, sibling| parent(&node, sibling)), tree.root());
            }
            let mut bytes = Vec::new();
            tree.write(&mut bytes).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(value["claims"].as_object().unwrap().len(), usize::from(n));
            // The hand-written layout is that of a pretty printer; `preserve_order` is off, but so few keys are sorted anyway.
            assert_eq!(value["merkleRoot"], hash_text(&tree.root()));
        }
        assert_eq!(UniswapTree::build(&toy(&[])), Err(LedgerError::EmptyTree));
    }

    /// The rank is that of the mixed-case text, where upper case comes before lower case.
    #[test]
    fn indices_follow_the_text() {
        let tree = UniswapTree::build(&toy(&[(0xa1, 1), (0xb2, 2), (0xc3, 3), (0xd4, 4)])).unwrap();
        let texts: Vec<String> = (0..4).map(|index| tree.claim(index).unwrap().0.to_string()).collect();
        let mut sorted = texts.clone();
        sorted.sort();
        assert_eq!(texts, sorted);
    }
}
