//! The jobs: what becomes SQL, and what is made of its answer.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ascribe_core::FeatureReader as _;
use ascribe_index::shard_job::{Answer, Partial, run_all};
use ascribe_store::FeatureStore;
use ascribe_store::features::ShardEntry;
use clap::Args;
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::json::LineDelimitedWriter;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::prelude::ParquetReadOptions;
use serde::Serialize;

use crate::{session, shared, stores};

/// Tasks that a scan may be cut into, if a store has many shards.
const PARTITIONS_MAX: usize = 1024;

/// Settings of `score`.
#[derive(Args)]
pub struct ScoreArgs {
    /// The store, on a file system that every node sees at this path.
    #[arg(long)]
    store: PathBuf,
    /// Queries `[Q, dim]`, `.npy`, f32; seen by every node too.
    #[arg(long)]
    queries: PathBuf,
    /// Rows per query.
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Result: JSON with the sums of datasets and the best rows. Equal bytes for equal rows and queries, wherever it ran.
    #[arg(long)]
    out: PathBuf,
    /// Scheduler, `df://host:port`; without it, DataFusion on this process's threads.
    #[arg(long)]
    cluster: Option<String>,
    /// Without SQL at all: the shard jobs on this process's threads.
    #[arg(long, conflicts_with = "cluster")]
    plain: bool,
    /// Shards per statement. What a statement answered is kept in `--parts` and never computed again.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    wave: u32,
    /// Folder for the answers of finished statements; run the same command again to go on from there.
    #[arg(long)]
    parts: Option<PathBuf>,
    /// Seconds that a statement is sent again for while the scheduler is away.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

/// Settings of `shares`.
#[derive(Args)]
pub struct SharesArgs {
    /// Score files, Parquet, with `query_id`, `dataset_id`, `score`; of ours, `--method` chooses.
    #[arg(long, required = true, num_args = 1..)]
    scores: Vec<PathBuf>,
    /// Method, where a file holds several.
    #[arg(long)]
    method: Option<String>,
    /// Result: Parquet with one row per response and dataset, sorted.
    #[arg(long)]
    out: PathBuf,
    /// Scheduler, `df://host:port`; without it, DataFusion on this process's threads.
    #[arg(long)]
    cluster: Option<String>,
}

/// Settings of `sql`.
#[derive(Args)]
pub struct SqlArgs {
    /// Tables: name=path of a Parquet file or folder.
    #[arg(long, value_name = "NAME=PATH")]
    table: Vec<String>,
    /// Scheduler, `df://host:port`; without it, DataFusion on this process's threads.
    #[arg(long)]
    cluster: Option<String>,
    /// The statement.
    statement: String,
}

/// What `score` writes.
#[derive(Serialize)]
struct Scored<'a> {
    store: &'a str,
    manifest_blake3: &'a str,
    queries_blake3: &'a str,
    k: usize,
    rows: u64,
    #[serde(flatten)]
    answer: Answer,
}

/// Scores a store.
///
/// # Errors
/// Those of the store, the queries, the engine; a result that lacks rows.
pub async fn score(args: ScoreArgs) -> Result<()> {
    let dir = shared(&args.store)?;
    let store = FeatureStore::open(&dir, None)?;
    let queries_path = shared(&args.queries)?;
    let (queries, queries_blake3) = stores::read_queries(&queries_path)?;
    let (dim, found) = (store.spec().dim, queries.ncols());
    ensure!(found == dim, "{}: expected {dim} numbers per query, found {found}", queries_path.display());
    ensure!(args.k as u64 <= store.n_rows(), "--k: expected at most {}, the store's rows", store.n_rows());
    let joined = if args.plain {
        run_all(&store, queries.view(), args.k)?
    } else {
        let job = Job {
            args: &args,
            store: &store,
            dir,
            queries_path,
            queries_blake3: &queries_blake3,
            n_queries: queries.nrows(),
        };
        job.run().await?
    };
    let (rows, expected) = (joined.n_rows(), store.n_rows());
    ensure!(rows == expected, "expected an answer over {expected} rows, found one over {rows}: nothing was written");
    let scored = Scored {
        store: &store.header().uuid,
        manifest_blake3: store.manifest_blake3(),
        queries_blake3: &queries_blake3,
        k: args.k,
        rows,
        answer: joined.finish(),
    };
    let mut bytes = serde_json::to_vec(&scored)?;
    bytes.push(b'\n');
    write(&args.out, |file| Ok(file.write_all(&bytes)?))
}

