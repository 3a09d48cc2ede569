//! `ascribe store`.

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::store::owners::{self, Added, Relicensed, SumsReport};
use ascribe_engine::store::whitened::{self, WhitenRequest};
use ascribe_engine::store::{self, Made};
use ascribe_store::features::{DatasetStats, OwnerStats, StoreStats};

use crate::args::Format;
use crate::args::store::{ConvertArgs, StoreCommand};
use crate::output::{print, table};

/// Runs the command.
///
/// # Errors
/// Whatever the engine refuses.
pub fn run(command: &StoreCommand, format: Format, bars: &dyn Progress) -> Result<()> {
    match command {
        StoreCommand::Verify(args) => print(format, &store::verify(&args.dir)?, |v| {
            let companions = if v.companions.is_empty() { "no".to_owned() } else { v.companions.join(", ") };
            let beside = v.beside.iter().map(|name| format!("; {name}")).collect::<String>();
            format!(
                "generation {}: {} rows ({} deleted) in {} shards, {} bytes as they were written; {companions} companions{beside}",
                v.generation, v.n_rows, v.n_dead, v.n_shards, v.bytes
            )
        }),
        StoreCommand::Stats(args) => print(format, &store::stats(&args.dir)?, stats_text),
        StoreCommand::Convert(ConvertArgs { dir, rows, out: Some(out), factors: Some(rank), damping, .. }) => {
            let (store, out, row_type) = (dir.clone(), out.clone(), (*rows).into());
            let request = WhitenRequest { store, out, rank: *rank, damping: *damping, row_type };
            print(format, &whitened::make(&request, bars)?, made_text)
        }
        StoreCommand::Convert(args) => {
            print(format, &store::convert(&args.dir, args.rows.into(), args.out.as_deref(), bars)?, made_text)
        }
        StoreCommand::Merge(args) => print(format, &store::merge(&args.dirs, &args.out, bars)?, made_text),
        StoreCommand::Export(args) => print(format, &store::export(&args.dir, &args.out, bars)?, |e| {
            let names: Vec<String> = e.files.iter().map(|f| f.display().to_string()).collect();
            format!("{} rows in {}", e.n_rows, names.join(" and "))
        }),
        StoreCommand::Add(args) => print(format, &owners::add(&args.request(), bars)?, added_text),
        StoreCommand::Relicense(args) => print(format, &owners::relicense(&args.request())?, relicensed_text),
        StoreCommand::Sums(args) => print(format, &owners::sums(&args.dir, args.queries.as_deref())?, sums_text),
        StoreCommand::Delete(args) => print(format, &store::delete(&args.dir, &args.deletion(), bars)?, made_text),
        StoreCommand::Compact(args) => print(format, &store::compact(&args.dir)?, made_text),
        StoreCommand::Push(args) => print(format, &store::push(&args.dir, &args.to, bars)?, |p| {
            format!("commit {}: generation {}, {} rows", p.commit, p.generation, p.n_rows)
        }),
        StoreCommand::Pull(args) => print(format, &store::pull(&args.from, &args.out, bars)?, made_text),
        StoreCommand::Curvature(args) => print(format, &store::curvature::refresh(&args.dir, bars)?, |c| {
            let row = |(name, mean): &(String, f64)| vec![name.clone(), format!("{mean:.6e}")];
            let rows: Vec<Vec<String>> = c.mean_diagonals.iter().map(row).collect();
            let modules = table(&["module", "mean second moment"], &rows);
            format!("generation {}, {} rows, {}\n\n{modules}", c.generation, c.n_rows, c.how)
        }),
    }
}

/// What a store is now.
pub fn made_text(made: &Made) -> String {
    format!(
        "{}: generation {}, {} rows ({} deleted) in {}, {} bytes",
        made.store.display(),
        made.generation,
        made.n_rows,
        made.n_dead,
        made.row_type,
        made.bytes
    )
}

