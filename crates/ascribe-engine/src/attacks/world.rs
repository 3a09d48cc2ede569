//! Who registered what: the honest registry, and the registry after an attack.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ascribe_core::Progress;
use ascribe_registry::prepare::{Grant, NewDataset, demo_account, license_dataset, write_dataset};
use ascribe_registry::{LicenceDigest, LicenceKey, Payee, Source};
use ascribe_shares::Derived;

use super::scorer::Records;
use crate::error::EngineError;
use crate::files;
use crate::walk::Context;
use crate::walk::duplicates::{self, Moved};

/// A dataset and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Name.
    pub name: String,
    /// Owner.
    pub owner: String,
    /// Registered records.
    pub records: u64,
}

/// A registry as policies see it.
#[derive(Clone, Debug)]
pub struct World {
    /// Datasets; those of the honest registry first.
    pub datasets: Vec<Holding>,
    /// Dataset of every example, the added ones after the registered ones.
    pub dataset_of: Vec<u32>,
    /// The same after duplicates went to the earliest licence of their cluster.
    pub first_claim: Vec<u32>,
    /// Names under which the attacker is paid.
    pub attackers: Vec<String>,
    /// Extra events of the attacker, as (response, how often).
    pub wash: Vec<(usize, u64)>,
    /// Whether those events are paid for, as any other.
    pub paid_for: bool,
    /// Parts of datasets that earlier licences cover, by records: what a payout moves where it knows scores by dataset only.
    pub parts: Vec<Derived>,
    /// Registered records that near-duplicate search gave to an earlier licence, of the added ones.
    pub caught: Option<(u64, u64)>,
}

impl World {
    /// Ordinals by owner, owners in the order of their names.
    pub fn owners(&self) -> Vec<String> {
        let mut owners: Vec<String> = self.datasets.iter().map(|d| d.owner.clone()).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// Owner ordinals by dataset.
    pub fn owner_of(&self) -> Vec<u32> {
        let owners = self.owners();
        let at = |d: &Holding| owners.binary_search(&d.owner).expect("the list was made of these names") as u32;
        self.datasets.iter().map(at).collect()
    }

    /// Adds a dataset of which the examples are those of `take`; returns its ordinal.
    pub fn part(&mut self, name: String, owner: String, take: &[usize]) -> u32 {
        let ordinal = self.datasets.len() as u32;
        let of = take.first().map_or(0, |i| self.dataset_of[*i] as usize);
        let n_of = self.dataset_of.iter().filter(|d| **d as usize == of).count().max(1);
        let records = self.datasets[of].records * take.len() as u64 / n_of as u64;
        self.datasets[of].records -= records;
        self.datasets.push(Holding { name, owner, records });
        // A part is taken to be copied as much as the whole.
        let inherited: Vec<Derived> = self.parts.iter().filter(|part| part.from as usize == of).copied().collect();
        self.parts.extend(inherited.into_iter().map(|part| Derived { from: ordinal, ..part }));
        for &example in take {
            // What an earlier licence covers stays covered.
            if self.first_claim[example] == self.dataset_of[example] {
                self.first_claim[example] = ordinal;
            }
            self.dataset_of[example] = ordinal;
        }
        ordinal
    }
}

/// The registry of a run, with duplicates already in it (an encyclopedia that quotes a dictionary) counted for the earlier licence.
///
/// # Errors
/// From the search for duplicates.
pub fn honest(context: &Context, progress: &dyn Progress) -> Result<World, EngineError> {
    let datasets = context.registry.datasets().iter().map(|d| Holding {
        name: d.name().to_owned(),
        owner: d.manifest.owner.clone(),
        records: d.manifest.record_count,
    });
    let mut world = World {
        datasets: datasets.collect(),
        dataset_of: context.corpus.examples.iter().map(|e| e.id.dataset).collect(),
        first_claim: Vec::new(),
        attackers: Vec::new(),
        wash: Vec::new(),
        paid_for: false,
        parts: Vec::new(),
        caught: None,
    };
    let moved = moved_records(&duplicates::registry_dir(context), &world.datasets, progress)?;
    world.first_claim = base_claims(context, &world.dataset_of, &moved);
    world.parts = parts_of(&moved, &world.datasets);
    Ok(world)
}

fn moved_records(dir: &Path, datasets: &[Holding], progress: &dyn Progress) -> Result<Moved, EngineError> {
    let names: Vec<&str> = datasets.iter().map(|d| d.name.as_str()).collect();
    duplicates::search(dir, &names, progress)
}

/// Of every dataset, the part of its records that earlier licences cover.
fn parts_of(moved: &Moved, datasets: &[Holding]) -> Vec<Derived> {
    duplicates::parts(moved, &datasets.iter().map(|d| d.records).collect::<Vec<_>>())
}

fn base_claims(context: &Context, dataset_of: &[u32], moved: &Moved) -> Vec<u32> {
    let claim = |(example, dataset): (&ascribe_corpus::Example, &u32)| {
        let main = example.spans.iter().rev().max_by_key(|s| s.token_end - s.token_start);
        main.and_then(|span| moved.get(&(*dataset, u64::from(span.record.row)))).copied().unwrap_or(*dataset)
    };
    context.corpus.examples.iter().zip(dataset_of).map(claim).collect()
}

/// A dataset that the attacker registers.
pub struct NewSet<'a> {
    /// Name.
    pub name: String,
    /// Owner.
    pub owner: String,
    /// Records and windows; `picked` of them are registered.
    pub records: &'a Records,
    /// Positions of windows, ascending.
    pub windows: Vec<usize>,
}

