//! Laws 1 and 2: who may depend on whom, and where heavy dependencies may stand.

use toml::{Table, Value};

use crate::architecture::{Allowed, Architecture, CrateRow, PATH};
use crate::repo::{Package, Repo};
use crate::violation::{Law, Violation};

const DEV_ONLY: [&str; 2] = ["testkit", "xtask"];

/// A dependency as a manifest names it.
struct Dependency<'a> {
    name: &'a str,
    value: &'a Value,
    is_dev: bool,
}

/// Checks laws 1 and 2.
pub fn check(repo: &Repo, architecture: &Architecture) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in &repo.packages {
        let dependencies = dependencies(&package.manifest);
        rooms(repo, package, &dependencies, architecture, &mut violations);
        from_workspace(repo, package, &dependencies, &mut violations);
        match architecture.row(&package.short) {
            Some(row) => compare(repo, package, row, &dependencies, &mut violations),
            None => violations.push(
                Violation::new(Law::Dependencies, package.manifest_path(), 0)
                    .expected(format!("a row for `{}` in the crate map of {PATH}", package.short))
                    .found("none")
                    .hint("say there what the crate is, what it may use and why it is a crate"),
            ),
        }
    }
    rows_in_order(repo, architecture, &mut violations);
    violations
}

/// The packages of `[dependencies]` and their like against the row.
fn compare(
    repo: &Repo,
    package: &Package,
    row: &CrateRow,
    dependencies: &[Dependency<'_>],
    violations: &mut Vec<Violation>,
) {
    let shipped = || dependencies.iter().filter(|dependency| !dependency.is_dev);
    let internal: Vec<&str> = shipped().filter_map(|dependency| internal_name(repo, dependency.name)).collect();
    let external: Vec<&str> = shipped().filter(|d| internal_name(repo, d.name).is_none()).map(|d| d.name).collect();
    for (kind, found, allowed) in [("internal", internal, &row.internal), ("external", external, &row.external)] {
        let Allowed::Exactly(allowed) = allowed else { continue };
        for name in &found {
            if !allowed.iter().any(|other| other == name) {
                violations.push(
                    Violation::new(Law::Dependencies, package.manifest_path(), line_of(repo, package, name))
                        .expected(format!("{kind} dependencies of `{}`: {}", row.name, or_none(allowed)))
                        .found(format!("`{name}`"))
                        .hint(format!("drop it, or change the row at {PATH}:{} and say why", row.line)),
                );
            }
        }
        for name in allowed.iter().filter(|name| !found.contains(&name.as_str())) {
            violations.push(
                Violation::new(Law::Dependencies, PATH, row.line)
                    .expected(format!("the {kind} dependencies that `{}` has: {}", row.name, or_none(&found)))
                    .found(format!("`{name}`, which its manifest does not name"))
                    .hint("remove it from the row, so that the map stays true"),
            );
        }
    }
    for name in DEV_ONLY {
        if shipped().any(|dependency| internal_name(repo, dependency.name) == Some(name)) && !is_edge(package) {
            violations.push(
                Violation::new(Law::Dependencies, package.manifest_path(), line_of(repo, package, name))
                    .expected(format!("`{name}` under [dev-dependencies] only"))
                    .found("it under [dependencies]")
                    .hint("nothing that ships may stand on test fixtures"),
            );
        }
    }
}

/// Rows name packages that exist and stand above what they use.
fn rows_in_order(repo: &Repo, architecture: &Architecture, violations: &mut Vec<Violation>) {
    for (idx, row) in architecture.crates.iter().enumerate() {
        let breach = || Violation::new(Law::Dependencies, PATH, row.line);
        if !repo.packages.iter().any(|package| package.short == row.name) {
            let hint = "remove the row, or add the package";
            violations
                .push(breach().expected("rows of packages that exist").found(format!("`{}`", row.name)).hint(hint));
        }
        let Allowed::Exactly(internal) = &row.internal else { continue };
        for name in internal {
            if !architecture.crates[..idx].iter().any(|earlier| earlier.name == *name) {
                violations.push(
                    breach()
                        .expected(format!("`{name}` in a row above `{}`: a crate uses lower floors only", row.name))
                        .found("it below or nowhere")
                        .hint("order the rows from the ground up"),
                );
            }
        }
    }
}

fn rooms(
    repo: &Repo,
    package: &Package,
    dependencies: &[Dependency<'_>],
    architecture: &Architecture,
    violations: &mut Vec<Violation>,
) {
    for dependency in dependencies {
        let room = architecture.rooms.iter().find(|room| room.covers(dependency.name));
        if let Some(room) = room.filter(|room| !room.packages.contains(&package.short)) {
            violations.push(
                Violation::new(Law::Rooms, package.manifest_path(), line_of(repo, package, dependency.name))
                    .expected(format!("`{}` only under {}", room.pattern, room.packages.join(", ")))
                    .found(format!("`{}` in `{}`", dependency.name, package.short))
                    .hint("move the code that needs it, or use what those crates offer"),
            );
        }
    }
}

/// Versions stand in the workspace manifest alone.
fn from_workspace(repo: &Repo, package: &Package, dependencies: &[Dependency<'_>], violations: &mut Vec<Violation>) {
    for dependency in dependencies {
        let is_inherited =
            dependency.value.get("workspace").and_then(Value::as_bool).is_some_and(|inherited| inherited);
        if !is_inherited {
            violations.push(
                Violation::new(Law::Dependencies, package.manifest_path(), line_of(repo, package, dependency.name))
                    .expected(format!("`{}.workspace = true`", dependency.name))
                    .found("a version or path of its own")
                    .hint("all versions stand in [workspace.dependencies] of the root manifest"),
            );
        }
    }
}

/// Every dependency of every kind and target.
fn dependencies(manifest: &Table) -> Vec<Dependency<'_>> {
    let mut found = Vec::new();
    let mut sections = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        sections.extend(targets.values().filter_map(Value::as_table));
    }
    for section in sections {
        for (kind, is_dev) in [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)] {
            let Some(table) = section.get(kind).and_then(Value::as_table) else { continue };
            found.extend(table.iter().map(|(name, value)| Dependency { name, value, is_dev }));
        }
    }
    found
}

