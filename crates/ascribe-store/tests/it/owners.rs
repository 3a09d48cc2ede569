//! Who owns the datasets: adding, withdrawing and relicensing bring sums per owner up to date, and they equal a rebuild.

use std::fs;
use std::path::Path;

use ascribe_core::{Digest, ExampleId, FeatureReader, FeatureSink, NoProgress, RowType};
use ascribe_store::features::{
    DatasetSums, DatasetTerms, Deletion, FolderObjects, Numbering, RemoteStore, add, compact, convert, delete, merge,
    numbering, pull, push, relicense,
};
use ascribe_store::{FeatureStore, FeatureWriter, StoreError};
use proptest::prelude::*;

use crate::common::{copy, folder, ids, poke, rows, spec};

const DIM: usize = 5;

fn build(dir: &Path, range: std::ops::Range<usize>) -> FeatureStore {
    let n = range.len() as u64;
    let mut writer = FeatureWriter::create_or_resume(dir, &spec(DIM), RowType::F32, 8, n).unwrap();
    writer.push(&ids(range.clone()), rows(range, DIM).view()).unwrap();
    writer.finish().unwrap()
}

/// A store of another corpus: two datasets, 3 and 7, of six rows each.
fn foreign(dir: &Path, row_type: RowType) -> FeatureStore {
    let mut spec = spec(DIM);
    spec.corpus = Digest::of(b"a new supplier");
    let mut writer = FeatureWriter::create_or_resume(dir, &spec, row_type, 4, 12).unwrap();
    let ids: Vec<ExampleId> = (0..12).map(|i| ExampleId { dataset: [3, 7][i % 2], idx: i as u32 / 2 }).collect();
    writer.push(&ids, rows(100..112, DIM).view()).unwrap();
    writer.finish().unwrap()
}

fn owned(dataset: u32, owner: &str) -> DatasetTerms {
    DatasetTerms { dataset, owner: Some(owner.into()), ..DatasetTerms::default() }
}

fn open(dir: &Path) -> FeatureStore {
    FeatureStore::open(dir, None).unwrap()
}

/// Sums per owner made anew from the rows that are there, one by one.
fn rebuilt(store: &FeatureStore) -> DatasetSums {
    let owners = store.terms().owners();
    let owner_of = store.terms().owner_of(store.generation().n_datasets as usize);
    let mut sums = DatasetSums::new(DIM);
    sums.grow(owners.len());
    for i in 0..store.n_blocks() {
        let block = store.block(i).unwrap();
        for (id, row) in block.ids.iter().zip(block.rows.rows()) {
            if let Some(owner) = owner_of[id.dataset as usize] {
                let id = ExampleId { dataset: owner, ..*id };
                sums.add(&[id], row.insert_axis(ndarray::Axis(0)));
            }
        }
    }
    sums
}

fn check(dir: &Path, owners: &[&str], counts: &[u64]) -> FeatureStore {
    let store = open(dir);
    store.verify().unwrap();
    let found = store.owner_sums().unwrap();
    assert_eq!(found.owners, owners);
    assert_eq!(found.sums.counts, counts);
    // Two ways to the same rows: 2n²·2⁻¹⁰⁶·Σ|x|, with n below 60 and numbers below 30.
    let again = rebuilt(&store);
    assert!(again.distance(&found.sums) < 1e-27, "{}", again.distance(&found.sums));
    assert_eq!(again.sums(), found.sums.sums(), "the same f64 numbers");
    store
}

