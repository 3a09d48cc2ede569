//! The help of every command is part of the interface: a change of it is seen in a snapshot.

use crate::common::{run, stdout};

/// The help of a command, and of every command that it lists.
fn check(path: &[&str], n_seen: &mut usize) {
    let args: Vec<&str> = path.iter().copied().chain(["--help"]).collect();
    let output = run(&args);
    assert!(output.status.success(), "{args:?}");
    let text = stdout(&output);
    let name = std::iter::once("help").chain(path.iter().copied()).collect::<Vec<_>>().join("-");
    insta::assert_snapshot!(name, text);
    *n_seen += 1;
    for child in commands(&text) {
        let longer: Vec<&str> = path.iter().copied().chain([child.as_str()]).collect();
        check(&longer, n_seen);
    }
}

/// Names under `Commands:`, without `help` itself.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let named = listed.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    named.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_owned).collect()
}

#[test]
fn the_help_of_every_command() {
    let mut n_seen = 0;
    check(&[], &mut n_seen);
    assert!(n_seen >= 18, "only {n_seen} pages of help were found");
}

#[test]
fn every_page_of_help_ends_with_an_example() {
    fn check_page(path: &[String]) {
        let words: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let page = stdout(&run(&words));
        let first = path.first().map_or_else(String::new, |name| format!(" {name}"));
        assert!(page.contains(&format!("Example:\n  ascribe{first}")), "{path:?}: {page}");
        for name in commands(&page) {
            check_page(&[path, &[name]].concat());
        }
    }
    check_page(&[]);
}

#[test]
fn the_version() {
    let text = stdout(&run(&["--version"]));
    assert_eq!(text, format!("ascribe {}\n", env!("CARGO_PKG_VERSION")));
}
