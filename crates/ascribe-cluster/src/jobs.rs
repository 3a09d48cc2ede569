//! The jobs: what becomes SQL, and what is made of its answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ascribe_index::shard_job::{Partial, Scored, run_opened};
use clap::Args;
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::json::LineDelimitedWriter;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::prelude::ParquetReadOptions;

use crate::error::JobError;
use crate::objects::shared;
use crate::stores::Opened;
use crate::{objects, session, stores};

/// Tasks that a scan may be cut into, if a store has many shards.
const PARTITIONS_MAX: usize = 1024;

/// Settings of `score`.
#[derive(Args)]
pub struct ScoreArgs {
    /// The store: a folder that every node sees at this path, or where `ascribe store push` put it, as s3://BUCKET/PREFIX.
    #[arg(long)]
    store: String,
    /// Queries `[Q, dim]`, `.npy`, f32; seen by every node too, or s3://BUCKET/FILE.
    #[arg(long)]
    queries: String,
    /// Rows per query.
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Result, a file or an address: JSON with the sums of datasets and the best rows. Equal bytes for equal rows and queries, wherever
    /// it ran.
    #[arg(long)]
    out: String,
    /// Scheduler, `df://host:port`; without it, DataFusion on this process's threads.
    #[arg(long)]
    cluster: Option<String>,
    /// Without SQL at all: the shard jobs on this process's threads.
    #[arg(long, conflicts_with = "cluster")]
    plain: bool,
    /// Shards per statement. What a statement answered is kept in `--parts` and never computed again.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    wave: u32,
    /// Folder or address for the answers of finished statements; run the same command again to go on from there.
    #[arg(long)]
    parts: Option<String>,
    /// Seconds that a statement is sent again for while the scheduler is away.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

/// Settings of `shares`.
#[derive(Args)]
pub struct SharesArgs {
    /// Score files, Parquet, with `query_id`, `dataset_id`, `score`; of ours, `--method` chooses. Paths or addresses.
    #[arg(long, required = true, num_args = 1..)]
    scores: Vec<String>,
    /// Method, where a file holds several.
    #[arg(long)]
    method: Option<String>,
    /// Result, a file or an address: Parquet with one row per response and dataset, sorted.
    #[arg(long)]
    out: String,
    /// Scheduler, `df://host:port`; without it, DataFusion on this process's threads.
    #[arg(long)]
    cluster: Option<String>,
}

/// Settings of `sql`.
#[derive(Args)]
pub struct SqlArgs {
    /// Tables: name=path (or address) of a Parquet file or folder.
    #[arg(long, value_name = "NAME=PATH")]
    table: Vec<String>,
    /// Scheduler, `df://host:port`; without it, DataFusion on this process's threads.
    #[arg(long)]
    cluster: Option<String>,
    /// The statement.
    statement: String,
}

/// Scores a store.
///
/// # Errors
/// Those of the store, the queries, the engine; a result that lacks rows.
pub async fn score(args: ScoreArgs) -> Result<()> {
    let opened = Opened::open(&shared(&args.store)?)?;
    ascribe_index::refuse_factors(&opened.snapshot.header().spec)?;
    let queries_at = shared(&args.queries)?;
    let (queries, queries_blake3) = stores::read_queries(&queries_at)?;
    let (dim, found) = (opened.dim(), queries.ncols());
    ensure!(found == dim, "{queries_at}: expected {dim} numbers per query, found {found}");
    ensure!(args.k as u64 <= opened.n_rows(), "--k: expected at most {}, the store's rows", opened.n_rows());
    let joined = if args.plain {
        let shards = 0..opened.snapshot.entries().len();
        run_opened(&opened.snapshot, shards, |place| opened.shard(place), queries.view(), args.k)?
    } else {
        let job = Job {
            args: &args,
            opened: &opened,
            queries_at,
            queries_blake3: &queries_blake3,
            n_queries: queries.nrows(),
        };
        job.run().await?
    };
    let (rows, expected) = (joined.n_rows(), opened.n_rows());
    ensure!(rows == expected, "expected an answer over {expected} rows, found one over {rows}: nothing was written");
    let scored = Scored {
        store: &opened.snapshot.header().uuid,
        manifest_blake3: opened.snapshot.manifest_blake3(),
        queries_blake3: &queries_blake3,
        k: args.k,
        rows,
        answer: joined.finish(),
    };
    objects::write(&args.out, &scored.to_bytes()?)
}

/// A store's scoring as statements over waves of shards.
struct Job<'a> {
    args: &'a ScoreArgs,
    opened: &'a Opened,
    queries_at: String,
    queries_blake3: &'a str,
    n_queries: usize,
}

