//! `ascribe registry`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ascribe_core::Progress;
use ascribe_engine::Home;
use ascribe_registry::export::{ai_act, croissant, rsl};
use ascribe_registry::near::{self, Compared, Duplicates, Thresholds};
use ascribe_registry::registrar::{Added, Registrar};
use ascribe_registry::{
    Dataset, Fields, Ingest, MembershipProof, Registry, RunRecord, Settings, SourceSet, VerifyReport,
};
use serde_json::json;

use super::guide;
use crate::args::registry::{DuplicatesArgs, RegistryCommand, RegistryDir};
use crate::args::{Cli, Format};
use crate::output::{print, table};

/// Runs a registry command.
///
/// # Errors
/// Whatever the registry refuses.
pub fn run(cli: &Cli, command: &RegistryCommand, bars: &dyn Progress) -> Result<()> {
    let format = cli.format;
    match command {
        RegistryCommand::Init { dir, name, chain_id, database, log_key } => {
            let name = name.clone().map_or_else(Settings::random_name, Ok)?;
            let settings = Settings::new(&name, *chain_id, database);
            Registrar::init_with_log_key(dir, &settings, log_key.as_deref())?;
            print(format, &settings, |_| format!("registry {name:?} in {}", dir.display()))
        }
        RegistryCommand::Add(args) => {
            let mut registrar = open(&args.registry)?;
            let (new, content) = guide::new_dataset(args)?;
            let added = registrar.add(&new, &content, bars)?;
            print(format, &added, added_text)
        }
        RegistryCommand::List { registry } => {
            let mut registrar = open(registry)?;
            let listed = json!({ "datasets": registrar.datasets()?, "disputes": registrar.disputes()? });
            let states = registrar.datasets()?;
            print(format, &listed, |_| list_text(&states))
        }
        RegistryCommand::Verify { dir, model } => verify(cli, dir.as_deref(), model.as_deref(), bars),
        RegistryCommand::Export { id, out, registry } => export(format, id, out, registry),
        RegistryCommand::Duplicates(args) => duplicates(cli, args, bars),
        RegistryCommand::Prove { id, record, out, registry } => {
            let registry = readable(cli, registry)?;
            let proof = MembershipProof::of(find(&registry, id)?, record)?;
            std::fs::write(out, serde_json::to_vec_pretty(&proof)?).with_context(|| out.display().to_string())?;
            print(format, &proof, |p| format!("record {} of {} is in {}", p.index, p.record_count, out.display()))
        }
        RegistryCommand::CheckProof { file, root } => {
            let proof = MembershipProof::read(file)?;
            proof.verify(file, root.as_deref())?;
            print(format, &proof, |p| format!("record {} of {} under root {}", p.index, p.record_count, p.content_root))
        }
        RegistryCommand::Dispute { id, claimant, reason, close, outcome, registry } => {
            let mut registrar = open(registry)?;
            if let Some(number) = close {
                registrar.close_dispute(*number, outcome.as_deref().unwrap_or_default())?;
                return print(format, &json!({ "closed": number }), |_| format!("dispute {number} closed"));
            }
            let given = [id, claimant, reason].map(|text| text.as_deref().unwrap_or_default());
            let number = registrar.open_dispute(given[0], given[1], given[2])?;
            print(format, &json!({ "opened": number }), |_| format!("dispute {number} opened"))
        }
    }
}

/// The registry folder that is meant.
pub(super) fn dir_of(registry: &RegistryDir) -> Result<PathBuf> {
    if let Some(dir) = &registry.dir {
        return Ok(dir.clone());
    }
    let here = std::env::current_dir().context("current folder")?;
    match Settings::find_dir(&here) {
        Some(dir) => Ok(dir),
        None => {
            bail!("no registry.json at or above {} (hint: ascribe registry init DIR, or --dir DIR)", here.display())
        }
    }
}

/// Opens a registry to write to it.
pub(super) fn open(registry: &RegistryDir) -> Result<Registrar> {
    Ok(Registrar::open(&dir_of(registry)?)?)
}

