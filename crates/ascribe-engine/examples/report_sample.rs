//! A page to design against: real records, generated numbers.
//!
//! `cargo run --release -p ascribe-engine --example report_sample -- RECORDS_DIR OUT.html [N_DATASETS]`
//!
//! `RECORDS_DIR` holds datasets as `NAME/records.jsonl` with `NAME/manifest.json`, or as `NAME.jsonl` with one
//! `sources.json`; titles, owners, licences and languages come from there. Every number on the page is drawn from a random stream and says
//! nothing about any method; the page says so itself. The report that counts comes from a run.

use std::error::Error;
use std::fs;
use std::path::Path;

use ascribe_engine::report::data::{
    DatasetRow, Fact, IndexFacts, MethodRow, PayoutRow, ReportData, ResponseRow, ShareBar, SourceHit, Timing,
};
use ascribe_engine::report::render;
use ascribe_linalg::Stream;
use serde_json::Value;

const SEED: u64 = 7;
const N_RESPONSES: usize = 80;
const N_HITS: usize = 5;
const PROMPT_CHARS: usize = 240;
const RESPONSE_CHARS: usize = 130;

struct Source {
    row: DatasetRow,
    records: Vec<(String, String)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: report_sample RECORDS_DIR OUT.html [N_DATASETS]";
    let dir = args.next().ok_or(usage)?;
    let out = args.next().ok_or(usage)?;
    let n_datasets: usize = args.next().map_or(Ok(10), |n| n.parse())?;
    let sources = read_sources(Path::new(&dir), n_datasets)?;
    let data = sample(&sources);
    fs::write(&out, render(&data)?)?;
    Ok(())
}

fn read_sources(dir: &Path, n_datasets: usize) -> Result<Vec<Source>, Box<dyn Error>> {
    let known: Value = match fs::read(dir.join("sources.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => Value::Null,
    };
    let mut paths: Vec<_> = fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let file = if path.is_dir() { path.join("records.jsonl") } else { path.clone() };
        if sources.len() == n_datasets || file.extension().is_none_or(|e| e != "jsonl") || !file.exists() {
            continue;
        }
        let name = path.file_stem().and_then(|s| s.to_str()).ok_or("a file name is not UTF-8")?.to_owned();
        let mut records = Vec::new();
        for line in fs::read_to_string(&file)?.lines() {
            let record: Value = serde_json::from_str(line)?;
            let field = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            records.push((field("id"), field("text")));
        }
        let about = match fs::read(path.join("manifest.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => {
                let mut listed = known["sources"].as_array().into_iter().flatten();
                listed.find(|s| s["source"] == name.as_str()).cloned().unwrap_or(Value::Null)
            }
        };
        sources.push(Source { row: dataset_row(&name, &about, &records, sources.len()), records });
    }
    if sources.is_empty() {
        return Err(format!("{} holds no records, expected NAME/records.jsonl or NAME.jsonl", dir.display()).into());
    }
    Ok(sources)
}

fn dataset_row(name: &str, about: &Value, records: &[(String, String)], ordinal: usize) -> DatasetRow {
    let field =
        |keys: [&str; 2], other: &str| keys.iter().find_map(|key| about[*key].as_str()).unwrap_or(other).to_owned();
    let mut stream = Stream::new(SEED, &format!("dataset/{ordinal}"));
    let bits = 1.4 + 0.8 * stream.uniform();
    DatasetRow {
        name: name.to_owned(),
        title: field(["title", "title"], name),
        owner: field(["owner", "owner"], "(owner not named)"),
        licence: field(["licence", "license"], "NOASSERTION"),
        language: field(["language", "lang"], "und"),
        records: records.len() as u64,
        examples: records.len() as u64 * 3 / 2,
        content_root: field(["content_root", "sha256"], ""),
        bits_per_byte: bits,
        bits_per_byte_bigram: bits + 0.7 + 0.4 * stream.uniform(),
        bits_per_byte_unigram: bits + 1.4 + 0.8 * stream.uniform(),
    }
}

