//! Searching: the server nominates, the store decides.

use ascribe_core::FeatureReader;
use ascribe_index::backend::{check_queries, rerank};
use ascribe_index::{Effort, Filter, Hit, IndexError, VectorIndex};
use ascribe_sql::{Database, SqlError};
use ndarray::ArrayView2;

use super::{PgVectorIndex, points_table, text_of};

/// Most candidates that pgvector's walk keeps.
const EF_MAX: usize = 1000;

/// How the server looks for nominees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// It walks the graph, keeping so many candidates, and goes on until there are enough nominees.
    Graph(usize),
    /// It sorts all points that the filter leaves.
    Sort,
}

impl<R: FeatureReader> VectorIndex for PgVectorIndex<'_, R> {
    fn n_rows(&self) -> u64 {
        self.reader.n_rows()
    }

    fn dim(&self) -> usize {
        self.reader.spec().dim
    }

    /// The server nominates `effort.n_exact` rows for each query, one after the other over one connection; they and the rows that
    /// it does not know are scored exactly.
    fn search_filtered(
        &self,
        queries: ArrayView2<'_, f32>,
        k: usize,
        effort: Effort,
        filter: &Filter,
    ) -> Result<Vec<Vec<Hit>>, IndexError> {
        check_queries(queries, k, self.n_rows(), self.dim())?;
        if k == 0 || queries.nrows() == 0 {
            return Ok(vec![Vec::new(); queries.nrows()]);
        }
        // Names that cannot be shown take places of those that can.
        let n_hidden = self.n_gone + filter.deleted().filter(|id| !self.deleted.contains(id)).count() as u64;
        let filter = filter.clone().without(self.deleted.iter().copied());
        let points = self.projection.points(queries);
        let queries = queries.as_standard_layout();
        let n_left = self.n_left(&filter);
        let n_wanted = (effort.n_exact.max(k) as u64).saturating_add(n_hidden);
        let plan = self.plan(effort.ef.max(k), n_wanted, n_left);
        let mut hits = Vec::with_capacity(queries.nrows());
        for (query, point) in queries.rows().into_iter().zip(points.rows()) {
            let text = text_of(point.iter().copied());
            let mut rows = self.nominees(&text, plan, n_wanted, &filter)?;
            if plan != Plan::Sort && (rows.len() as u64) < n_left.min(k as u64) {
                rows = self.nominees(&text, Plan::Sort, n_wanted, &filter)?;
            }
            let allowed = |row: &&u64| filter.is_all() || self.allows(**row, &filter);
            rows.extend(self.unknown.iter().filter(allowed));
            rows.sort_unstable();
            rows.dedup();
            let query = query.to_slice().expect("queries are in standard layout");
            hits.push(rerank(self.reader, &self.blocks, query, &rows, k, false)?);
        }
        Ok(hits)
    }
}

impl<R: FeatureReader> PgVectorIndex<'_, R> {
    /// How the server looks for `n_wanted` of the `n_left` points that a filter leaves.
    pub fn plan(&self, ef: usize, n_wanted: u64, n_left: u64) -> Plan {
        if n_left <= n_wanted.max(self.params.scan_rows) { Plan::Sort } else { Plan::Graph(ef.clamp(1, EF_MAX)) }
    }

    /// The server's own words on how it would look for `n_wanted` rows (`EXPLAIN`): whether it uses the graph.
    ///
    /// # Errors
    /// [`IndexError::Backend`].
    pub fn explain(&self, plan: Plan, n_wanted: u64, filter: &Filter) -> Result<String, IndexError> {
        let text = text_of((0..self.projection.point_dim).map(|i| if i == 0 { 1.0 } else { 0.0 }));
        let sql = format!("EXPLAIN {}", self.sql(plan, filter));
        let mut lines = Vec::new();
        let mut database = self.database();
        let done = set(&mut database, plan).and_then(|()| {
            database.query_each(&sql, &[text.into(), n_wanted.cast_signed().into()], |row| {
                lines.push(row.text(0)?.to_owned());
                Ok(())
            })
        });
        drop(database);
        done.map_err(|error| self.failed(&error))?;
        Ok(lines.join("\n"))
    }

    /// Points that a filter's datasets leave; those that it deletes are counted among them.
    fn n_left(&self, filter: &Filter) -> u64 {
        match filter.dataset_ordinals() {
            None => self.per_dataset.values().sum(),
            Some(ordinals) => ordinals.filter_map(|ordinal| self.per_dataset.get(&ordinal)).sum(),
        }
    }

    fn allows(&self, row: u64, filter: &Filter) -> bool {
        let block_idx = self.blocks.block_of(row);
        let place = (row - self.blocks.starts[block_idx]) as usize;
        self.reader.block_ids(block_idx).is_ok_and(|ids| filter.allows(ids[place]))
    }

    /// The statement; its parameters are the point as text and how many are wanted.
    fn sql(&self, plan: Plan, filter: &Filter) -> String {
        // Ordinals are numbers, so they may stand in the text.
        let datasets = filter.dataset_ordinals().map_or_else(String::new, |ordinals| {
            let list: Vec<String> = ordinals.map(|ordinal| ordinal.to_string()).collect();
            if list.is_empty() { " AND FALSE".to_owned() } else { format!(" AND dataset IN ({})", list.join(", ")) }
        });
        // An expression in the place of the column's own distance is one that no graph serves.
        let add = if plan == Plan::Sort { " + 0.0" } else { "" };
        let (table, dim) = (points_table(&self.name), self.projection.point_dim);
        // A query of its own is read once; the bare cast is read again for every row that is sorted.
        format!(
            "SELECT example FROM {table} WHERE deleted = 0{datasets} \
             ORDER BY (point <#> (SELECT CAST(CAST(?1 AS TEXT) AS halfvec({dim})))){add} LIMIT CAST(?2 AS BIGINT)"
        )
    }

    /// Rows that the server names and the filter allows.
    fn nominees(&self, point: &str, plan: Plan, n_wanted: u64, filter: &Filter) -> Result<Vec<u64>, IndexError> {
        let mut found = Vec::new();
        let sql = self.sql(plan, filter);
        let mut database = self.database();
        let done = set(&mut database, plan).and_then(|()| {
            database.query_each(&sql, &[point.into(), n_wanted.cast_signed().into()], |row| {
                let example = row.int(0)?.cast_unsigned();
                if let Ok(place) = self.rows.binary_search_by_key(&example, |(id, _)| *id)
                    && (filter.is_all() || filter.allows(ascribe_core::ExampleId::from_u64(example)))
                {
                    found.push(self.rows[place].1);
                }
                Ok(())
            })
        });
        drop(database);
        done.map_err(|error| self.failed(&error))?;
        Ok(found)
    }
}

/// Session settings of a walk.
fn set(database: &mut Database, plan: Plan) -> Result<(), SqlError> {
    let Plan::Graph(ef) = plan else { return Ok(()) };
    for sql in [
        format!("SET hnsw.ef_search = {ef}"),
        // Goes on until there are enough that the filter allows, in whatever order: they are scored again.
        "SET hnsw.iterative_scan = relaxed_order".to_owned(),
        "SET enable_seqscan = off".to_owned(),
    ] {
        database.execute(&sql, &[])?;
    }
    Ok(())
}
