//! `merkle.json`: the dump of an OpenZeppelin `StandardMerkleTree` over `(address account, address token, uint256 amount)`.
//!
//! Format `standard-v1`: leaf = `keccak(keccak(abi.encode(...)))`, leaves sorted by hash and laid from the end of a heap
//! array, parent = `keccak(smaller child ‖ larger child)`, root first. Amounts are cumulative over runs, so a leaf never
//! falls and a contract pays `amount - claimed`. Contracts and chains never live here.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Deserialize;
use sha3::{Digest as _, Keccak256};

use crate::account::{EvmAddress, put_hex};
use crate::amount::parse_integer;
use crate::error::{LedgerError, check_canonical};
use crate::journal_file::malformed;
use crate::settle::PayoutRow;

/// Types of a leaf, as the dump names them.
pub const LEAF_ENCODING: [&str; 3] = ["address", "address", "uint256"];
/// Largest dump that the reader accepts: some two million leaves.
pub const MERKLE_MAX_BYTES: usize = 1 << 30;

const FILE: &str = "merkle.json";
const FORMAT: &str = "standard-v1";

/// A keccak256 hash.
pub type Hash = [u8; 32];

/// One payee of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayoutLeaf {
    /// Who may claim.
    pub account: EvmAddress,
    /// The token's contract.
    pub token: EvmAddress,
    /// Claimable so far, in the token's minor units.
    pub amount: u128,
}

impl PayoutLeaf {
    /// `keccak(keccak(abi.encode(account, token, amount)))`: hashed twice so that no leaf passes for an inner node.
    pub fn hash(&self) -> Hash {
        let mut encoded = [0u8; 96];
        encoded[12..32].copy_from_slice(&self.account.0);
        encoded[44..64].copy_from_slice(&self.token.0);
        encoded[80..96].copy_from_slice(&self.amount.to_be_bytes());
        keccak(&keccak(&encoded))
    }
}

/// The tree with its leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayoutTree {
    leaves: Vec<PayoutLeaf>,
    tree_indices: Vec<usize>,
    tree: Vec<Hash>,
}

