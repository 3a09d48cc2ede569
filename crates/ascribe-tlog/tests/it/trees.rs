//! Published vectors of Certificate Transparency, a second route by recursion, and proofs as laws.

use ascribe_core::Digest;
use ascribe_tlog::{
    EMPTY_ROOT, RootBuilder, TlogError, TreeHead, consistency_proof, inclusion_proof, leaf_hash, node_hash,
    root_of_leaves, verify_consistency, verify_inclusion,
};
use proptest::prelude::*;

/// The eight entries of the Certificate Transparency reference tests.
const CT_ENTRIES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// Their roots after 1, 2, … 8 entries, as published.
const CT_ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn hex_digest(text: &str) -> Digest {
    text.parse().unwrap()
}

fn ct_leaves() -> Vec<Digest> {
    CT_ENTRIES.iter().map(|entry| leaf_hash(&hex::decode(entry).unwrap())).collect()
}

/// Leaves that differ, made from a counter.
fn leaves(n: usize) -> Vec<Digest> {
    (0..n as u64).map(|i| leaf_hash(&i.to_be_bytes())).collect()
}

fn head(leaves: &[Digest]) -> TreeHead {
    TreeHead { size: leaves.len() as u64, root: root_of_leaves(leaves) }
}

/// Second route: the definition of RFC 6962 §2.1, by recursion.
fn root_by_definition(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => EMPTY_ROOT,
        [leaf] => *leaf,
        _ => {
            let k = leaves.len().next_power_of_two() / 2;
            node_hash(root_by_definition(&leaves[..k]), root_by_definition(&leaves[k..]))
        }
    }
}

#[test]
fn roots_equal_the_published_ones() {
    let mut builder = RootBuilder::new();
    assert_eq!(builder.head(), TreeHead { size: 0, root: EMPTY_ROOT });
    for (entry, root) in CT_ENTRIES.iter().zip(CT_ROOTS) {
        builder.push_entry(&hex::decode(entry).unwrap());
        assert_eq!(builder.head().root, hex_digest(root));
    }
}

#[test]
fn inclusion_proofs_equal_the_published_ones() {
    let all = ct_leaves();
    let cases: [(u64, usize, &[&str]); 5] = [
        (0, 1, &[]),
        (
            0,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            5,
            8,
            &[
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        (
            1,
            5,
            &[
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    for (index, size, expected) in cases {
        let expected: Vec<Digest> = expected.iter().map(|text| hex_digest(text)).collect();
        assert_eq!(inclusion_proof(&all[..size], index).unwrap(), expected, "leaf {index} of {size}");
        verify_inclusion(all[index as usize], index, &expected, head(&all[..size])).unwrap();
    }
}

#[test]
fn consistency_proofs_equal_the_published_ones() {
    let all = ct_leaves();
    let cases: [(usize, usize, &[&str]); 4] = [
        (1, 1, &[]),
        (
            1,
            8,
            &[
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ],
        ),
        (
            6,
            8,
            &[
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ],
        ),
        (
            2,
            5,
            &[
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            ],
        ),
    ];
    for (old, new, expected) in cases {
        let expected: Vec<Digest> = expected.iter().map(|text| hex_digest(text)).collect();
        assert_eq!(consistency_proof(&all[..new], old as u64).unwrap(), expected, "{old} to {new}");
        verify_consistency(head(&all[..old]), head(&all[..new]), &expected).unwrap();
    }
}

#[test]
fn every_proof_of_every_small_tree_verifies_and_no_other() {
    let all = leaves(33);
    for size in 1..=all.len() {
        let tree = head(&all[..size]);
        assert_eq!(tree.root, root_by_definition(&all[..size]));
        for index in 0..size {
            let proof = inclusion_proof(&all[..size], index as u64).unwrap();
            verify_inclusion(all[index], index as u64, &proof, tree).unwrap();
            let other = (index + 1) % size;
            if other != index {
                assert!(verify_inclusion(all[other], index as u64, &proof, tree).is_err());
                assert!(verify_inclusion(all[index], other as u64, &proof, tree).is_err());
            }
        }
        for old in 1..=size {
            let proof = consistency_proof(&all[..size], old as u64).unwrap();
            verify_consistency(head(&all[..old]), tree, &proof).unwrap();
            let mut rewritten = all[..old].to_vec();
            rewritten[old / 2] = leaf_hash(b"rewritten");
            assert!(verify_consistency(head(&rewritten), tree, &proof).is_err(), "{old} to {size}");
        }
    }
}

#[test]
fn refusals_say_what_was_expected() {
    let all = leaves(5);
    let tree = head(&all);
    assert_eq!(inclusion_proof(&all, 5), Err(TlogError::IndexOutOfRange { index: 5, size: 5 }));
    assert_eq!(verify_inclusion(all[0], 9, &[], tree), Err(TlogError::IndexOutOfRange { index: 9, size: 5 }));
    assert_eq!(verify_inclusion(all[4], 4, &[], tree), Err(TlogError::ProofLength { expected: 1, found: 0 }));
    assert_eq!(consistency_proof(&all, 0), Err(TlogError::SizeOrder { old_size: 0, new_size: 5 }));
    assert_eq!(consistency_proof(&all, 6), Err(TlogError::SizeOrder { old_size: 6, new_size: 5 }));
    let message = verify_consistency(tree, TreeHead { size: 5, root: EMPTY_ROOT }, &[]).unwrap_err().to_string();
    assert!(message.starts_with("Merkle root of 5 leaves: expected e3b0c442"), "{message}");
}

proptest! {
    #[test]
    fn streamed_root_is_the_defined_root(n in 0usize..300) {
        let all = leaves(n);
        prop_assert_eq!(root_of_leaves(&all), root_by_definition(&all));
    }

    #[test]
    fn proofs_verify_and_one_flipped_bit_does_not(n in 1usize..400, pick in any::<u64>(), bit in 0usize..256) {
        let all = leaves(n);
        let tree = head(&all);
        let index = pick % n as u64;
        let proof = inclusion_proof(&all, index).unwrap();
        prop_assert!(verify_inclusion(all[index as usize], index, &proof, tree).is_ok());
        for victim in 0..proof.len() {
            let mut bad = proof.clone();
            bad[victim].0[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify_inclusion(all[index as usize], index, &bad, tree).is_err(), "hash {} of the proof", victim);
        }
        let old = index + 1;
        let proof = consistency_proof(&all, old).unwrap();
        prop_assert!(verify_consistency(head(&all[..old as usize]), tree, &proof).is_ok());
        for victim in 0..proof.len() {
            let mut bad = proof.clone();
            bad[victim].0[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify_consistency(head(&all[..old as usize]), tree, &bad).is_err());
        }
        prop_assert!(verify_inclusion(all[0], 0, &vec![EMPTY_ROOT; 65], tree).is_err());
    }

    #[test]
    fn any_proof_is_answered_without_panic(index in any::<u64>(), size in any::<u64>(), old in any::<u64>(), n in 0usize..70) {
        let junk = leaves(n);
        let tree = TreeHead { size, root: EMPTY_ROOT };
        prop_assert!(verify_inclusion(EMPTY_ROOT, index, &junk, tree).is_err() || size == 1);
        let _ = verify_consistency(TreeHead { size: old, root: EMPTY_ROOT }, tree, &junk);
    }
}
