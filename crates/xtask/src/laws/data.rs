//! Law 9: shipped data carries its licence and origin beside it, within its budget of bytes.

use crate::repo::{Repo, RepoFile};
use crate::violation::{Law, Violation};

/// Files up to this size need no papers.
const SMALL_FILE_BYTES: u64 = 1024;

/// Budgets in bytes: a folder ("" is the repository) and what it may hold.
const BUDGETS: [(&str, u64); 3] = [("", 60_000_000), ("datasets", 8_000_000), ("models", 14_000_000)];

/// Words one of which must stand in the papers, per thing that they must say.
const LICENCE_WORDS: [&str; 2] = ["licence", "license"];
const ORIGIN_WORDS: [&str; 3] = ["origin", "source", "trained"];

/// Checks law 9.
pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    for root in ["datasets", "models"] {
        for file in repo.below(root).filter(|file| file.len_bytes > SMALL_FILE_BYTES) {
            if is_paper(file.name()) || has_papers(repo, root, file) {
                continue;
            }
            violations.push(
                Violation::new(Law::Data, &file.path, 0)
                    .expected("its licence and origin in a manifest.json beside it, or in a README.md that names it")
                    .found("none")
                    .hint("say under which licence it is and where it came from, or do not ship it"),
            );
        }
    }
    for (folder, budget) in BUDGETS {
        let len_bytes: u64 = if folder.is_empty() {
            repo.files.iter().map(|file| file.len_bytes).sum()
        } else {
            repo.below(folder).map(|file| file.len_bytes).sum()
        };
        violations.extend(over_budget(folder, len_bytes, budget));
    }
    violations
}

fn over_budget(folder: &str, len_bytes: u64, budget: u64) -> Option<Violation> {
    let name = if folder.is_empty() { "the repository" } else { folder };
    let breach =
        Violation::new(Law::Data, name, 0).expected(format!("at most {budget} bytes")).found(len_bytes.to_string());
    (len_bytes > budget).then(|| breach.hint("ship less: everybody who clones pays for it"))
}

fn is_paper(name: &str) -> bool {
    matches!(name, "README.md" | "manifest.json" | "terms.txt") || name.starts_with("LICENSE")
}

/// Papers beside the file, or in a README above it that names the file or its folder.
fn has_papers(repo: &Repo, root: &str, file: &RepoFile) -> bool {
    let mut folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    if repo.text(&format!("{folder}/manifest.json")).is_some_and(speaks) {
        return true;
    }
    loop {
        let rest = file.path[folder.len()..].trim_start_matches('/');
        let named_as = rest.split('/').next().unwrap_or(rest);
        let names_it = |text: &str| text.contains(named_as) && speaks(text);
        if repo.text(&format!("{folder}/README.md")).is_some_and(names_it) {
            return true;
        }
        if folder == root {
            return false;
        }
        folder = folder.rsplit_once('/').map_or(root, |(parent, _)| parent);
    }
}

fn speaks(text: &str) -> bool {
    let text = text.to_lowercase();
    LICENCE_WORDS.iter().any(|word| text.contains(word)) && ORIGIN_WORDS.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Planted;

    const DATA: &str = "datasets/kjv/records.jsonl";

    fn with_data() -> Planted {
        let planted = Planted::tidy();
        planted.write(DATA, &"{}\n".repeat(500));
        planted
    }

    #[test]
    fn data_without_papers() {
        with_data().assert_breach(Law::Data, DATA, 0, "its licence and origin");
    }

    #[test]
    fn a_manifest_beside_it_is_enough() {
        let planted = with_data();
        planted.write("datasets/kjv/manifest.json", "{\"licence\": \"MIT\", \"source\": {}}");
        planted.assert_tidy();
        planted.write("datasets/kjv/manifest.json", "{\"licence\": \"MIT\"}");
        planted.assert_breach(Law::Data, DATA, 0, "found none");
    }

    #[test]
    fn a_readme_above_must_name_the_folder() {
        let planted = with_data();
        planted.write("datasets/README.md", "kjv: licence MIT, source: a package\n");
        planted.assert_tidy();
        planted.write("datasets/README.md", "austen: licence MIT, source: a package\n");
        planted.assert_breach(Law::Data, DATA, 0, "found none");
    }

    #[test]
    fn small_files_need_no_papers() {
        let planted = Planted::tidy();
        planted.write("models/tiny/config.json", "{}");
        planted.assert_tidy();
    }

    #[test]
    fn budgets_are_met_exactly() {
        assert_eq!(over_budget("datasets", 8_000_000, 8_000_000), None);
        let breach = over_budget("datasets", 8_000_001, 8_000_000).expect("one byte too many");
        assert!(breach.to_string().contains("at most 8000000 bytes; found 8000001"), "{breach}");
        let planted = Planted::tidy();
        planted.write("models/README.md", "weights.bin: licence MIT, trained here\n");
        planted.write("models/weights.bin", &"x".repeat(14_000_001));
        planted.assert_breach(Law::Data, "models", 0, "at most 14000000 bytes");
    }
}