#[test]
fn sums_per_owner_follow_every_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = build(dir.path(), 0..40);
    assert!(store.terms().is_empty() && store.owner_sums().unwrap().owners.is_empty());
    let generation = relicense(dir.path(), &[owned(0, "Arbour"), owned(2, "Moss"), owned(1, "Moss")]).unwrap();
    assert_eq!((generation.generation, generation.made_by.as_str()), (1, "relicense"));
    let held = check(dir.path(), &["Arbour", "Moss"], &[14, 26]);
    let rows_before = held.rows_blake3();
    // Dataset 1 is sold; no row is touched.
    relicense(dir.path(), &[owned(1, "Birch")]).unwrap();
    let store = check(dir.path(), &["Arbour", "Birch", "Moss"], &[14, 13, 13]);
    assert_eq!(store.rows_blake3(), rows_before);
    assert_eq!(store.stats().unwrap().owners[1].datasets, [1]);
    // Told again, nothing happens.
    assert_eq!(relicense(dir.path(), &[owned(1, "Birch")]).unwrap().generation, 2);
    // Single rows, a whole dataset, and their bytes.
    delete(dir.path(), &Deletion { examples: [ids(4..5)[0]].into(), ..Deletion::default() }).unwrap();
    check(dir.path(), &["Arbour", "Birch", "Moss"], &[14, 12, 13]);
    delete(dir.path(), &Deletion { datasets: [2].into(), ..Deletion::default() }).unwrap();
    check(dir.path(), &["Arbour", "Birch", "Moss"], &[14, 12, 0]);
    compact(dir.path()).unwrap();
    check(dir.path(), &["Arbour", "Birch", "Moss"], &[14, 12, 0]);
    // More rows of a dataset that is owned, and some of one that nobody owns.
    let mut writer = FeatureWriter::append(dir.path(), &spec(DIM), 5).unwrap();
    let more = [ids(40..43), vec![ExampleId { dataset: 5, idx: 0 }, ExampleId { dataset: 5, idx: 1 }]].concat();
    writer.push(&more, rows(40..45, DIM).view()).unwrap();
    writer.finish().unwrap();
    check(dir.path(), &["Arbour", "Birch", "Moss"], &[15, 13, 1]);
    relicense(dir.path(), &[owned(1, ""), owned(5, "Arbour")]).unwrap();
    check(dir.path(), &["Arbour", "Moss"], &[17, 1]);
    // The reader from before all this has what it opened.
    assert_eq!(held.owner_sums().unwrap().sums.counts, [14, 26]);
    assert_eq!(held.terms().owners(), ["Arbour", "Moss"]);
    let names: Vec<String> = folder(dir.path()).into_keys().collect();
    for prefix in ["datasets-", "owner_sums-", "dataset_sums-", "MANIFEST-"] {
        assert_eq!(names.iter().filter(|n| n.starts_with(prefix)).count(), 1, "{names:?}");
    }
}

#[test]
fn what_cannot_be_relicensed_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..20);
    let before = folder(dir.path());
    let error = relicense(dir.path(), &[owned(0, "Arbour"), owned(3, "Moss")]).unwrap_err();
    assert!(matches!(&error, StoreError::NoSuchRow { what, .. } if what == "a row of dataset 3"), "{error}");
    let error = relicense(dir.path(), &[owned(0, "a\tb")]).unwrap_err();
    assert!(matches!(error, StoreError::Shape { what: "owner of a dataset", .. }), "{error}");
    assert_eq!(folder(dir.path()), before);
    let writer = FeatureWriter::append(dir.path(), &spec(DIM), 4).unwrap();
    assert!(matches!(relicense(dir.path(), &[owned(0, "Arbour")]), Err(StoreError::Locked { .. })));
    drop(writer);
    assert!(matches!(relicense(dir.path(), &[owned(0, "Arbour")]), Err(StoreError::Pending { .. })));
}

