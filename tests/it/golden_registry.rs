//! Golden registry files: manifest, licence, licence log, selection table; and the corpus that follows from the records.

use std::fs;

use ascribe_core::NoProgress;
use ascribe_corpus::{BpeTokenizer, Corpus, CorpusConfig, CorpusManifest, DatasetPart};
use ascribe_registry::prepare::{Grant, NewDataset, demo_account, license_dataset, write_dataset};
use ascribe_registry::select::{SELECTION_FORMAT_VERSION, Selection};
use ascribe_registry::{
    LICENCE_FORMAT_VERSION, LicenceDigest, LicenceKey, MANIFEST_FORMAT_VERSION, Manifest, Payee, Registry, Source,
    read_records,
};
use ascribe_testkit::tiny_records;
use ascribe_tests::golden;

/// Names of the golden datasets with the number of times that the tiny records are repeated.
const DATASETS: [(&str, usize); 2] = [("harbour", 4), ("margin", 3)];

fn new_dataset(name: &str) -> NewDataset {
    let owner = format!("Owner of {name}");
    NewDataset {
        name: name.to_owned(),
        title: format!("Golden dataset {name}"),
        owner: owner.clone(),
        language: "mul".to_owned(),
        licence: "CC0-1.0".to_owned(),
        permits: vec!["ai-train".to_owned(), "search".to_owned()],
        prohibits: vec![],
        payees: vec![Payee { account: demo_account(&owner), share_ppm: 1_000_000 }],
        source: Source { registry: "ascribe".to_owned(), package: "testkit".to_owned(), version: "1".to_owned() },
        notes: "Written for the tests.".to_owned(),
        terms: "CC0 1.0 Universal.\n".to_owned(),
    }
}

fn config() -> CorpusConfig {
    CorpusConfig { seq_len: 16, prompt_len: 8, queries_per_dataset: 1, validation_per_dataset: 1, vocab_size: 300 }
}

/// Records are drawn from the golden registry itself.
fn parts() -> Vec<DatasetPart> {
    let registry = Registry::open(&golden("licence", LICENCE_FORMAT_VERSION)).unwrap();
    registry
        .datasets()
        .iter()
        .map(|dataset| DatasetPart {
            name: dataset.name().to_owned(),
            id: dataset.id(),
            records: read_records(dataset).unwrap(),
        })
        .collect()
}

#[test]
#[ignore = "writes the golden folders"]
fn make_golden_registry() {
    let folder = golden("licence", LICENCE_FORMAT_VERSION);
    let _ = fs::remove_dir_all(&folder);
    for (name, n_repeats) in DATASETS {
        let new = new_dataset(name);
        let records: Vec<(String, String)> = (0..n_repeats)
            .flat_map(|i| {
                tiny_records().into_iter().map(move |r| (format!("{i}/{}", r.id), format!("{i}. {}", r.text)))
            })
            .collect();
        write_dataset(&folder, &new, records.iter().map(|(id, text)| (id.as_str(), text.as_str()))).unwrap();
        let grant = Grant { valid_from: 1_700_000_000, valid_until: 0, nonce: 1, supersedes: LicenceDigest::default() };
        license_dataset(&folder, name, &LicenceKey::demo(&new.owner), grant).unwrap();
    }
    let manifest = golden("manifest", MANIFEST_FORMAT_VERSION);
    fs::create_dir_all(&manifest).unwrap();
    fs::copy(folder.join("harbour/manifest.json"), manifest.join("manifest.json")).unwrap();

    let parts = parts();
    let tokenizer = BpeTokenizer::train(Corpus::training_texts(&parts, &config()).into_iter(), 300).unwrap();
    let corpus = Corpus::build(parts, &tokenizer, config()).unwrap();
    let folder = golden("corpus", corpus.manifest.format_version);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer.json()).unwrap();
    fs::write(folder.join("manifest.json"), serde_json::to_vec_pretty(&corpus.manifest).unwrap()).unwrap();
}

/// Opens `formats/licence/v1`: roots, signatures and log are as they were signed.
#[test]
fn the_first_licences_verify_for_ever() {
    let registry = Registry::open(&golden("licence", 1)).unwrap();
    let report = registry.verify(None, &NoProgress).unwrap();
    assert_eq!(report.datasets.len(), DATASETS.len());
    let digests: Vec<String> = registry.datasets().iter().map(|d| d.licence.digest().to_string()).collect();
    assert_eq!(digests, LICENCE_DIGESTS);
    assert_eq!(registry.log().head().size, 2);
}

/// Opens `formats/manifest/v1`: the part that a licence pins has not moved.
#[test]
fn the_first_manifest_means_the_same_for_ever() {
    let path = golden("manifest", 1).join("manifest.json");
    let manifest: Manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest.validate(&path).unwrap();
    assert_eq!((manifest.name.as_str(), manifest.record_count), ("harbour", 24));
    assert_eq!(manifest.metadata_sha256().to_string(), METADATA_SHA256);
}

/// Opens `formats/selection/v1`.
#[test]
fn the_first_selection_table_opens_for_ever() {
    let text = fs::read_to_string(golden("selection", 1).join("selection.toml")).unwrap();
    let selection: Selection = toml::from_str(&text).unwrap();
    assert_eq!(selection.format_version, SELECTION_FORMAT_VERSION);
    assert_eq!(selection.datasets.len(), 1);
    assert_eq!(selection.datasets[0].budget_bytes, 1000);
}

/// Opens `formats/corpus/v1`: the same records and tokenizer give the same examples, to the token.
#[test]
fn the_first_corpus_is_cut_the_same_way_for_ever() {
    let folder = golden("corpus", 1);
    let wanted: CorpusManifest = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let tokenizer = BpeTokenizer::load(&folder.join("tokenizer.json")).unwrap();
    let corpus = Corpus::build(parts(), &tokenizer, wanted.config.clone()).unwrap();
    assert_eq!(corpus.manifest, wanted);
    assert_eq!(corpus.manifest.digest().to_string(), CORPUS_DIGEST);
}

/// As the makers printed them; the metadata and corpus digests were computed a second time in Python (sorted keys and no
/// spaces; struct order and no spaces).
const LICENCE_DIGESTS: [&str; 2] = [
    "0x0c6c023551c93708cc75a764a68fde315c2456364d896d585e473f948a45369c",
    "0xa81e59c78f8ecbd5070097dc217cd01866cb88acc11058173c68fca5cf9f4924",
];
const METADATA_SHA256: &str = "20a8fb11a329f3a858bf3223b8fd0c28ed5e7601425e61f15915620caa00fbad";
const CORPUS_DIGEST: &str = "3969a22febebc6fea425276e6a8b9129b82284da16338214171cc09223091e49";
