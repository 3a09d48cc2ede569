//! A registry of many payees for the payout benchmark: `pay_registry DIR [DATASETS [PAYEES_EACH]]`, demo keys, one record each.

use std::error::Error;
use std::path::PathBuf;

use ascribe_core::Digest;
use ascribe_registry::prepare::{Grant, NewDataset, register, write_dataset, write_licence};
use ascribe_registry::{Address, LicenceDigest, LicenceKey, Payee, Source};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("expected DIR [DATASETS [PAYEES_EACH]]")?);
    let n_datasets: u32 = args.next().map_or(Ok(4000), |n| n.parse())?;
    let n_payees: u32 = args.next().map_or(Ok(250), |n| n.parse())?;
    let mut licences = Vec::new();
    for dataset in 0..n_datasets {
        let (name, owner) = (format!("d{dataset:05}"), format!("Owner {dataset:05}"));
        let payees = (0..n_payees).map(|payee| {
            let hash = Digest::of(format!("{dataset}/{payee}").as_bytes());
            let address = Address::from_slice(&hash.0[..20]).to_checksum(None);
            // What the division leaves goes to the first.
            let share_ppm = 1_000_000 / n_payees + if payee == 0 { 1_000_000 % n_payees } else { 0 };
            Payee { account: format!("eip155:31337:{address}"), share_ppm }
        });
        let new = NewDataset {
            title: format!("Dataset {dataset}"),
            language: "en".into(),
            licence: "CC0-1.0".into(),
            permits: vec!["ai-train".into()],
            prohibits: Vec::new(),
            payees: payees.collect(),
            source: Source { registry: "none".into(), package: "benchmark".into(), version: "1".into() },
            notes: String::new(),
            terms: "Made for a benchmark.\n".into(),
            name: name.clone(),
            owner: owner.clone(),
        };
        write_dataset(&dir, &new, std::iter::once(("1", name.as_str())))?;
        let grant = Grant { valid_from: 1, valid_until: 0, nonce: 1, supersedes: LicenceDigest::default() };
        licences.push(write_licence(&dir, &name, &LicenceKey::demo(&owner), grant)?);
    }
    // Once: a log that is read and written again for each would be quadratic.
    register(&dir, &licences)?;
    Ok(())
}