#[test]
fn a_new_supplier_is_put_behind_the_others() {
    let [dir, other, whole] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    build(dir.path(), 0..20);
    relicense(dir.path(), &[owned(0, "Arbour"), owned(1, "Moss")]).unwrap();
    let from = foreign(other.path(), RowType::F32);
    let found = numbering(&open(dir.path()), &from, &Numbering::new()).unwrap();
    assert_eq!(found, Numbering::from([(3, 3), (7, 4)]));
    let store = add(dir.path(), &from, &Numbering::from([(3, 9)]), &[owned(9, "Birch")], &NoProgress).unwrap();
    assert_eq!((store.n_rows(), store.generation().made_by.as_str()), (32, "append"));
    assert_eq!(store.terms().of_dataset(3).unwrap().corpus, Some(Digest::of(b"a new supplier")));
    assert_eq!(store.terms().of_dataset(9).unwrap().owner.as_deref(), Some("Birch"));
    assert_eq!(
        check(dir.path(), &["Arbour", "Birch", "Moss"], &[7, 6, 7]).dataset_sums().unwrap().counts[3..10],
        [6, 0, 0, 0, 0, 0, 6]
    );
    // Equal to a store that was built of all rows at once.
    let mut writer = FeatureWriter::create_or_resume(whole.path(), &spec(DIM), RowType::F32, 8, 32).unwrap();
    let renumber = |id: ExampleId| ExampleId { dataset: if id.dataset == 3 { 9 } else { 3 }, ..id };
    writer.push(&ids(0..20), rows(0..20, DIM).view()).unwrap();
    writer.push(&from.ids().map(renumber).collect::<Vec<_>>(), rows(100..112, DIM).view()).unwrap();
    let built = writer.finish().unwrap();
    assert_eq!(built.dataset_sums().unwrap(), store.dataset_sums().unwrap(), "the same bits");
    assert!(built.ids().eq(store.ids()));
    // Once more is once too often; so is another model, and a place that is taken.
    let again = add(dir.path(), &from, &Numbering::new(), &[], &NoProgress).unwrap();
    assert_eq!((again.n_rows(), again.generation().n_datasets), (44, 12), "under other numbers it may come again");
    let error = add(dir.path(), &from, &Numbering::from([(3, 9)]), &[], &NoProgress).unwrap_err();
    assert!(matches!(&error, StoreError::Shape { found, .. } if found == "3 as 9"), "{error}");
    let error = add(dir.path(), &from, &Numbering::from([(4, 50)]), &[], &NoProgress).unwrap_err();
    assert!(matches!(error, StoreError::NoSuchRow { .. }), "{error}");
    let stranger = tempfile::tempdir().unwrap();
    let mut other_spec = spec(DIM);
    other_spec.model = Digest::of(b"others");
    let mut writer = FeatureWriter::create_or_resume(stranger.path(), &other_spec, RowType::F32, 8, 3).unwrap();
    writer.push(&ids(0..3), rows(0..3, DIM).view()).unwrap();
    let stranger = writer.finish().unwrap();
    let error = add(dir.path(), &stranger, &Numbering::new(), &[], &NoProgress).unwrap_err();
    assert!(matches!(&error, StoreError::SpecMismatch { difference, .. } if difference.field == "model"), "{error}");
}

/// Parts of one corpus keep their numbers; rows of another type are coded again; a kill in between is gone on from.
#[test]
fn parts_are_added_under_their_own_numbers_and_an_add_resumes() {
    let [dir, part, plain] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    build(dir.path(), 0..20);
    let mut writer = FeatureWriter::create_or_resume(part.path(), &spec(DIM), RowType::Bf16, 8, 30).unwrap();
    writer.push(&ids(20..50), rows(20..50, DIM).view()).unwrap();
    let from = writer.finish().unwrap();
    copy(dir.path(), plain.path());
    let store = add(plain.path(), &from, &Numbering::new(), &[owned(1, "Moss")], &NoProgress).unwrap();
    assert!(store.ids().eq(ids(0..50)));
    let mut last = vec![0.0; DIM];
    let view = store.shard_view(store.n_shards() - 1).unwrap();
    view.widen(view.n_rows - 1, &mut last);
    let expected: Vec<f32> = rows(49..50, DIM).iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
    assert_eq!(last, expected);
    {
        let mut writer = FeatureWriter::append(dir.path(), &spec(DIM), 30).unwrap();
        // Two shards, as a killed call would have left them.
        let first: Vec<f32> =
            (0..2).flat_map(|i| from.block(i).unwrap().rows.iter().copied().collect::<Vec<_>>()).collect();
        writer.push(&ids(20..36), ndarray::Array2::from_shape_vec((16, DIM), first).unwrap().view()).unwrap();
    }
    add(dir.path(), &from, &Numbering::new(), &[owned(1, "Moss")], &NoProgress).unwrap();
    assert_eq!(folder(dir.path()), folder(plain.path()));
    let error = add(dir.path(), &from, &Numbering::new(), &[], &NoProgress).unwrap_err();
    assert!(matches!(error, StoreError::DuplicateExample { row: 50, .. }), "{error}");
    assert_eq!(folder(dir.path()), folder(plain.path()), "nothing was begun");
}

