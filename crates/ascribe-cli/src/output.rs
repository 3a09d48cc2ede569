//! Stdout is data, stderr is talk.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::args::Format;

/// Prints `value` as JSON, or `text` for a person.
///
/// # Errors
/// When stdout cannot be written; a reader that closed its end early is no error.
pub fn print<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    let rendered = match format {
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Text | Format::Croissant | Format::Rsl | Format::AiAct => text(value),
    };
    match writeln!(std::io::stdout(), "{}", rendered.trim_end()) {
        // The reader has seen enough (`ascribe eval | head`): not an error of anybody's.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Tells an error on stderr (and as JSON on stdout when asked for) and gives exit code 1.
pub fn fail(error: &anyhow::Error, format: Format) -> ExitCode {
    if format == Format::Json {
        let value = serde_json::json!({ "error": format!("{error:#}") });
        // If stdout is closed the exit code still tells.
        let _ = writeln!(std::io::stdout(), "{value}");
    }
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::from(1)
}

/// Tells help and version on stdout, wrong arguments on stderr with exit code 1: they are the user's, as wrong input is.
pub fn usage(error: &clap::Error) -> ExitCode {
    // If the stream is closed the exit code still tells.
    let _ = error.print();
    ExitCode::from(u8::from(error.use_stderr()))
}

/// A table of left-aligned first column and right-aligned others.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let n_columns = header.len();
    let width =
        |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([header[c].chars().count()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (c, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[c].saturating_sub(cell.chars().count()));
            let cell = if c == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
            text.push_str(&cell);
        }
        text.trim_end().to_owned() + "\n"
    };
    let header: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    std::iter::once(line(&header)).chain(rows.iter().map(|r| line(r))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(&["name", "n"], &[vec!["a".into(), "10".into()], vec!["long name".into(), "7".into()]]);
        assert_eq!(text, "name        n\na          10\nlong name   7\n");
    }
}
