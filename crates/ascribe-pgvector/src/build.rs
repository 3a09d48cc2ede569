//! Tables: made, filled, indexed, measured; opened again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use ascribe_core::{Digest, ExampleId, FeatureReader};
use ascribe_index::backend::{Blocks, Projection, RECALL_K, drawn_queries, measure, norms};
use ascribe_index::error::RowsOf;
use ascribe_index::{Effort, ExactIndex, IndexError, RecallCurve, VectorIndex};
use ascribe_sql::{Database, Migration, SqlError, Transaction, Value};

use super::{
    PGVECTOR_TABLES_VERSION, POINT_DIM_MAX, POINT_DIM_PROJECTED, PgParams, PgVectorIndex, packed, points_table, text_of,
};

/// New rows beyond this part of all ask for a new build.
const UNKNOWN_MAX_SHARE: u64 = 20;

const SCHEMA: [Migration; 1] = [Migration {
    version: 1,
    statements: &[
        "CREATE TABLE ascribe_index (name TEXT PRIMARY KEY, tables_version BIGINT NOT NULL, spec TEXT NOT NULL, \
                   dim BIGINT NOT NULL, point_dim BIGINT NOT NULL, n_rows BIGINT NOT NULL, n_neighbours BIGINT NOT NULL, \
                   ef_construction BIGINT NOT NULL, seed TEXT NOT NULL, scan_rows BIGINT NOT NULL, curve TEXT NOT NULL)",
    ],
}];

/// What the database says of an index.
struct Kept {
    spec: Digest,
    dim: usize,
    point_dim: usize,
    n_rows: u64,
    params: PgParams,
    curve: RecallCurve,
}

/// A connection with the tables in place.
struct Door {
    database: Database,
    address: String,
}

impl Door {
    fn open(address: &str) -> Result<Self, IndexError> {
        let shown = shown(address);
        let wrap = |error: SqlError| IndexError::Backend { address: shown.clone(), reason: error.to_string() };
        let mut database = Database::open(address).map_err(wrap)?;
        match database.execute("CREATE EXTENSION IF NOT EXISTS vector", &[]) {
            // Another connection made it at the same moment.
            Ok(_) | Err(SqlError::Duplicate { .. }) => {}
            Err(error) => return Err(wrap(error)),
        }
        database.migrate("ascribe_pgvector", &SCHEMA).map_err(wrap)?;
        Ok(Self { database, address: shown })
    }

    fn failed(&self, reason: impl ToString) -> IndexError {
        IndexError::Backend { address: self.address.clone(), reason: reason.to_string() }
    }

    fn kept(&mut self, name: &str) -> Result<Option<Kept>, IndexError> {
        let sql = "SELECT tables_version, spec, dim, point_dim, n_rows, n_neighbours, ef_construction, seed, scan_rows, curve \
                   FROM ascribe_index WHERE name = ?1";
        let rows = self.database.query(sql, &[name.into()]).map_err(|error| self.failed(error))?;
        let Some(row) = rows.first() else { return Ok(None) };
        let parse = || -> Result<Kept, String> {
            let text = |column| row.text(column).map_err(|e| e.to_string());
            let count = |column| row.int(column).map_err(|e| e.to_string());
            let size = |column| count(column).and_then(|n| usize::try_from(n).map_err(|e| e.to_string()));
            let version = count(0)?;
            if version != i64::from(PGVECTOR_TABLES_VERSION) {
                return Err(format!("tables of {name}: expected version {PGVECTOR_TABLES_VERSION}, found {version}"));
            }
            Ok(Kept {
                spec: text(1)?.parse().map_err(|_| "spec: expected a digest".to_owned())?,
                dim: size(2)?,
                point_dim: size(3)?,
                n_rows: count(4)?.cast_unsigned(),
                params: PgParams {
                    n_neighbours: size(5)?,
                    ef_construction: size(6)?,
                    seed: text(7)?.parse().map_err(|_| "seed: expected a number".to_owned())?,
                    scan_rows: count(8)?.cast_unsigned(),
                },
                curve: serde_json::from_str(text(9)?).map_err(|e| format!("curve: {e}"))?,
            })
        };
        parse().map(Some).map_err(|reason| self.failed(reason))
    }
}

