//! One breach of one law: where, what was expected, what was found, and what to do.

use std::fmt;

/// The laws, by the number they carry in ARCHITECTURE.md.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Law {
    /// A crate depends on exactly what its row in the crate map says.
    Dependencies = 1,
    /// Heavy dependencies have rooms of their own.
    Rooms = 2,
    /// Some crates turn values into values and never touch files or the network.
    NoIo = 3,
    /// Lints stand in the workspace manifest and nobody steps around them.
    Lints = 4,
    /// Long files and functions are listed, and the list only shrinks.
    Sizes = 5,
    /// Every format version has golden files that a test opens.
    Formats = 6,
    /// Unsafe code only in named modules, each use explained.
    Unsafe = 7,
    /// No path of somebody's machine, no package registry's address, no note to self.
    Papers = 8,
    /// Shipped data carries its licence and origin, within its budget of bytes.
    Data = 9,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Dependencies => "dependencies",
            Self::Rooms => "rooms",
            Self::NoIo => "no input or output",
            Self::Lints => "lints",
            Self::Sizes => "sizes",
            Self::Formats => "formats",
            Self::Unsafe => "unsafe",
            Self::Papers => "papers",
            Self::Data => "data",
        };
        write!(f, "law {} ({name})", *self as u8)
    }
}

/// A breach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The law.
    pub law: Law,
    /// Path from the repository's root, with slashes.
    pub file: String,
    /// Line from 1; 0 where the breach is the file itself.
    pub line: usize,
    /// What the law wants there.
    pub expected: String,
    /// What stands there.
    pub found: String,
    /// What to do.
    pub hint: String,
}

impl Violation {
    /// A breach in `file` at `line`.
    pub fn new(law: Law, file: impl Into<String>, line: usize) -> Self {
        let (expected, found, hint) = (String::new(), String::new(), String::new());
        Self { law, file: file.into(), line, expected, found, hint }
    }

    /// Says what the law wants there.
    pub fn expected(mut self, text: impl Into<String>) -> Self {
        self.expected = text.into();
        self
    }

    /// Says what stands there.
    pub fn found(mut self, text: impl Into<String>) -> Self {
        self.found = text.into();
        self
    }

    /// Says what to do.
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = text.into();
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}: expected {}; found {}", self.law, self.expected, self.found)?;
        if !self.hint.is_empty() {
            write!(f, "\n    hint: {}", self.hint)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_names_where_what_and_what_to_do() {
        let violation = Violation::new(Law::Sizes, "crates/a/src/b.rs", 7)
            .expected("at most 70 lines")
            .found("`walk` with 91")
            .hint("split it");
        let text =
            "crates/a/src/b.rs:7: law 5 (sizes): expected at most 70 lines; found `walk` with 91\n    hint: split it";
        assert_eq!(violation.to_string(), text);
        assert!(Violation::new(Law::Data, "README.md", 0).to_string().starts_with("README.md: law 9 (data)"));
    }
}
