//! Running the built command.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Root of the repository: the home that ships.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The command, with a fixed width for its help.
pub fn ascribe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ascribe"));
    command.current_dir(repository()).env("COLUMNS", "100").env_remove("CLICOLOR_FORCE");
    command
}

/// Runs it.
pub fn run(args: &[&str]) -> Output {
    ascribe().args(args).output().unwrap()
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