fn hex_word(stream: &mut Stream) -> String {
    (0..4).map(|_| format!("{:016x}", stream.next_u64())).collect()
}

fn sample(sources: &[Source]) -> ReportData {
    let n = sources.len();
    let responses: Vec<ResponseRow> = (0..N_RESPONSES).map(|q| response(sources, q)).collect();
    let mut stream = Stream::new(SEED, "run");
    let mut means = vec![0.0; n];
    for response in &responses {
        for (mean, bar) in means.iter_mut().zip(&response.shares) {
            *mean += bar.share / N_RESPONSES as f64;
        }
    }
    let truth_heat = (0..n)
        .map(|d| {
            (0..n)
                .map(|own| {
                    let of_own: Vec<f64> = responses
                        .iter()
                        .filter(|r| r.source_dataset as usize == own)
                        .filter_map(|r| r.truth.as_ref().map(|t| t[d]))
                        .collect();
                    of_own.iter().sum::<f64>() / of_own.len().max(1) as f64
                })
                .collect()
        })
        .collect();
    let facts = [
        ("Warning", "a design sample: the texts are real, every number is drawn at random".to_owned()),
        ("Model", "sample decoder, 1.6 M parameters, 6 layers".to_owned()),
        ("Spec hash", format!("sha256:{}", hex_word(&mut stream))),
        ("Training-run record", format!("sha256:{}", hex_word(&mut stream))),
        ("Weights", format!("blake3:{}", hex_word(&mut stream))),
        ("Seed", SEED.to_string()),
        ("Curvature", "block-Fisher, relative damping 0.1, 4 checkpoints".to_owned()),
    ];
    ReportData {
        facts: facts.into_iter().map(|(label, value)| Fact { label: label.to_owned(), value }).collect(),
        datasets: sources.iter().map(|s| s.row.clone()).collect(),
        payout: payout(sources, &means, &mut stream),
        responses,
        methods: methods(),
        ceiling: Some(method("retraining, seed against seed", false, 0.071, 0.071, 0.93, 0.81)),
        default_method: "influence + similarity".to_owned(),
        pool: "1000.00 USD".to_owned(),
        unattributed: "380.00 USD".to_owned(),
        coverage: 0.62,
        coverage_note:
            "Coverage is the part of the responses' loss that registered data removes, against a model that \
                        only counts."
                .to_owned(),
        index: IndexFacts { rows: 9_216, dim: 512, recall_at_10: 0.993, bytes_per_example: 1_034.0 },
        timings: timings(),
        truth_heat,
    }
}

/// Cuts `text` at a character count.
fn chars(text: &str, from: usize, n: usize) -> String {
    text.chars().skip(from).take(n).collect()
}

fn response(sources: &[Source], q: usize) -> ResponseRow {
    let own = q * sources.len() / N_RESPONSES;
    let mut stream = Stream::new(SEED, &format!("response/{q}"));
    let mut pick = |d: usize| {
        let records = &sources[d].records;
        &records[stream.below(u32::try_from(records.len()).unwrap_or(u32::MAX)) as usize]
    };
    let mut text = &pick(own).1;
    for _ in 0..50 {
        if text.chars().count() > PROMPT_CHARS {
            break;
        }
        text = &pick(own).1;
    }
    let split = PROMPT_CHARS.min(text.chars().count() / 2);
    let mut weights: Vec<f64> = Vec::new();
    let mut truth: Vec<f64> = Vec::new();
    let hits: Vec<usize> = (0..N_HITS).map(|k| if k % 3 == 2 { (own + k) % sources.len() } else { own }).collect();
    let found: Vec<(usize, (String, String))> = hits.into_iter().map(|d| (d, pick(d).clone())).collect();
    for d in 0..sources.len() {
        let near = if d == own { 2.4 } else { 0.0 };
        let weight = (near + 1.2 * stream.normal()).exp();
        weights.push(weight);
        truth.push((weight * (0.5 * stream.normal()).exp() - 0.1).max(0.0));
    }
    let (sum, truth_sum) = (weights.iter().sum::<f64>(), truth.iter().sum::<f64>());
    let shares = weights
        .iter()
        .map(|w| {
            let share = w / sum;
            let reach = 0.25 * share + 0.02 * stream.uniform();
            ShareBar { share, low: (share - reach).max(0.0), high: (share + reach).min(1.0) }
        })
        .collect();
    let top = found
        .into_iter()
        .enumerate()
        .map(|(k, (dataset, (record, text)))| SourceHit {
            dataset: dataset as u32,
            record,
            score: 0.004 * (-0.4 * k as f64 - 0.2 * stream.uniform()).exp(),
            snippet: chars(&text, 0, 300),
        })
        .collect();
    ResponseRow {
        id: q as u32,
        source_dataset: own as u32,
        prompt: chars(text, 0, split),
        response: chars(text, split, RESPONSE_CHARS),
        bits_per_byte: 1.2 + stream.uniform(),
        verdict: "Payable.".into(),
        shares,
        truth: Some(truth.iter().map(|t| t / truth_sum.max(f64::MIN_POSITIVE)).collect()),
        top,
    }
}

