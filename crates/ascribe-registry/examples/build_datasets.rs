//! Rebuilds `datasets/` from a folder of source corpora: `build_datasets SOURCE_FOLDER [DATASETS_FOLDER]`.
//!
//! `SOURCE_FOLDER` holds `corpora/NAME.jsonl` and the pair file; `DATASETS_FOLDER` (default `datasets`) holds
//! `selection.toml` and each dataset's `terms.txt`. The same sources give the same bytes; the result is verified.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;

use ascribe_core::NoProgress;
use ascribe_registry::{Registry, prepare};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let source_dir = arguments.next().ok_or("expected the folder of source corpora as first argument")?;
    let datasets_dir = arguments.next().unwrap_or_else(|| "datasets".into());
    let selection = toml::from_str(&std::fs::read_to_string(datasets_dir.join("selection.toml"))?)?;
    let manifests = prepare::build_demo(&selection, &source_dir, &datasets_dir, &NoProgress)?;
    let report = Registry::open(&datasets_dir)?.verify(None, &NoProgress)?;
    let mut out = std::io::stdout().lock();
    for manifest in &manifests {
        let (name, count, len) = (&manifest.name, manifest.record_count, manifest.len_bytes);
        writeln!(out, "{name:<20} {count:>5} records {len:>8} bytes {}", manifest.content_root)?;
    }
    writeln!(out, "licence log {} {}", report.licence_log.size, report.licence_log.root)?;
    Ok(())
}