impl Job<'_> {
    async fn run(&self) -> Result<Partial> {
        let statement = self.statement();
        let mut all = Partial::new(self.n_queries, self.args.k);
        let places: Vec<usize> = (0..self.opened.snapshot.entries().len()).collect();
        let waves: Vec<&[usize]> = places.chunks(self.args.wave as usize).collect();
        for (i, wave) in waves.iter().enumerate() {
            all.merge(self.wave(&statement, wave).await?);
            eprintln!("{} of {} statements answered", i + 1, waves.len());
        }
        Ok(all)
    }

    /// The answer to a wave: the kept one, else the engine's, kept from now on.
    async fn wave(&self, statement: &str, wave: &[usize]) -> Result<Partial> {
        let Some(parts) = &self.args.parts else { return self.ask(statement, wave).await };
        let (parts, name) = (objects::folder(parts)?, format!("{}.part", self.name(wave)));
        if let Some(bytes) = parts.get(&name)? {
            let damaged = || format!("{}/{name} is damaged (hint: delete it, it will be computed again)", parts.name());
            return self.read(&bytes).with_context(damaged);
        }
        let part = self.ask(statement, wave).await?;
        parts.put(&name, &part.to_bytes())?;
        Ok(part)
    }

    /// What the answer to a wave depends on.
    fn name(&self, wave: &[usize]) -> String {
        let snapshot = &self.opened.snapshot;
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{} {} {}", snapshot.manifest_blake3(), self.queries_blake3, self.args.k).as_bytes());
        for &place in wave {
            hasher.update(format!(" {}", snapshot.entries()[place].shard).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    fn read(&self, bytes: &[u8]) -> Result<Partial> {
        Ok(Partial::from_bytes(bytes, Some((self.n_queries, self.args.k)))?)
    }

    /// Sends the statement until it is answered, or refused for another reason than a scheduler that is away.
    async fn ask(&self, statement: &str, wave: &[usize]) -> Result<Partial> {
        let give_up = Instant::now() + Duration::from_secs(self.args.patience);
        loop {
            let error = match self.ask_once(statement, wave).await {
                Ok(answers) => return self.join(&answers),
                Err(error) => error,
            };
            if !matches!(error, JobError::Away { .. }) || Instant::now() >= give_up {
                return Err(error.into());
            }
            eprintln!("the statement is sent again: {error}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn ask_once(&self, statement: &str, wave: &[usize]) -> Result<Vec<RecordBatch>, JobError> {
        let url = self.args.cluster.as_deref();
        // Here a shard after the other on each thread; there as many tasks as shards, and executors take one when they are free.
        let here = || std::thread::available_parallelism().map_or(1, usize::from);
        let partitions = wave.len().min(if url.is_some() { PARTITIONS_MAX } else { here() });
        let context = session::context(url, partitions).await?;
        // The table: the side files of the wave, one file a task.
        let paths: Vec<String> = wave.iter().map(|&place| self.opened.side(place)).collect();
        let table = context.read_parquet(paths, ParquetReadOptions::default()).await?;
        context.register_table("sidecar", table.into_view())?;
        let frame = context.sql(statement).await?;
        frame.collect().await.map_err(|error| JobError::of(error, url))
    }

    fn join(&self, answers: &[RecordBatch]) -> Result<Partial> {
        let mut joined = Partial::new(self.n_queries, self.args.k);
        for batch in answers {
            let parts = batch.column_by_name("part").context("the engine's answer has no column part")?;
            for part in parts.as_binary::<i32>().iter().flatten() {
                joined.merge(self.read(part)?);
            }
        }
        Ok(joined)
    }

    fn statement(&self) -> String {
        let text = |location: &str| location.replace('\'', "''");
        let (store, queries, k) = (text(&self.opened.location), text(&self.queries_at), self.args.k);
        let (manifest, queries_blake3) = (self.opened.snapshot.manifest_blake3(), self.queries_blake3);
        format!(
            "SELECT dataset_id, join_rows(example_id, row_scores('{store}', '{manifest}', '{queries}', '{queries_blake3}', \
             shard, \"row\"), CAST({k} AS BIGINT UNSIGNED)) AS part FROM sidecar GROUP BY dataset_id"
        )
    }
}

/// Adds up score files.
///
/// # Errors
/// Those of the files and of the engine.
pub async fn shares(args: SharesArgs) -> Result<()> {
    let url = args.cluster.as_deref();
    let context = session::context(url, args.scores.len().clamp(2, PARTITIONS_MAX)).await?;
    let paths = args.scores.iter().map(|at| shared(at)).collect::<Result<Vec<_>>>()?;
    let table = context.read_parquet(paths, ParquetReadOptions::default()).await?;
    let has = |name: &str| table.schema().has_column_with_unqualified_name(name);
    for needed in ["query_id", "dataset_id", "score"] {
        ensure!(has(needed), "{}: expected a column {needed}, found none", args.scores[0]);
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
    let batches = frame.collect().await.map_err(|error| JobError::of(error, url))?;
    ensure!(batches.iter().any(|batch| batch.num_rows() > 0), "no row was left to add up (hint: check --method)");
    // One batch, so that the engine's batch sizes leave no trace in the file.
    let batches: Vec<_> =
        batches.into_iter().map(|batch| batch.with_schema(schema.clone())).collect::<Result<_, _>>()?;
    let all = datafusion::arrow::compute::concat_batches(&schema, &batches)?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, None)?;
    writer.write(&all)?;
    writer.close()?;
    objects::write(&args.out, &bytes)
}

/// Runs a statement.
///
/// # Errors
/// Those of the engine.
pub async fn sql(args: SqlArgs) -> Result<()> {
    let url = args.cluster.as_deref();
    let context = session::context(url, 4).await?;
    for table in &args.table {
        let Some((name, path)) = table.split_once('=') else { bail!("--table: expected NAME=PATH, found {table}") };
        context.register_parquet(name, shared(path)?, ParquetReadOptions::default()).await?;
    }
    let frame = context.sql(&args.statement).await?;
    let batches = frame.collect().await.map_err(|error| JobError::of(error, url))?;
    let mut writer = LineDelimitedWriter::new(std::io::stdout().lock());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    Ok(writer.finish()?)
}
