//! `ascribe tokens`.

use anyhow::Result;
use ascribe_core::Progress;
use ascribe_engine::Home;
use ascribe_engine::tokens::{self, TokensReport};

use crate::args::Format;
use crate::args::tokens::TokensArgs;
use crate::output::{print, table};

/// Runs the command.
pub fn run(home: &Home, args: &TokensArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    print(format, &tokens::run(home, &args.request(), bars)?, text)
}

fn text(report: &TokensReport) -> String {
    let example =
        |e: &tokens::ExampleTokens| vec![e.example.to_string(), e.dataset.clone(), format!("{:+.4e}", e.score)];
    let examples: Vec<Vec<String>> = report.examples.iter().map(example).collect();
    let token = |t: &tokens::TokenScore| {
        let around = report.examples.iter().find(|e| e.example == t.example).map(|e| e.around(t.position));
        format!("{:+.4e}  {:>6}:{:<4}  {}\n", t.score, t.example, t.position, around.unwrap_or_default())
    };
    let curves = match report.damping.is_empty() {
        true => String::new(),
        false => {
            let head = "held-out log-likelihood below its best, in nats per example, by relative damping";
            format!("\n{head}\n{}", super::fitted::curves(&report.damping))
        }
    };
    format!(
        "response {} of {}, held out from {}\n{}\n\n{}\n{}",
        report.query,
        report.model,
        report.dataset,
        report.response.trim(),
        table(&["example", "dataset", "influence"], &examples),
        report.top.iter().map(token).collect::<String>() + &curves
    )
}