impl PayoutTree {
    /// Builds the tree; `leaves` keep their order in the dump.
    ///
    /// Cost: `3n` hashes.
    ///
    /// # Errors
    /// [`LedgerError::EmptyTree`], and [`LedgerError::Duplicate`] for an account that stands twice with one token.
    pub fn build(leaves: Vec<PayoutLeaf>) -> Result<Self, LedgerError> {
        if leaves.is_empty() {
            return Err(LedgerError::EmptyTree);
        }
        let mut seen: Vec<_> = leaves.iter().map(|leaf| (leaf.account, leaf.token)).collect();
        seen.sort_unstable();
        if let Some(pair) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(LedgerError::Duplicate { what: "leaf of", found: pair[0].0.to_string() });
        }
        drop(seen);
        let n_leaves = leaves.len();
        let hashes: Vec<Hash> = leaves.iter().map(PayoutLeaf::hash).collect();
        let mut order: Vec<usize> = (0..n_leaves).collect();
        order.sort_by(|a, b| hashes[*a].cmp(&hashes[*b]));
        let mut tree = vec![[0u8; 32]; 2 * n_leaves - 1];
        let mut tree_indices = vec![0; n_leaves];
        for (rank, leaf_idx) in order.into_iter().enumerate() {
            let at = tree.len() - 1 - rank;
            tree[at] = hashes[leaf_idx];
            tree_indices[leaf_idx] = at;
        }
        for node in (0..n_leaves - 1).rev() {
            tree[node] = parent(&tree[2 * node + 1], &tree[2 * node + 2]);
        }
        Ok(Self { leaves, tree_indices, tree })
    }

    /// The cumulative tree of a run: earlier leaves, plus what the rows pay to accounts on chain `chain_id` in `token`.
    ///
    /// Leaves are sorted by address; owners who share an account share a leaf. Rows on other chains or without an
    /// account are not part of it.
    ///
    /// # Errors
    /// [`LedgerError::EmptyTree`] when nobody can be paid there, [`LedgerError::Overflow`].
    pub fn of_rows(
        earlier: Option<&Self>,
        rows: &[PayoutRow],
        chain_id: u64,
        token: EvmAddress,
    ) -> Result<Self, LedgerError> {
        let mut amounts: BTreeMap<(EvmAddress, EvmAddress), u128> = BTreeMap::new();
        for leaf in earlier.iter().flat_map(|tree| &tree.leaves) {
            amounts.insert((leaf.account, leaf.token), leaf.amount);
        }
        for row in rows {
            let Some((chain, account)) = row.account.as_ref().and_then(crate::Caip10::evm) else {
                continue;
            };
            if chain != chain_id || row.amount.minor == 0 {
                continue;
            }
            let amount = amounts.entry((account, token)).or_default();
            *amount = amount.checked_add(row.amount.minor).ok_or(LedgerError::Overflow { what: "a leaf's amount" })?;
        }
        let leaf = |((account, token), amount)| PayoutLeaf { account, token, amount };
        Self::build(amounts.into_iter().map(leaf).collect())
    }

    /// Checks that `later` may follow this tree: no leaf vanished and none fell.
    ///
    /// # Errors
    /// [`LedgerError::LeafFell`].
    pub fn check_grows_into(&self, later: &Self) -> Result<(), LedgerError> {
        let now: BTreeMap<_, _> = later.leaves.iter().map(|leaf| ((leaf.account, leaf.token), leaf.amount)).collect();
        for leaf in &self.leaves {
            let amount = now.get(&(leaf.account, leaf.token)).copied().unwrap_or(0);
            if amount < leaf.amount {
                let account = leaf.account.to_string();
                return Err(LedgerError::LeafFell { account, before: leaf.amount, now: amount });
            }
        }
        Ok(())
    }

    /// The root: what a contract is given.
    pub fn root(&self) -> Hash {
        self.tree[0]
    }

    /// Leaves in the order of the dump.
    pub fn leaves(&self) -> &[PayoutLeaf] {
        &self.leaves
    }

    /// Sibling hashes from leaf `leaf_idx` up to the root; `None` past the last leaf.
    pub fn proof(&self, leaf_idx: usize) -> Option<Vec<Hash>> {
        let mut at = *self.tree_indices.get(leaf_idx)?;
        let mut proof = Vec::new();
        while at > 0 {
            proof.push(self.tree[if at % 2 == 1 { at + 1 } else { at - 1 }]);
            at = (at - 1) / 2;
        }
        Some(proof)
    }

    /// The bytes of `merkle.json`; see [`PayoutTree::write`].
    ///
    /// # Errors
    /// [`LedgerError::Unwritable`], which needs a defect of this crate.
    pub fn to_json(&self) -> Result<Vec<u8>, LedgerError> {
        let mut bytes = Vec::new();
        let unwritable = |error: io::Error| LedgerError::Unwritable { file: FILE, why: error.to_string() };
        self.write(&mut bytes).map_err(unwritable)?;
        Ok(bytes)
    }

    /// Writes what `JSON.stringify(tree.dump(), null, 2)` gives, and a line feed, piece by piece: a million leaves are half a gigabyte.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        write!(out, "{{\n  \"format\": \"{FORMAT}\",\n  \"leafEncoding\": [")?;
        for (idx, kind) in LEAF_ENCODING.iter().enumerate() {
            write!(out, "{}\n    \"{kind}\"", comma(idx))?;
        }
        out.write_all(b"\n  ],\n  \"tree\": [")?;
        for (idx, hash) in self.tree.iter().enumerate() {
            out.write_all(comma(idx).as_bytes())?;
            put_hash_line(4, hash, out)?;
        }
        out.write_all(b"\n  ],\n  \"values\": [")?;
        // Nearly all leaves are of one token, and its checksum is a hash.
        let mut last = self.leaves.first().map(|leaf| (leaf.token, leaf.token.text()));
        for (idx, (leaf, tree_index)) in self.leaves.iter().zip(&self.tree_indices).enumerate() {
            let token = match last {
                Some((token, text)) if token == leaf.token => text,
                _ => last.insert((leaf.token, leaf.token.text())).1,
            };
            out.write_all(comma(idx).as_bytes())?;
            out.write_all(b"\n    {\n      \"value\": [\n        \"")?;
            out.write_all(&leaf.account.text())?;
            out.write_all(b"\",\n        \"")?;
            out.write_all(&token)?;
            write!(out, "\",\n        \"{}\"\n      ],\n      \"treeIndex\": {tree_index}\n    }}", leaf.amount)?;
        }
        out.write_all(b"\n  ]\n}\n")
    }

    /// Reads a dump back: rebuilds the tree from the values alone and compares every node and index.
    ///
    /// # Errors
    /// [`LedgerError::TooLarge`], [`LedgerError::Malformed`], [`LedgerError::Mismatch`] naming the node, bad addresses,
    /// duplicate leaves.
    pub fn from_json(bytes: &[u8]) -> Result<Self, LedgerError> {
        if bytes.len() > MERKLE_MAX_BYTES {
            return Err(LedgerError::TooLarge { file: FILE, len_bytes: bytes.len(), max_bytes: MERKLE_MAX_BYTES });
        }
        let dump: Dump = serde_json::from_slice(bytes).map_err(|error| malformed(FILE, &error))?;
        check_equal("format", FORMAT, &dump.format)?;
        check_equal("leafEncoding", &LEAF_ENCODING.join(","), &dump.leaf_encoding.join(","))?;
        let leaves: Result<Vec<_>, _> = dump.values.iter().enumerate().map(|(idx, v)| read_leaf(idx, v)).collect();
        let built = Self::build(leaves?)?;
        check_equal("number of nodes", &built.tree.len().to_string(), &dump.tree.len().to_string())?;
        // The root first: it is the one a contract holds.
        for (idx, (expected, found)) in built.tree.iter().zip(&dump.tree).enumerate() {
            let what = if idx == 0 { "root".to_owned() } else { format!("node {idx}") };
            check_equal(&what, &hash_text(expected), found)?;
        }
        for (idx, (expected, found)) in built.tree_indices.iter().zip(&dump.values).enumerate() {
            check_equal(&format!("treeIndex of value {idx}"), &expected.to_string(), &found.tree_index.to_string())?;
        }
        check_canonical(FILE, bytes, &built.to_json()?)?;
        Ok(built)
    }
}

