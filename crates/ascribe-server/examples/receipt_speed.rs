//! Durable receipts a second: `receipt_speed -- [receipts] [at once] [datasets]`. Each is acknowledged after it was synced. Then
//! what a start over such a log takes.
#![allow(clippy::print_stdout)] // an example talks

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ascribe_core::Digest;
use ascribe_registry::{SettledRevenue, Usage, UsageReceipt, UsageShare, dataset_uuid};
use ascribe_server::receipts::Receipts;
use ascribe_tlog::{Ed25519Key, NoteSigner, SignatureKind};
use futures_util::{StreamExt as _, stream};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |text| text.parse());
    let (n, at_once, datasets) = (number(0, 30_000)?, number(1, 1_000)?, number(2, 10)?);
    let dir = std::env::current_dir()?.join(format!(".receipt-speed-{}", std::process::id()));
    let signer = NoteSigner::new("example.test/usage", SignatureKind::Note, Ed25519Key::generate()?)?;
    let secret = signer.secret_line();
    let receipts = Arc::new(Receipts::open(&dir, &secret)?);
    let zero = Digest([0; 32]);
    let shares: Vec<UsageShare> = (0..datasets)
        .map(|k| UsageShare {
            dataset: dataset_uuid(&format!("dataset-{k}")),
            weight: 1_000_000_000_000 / datasets as u128,
        })
        .collect();
    let receipt = |i: usize| {
        UsageReceipt::new(Usage {
            request_id: format!("attr_{i:032x}"),
            model_sha256: zero,
            run_id: "run".into(),
            output_salted_sha256: zero,
            method: "calibrated".into(),
            spec_sha256: zero,
            attribution_sha256: Some(zero),
            shares: shares.clone(),
            weight_total: 1_000_000_000_000,
            revenue: SettledRevenue { currency: "USD".into(), minor_units: 1_000 },
            settled_unix_s: 1_795_000_000,
        })
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let began = Instant::now();
    let done = runtime.block_on(async {
        let one = |i: usize| {
            let (receipts, receipt) = (Arc::clone(&receipts), receipt(i));
            async move { tokio::spawn(async move { receipts.log(receipt.ok()?).await.ok() }).await.ok().flatten() }
        };
        stream::iter(0..n).map(one).buffer_unordered(at_once).filter(|r| std::future::ready(r.is_some())).count().await
    });
    let acknowledged_s = began.elapsed().as_secs_f64();
    receipts.close();
    let in_log_s = began.elapsed().as_secs_f64();
    println!("{done} of {n} receipts acknowledged, {at_once} at once, {datasets} shares each");
    println!(
        "durable: {:.0} a second; in the usage log too: {:.0} a second",
        done as f64 / acknowledged_s,
        done as f64 / in_log_s
    );
    drop(receipts);
    started("sums kept", &dir, &secret)?;
    std::fs::remove_file(dir.join("earned.json"))?;
    started("all receipts read", &dir, &secret)?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// What a start over the log takes.
fn started(how: &str, dir: &Path, secret: &str) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let receipts = Receipts::open(dir, secret)?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "start, {how}: {seconds:.2} s; the process has {} MiB, {} at most",
        resident("VmRSS")?,
        resident("VmHWM")?
    );
    receipts.close();
    Ok(())
}

/// A line of this process's memory, in MiB.
fn resident(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    Ok(line.split_whitespace().next().unwrap_or("0").parse::<u64>()? / 1024)
}
