//! How long a log takes: `million FOLDER [ENTRIES [BATCHES]]` appends that many digests in that many durable batches, issues a
//! thousand receipts and audits the whole. The folder must not exist; it is left for other readers.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use ascribe_core::{Digest, NoProgress};
use ascribe_tlog::{Ed25519Key, LogWriter, NoteSigner, Receipt, SignatureKind, TileTree, audit, leaf_hash};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("expected a folder")?);
    let n: u64 = arguments.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let batches: u64 = arguments.next().map_or(Ok(100), |n| n.parse())?;
    let digest = |i: u64| Digest::of(&i.to_be_bytes());
    let mut out = std::io::stdout().lock();

    let signer = NoteSigner::new("log.example/million", SignatureKind::Note, Ed25519Key::demo("million"))?;
    let key = signer.verifier().clone();
    let mut writer = LogWriter::create(&dir, signer)?;
    let start = Instant::now();
    for batch in 0..batches {
        let (from, to) = (batch * n / batches, (batch + 1) * n / batches);
        writer.append((from..to).map(|i| digest(i).0), &NoProgress)?;
    }
    writeln!(out, "{n} entries in {batches} batches appended in {:.2} s", start.elapsed().as_secs_f64())?;

    let checkpoint = writer.checkpoint().clone();
    let mut times = Vec::new();
    for i in 0..1000 {
        let index = Digest::of(&(i as u64).to_le_bytes()).0[..8].iter().fold(0u64, |a, b| a << 8 | u64::from(*b)) % n;
        let start = Instant::now();
        // A new tree each time: no tile is in memory yet.
        let receipt = Receipt::issue(&TileTree::new(&dir, checkpoint.head()), &checkpoint, index)?;
        times.push(start.elapsed().as_secs_f64());
        receipt.verify(leaf_hash(&digest(index).0), &key, &[])?;
    }
    times.sort_by(f64::total_cmp);
    writeln!(out, "receipt: median {:.3} ms, slowest of 1000 {:.3} ms", 1e3 * times[500], 1e3 * times[999])?;

    let start = Instant::now();
    let found = audit(&dir, &key, &[], &[], &NoProgress)?;
    writeln!(
        out,
        "audit of {} entries and {} checkpoints: {:.2} s",
        found.head.size,
        found.extends.len(),
        start.elapsed().as_secs_f64()
    )?;
    Ok(())
}
