//! Reads a log folder with Cloudflare's `tlog_tiles` and hashes its entries with `ct-merkle`: `tlog-oracle DIR [OLD …]`.
//!
//! Neither checks signatures (the Go reader does). Every tile is authenticated against the checkpoint's root, every entry's
//! inclusion proof and the consistency with each older checkpoint are made and checked, and the root is computed anew.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use tlog_tiles::{
    Checkpoint, Error as TileError, Hash, Tile, TileHashReader, TileReader, check_record, check_tree, prove_record,
    prove_tree, record_hash,
};

struct Folder(PathBuf);

impl Folder {
    /// Its paths carry the height, those of the specification do not.
    fn path(&self, tile: &Tile) -> PathBuf {
        self.0.join(tile.path().replacen("tile/8/", "tile/", 1))
    }
}

impl TileReader for Folder {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, TileError> {
        tiles.iter().map(|tile| fs::read(self.path(tile)).map_err(|_| TileError::InvalidTile)).collect()
    }

    fn save_tiles(&self, _tiles: &[Tile], _data: &[Vec<u8>]) {}
}

fn checkpoint(path: &Path) -> Result<(u64, Hash), Box<dyn Error>> {
    let note = fs::read_to_string(path)?;
    let (text, _) = note.split_once("\n\n").ok_or("no signatures")?;
    let parsed = Checkpoint::from_bytes(format!("{text}\n").as_bytes()).map_err(|e| format!("checkpoint: {e:?}"))?;
    Ok((parsed.size(), *parsed.hash()))
}

fn entries(dir: &Path, size: u64) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut all = Vec::new();
    for n in 0..size.div_ceil(256) {
        let width = (size - n * 256).min(256);
        let tile = Tile::new(8, 0, n, width as u32, false).path().replacen("tile/8/0/", "tile/entries/", 1);
        let mut rest = &fs::read(dir.join(tile))?[..];
        while let Some((len, tail)) = rest.split_first_chunk::<2>() {
            let (entry, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*len))).ok_or("a cut entry")?;
            all.push(entry.to_vec());
            rest = tail;
        }
    }
    if all.len() as u64 == size { Ok(all) } else { Err(format!("{} entries instead of {size}", all.len()).into()) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let dir = arguments.next().ok_or("expected the folder of a log")?;
    let (size, root) = checkpoint(&dir.join("checkpoint"))?;
    let folder = Folder(dir.clone());
    let reader = TileHashReader::new(size, root, &folder);
    let entries = entries(&dir, size)?;
    let mut tree = MemoryBackedTree::<sha2::Sha256, Vec<u8>>::new();
    for (i, entry) in (0..).zip(&entries) {
        tree.push(entry.clone());
        // Each proof reads its tiles anew: a sample of a large log is enough, the tree below hashes all.
        if i % 61 == 0 || i + 1 == size {
            let proof = prove_record(size, i, &reader).map_err(|e| format!("entry {i}: {e:?}"))?;
            check_record(&proof, size, root, i, record_hash(entry)).map_err(|e| format!("entry {i}: {e:?}"))?;
        }
    }
    if tree.root().as_bytes()[..] != root.0 {
        return Err("ct-merkle has another root".into());
    }
    let mut n_older = 0;
    for old in arguments {
        let (old_size, old_root) = checkpoint(&old)?;
        if old_size > 0 {
            let proof = prove_tree(size, old_size, &reader).map_err(|e| format!("from {old_size}: {e:?}"))?;
            check_tree(&proof, size, root, old_size, old_root).map_err(|e| format!("from {old_size}: {e:?}"))?;
        }
        n_older += 1;
    }
    println!("{size} entries, {n_older} older checkpoints");
    Ok(())
}