/// A registry to read: the one that is meant, or the datasets of the home folder.
pub(super) fn readable(cli: &Cli, registry: &RegistryDir) -> Result<Registry> {
    let dir = match dir_of(registry) {
        Ok(dir) => dir,
        Err(none) => Home::find(cli.home.as_deref()).map_err(|_| none)?.datasets(),
    };
    if dir.join("registry.json").exists() {
        // Finishes what a crash may have left, so that what is read is whole.
        return Ok(Registrar::open(&dir)?.licensed()?);
    }
    Ok(Registry::open(&dir)?)
}

/// A licensed dataset by name or urn:uuid.
pub(super) fn find<'a>(registry: &'a Registry, id: &str) -> Result<&'a Dataset> {
    let found = registry.datasets().iter().find(|d| d.name() == id || d.manifest.uuid == id);
    found.with_context(|| format!("dataset {id:?}: expected a licensed one, found none (hint: ascribe registry list)"))
}

fn verify(cli: &Cli, dir: Option<&Path>, model: Option<&str>, bars: &dyn Progress) -> Result<()> {
    let here = std::env::current_dir().context("current folder")?;
    let found = dir.map(Path::to_owned).or_else(|| if model.is_none() { Settings::find_dir(&here) } else { None });
    let run_of = |model: &str| -> Result<RunRecord> {
        let home = Home::find(cli.home.as_deref())?;
        Ok(RunRecord::read(&home.model(model).join(ascribe_engine::train::run::RUN_RECORD_FILE))?)
    };
    let Some(dir) = found else {
        let home = Home::find(cli.home.as_deref())?;
        let run = run_of(model.unwrap_or(ascribe_engine::DEFAULT_MODEL))?;
        let report = Registry::open(&home.datasets())?.verify(Some(&run), bars)?;
        return print(cli.format, &report, verify_text);
    };
    let run = model.map(run_of).transpose()?;
    if dir.join("registry.json").exists() {
        let mut registrar = Registrar::open(&dir)?;
        let found = registrar.verify(bars)?;
        if let Some(run) = &run {
            registrar.licensed()?.verify(Some(run), bars)?;
        }
        return print(cli.format, &found, |found| {
            let mut text = verify_text(&found.folder);
            for name in &found.unlicensed {
                text.push_str(&format!("{name}: content holds, no licence yet (hint: ascribe licence sign {name})\n"));
            }
            text + &format!("{} signatures hold, {} open disputes\n", found.signatures, found.open_disputes)
        });
    }
    let report = Registry::open(&dir)?.verify(run.as_ref(), bars)?;
    print(cli.format, &report, verify_text)
}

fn verify_text(report: &VerifyReport) -> String {
    let row = |d: &ascribe_registry::DatasetReport| {
        vec![
            d.name.clone(),
            d.record_count.to_string(),
            d.licence.clone(),
            d.content_root.to_string()[..16].to_owned(),
            if d.demo_key { "demo key" } else { "signed" }.to_owned(),
            d.revoked_from.map_or_else(|| "in force".to_owned(), |from| format!("revoked from {from}")),
        ]
    };
    let rows: Vec<Vec<String>> = report.datasets.iter().map(row).collect();
    table(&["dataset", "records", "licence", "content root", "key", "state"], &rows)
}

fn export(format: Format, id: &str, out: &Path, registry: &RegistryDir) -> Result<()> {
    let dir = dir_of(registry)?;
    let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let text = if dir.join("registry.json").exists() {
        let mut registrar = Registrar::open(&dir)?;
        let registry = registrar.licensed()?;
        match (find(&registry, id), format) {
            (Ok(dataset), _) => exported(format, &registry, dataset, folder)?,
            (Err(_), Format::Croissant) => pretty(&registrar.describe_unlicensed(id, folder)?)?,
            (Err(unlicensed), Format::Rsl | Format::AiAct) => {
                // Unknown, or known and unlicensed: the two are told apart.
                registrar.owner_of(id)?;
                return Err(unlicensed.context("this form states a signed licence (--format croissant needs none)"));
            }
            (Err(unlicensed), _) => return Err(unlicensed),
        }
    } else {
        let registry = Registry::open(&dir)?;
        exported(format, &registry, find(&registry, id)?, folder)?
    };
    ascribe_engine::files::write_atomic(out, text.as_bytes())?;
    print(Format::Text, &(), |()| format!("{}", out.display()))
}