/// The short name of a package of this workspace, by its full name.
fn internal_name<'a>(repo: &Repo, dependency: &'a str) -> Option<&'a str> {
    let short = dependency.strip_prefix("ascribe-").unwrap_or(dependency);
    repo.packages.iter().any(|package| package.short == short && is_full_name(dependency, short)).then_some(short)
}

fn is_full_name(dependency: &str, short: &str) -> bool {
    dependency != short || short == "xtask"
}

/// Packages at the edge, on which nothing stands.
fn is_edge(package: &Package) -> bool {
    matches!(package.dir.as_str(), "tests" | "benches")
}

fn line_of(repo: &Repo, package: &Package, name: &str) -> usize {
    let text = repo.text(&package.manifest_path()).unwrap_or_default();
    let names_it = |line: &str| {
        let key = line.trim_start().trim_start_matches('"');
        let key = key.strip_prefix("ascribe-").unwrap_or(key);
        key.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ' ', '=', '"']))
    };
    text.lines().position(names_it).map_or(0, |idx| idx + 1)
}

fn or_none<S: AsRef<str>>(names: &[S]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const LEDGER: &str = "crates/ascribe-ledger/Cargo.toml";

    #[test]
    fn an_external_dependency_outside_its_row() {
        let planted = Planted::tidy();
        planted.write_manifest("ledger", "ascribe-core.workspace = true\nserde.workspace = true\n");
        planted.assert_breach(Law::Dependencies, LEDGER, 9, "external dependencies of `ledger`: none; found `serde`");
    }

    #[test]
    fn an_internal_dependency_outside_its_row() {
        let planted = Planted::tidy();
        planted.edit("ARCHITECTURE.md", "| ledger | money | core |", "| ledger | money | — |");
        planted.assert_breach(Law::Dependencies, LEDGER, 8, "found `core`");
    }

    #[test]
    fn build_and_target_dependencies_count_and_dev_ones_do_not() {
        let planted = Planted::tidy();
        let base = "ascribe-core.workspace = true\n";
        planted.write_manifest("ledger", &format!("{base}\n[dev-dependencies]\nproptest.workspace = true\n"));
        planted.assert_tidy();
        for section in ["build-dependencies", "target.'cfg(unix)'.dependencies"] {
            planted.write_manifest("ledger", &format!("{base}\n[{section}]\nlibc.workspace = true\n"));
            planted.assert_breach(Law::Dependencies, LEDGER, 11, "found `libc`");
        }
    }

    #[test]
    fn a_row_that_says_more_than_the_manifest() {
        let planted = Planted::tidy();
        planted.edit("ARCHITECTURE.md", "| core | words | — | serde |", "| core | words | — | serde, hex |");
        planted.assert_breach(Law::Dependencies, PATH, 6, "`hex`, which its manifest does not name");
    }

    #[test]
    fn a_package_without_a_row_and_a_row_without_a_package() {
        let planted = Planted::tidy();
        planted.edit("ARCHITECTURE.md", "| ledger | money | core | — | law |\n", "");
        planted.assert_breach(Law::Dependencies, LEDGER, 0, "a row for `ledger`");
        let planted = Planted::tidy();
        planted.edit("ARCHITECTURE.md", "| law |\n", "| law |\n| ghost | none | core | — | law |\n");
        planted.assert_breach(Law::Dependencies, PATH, 8, "rows of packages that exist; found `ghost`");
    }

    #[test]
    fn a_row_stands_above_what_it_uses() {
        let planted = Planted::tidy();
        let (core, ledger) = ("| core | words | — | serde | contract |\n", "| ledger | money | core | — | law |\n");
        planted.edit("ARCHITECTURE.md", &format!("{core}{ledger}"), &format!("{ledger}{core}"));
        planted.assert_breach(Law::Dependencies, PATH, 6, "`core` in a row above `ledger`");
    }

    #[test]
    fn a_version_of_its_own() {
        let planted = Planted::tidy();
        planted.write_manifest("core", "serde = \"1\"\n");
        planted.assert_breach(Law::Dependencies, "crates/ascribe-core/Cargo.toml", 8, "`serde.workspace = true`");
    }

    #[test]
    fn fixtures_never_ship() {
        let planted = Planted::tidy();
        let row = "| ledger | money | core, testkit |";
        planted.edit("ARCHITECTURE.md", "| ledger | money | core |", row);
        planted.edit("ARCHITECTURE.md", "| core | words", "| testkit | fixtures | — | — | dev |\n| core | words");
        planted.write_manifest("testkit", "");
        planted.write_manifest("ledger", "ascribe-core.workspace = true\nascribe-testkit.workspace = true\n");
        planted.assert_breach(Law::Dependencies, LEDGER, 9, "`testkit` under [dev-dependencies] only");
    }

    #[test]
    fn a_heavy_dependency_outside_its_room_even_for_tests() {
        let planted = Planted::tidy();
        let manifest = "ascribe-core.workspace = true\n\n[dev-dependencies]\ncandle-core.workspace = true\n";
        planted.write_manifest("ledger", manifest);
        planted.assert_breach(Law::Rooms, LEDGER, 11, "`candle*` only under models; found `candle-core` in `ledger`");
    }
}