impl<'r, R: FeatureReader> PgVectorIndex<'r, R> {
    /// Builds the index `name` over all rows of `reader` in the database at `address` (`postgresql://…`), in the place of one
    /// that is there, and measures what it finds.
    ///
    /// One transaction; it needs the right to create the extension `vector` where it is not there yet. Rows travel as text, some
    /// eleven bytes a number. Cost: the server's build of the graph.
    ///
    /// # Errors
    /// [`IndexError::EmptyStore`], [`IndexError::BadSetting`], [`IndexError::RowNotFinite`], [`IndexError::Backend`], those of
    /// the reader.
    pub fn build(reader: &'r R, address: &str, name: &str, params: PgParams) -> Result<Self, IndexError> {
        check(&params)?;
        if reader.n_rows() == 0 {
            return Err(IndexError::EmptyStore);
        }
        let mut door = Door::open(address)?;
        check_name(name).map_err(|reason| door.failed(reason))?;
        let (blocks, ids) = Blocks::of(reader)?;
        let norms = norms(reader)?;
        let dim = reader.spec().dim;
        let point_dim = if dim <= POINT_DIM_MAX { dim } else { POINT_DIM_PROJECTED };
        let projection = Projection::new(dim, point_dim, params.seed);
        let source =
            Source { reader, name, params, blocks: &blocks, ids: &ids, norms: &norms, projection: &projection };
        let built = door.database.transaction(|tx| source.write(tx));
        built.map_err(|failure| match failure {
            Failure::Sql(error) => door.failed(error),
            Failure::Read(error) => error,
        })?;
        let mut index = Self::attach(reader, door, name, params, projection, (blocks, ids), RecallCurve::default())?;
        index.measure_now()?;
        Ok(index)
    }

    /// Opens the index `name`; none if the database has no such.
    ///
    /// # Errors
    /// [`IndexError::SpecMismatch`] if it was built over rows of another spec or more than 5 % of the rows are unknown to it,
    /// [`IndexError::Backend`], those of the reader.
    pub fn open(reader: &'r R, address: &str, name: &str) -> Result<Option<Self>, IndexError> {
        let mut door = Door::open(address)?;
        check_name(name).map_err(|reason| door.failed(reason))?;
        let Some(kept) = door.kept(name)? else { return Ok(None) };
        let expected = RowsOf { spec: reader.spec().hash(), n_rows: reader.n_rows() };
        let found = RowsOf { spec: kept.spec, n_rows: kept.n_rows };
        let path = PathBuf::from(format!("{} ({name})", door.address));
        if expected.spec != found.spec || kept.dim != reader.spec().dim {
            return Err(IndexError::SpecMismatch { path, expected, found });
        }
        let projection = Projection::new(kept.dim, kept.point_dim, kept.params.seed);
        let parts = Blocks::of(reader)?;
        let index = Self::attach(reader, door, name, kept.params, projection, parts, kept.curve)?;
        if index.unknown.len() as u64 * UNKNOWN_MAX_SHARE > reader.n_rows() {
            return Err(IndexError::SpecMismatch { path, expected, found });
        }
        Ok(Some(index))
    }

    /// Reads which examples the server has and finds their rows.
    fn attach(
        reader: &'r R,
        mut door: Door,
        name: &str,
        params: PgParams,
        projection: Projection,
        (blocks, ids): (Blocks, Vec<ExampleId>),
        curve: RecallCurve,
    ) -> Result<Self, IndexError> {
        let mut here: Vec<(u64, u64)> = ids.iter().zip(0u64..).map(|(id, row)| (id.to_u64(), row)).collect();
        here.sort_unstable();
        let mut is_known = vec![false; ids.len()];
        let (mut rows, mut n_gone, mut per_dataset) = (Vec::new(), 0u64, BTreeMap::new());
        let mut deleted = std::collections::BTreeSet::new();
        let sql = format!("SELECT example, deleted FROM {}", points_table(name));
        let each = |row: ascribe_sql::Row| {
            let example = row.int(0)?.cast_unsigned();
            let place = here.binary_search_by_key(&example, |(id, _)| *id).ok();
            if let Some(place) = place {
                is_known[here[place].1 as usize] = true;
            }
            if row.int(1)? != 0 {
                deleted.insert(ExampleId::from_u64(example));
                return Ok(());
            }
            *per_dataset.entry((example >> 32) as u32).or_insert(0) += 1;
            match place {
                Some(place) => rows.push(here[place]),
                None => n_gone += 1,
            }
            Ok(())
        };
        door.database.query_each(&sql, &[], each).map_err(|error| door.failed(error))?;
        rows.sort_unstable();
        let unknown = (0..ids.len()).filter(|&row| !is_known[row]).map(|row| row as u64).collect();
        let Door { database, address } = door;
        let (database, name) = (Mutex::new(database), name.to_owned());
        Ok(Self {
            reader,
            database,
            address,
            name,
            params,
            blocks,
            projection,
            rows,
            per_dataset,
            n_gone,
            unknown,
            deleted,
            curve,
        })
    }

    /// Measures recall against exact search and keeps it.
    fn measure_now(&mut self) -> Result<(), IndexError> {
        let queries = drawn_queries(self.reader, &self.blocks, self.params.seed)?;
        let k = RECALL_K.min(self.reader.n_rows() as usize);
        let truth = ExactIndex::new(self.reader)?.search_many(queries.view(), k, Effort::default())?;
        self.curve = measure(self, queries.view(), &truth)?;
        let values = [curve_text(&self.curve).into(), self.name.as_str().into()];
        let done = self.database().execute("UPDATE ascribe_index SET curve = ?1 WHERE name = ?2", &values);
        done.map(drop).map_err(|error| self.failed(&error))
    }
}

