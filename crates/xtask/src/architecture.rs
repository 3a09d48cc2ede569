//! The tables of ARCHITECTURE.md that are law: crate map, rooms of heavy dependencies, modules with unsafe code.
//!
//! A table is found by the comment `<!-- tidy: NAME -->` above it, so that the paper people read is the list that the
//! checks read, and neither can go stale alone.

use anyhow::{Context as _, Result, bail};

use crate::repo::Repo;

/// The paper.
pub const PATH: &str = "ARCHITECTURE.md";

/// What a package may depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// Anything (packages on which nothing stands: tests and benches).
    Free,
    /// Exactly these.
    Exactly(Vec<String>),
}

/// One row of the crate map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrateRow {
    /// Package name without `ascribe-`.
    pub name: String,
    /// Line of the row.
    pub line: usize,
    /// Packages of this workspace, by the same short names.
    pub internal: Allowed,
    /// Packages of other people.
    pub external: Allowed,
}

/// A dependency that only some packages may name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Room {
    /// Name, or a prefix where it ends in `*`.
    pub pattern: String,
    /// Short names of the packages that may.
    pub packages: Vec<String>,
}

impl Room {
    /// True when the room is about `dependency`.
    pub fn covers(&self, dependency: &str) -> bool {
        match self.pattern.strip_suffix('*') {
            Some(prefix) => dependency.starts_with(prefix),
            None => dependency == self.pattern,
        }
    }
}

/// A file in which unsafe code may stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnsafeFile {
    /// Path from the root.
    pub path: String,
    /// Line of the row.
    pub line: usize,
}

/// The three tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Architecture {
    /// Crate map, from the ground up.
    pub crates: Vec<CrateRow>,
    /// Rooms of heavy dependencies.
    pub rooms: Vec<Room>,
    /// Files with unsafe code.
    pub unsafe_files: Vec<UnsafeFile>,
}

impl Architecture {
    /// Reads the tables.
    ///
    /// # Errors
    /// If the paper or a table is missing, or a row has too few cells.
    pub fn read(repo: &Repo) -> Result<Self> {
        let text = repo.text(PATH).with_context(|| format!("{PATH} is missing: it holds the laws"))?;
        let crates = table(text, "crates", 5)?.into_iter().map(|(line, cells)| CrateRow {
            name: cells[0].clone(),
            line,
            internal: allowed(&cells[2]),
            external: allowed(&cells[3]),
        });
        let rooms = table(text, "rooms", 2)?.into_iter().flat_map(|(_, cells)| {
            let packages = names(&cells[1]);
            names(&cells[0]).into_iter().map(move |pattern| Room { pattern, packages: packages.clone() })
        });
        let unsafe_files =
            table(text, "unsafe", 2)?.into_iter().map(|(line, cells)| UnsafeFile { path: cells[0].clone(), line });
        Ok(Self { crates: crates.collect(), rooms: rooms.collect(), unsafe_files: unsafe_files.collect() })
    }

    /// The row of a package.
    pub fn row(&self, short: &str) -> Option<&CrateRow> {
        self.crates.iter().find(|row| row.name == short)
    }
}

/// Rows `(line, cells)` of the table under `<!-- tidy: name -->`, without its head.
fn table(text: &str, name: &str, n_cells: usize) -> Result<Vec<(usize, Vec<String>)>> {
    let marker = format!("<!-- tidy: {name} -->");
    let mut lines = text.lines().zip(1..).skip_while(|(line, _)| line.trim() != marker);
    lines.next().with_context(|| format!("{PATH}: no table marked {marker}"))?;
    let body = lines.skip_while(|(line, _)| line.trim().is_empty()).take_while(|(line, _)| line.starts_with('|'));
    let mut rows = Vec::new();
    for (row, line) in body.skip(2) {
        let row = row.trim().trim_matches('|');
        let cells: Vec<String> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        if cells.len() < n_cells {
            bail!("{PATH}:{line}: the table `{name}` has {n_cells} columns, this row {}", cells.len());
        }
        rows.push((line, cells));
    }
    Ok(rows)
}

fn allowed(cell: &str) -> Allowed {
    if cell == "free" { Allowed::Free } else { Allowed::Exactly(names(cell)) }
}

/// Names between commas; a dash is none.
fn names(cell: &str) -> Vec<String> {
    cell.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "—" | "-")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Map\n\n<!-- tidy: crates -->\n\n| crate | s | internal | external | why |\n|---|---|---|---|---|\n| `core` | words | — | serde, `hex` | contract |\n| tests | all | free | free | edge |\n\ntext | not a row\n";

    #[test]
    fn rows_come_with_their_lines_and_without_the_head() {
        let rows = table(TEXT, "crates", 5).expect("a table");
        assert_eq!(
            rows.iter().map(|(line, cells)| (*line, cells[0].as_str())).collect::<Vec<_>>(),
            [(7, "core"), (8, "tests")]
        );
        assert_eq!(allowed(&rows[0].1[2]), Allowed::Exactly(vec![]));
        assert_eq!(allowed(&rows[0].1[3]), Allowed::Exactly(vec!["serde".to_owned(), "hex".to_owned()]));
        assert_eq!(allowed(&rows[1].1[2]), Allowed::Free);
    }

    #[test]
    fn a_missing_table_or_cell_is_named() {
        let error = table(TEXT, "rooms", 2).expect_err("no such table").to_string();
        assert!(error.contains("<!-- tidy: rooms -->"), "{error}");
        let error = table(TEXT, "crates", 6).expect_err("five cells are not six").to_string();
        assert!(error.starts_with("ARCHITECTURE.md:7"), "{error}");
    }

    #[test]
    fn a_star_covers_a_family() {
        let room = |pattern: &str| Room { pattern: pattern.to_owned(), packages: vec![] };
        assert!(room("candle*").covers("candle-core"));
        assert!(!room("candle*").covers("scandle"));
        assert!(!room("axum").covers("axum-core"));
    }
}