fn stats_text(s: &StoreStats) -> String {
    let module = |(name, start, len): &(String, usize, usize)| vec![name.clone(), start.to_string(), len.to_string()];
    let modules: Vec<Vec<String>> = s.modules.iter().map(module).collect();
    let companions: String = s.companions.iter().map(|(t, state)| format!("companion {t}: {state}\n")).collect();
    let error = s.error_rel.map_or_else(String::new, |[most, mean]| {
        format!("lost per row, relative to its norm: at most {most:.3e}, mean {mean:.3e}\n")
    });
    format!(
        "format {}, generation {} ({}), {} rows ({} deleted) of {} {} numbers in {} shards\n\
         {} bytes in shards, {} beside them, {:.1} per row\nnorms {:.4e} to {:.4e}, mean {:.4e}\n{error}{companions}\n{}\n{}",
        s.format_version,
        s.generation,
        s.made_by,
        s.n_rows,
        s.n_dead,
        s.dim,
        s.row_type,
        s.n_shards,
        s.shard_bytes,
        s.side_bytes,
        s.bytes_per_row,
        s.norms[0],
        s.norms[2],
        s.norms[1],
        by_dataset(&s.datasets, &s.owners),
        table(&["module", "first", "columns"], &modules)
    )
}

fn added_text(added: &Added) -> String {
    let row = |d: &owners::AddedDataset| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let t = &d.terms;
        vec![d.from.to_string(), t.dataset.to_string(), text(&t.name), text(&t.owner), text(&t.licence)]
    };
    let rows: Vec<Vec<String>> = added.datasets.iter().map(row).collect();
    let curvature = added.curvature.map_or_else(String::new, |how| format!(", curvature {how}"));
    format!(
        "{}: generation {}, {} rows, {} of them new{curvature}\n\n{}",
        added.store.display(),
        added.generation,
        added.n_rows,
        added.added_rows,
        table(&["there", "here", "name", "owner", "licence"], &rows)
    )
}

fn relicensed_text(r: &Relicensed) -> String {
    let row = |o: &OwnerStats| vec![o.owner.clone(), o.datasets.len().to_string(), o.rows.to_string()];
    let rows: Vec<Vec<String>> = r.owners.iter().map(row).collect();
    let nobody: Vec<String> = r.without_owner.iter().map(u32::to_string).collect();
    let nobody = match nobody.is_empty() {
        true => String::new(),
        false => format!("\ndatasets without an owner: {}\n", nobody.join(", ")),
    };
    let owners = table(&["owner", "datasets", "rows"], &rows);
    format!("{}: generation {}\n\n{owners}{nobody}", r.store.display(), r.generation)
}

fn sums_text(s: &SumsReport) -> String {
    let mut out = format!("generation {}\n\n{}", s.generation, by_dataset(&s.datasets, &s.owners));
    for (n, query) in s.queries.iter().flatten().enumerate() {
        let line = |name: String, score: &f64| vec![name, format!("{score:+.6e}")];
        let datasets =
            s.datasets.iter().zip(&query.datasets).map(|(d, score)| line(format!("dataset {}", d.dataset), score));
        let owners = s.owners.iter().zip(&query.owners).map(|(o, score)| line(o.owner.clone(), score));
        let rows: Vec<Vec<String>> = datasets.chain(owners).collect();
        out += &format!("\nquery {n}\n{}", table(&["sum of", "score"], &rows));
    }
    out
}

/// Rows and sums by dataset, with owners where the store knows any, and then by owner.
fn by_dataset(datasets: &[DatasetStats], owners: &[OwnerStats]) -> String {
    let is_known = datasets.iter().any(|d| d.name.is_some() || d.owner.is_some() || d.licence.is_some());
    let dataset = |d: &DatasetStats| {
        let mut cells = vec![d.dataset.to_string(), d.rows.to_string(), format!("{:.4e}", d.sum_norm)];
        if is_known {
            cells.extend([&d.name, &d.owner, &d.licence].map(|text| text.clone().unwrap_or_default()));
        }
        cells
    };
    let names = ["dataset", "rows", "norm of sum", "name", "owner", "licence"];
    let rows: Vec<Vec<String>> = datasets.iter().map(dataset).collect();
    let mut out = table(&names[..if is_known { 6 } else { 3 }], &rows);
    if !owners.is_empty() {
        let owner = |o: &OwnerStats| {
            vec![o.owner.clone(), o.datasets.len().to_string(), o.rows.to_string(), format!("{:.4e}", o.sum_norm)]
        };
        let rows: Vec<Vec<String>> = owners.iter().map(owner).collect();
        out += &format!("\n{}", table(&["owner", "datasets", "rows", "norm of sum"], &rows));
    }
    out
}