/// Registers and licenses the sets in a copy of the registry, in `dir`, searches that registry for duplicates, and appends the sets'
/// windows to the world in the given order.
///
/// # Errors
/// What the registry refuses; the disk's.
pub fn register(
    context: &Context,
    honest: &World,
    sets: &[NewSet<'_>],
    dir: &Path,
    progress: &dyn Progress,
) -> Result<World, EngineError> {
    copy_registry(context, dir)?;
    let mut world = honest.clone();
    for set in sets {
        let new = description(&set.name, &set.owner);
        let rows = rows_of(set);
        let records = rows.iter().map(|row| {
            let (id, text) = &set.records.records[*row as usize];
            (id.as_str(), text.as_str())
        });
        write_dataset(dir, &new, records)?;
        let nonce = 1 + sets.iter().take_while(|other| other.name != set.name).filter(|o| o.owner == set.owner).count();
        let grant = Grant { valid_from: 1, valid_until: 0, nonce: nonce as u64, supersedes: LicenceDigest::default() };
        license_dataset(dir, &set.name, &LicenceKey::demo(&set.owner), grant)?;
        let holding = Holding { name: set.name.clone(), owner: set.owner.clone(), records: rows.len() as u64 };
        world.datasets.push(holding);
    }
    let moved = moved_records(dir, &world.datasets, progress)?;
    world.parts = parts_of(&moved, &world.datasets);
    // A late licence cannot take anything from an earlier one, so the honest claims stand.
    let (mut caught, mut n_records) = (0u64, 0u64);
    for (ordinal, set) in (honest.datasets.len() as u32..).zip(sets) {
        // The registry numbers the rows that were registered.
        let place: HashMap<u32, u64> = rows_of(set).into_iter().zip(0u64..).collect();
        n_records += place.len() as u64;
        caught += (0..place.len() as u64).filter(|row| moved.contains_key(&(ordinal, *row))).count() as u64;
        for &window in &set.windows {
            let row = place[&Records::main_record(&set.records.windows[window])];
            world.dataset_of.push(ordinal);
            world.first_claim.push(moved.get(&(ordinal, row)).copied().unwrap_or(ordinal));
        }
        if !world.attackers.contains(&set.owner) {
            world.attackers.push(set.owner.clone());
        }
    }
    world.caught = Some((caught, n_records));
    Ok(world)
}

/// Rows of records that the picked windows are mainly made of, ascending.
fn rows_of(set: &NewSet<'_>) -> Vec<u32> {
    let mut rows: Vec<u32> = set.windows.iter().map(|w| Records::main_record(&set.records.windows[*w])).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn description(name: &str, owner: &str) -> NewDataset {
    NewDataset {
        name: name.to_owned(),
        title: name.to_owned(),
        owner: owner.to_owned(),
        language: "en".into(),
        licence: "CC0-1.0".into(),
        permits: vec!["ai-train".into()],
        prohibits: Vec::new(),
        payees: vec![Payee { account: demo_account(owner), share_ppm: 1_000_000 }],
        source: Source { registry: "none".into(), package: "attack".into(), version: "1".into() },
        notes: String::new(),
        terms: "Made for the attack bench.\n".into(),
    }
}

fn copy_registry(context: &Context, dir: &Path) -> Result<(), EngineError> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(|e| EngineError::io(dir, e))?;
    }
    let copy = |from: &Path, to: PathBuf| files::write_atomic(&to, &files::read(from)?);
    copy(context.registry.log().path(), dir.join("licences.log"))?;
    for dataset in context.registry.datasets() {
        for file in ["manifest.json", "licence.json", "terms.txt", "records.jsonl"] {
            copy(&dataset.dir.join(file), dir.join(dataset.name()).join(file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        let holding = |name: &str, owner: &str| Holding { name: name.into(), owner: owner.into(), records: 40 };
        World {
            datasets: vec![holding("a", "Ada"), holding("b", "Bob")],
            dataset_of: vec![0, 0, 0, 0, 1],
            first_claim: vec![0, 0, 1, 0, 1],
            attackers: Vec::new(),
            wash: Vec::new(),
            paid_for: false,
            parts: Vec::new(),
            caught: None,
        }
    }

    #[test]
    fn a_part_takes_its_examples_and_not_what_was_copied() {
        let mut world = world();
        let ordinal = world.part("a2".into(), "Sock".into(), &[1, 2]);
        assert_eq!(world.dataset_of, [0, 2, 2, 0, 1]);
        assert_eq!(world.first_claim, [0, 2, 1, 0, 1]);
        assert_eq!((world.datasets[ordinal as usize].records, world.datasets[0].records), (20, 20));
        assert_eq!(world.owners(), ["Ada", "Bob", "Sock"]);
        assert_eq!(world.owner_of(), [0, 1, 2]);
    }
}
