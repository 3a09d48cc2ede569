//! `ascribe store`.

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::store::{self, Made};
use ascribe_store::features::StoreStats;

use crate::args::Format;
use crate::args::store::StoreCommand;
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
        StoreCommand::Convert(args) => {
            print(format, &store::convert(&args.dir, args.rows.into(), args.out.as_deref(), bars)?, made_text)
        }
        StoreCommand::Merge(args) => print(format, &store::merge(&args.dirs, &args.out, bars)?, made_text),
        StoreCommand::Export(args) => print(format, &store::export(&args.dir, &args.out, bars)?, |e| {
            let names: Vec<String> = e.files.iter().map(|f| f.display().to_string()).collect();
            format!("{} rows in {}", e.n_rows, names.join(" and "))
        }),
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

fn made_text(made: &Made) -> String {
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
    let dataset = |d: &ascribe_store::features::DatasetStats| {
        vec![d.dataset.to_string(), d.rows.to_string(), format!("{:.4e}", d.sum_norm)]
    };
    let datasets: Vec<Vec<String>> = s.datasets.iter().map(dataset).collect();
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
        table(&["dataset", "rows", "norm of sum"], &datasets),
        table(&["module", "first", "columns"], &modules)
    )
}