/// True when `proof` leads from `leaf` to `root`.
pub fn verify_proof(root: &Hash, leaf: &PayoutLeaf, proof: &[Hash]) -> bool {
    proof.iter().fold(leaf.hash(), |node, sibling| parent(&node, sibling)) == *root
}

/// `0x` and 64 hex digits.
pub fn hash_text(hash: &Hash) -> String {
    format!("0x{}", hex::encode(hash))
}

/// A line feed, `indent` spaces (at most 8) and the hash in quotation marks. Files of a million payees have twenty million of these.
pub(crate) fn put_hash_line(indent: usize, hash: &Hash, out: &mut dyn Write) -> io::Result<()> {
    let mut line = *b"\n        \"0x0000000000000000000000000000000000000000000000000000000000000000\"";
    let start = 8 - indent.min(8);
    line[start] = b'\n';
    put_hex(hash, &mut line[12..76]);
    out.write_all(&line[start..])
}

fn comma(idx: usize) -> &'static str {
    if idx == 0 { "" } else { "," }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dump {
    format: String,
    #[serde(rename = "leafEncoding")]
    leaf_encoding: Vec<String>,
    tree: Vec<String>,
    values: Vec<DumpValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DumpValue {
    value: Vec<String>,
    #[serde(rename = "treeIndex")]
    tree_index: usize,
}

fn read_leaf(idx: usize, wire: &DumpValue) -> Result<PayoutLeaf, LedgerError> {
    let bad = |why: String| LedgerError::Malformed { file: FILE, line: 0, why: format!("value {idx}: {why}") };
    let [account, token, amount] = wire.value.as_slice() else {
        return Err(bad(format!("expected 3 parts, found {}", wire.value.len())));
    };
    let amount = parse_integer(amount).ok_or_else(|| bad(format!("not an amount: {amount:?}")))?;
    Ok(PayoutLeaf { account: account.parse()?, token: token.parse()?, amount })
}

fn check_equal(what: &str, expected: &str, found: &str) -> Result<(), LedgerError> {
    if expected == found {
        return Ok(());
    }
    let found = found.chars().take(100).collect();
    Err(LedgerError::Mismatch { file: FILE, what: what.into(), expected: expected.into(), found })
}

fn keccak(bytes: &[u8]) -> Hash {
    Keccak256::digest(bytes).into()
}

/// Keccak of the pair, the smaller first.
pub(crate) fn parent(a: &Hash, b: &Hash) -> Hash {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    Keccak256::new().chain_update(low).chain_update(high).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(n: u8, amount: u128) -> PayoutLeaf {
        PayoutLeaf { account: EvmAddress([n; 20]), token: EvmAddress([0xee; 20]), amount }
    }

    fn tree(n: u8) -> PayoutTree {
        PayoutTree::build((1..=n).map(|i| leaf(i, u128::from(i) << 70)).collect()).unwrap()
    }

    #[test]
    fn keccak_of_nothing_is_the_published_one() {
        let hash = "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470";
        assert_eq!(hash_text(&keccak(b"")), hash);
    }

    /// Three leaves drawn by hand: root 0 over (1, 2), node 1 over (3, 4); leaves 4, 3, 2 in order of hash.
    #[test]
    fn shape_of_three() {
        let tree = tree(3);
        let mut sorted: Vec<Hash> = tree.leaves.iter().map(PayoutLeaf::hash).collect();
        sorted.sort_unstable();
        let inner = parent(&sorted[1], &sorted[0]);
        assert_eq!(tree.tree, [parent(&inner, &sorted[2]), inner, sorted[2], sorted[1], sorted[0]]);
        assert_eq!(parent(&sorted[0], &sorted[1]), inner);
    }

    #[test]
    fn every_proof_holds_and_a_forged_one_does_not() {
        for n in 1..=40 {
            let tree = tree(n);
            for (idx, leaf) in tree.leaves().iter().enumerate() {
                let proof = tree.proof(idx).unwrap();
                assert!(verify_proof(&tree.root(), leaf, &proof));
                let richer = PayoutLeaf { amount: leaf.amount + 1, ..*leaf };
                assert!(!verify_proof(&tree.root(), &richer, &proof));
            }
            assert_eq!(tree.proof(usize::from(n)), None);
            assert_eq!(PayoutTree::from_json(&tree.to_json().unwrap()).unwrap(), tree);
        }
        assert_eq!(tree(1).root(), leaf(1, 1 << 70).hash());
        assert_eq!(PayoutTree::build(vec![]), Err(LedgerError::EmptyTree));
        assert!(matches!(PayoutTree::build(vec![leaf(1, 1), leaf(1, 2)]), Err(LedgerError::Duplicate { .. })));
    }

    #[test]
    fn a_hash_stands_on_a_line_of_its_own() {
        for indent in [4, 8] {
            let mut bytes = Vec::new();
            put_hash_line(indent, &[0xa5; 32], &mut bytes).unwrap();
            let expected = format!("\n{}\"{}\"", " ".repeat(indent), hash_text(&[0xa5; 32]));
            assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }

    #[test]
    fn order_of_leaves_does_not_move_the_root() {
        let mut leaves = tree(9).leaves;
        leaves.rotate_left(4);
        assert_eq!(PayoutTree::build(leaves).unwrap().root(), tree(9).root());
    }

    #[test]
    fn refuses_changed_dumps() {
        let tree = tree(3);
        let text = String::from_utf8(tree.to_json().unwrap()).unwrap();
        let check = |from: &str, to: &str, hint: &str| {
            assert!(text.contains(from), "{from}");
            let error = PayoutTree::from_json(text.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(hint), "{from} -> {to}: {error}");
        };
        let root = hash_text(&tree.root());
        check(&root, &root.replace('a', "b"), "merkle.json: root: expected 0x");
        check(&hash_text(&tree.tree[3]), &hash_text(&[7; 32]), "node 3");
        check("\"1180591620717411303424\"", "\"1180591620717411303425\"", "root");
        check("\"1180591620717411303424\"", "1180591620717411303424", "invalid type");
        check("\"1180591620717411303424\"", "\"01180591620717411303424\"", "not an amount");
        check("\"treeIndex\": 2", "\"treeIndex\": 1", "treeIndex of value");
        check("standard-v1", "simple-v1", "format: expected standard-v1, found simple-v1");
        check("uint256", "uint128", "leafEncoding");
        check("\"format\"", "\"note\": 1, \"format\"", "unknown field `note`");
        let token = tree.leaves[0].token.to_string();
        let swap = |c: char| {
            if c == 'E' {
                'e'
            } else if c == 'e' {
                'E'
            } else {
                c
            }
        };
        check(&token, &token.chars().map(swap).collect::<String>(), "EIP-55");
        check("[\n", "[ \n", "spelling from byte");
        assert!(PayoutTree::from_json(b"{").is_err());
        assert!(PayoutTree::from_json(&[]).is_err());
    }

    #[test]
    fn cumulative_leaves_never_fall() {
        let row = |account: u8, chain: u64, minor: u128| PayoutRow {
            owner: "Ada".into(),
            account: Some(format!("eip155:{chain}:{}", EvmAddress([account; 20])).parse().unwrap()),
            amount: crate::Money { minor, currency: crate::Currency::of("USDC").unwrap() },
            responses: 1,
            datasets: 1,
            carried: crate::SubUnits(0),
        };
        let token = EvmAddress([0xee; 20]);
        let no_account = PayoutRow { account: None, ..row(9, 10, 9) };
        let rows = [row(1, 10, 5), row(2, 10, 7), row(1, 10, 4), row(3, 11, 1), row(4, 10, 0), no_account];
        let first = PayoutTree::of_rows(None, &rows, 10, token).unwrap();
        assert_eq!(first.leaves(), [leaf(1, 9), leaf(2, 7)]);
        // Payee 2 skips the second period and loses nothing.
        let second = PayoutTree::of_rows(Some(&first), &rows[..1], 10, token).unwrap();
        assert_eq!(second.leaves(), [leaf(1, 14), leaf(2, 7)]);
        first.check_grows_into(&second).unwrap();
        let account = EvmAddress([1; 20]).to_string();
        assert_eq!(second.check_grows_into(&first), Err(LedgerError::LeafFell { account, before: 14, now: 9 }));
        assert_eq!(PayoutTree::of_rows(None, &rows, 12, token), Err(LedgerError::EmptyTree));
        let full = PayoutTree::build(vec![leaf(1, u128::MAX)]).unwrap();
        let over = PayoutTree::of_rows(Some(&full), &rows, 10, token);
        assert!(matches!(over, Err(LedgerError::Overflow { .. })));
    }
}