fn method(name: &str, control: bool, raw: f64, calibrated: f64, top1: f64, spearman: f64) -> MethodRow {
    MethodRow {
        name: name.to_owned(),
        control,
        share_error: raw,
        share_error_low: raw - 0.018,
        share_error_high: raw + 0.02,
        calibrated,
        calibrated_low: calibrated - 0.014,
        calibrated_high: calibrated + 0.015,
        top1,
        spearman,
        low: spearman - 0.06,
        high: spearman + 0.05,
        spearman_others: spearman - 0.3,
    }
}

fn methods() -> Vec<MethodRow> {
    vec![
        method("influence + similarity", false, 0.171, 0.142, 0.90, 0.66),
        method("block-Fisher influence", false, 0.193, 0.176, 0.87, 0.54),
        method("trajectory, 4 checkpoints", false, 0.201, 0.179, 0.86, 0.56),
        method("embedding similarity", true, 0.702, 0.174, 0.85, 0.61),
        method("BM25", true, 0.412, 0.252, 0.74, 0.43),
        method("gradient norm", true, 0.584, 0.431, 0.21, 0.18),
        method("random", true, 0.611, 0.498, 0.10, 0.01),
    ]
}

fn payout(sources: &[Source], means: &[f64], stream: &mut Stream) -> Vec<PayoutRow> {
    let mut rows: Vec<PayoutRow> = Vec::new();
    for (source, &part) in sources.iter().zip(means) {
        let part_low = 0.82 * part;
        let part_high = (1.15 * part).min(1.0);
        if let Some(row) = rows.iter_mut().find(|r| r.owner == source.row.owner) {
            row.datasets.push(source.row.name.clone());
            row.part += part;
            row.part_low += part_low;
            row.part_high = (row.part_high + part_high).min(1.0);
            continue;
        }
        rows.push(PayoutRow {
            owner: source.row.owner.clone(),
            account: format!("eip155:1:0x{}", &hex_word(stream)[..40]),
            datasets: vec![source.row.name.clone()],
            amount: String::new(),
            part,
            part_low,
            part_high,
        });
    }
    for row in &mut rows {
        let cents = (62_000.0 * row.part) as u64;
        row.amount = format!("{}.{:02} USD", cents / 100, cents % 100);
    }
    rows
}

fn timings() -> Vec<Timing> {
    [
        ("verify registry", 0.8, "10 signatures, 29,000 record hashes"),
        ("build corpus", 1.9, "9,216 examples"),
        ("features", 41.0, "9,216 examples, 31,000 tokens/s"),
        ("fit", 3.2, "26 modules"),
        ("score", 6.5, "80 × 9,216"),
        ("index", 4.1, "HNSW, m 16, ef 200"),
        ("controls", 5.7, "similarity, BM25, norm, random"),
        ("shares and ledger", 0.05, "11 transfers"),
    ]
    .into_iter()
    .map(|(stage, seconds, note)| Timing { stage: stage.to_owned(), seconds, note: note.to_owned() })
    .collect()
}
