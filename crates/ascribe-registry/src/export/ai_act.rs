//! The summary of training content (Regulation (EU) 2024/1689, Article 53(1)(d)), as far as a registry knows it.
//!
//! Markdown in the three sections of the Commission's template: general information, data sources, data processing. What a
//! registry cannot know is listed as not known: a provider fills it in. It is a document about facts, not a legal opinion.

use std::fmt::Write as _;

use super::day;
use crate::registry::{Dataset, Registry};
use crate::run::RunRecord;

/// The summary of one dataset, or of those that a run used.
pub fn export(registry: &Registry, datasets: &[&Dataset], run: Option<&RunRecord>, today_unix_s: u64) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut text, registry, datasets, run, today_unix_s);
    text
}

fn write_all(
    out: &mut String,
    registry: &Registry,
    datasets: &[&Dataset],
    run: Option<&RunRecord>,
    today: u64,
) -> std::fmt::Result {
    general(out, registry, datasets, run, today)?;
    sources(out, registry, datasets, run)?;
    processing(out)
}

fn general(
    out: &mut String,
    registry: &Registry,
    datasets: &[&Dataset],
    run: Option<&RunRecord>,
    today: u64,
) -> std::fmt::Result {
    writeln!(out, "# Summary of training content\n")?;
    writeln!(
        out,
        "Made on {} from a dataset registry and a training-run record. It states what is registered and",
        day(today)
    )?;
    writeln!(out, "makes no legal claim. To be made again when content changes, at the latest after six months.\n")?;
    writeln!(out, "## 1. General information\n")?;
    writeln!(out, "| | |\n| --- | --- |")?;
    writeln!(out, "| provider | not known to the registry |")?;
    match run {
        Some(run) => {
            writeln!(out, "| training run | {} |", cell(&run.invocation_id))?;
            writeln!(out, "| begun | {} |", day(run.started_unix_s))?;
            writeln!(out, "| model files | {} |", run.subjects.len())?;
        }
        None => writeln!(out, "| training run | none named |")?,
    }
    let bytes: u64 = datasets.iter().map(|dataset| dataset.manifest.len_bytes).sum();
    let records: u64 = datasets.iter().map(|dataset| dataset.manifest.record_count).sum();
    let mut languages: Vec<&str> = datasets.iter().map(|dataset| dataset.manifest.language.as_str()).collect();
    languages.sort_unstable();
    languages.dedup();
    writeln!(out, "| modality | text |\n| size | {records} records, {bytes} bytes |")?;
    writeln!(out, "| languages | {} |", cell(&languages.join(", ")))?;
    writeln!(out, "| licence log | {} entries, root {} |\n", registry.log().head().size, registry.log().head().root)
}

fn sources(out: &mut String, registry: &Registry, datasets: &[&Dataset], run: Option<&RunRecord>) -> std::fmt::Result {
    writeln!(out, "## 2. Data sources\n")?;
    writeln!(
        out,
        "Every source is a registered dataset under a signed licence; none is a crawl made for this registry.\n"
    )?;
    writeln!(
        out,
        "| dataset | owner | taken from | licence | permits | prohibits | records | log index | licence digest |"
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | ---: | ---: | --- |")?;
    for dataset in datasets {
        let (manifest, message) = (&dataset.manifest, dataset.licence.message());
        let source = &manifest.source;
        let index = registry.log().index_of(dataset.licence.digest()).map_or("none".to_owned(), |i| i.to_string());
        let used = run.and_then(|run| run.datasets.iter().find(|used| used.uuid == manifest.uuid));
        let records = used.map_or(manifest.record_count, |used| used.records_used);
        let origin = format!("{} {} {}", source.registry, source.package, source.version);
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {records} | {index} | {} |",
            cell(&manifest.title),
            cell(&manifest.owner),
            cell(&origin),
            cell(&manifest.licence),
            cell(&message.permits.join(" ")),
            cell(&message.prohibits.join(" ")),
            dataset.licence.digest()
        )?;
    }
    let demo = datasets.iter().filter(|dataset| dataset.licence.demo_key()).count();
    if demo > 0 {
        writeln!(out, "\n{demo} of these licences are signed with public demo keys: nobody named in them has signed.")?;
    }
    writeln!(out, "\nNot known to the registry: data scraped from the web, user data, synthetic data used besides.\n")
}

fn processing(out: &mut String) -> std::fmt::Result {
    writeln!(out, "## 3. Data processing\n")?;
    writeln!(
        out,
        "- Rights reservations: the permits and prohibits above are what the licensors signed; a run that names a"
    )?;
    writeln!(out, "  dataset without the permit `ai-train`, or after a revocation, is refused.")?;
    writeln!(
        out,
        "- Each dataset is pinned by an RFC 6962 root over the hashes of its records in their canonical form."
    )?;
    writeln!(out, "- Removal of illegal content: not known to the registry.")
}

/// Text within a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