/// A store's scoring as statements over waves of shards.
struct Job<'a> {
    args: &'a ScoreArgs,
    store: &'a FeatureStore,
    dir: PathBuf,
    queries_path: PathBuf,
    queries_blake3: &'a str,
    n_queries: usize,
}

impl Job<'_> {
    async fn run(&self) -> Result<Partial> {
        if let Some(parts) = &self.args.parts {
            std::fs::create_dir_all(parts).with_context(|| format!("{} cannot be made", parts.display()))?;
        }
        let statement = self.statement()?;
        let mut all = Partial::new(self.n_queries, self.args.k);
        let waves: Vec<&[ShardEntry]> = self.store.entries().chunks(self.args.wave as usize).collect();
        for (i, wave) in waves.iter().enumerate() {
            let kept = self.args.parts.as_ref().map(|parts| parts.join(format!("{}.part", self.name(wave))));
            let part = match kept.as_deref().filter(|path| path.exists()) {
                Some(path) => self.read(&std::fs::read(path)?).with_context(|| {
                    format!("{} is damaged (hint: delete it, it will be computed again)", path.display())
                })?,
                None => self.ask(&statement, wave).await?,
            };
            if let Some(path) = kept.filter(|path| !path.exists()) {
                write(&path, |file| Ok(file.write_all(&part.to_bytes())?))?;
            }
            all.merge(part);
            eprintln!("{} of {} statements answered", i + 1, waves.len());
        }
        Ok(all)
    }

    /// What the answer to a wave depends on.
    fn name(&self, wave: &[ShardEntry]) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {} {}", self.store.manifest_blake3(), self.queries_blake3, self.args.k).as_bytes());
        for entry in wave {
            hasher.update(format!(" {}", entry.shard).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn read(&self, bytes: &[u8]) -> Result<Partial> {
        Ok(Partial::from_bytes(bytes, Some((self.n_queries, self.args.k)))?)
    }

    /// Sends the statement until it is answered, or refused for another reason than a scheduler that is away.
    async fn ask(&self, statement: &str, wave: &[ShardEntry]) -> Result<Partial> {
        let give_up = Instant::now() + Duration::from_secs(self.args.patience);
        loop {
            match self.ask_once(statement, wave).await {
                Err(error) if self.args.cluster.is_some() && is_away(&error) && Instant::now() < give_up => {
                    eprintln!("the scheduler is away, the statement is sent again: {error:#}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                done => return done,
            }
        }
    }

    async fn ask_once(&self, statement: &str, wave: &[ShardEntry]) -> Result<Partial> {
        let context = session::context(self.args.cluster.as_deref(), wave.len().min(PARTITIONS_MAX)).await?;
        // The table: the side files of the wave, one file a task.
        let side =
            |entry: &ShardEntry| self.dir.join(format!("side/s-{:06}.parquet", entry.shard)).display().to_string();
        let paths: Vec<String> = wave.iter().map(side).collect();
        let table = context.read_parquet(paths, ParquetReadOptions::default()).await?;
        context.register_table("sidecar", table.into_view())?;
        let mut joined = Partial::new(self.n_queries, self.args.k);
        for batch in context.sql(statement).await?.collect().await? {
            let parts = batch.column_by_name("part").context("the engine's answer has no column part")?;
            for part in parts.as_binary::<i32>().iter().flatten() {
                joined.merge(self.read(part)?);
            }
        }
        Ok(joined)
    }

    fn statement(&self) -> Result<String> {
        let text = |path: &Path| match path.to_str() {
            Some(text) => Ok(text.replace('\'', "''")),
            None => bail!("{}: expected a path in UTF-8", path.display()),
        };
        let (dir, queries, k) = (text(&self.dir)?, text(&self.queries_path)?, self.args.k);
        let (manifest, queries_blake3) = (self.store.manifest_blake3(), self.queries_blake3);
        Ok(format!(
            "SELECT dataset_id, join_rows(example_id, row_scores('{dir}', '{manifest}', '{queries}', '{queries_blake3}', \
             shard, \"row\"), CAST({k} AS BIGINT UNSIGNED)) AS part FROM sidecar GROUP BY dataset_id"
        ))
    }
}

/// True for the errors of a connection that ended: those of the work itself would come again.
fn is_away(error: &anyhow::Error) -> bool {
    let said = format!("{error:#}").to_lowercase();
    [
        "transport error",
        "connection refused",
        "connection reset",
        "broken pipe",
        "tcp connect error",
        "unavailable",
        "h2 protocol",
    ]
    .iter()
    .any(|sign| said.contains(sign))
}

/// Adds up score files.
///
/// # Errors
/// Those of the files and of the engine.
pub async fn shares(args: SharesArgs) -> Result<()> {
    let context = session::context(args.cluster.as_deref(), args.scores.len().clamp(2, PARTITIONS_MAX)).await?;
    let paths = args.scores.iter().map(|path| Ok(shared(path)?.display().to_string())).collect::<Result<Vec<_>>>()?;
    let table = context.read_parquet(paths, ParquetReadOptions::default()).await?;
    let has = |name: &str| table.schema().has_column_with_unqualified_name(name);
    for needed in ["query_id", "dataset_id", "score"] {
        ensure!(has(needed), "{}: expected a column {needed}, found none", args.scores[0].display());
    }
    let mut rules = Vec::new();
    if has("level") {
        rules.push("level = 'dataset'".to_owned());
    }
    match (&args.method, has("method")) {
        (Some(method), true) => rules.push(format!("method = '{}'", method.replace('\'', "''"))),
        (Some(_), false) => bail!("--method: expected a column method, found none"),
        (None, true) => {
            bail!("the file holds methods: expected --method NAME (hint: `ascribe score --help` lists them)")
        }
        (None, false) => {}
    }
    let rules = if rules.is_empty() { String::new() } else { format!("WHERE {}", rules.join(" AND ")) };
    context.register_table("scores", table.into_view())?;
    let sql = format!(
        "SELECT query_id, dataset_id, exact_sum(CAST(score AS DOUBLE)) AS score FROM scores {rules} \
         GROUP BY query_id, dataset_id ORDER BY query_id, dataset_id"
    );
    let frame = context.sql(&sql).await?;
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await?;
    ensure!(batches.iter().any(|batch| batch.num_rows() > 0), "no row was left to add up (hint: check --method)");
    // One batch, so that the engine's batch sizes leave no trace in the file.
    let batches: Vec<_> =
        batches.into_iter().map(|batch| batch.with_schema(schema.clone())).collect::<Result<_, _>>()?;
    let all = datafusion::arrow::compute::concat_batches(&schema, &batches)?;
    write(&args.out, |file| {
        let mut writer = ArrowWriter::try_new(file, schema, None)?;
        writer.write(&all)?;
        writer.close()?;
        Ok(())
    })
}

/// Runs a statement.
///
/// # Errors
/// Those of the engine.
pub async fn sql(args: SqlArgs) -> Result<()> {
    let context = session::context(args.cluster.as_deref(), 4).await?;
    for table in &args.table {
        let Some((name, path)) = table.split_once('=') else { bail!("--table: expected NAME=PATH, found {table}") };
        let path = shared(Path::new(path))?.display().to_string();
        context.register_parquet(name, path, ParquetReadOptions::default()).await?;
    }
    let batches = context.sql(&args.statement).await?.collect().await?;
    let mut writer = LineDelimitedWriter::new(std::io::stdout().lock());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    Ok(writer.finish()?)
}

/// Writes a file whole or not at all.
fn write(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let name = path.file_name().with_context(|| format!("{}: expected the name of a file", path.display()))?;
    let mut draft = name.to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = path.with_file_name(draft);
    let written: Result<()> = (|| {
        let mut file = File::create(&draft)?;
        fill(&mut file)?;
        file.sync_all()?;
        Ok(std::fs::rename(&draft, path)?)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written.with_context(|| format!("{} cannot be written", path.display()))
}