/// What ends a build.
enum Failure {
    Sql(SqlError),
    Read(IndexError),
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::Sql(error)
    }
}

/// What an index is built from.
struct Source<'a, R> {
    reader: &'a R,
    name: &'a str,
    params: PgParams,
    blocks: &'a Blocks,
    ids: &'a [ExampleId],
    norms: &'a [f64],
    projection: &'a Projection,
}

impl<R: FeatureReader> Source<'_, R> {
    /// The whole build: points, graph, and the line that says that it is there.
    fn write(&self, tx: &mut Transaction<'_>) -> Result<(), Failure> {
        let table = points_table(self.name);
        let point_dim = self.projection.point_dim;
        tx.execute(&format!("DROP TABLE IF EXISTS {table}"), &[])?;
        let columns = format!(
            "example BIGINT NOT NULL, dataset BIGINT NOT NULL, deleted BIGINT NOT NULL, point halfvec({point_dim}) NOT NULL"
        );
        tx.execute(&format!("CREATE TABLE {table} ({columns})"), &[])?;
        let columns = "example BIGINT, dataset BIGINT, point TEXT";
        tx.execute(&format!("CREATE TEMPORARY TABLE ascribe_staging ({columns}) ON COMMIT DROP"), &[])?;
        let largest = self.norms.iter().fold(0.0f64, |m, &n| m.max(n));
        for (block_idx, span) in self.blocks.starts.windows(2).enumerate() {
            let block = self.reader.block(block_idx).map_err(|error| Failure::Read(IndexError::reader(error)))?;
            let points = self.projection.points(block.rows.view());
            let rows = points.rows().into_iter().zip(span[0] as usize..).map(|(point, row)| {
                let share = if largest > 0.0 { (self.norms[row] / largest) as f32 } else { 0.0 };
                let (id, text) = (self.ids[row], text_of(point.iter().map(|x| x * share)));
                vec![Value::Int(packed(id)), id.dataset.into(), text.into()]
            });
            tx.insert_many("ascribe_staging", &["example", "dataset", "point"], rows)?;
            let columns = format!("example, dataset, 0, CAST(point AS halfvec({point_dim}))");
            tx.execute(&format!("INSERT INTO {table} SELECT {columns} FROM ascribe_staging"), &[])?;
            tx.execute("TRUNCATE ascribe_staging", &[])?;
        }
        let (m, ef) = (self.params.n_neighbours, self.params.ef_construction);
        tx.execute("SET LOCAL maintenance_work_mem = '256MB'", &[])?;
        tx.execute(&format!("ALTER TABLE {table} ADD PRIMARY KEY (example)"), &[])?;
        tx.execute(&format!("CREATE INDEX ON {table} (dataset)"), &[])?;
        let how = format!("(point halfvec_ip_ops) WITH (m = {m}, ef_construction = {ef})");
        tx.execute(&format!("CREATE INDEX ON {table} USING hnsw {how}"), &[])?;
        tx.execute(&format!("ANALYZE {table}"), &[])?;
        self.note(tx)
    }

    fn note(&self, tx: &mut Transaction<'_>) -> Result<(), Failure> {
        tx.execute("DELETE FROM ascribe_index WHERE name = ?1", &[self.name.into()])?;
        let spec = self.reader.spec();
        let values: [Value; 11] = [
            self.name.into(),
            PGVECTOR_TABLES_VERSION.into(),
            spec.hash().to_string().into(),
            (spec.dim as i64).into(),
            (self.projection.point_dim as i64).into(),
            self.reader.n_rows().cast_signed().into(),
            (self.params.n_neighbours as i64).into(),
            (self.params.ef_construction as i64).into(),
            self.params.seed.to_string().into(),
            self.params.scan_rows.cast_signed().into(),
            curve_text(&RecallCurve::default()).into(),
        ];
        let sql = "INSERT INTO ascribe_index VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        tx.execute(sql, &values)?;
        Ok(())
    }
}

fn curve_text(curve: &RecallCurve) -> String {
    serde_json::to_string(curve).expect("numbers are JSON")
}

fn check(params: &PgParams) -> Result<(), IndexError> {
    let bad = |setting, expected, found| Err(IndexError::BadSetting { setting, expected, found });
    match *params {
        PgParams { n_neighbours: n @ (0 | 1 | 101..), .. } => bad("neighbours per point", "2 to 100", n),
        PgParams { ef_construction: n @ (0..4 | 1001..), .. } => bad("candidates while building", "4 to 1000", n),
        PgParams { n_neighbours, ef_construction: n, .. } if n < 2 * n_neighbours => {
            bad("candidates while building", "at least twice the neighbours", n)
        }
        _ => Ok(()),
    }
}

/// Names become parts of statements.
fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=40).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(format!("name of an index: expected 1 to 40 of a-z, 0-9 and _, found {name:?}"))
}

/// An address as it may be shown: without a password and settings.
fn shown(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return "(an address in another form)".to_owned() };
    let rest = rest.split('?').next().unwrap_or_default();
    let place = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{place}")
}
