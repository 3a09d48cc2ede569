//! Looks into a book: `look verify ADDRESS`, `look statement ADDRESS OWNER`. Prints JSON.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of its own")]

use std::process::ExitCode;

use ascribe_book::{Book, BookError};

fn look(args: &[String]) -> Result<String, BookError> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["verify", address] => Ok(serde_json::to_string(&Book::open(address)?.verify()?)?),
        ["statement", address, owner] => Ok(serde_json::to_string(&Book::open(address)?.statement(owner)?)?),
        _ => Err(BookError::Field {
            what: "arguments".into(),
            expected: "verify ADDRESS or statement ADDRESS OWNER".into(),
            found: args.join(" "),
        }),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match look(&args) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