#[test]
fn owners_go_wherever_rows_go() {
    let [dir, other, out] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let at = |name: &str| out.path().join(name);
    build(dir.path(), 0..20);
    relicense(dir.path(), &[owned(0, "Arbour"), owned(2, "Moss")]).unwrap();
    convert(&open(dir.path()), &at("bf16"), RowType::Bf16, &NoProgress).unwrap();
    check(&at("bf16"), &["Arbour", "Moss"], &[7, 6]);
    build(other.path(), 20..40);
    relicense(other.path(), &[owned(1, "Birch")]).unwrap();
    merge(&[open(dir.path()), open(other.path())], &at("merged"), &NoProgress).unwrap();
    check(&at("merged"), &["Arbour", "Birch", "Moss"], &[14, 13, 13]);
    relicense(other.path(), &[owned(0, "Moss")]).unwrap();
    let error = merge(&[open(dir.path()), open(other.path())], &at("torn"), &NoProgress).unwrap_err();
    assert!(matches!(error, StoreError::SettingMismatch { setting: "terms of a dataset", .. }), "{error}");
    let objects = FolderObjects::new(&at("objects"));
    push(&open(dir.path()), &objects, &NoProgress).unwrap();
    pull(&objects, &at("pulled"), &NoProgress).unwrap();
    check(&at("pulled"), &["Arbour", "Moss"], &[7, 6]);
    relicense(&at("pulled"), &[owned(1, "Moss")]).unwrap();
    assert_eq!(push(&open(&at("pulled")), &objects, &NoProgress).unwrap(), 1);
    assert_eq!(RemoteStore::open(&objects).unwrap().generation().generation, 2);
    pull(&objects, &at("later"), &NoProgress).unwrap();
    check(&at("later"), &["Arbour", "Moss"], &[7, 13]);
}

/// A kill between any two steps of a change of owners: the first n of the new files are there, in the order in which they are written.
#[test]
fn a_kill_between_the_steps_leaves_the_old_or_the_new_owners() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..20);
    relicense(dir.path(), &[owned(0, "Arbour"), owned(1, "Moss")]).unwrap();
    let before = folder(dir.path());
    relicense(dir.path(), &[owned(1, "Arbour")]).unwrap();
    let after = folder(dir.path());
    let steps = ["datasets-000002.json", "owner_sums-000002.safetensors", "MANIFEST-000002.json", "CURRENT"];
    let changed: Vec<&String> = after.keys().filter(|name| before.get(*name) != after.get(*name)).collect();
    assert_eq!(changed.len(), steps.len(), "{changed:?}");
    for n in 0..=steps.len() {
        let case = tempfile::tempdir().unwrap();
        for (name, bytes) in &before {
            let path = case.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        for name in &steps[..n] {
            fs::write(case.path().join(name), &after[*name]).unwrap();
        }
        if n < steps.len() {
            // The next one was being written beside its place.
            fs::write(case.path().join(format!("{}.tmp", steps[n])), b"half").unwrap();
        }
        let expected: &[&str] = if n < 3 { &["Arbour", "Moss"] } else { &["Arbour"] };
        let store = open(case.path());
        store.verify().unwrap();
        assert_eq!(store.owner_sums().unwrap().owners, expected, "after {n} steps");
        relicense(case.path(), &[owned(1, "Arbour")]).unwrap();
        assert_eq!(folder(case.path()), after, "after {n} steps");
    }
}