fn exported(format: Format, registry: &Registry, dataset: &Dataset, folder: &Path) -> Result<String> {
    let index = registry.log().index_of(dataset.licence.digest());
    Ok(match format {
        Format::Croissant => pretty(&croissant::export(dataset, index, folder)?)?,
        Format::Rsl => rsl::export(dataset),
        Format::AiAct => ai_act::export(registry, &[dataset], None, guide::now_unix_s()),
        Format::Text | Format::Json => bail!("--format: expected croissant, rsl or ai-act, found text or json"),
    })
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn duplicates(cli: &Cli, args: &DuplicatesArgs, bars: &dyn Progress) -> Result<()> {
    let thresholds = Thresholds { jaccard: args.jaccard, containment: args.containment, ..Thresholds::default() };
    for (what, value) in [("--jaccard", args.jaccard), ("--containment", args.containment)] {
        if !(0.0..=1.0).contains(&value) {
            bail!("{what}: expected a number between 0 and 1, found {value}");
        }
    }
    let found = if args.folders.is_empty() {
        let dir = match dir_of(&args.registry) {
            Ok(dir) => dir,
            Err(none) => Home::find(cli.home.as_deref()).map_err(|_| none)?.datasets(),
        };
        near::find_in_registry(&dir, thresholds, bars)?
    } else {
        let fields = Fields { id: args.id_field.clone(), text: args.text_field.clone(), skip_empty: true };
        let sets: Vec<SourceSet> = args.folders.iter().map(|path| SourceSet::find(path)).collect::<Result<_, _>>()?;
        let compared: Vec<Compared<'_>> = sets
            .iter()
            .map(|set| Compared {
                name: set.root.display().to_string(),
                owner: set.root.display().to_string(),
                log_index: None,
                ingest: Ingest { set, fields: &fields, strict: false },
            })
            .collect();
        near::find(&compared, thresholds, bars)?
    };
    print(cli.format, &found, duplicates_text)
}

fn duplicates_text(found: &Duplicates) -> String {
    /// Clusters that a person sees; JSON has all.
    const SHOWN: usize = 50;
    let mut rows = Vec::new();
    for cluster in found.clusters.iter().take(SHOWN) {
        let first = &cluster.members[0];
        let best = cluster.evidence.iter().map(|pair| pair.containment).fold(0.0, f64::max);
        let kind = if cluster.evidence.iter().all(|pair| pair.exact) { "exact" } else { "near" };
        let other = &cluster.members[1];
        rows.push(vec![
            format!("{}/{}", first.dataset, first.id),
            format!("{}/{}", other.dataset, other.id),
            cluster.members.len().to_string(),
            kind.to_owned(),
            format!("{best:.2}"),
        ]);
    }
    let across = found.clusters.iter().filter(|cluster| cluster.across_owners).count();
    format!(
        "{}\n{} clusters ({across} across owners), {} of {} records redundant\n",
        table(&["first registered", "then", "records", "kind", "containment"], &rows),
        found.clusters.len(),
        found.redundant,
        found.records
    )
}

fn added_text(added: &Added) -> String {
    let Added { name, version, record_count, content_root, uuid, new, .. } = added;
    let what = if *new { "registered" } else { "was registered before" };
    format!(
        "{name} {what}: version {version}, {record_count} records\n{uuid}\ncontent root {content_root}\nnext: ascribe licence \
         sign {name} --keystore FILE\n"
    )
}

fn list_text(states: &[ascribe_registry::registrar::DatasetState]) -> String {
    let row = |state: &ascribe_registry::registrar::DatasetState| {
        let licence = match &state.licence {
            None => "none yet".to_owned(),
            Some(licence) if licence.revoked_from.is_some() => "revoked".to_owned(),
            Some(licence) => format!("#{} by {}", licence.log_index, licence.licensor),
        };
        let counts = [state.version, state.record_count].map(|n| n.to_string());
        let [version, records] = counts;
        vec![state.name.clone(), version, records, state.licence_spdx.clone(), licence]
    };
    let rows: Vec<Vec<String>> = states.iter().map(row).collect();
    table(&["dataset", "version", "records", "terms", "licence"], &rows)
}