/// Sums of owners that were summed and sealed by somebody else's arithmetic are no sums of these rows.
#[test]
fn sums_that_are_not_the_datasets_are_found() {
    let [dir, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    build(dir.path(), 0..20);
    build(other.path(), 0..20);
    relicense(dir.path(), &[owned(0, "Arbour"), owned(1, "Moss")]).unwrap();
    relicense(other.path(), &[owned(0, "Moss"), owned(1, "Arbour")]).unwrap();
    // The other store's sums under this store's manifest, sealed again.
    let name = "owner_sums-000001.safetensors";
    let theirs = fs::read(other.path().join(name)).unwrap();
    let path = dir.path().join("MANIFEST-000001.json");
    let ours = blake3::hash(&fs::read(dir.path().join(name)).unwrap()).to_hex().to_string();
    let text = fs::read_to_string(&path).unwrap().replace(&ours, blake3::hash(&theirs).to_hex().as_str());
    let (head, _) = text.rsplit_once("\"checksum\": \"").unwrap();
    let open_seal = format!("{head}\"checksum\": \"{}\"\n}}\n", "0".repeat(64));
    let seal = blake3::hash(open_seal.as_bytes()).to_hex();
    fs::write(&path, format!("{head}\"checksum\": \"{seal}\"\n}}\n")).unwrap();
    fs::write(dir.path().join(name), theirs).unwrap();
    let error = open(dir.path()).verify().unwrap_err();
    assert!(
        matches!(&error, StoreError::Malformed { what: "sums per owner", path, .. } if path.ends_with(name)),
        "{error}"
    );
}

#[test]
fn one_flipped_bit_in_owners_or_their_sums_is_found() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 0..20);
    relicense(dir.path(), &[owned(0, "Arbour"), owned(1, "Moss")]).unwrap();
    for name in ["datasets-000001.json", "owner_sums-000001.safetensors"] {
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for (at, &byte) in bytes.iter().enumerate() {
            poke(&path, at, byte ^ (1 << (at % 8)));
            let error = FeatureStore::open(dir.path(), None).and_then(|store| store.owner_sums()).unwrap_err();
            assert!(error.to_string().contains(name), "byte {at} of {name}: {error}");
            poke(&path, at, byte);
        }
        for len in [0, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            let error = FeatureStore::open(dir.path(), None).and_then(|store| store.owner_sums()).unwrap_err();
            assert!(error.to_string().contains(name), "{name} cut to {len}: {error}");
        }
        fs::remove_file(&path).unwrap();
        let error = FeatureStore::open(dir.path(), None).unwrap_err();
        assert!(matches!(&error, StoreError::Missing { path: p, .. } if *p == path), "{error}");
        fs::write(&path, &bytes).unwrap();
    }
    open(dir.path()).verify().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever the way to a state (owners changed in any order, rows taken out, packed), its sums are the ones of a rebuild, and the
    /// files of owners depend on where it ends alone.
    #[test]
    fn any_way_to_the_same_owners_gives_the_same_sums(
        steps in proptest::collection::vec((0u8..4, 0u32..3, 0usize..4, 0usize..30), 1..8)
    ) {
        let [dir, short] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        build(dir.path(), 0..30);
        let mut gone = std::collections::BTreeSet::new();
        for (what, dataset, owner, row) in steps {
            match what {
                0 | 1 => drop(relicense(dir.path(), &[owned(dataset, ["", "Arbour", "Birch", "Moss"][owner])]).unwrap()),
                2 if gone.insert(row) => {
                    let examples = [ids(row..row + 1)[0]].into();
                    delete(dir.path(), &Deletion { examples, ..Deletion::default() }).unwrap();
                }
                _ => drop(compact(dir.path()).unwrap()),
            }
        }
        let store = open(dir.path());
        store.verify().unwrap();
        let found = store.owner_sums().unwrap();
        prop_assert_eq!(rebuilt(&store).sums(), found.sums.sums());
        build(short.path(), 0..30);
        let terms: Vec<DatasetTerms> = store.terms().iter().cloned().collect();
        relicense(short.path(), &terms).unwrap();
        if !gone.is_empty() {
            delete(short.path(), &Deletion { examples: gone.iter().map(|&i| ids(i..i + 1)[0]).collect(), ..Deletion::default() }).unwrap();
        }
        let direct = open(short.path()).owner_sums().unwrap();
        prop_assert_eq!(direct.owners, found.owners);
        prop_assert!(direct.sums.distance(&found.sums) < 1e-27);
        prop_assert_eq!(direct.sums.sums(), found.sums.sums());
    }
}
