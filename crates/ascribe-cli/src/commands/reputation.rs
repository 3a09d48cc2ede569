//! `ascribe reputation`.

use anyhow::{Context as _, Result};
use ascribe_core::Progress;
use ascribe_engine::Home;
use ascribe_engine::reputation::{self, Reputation};
use ascribe_engine::walk::evaluate;
use ascribe_engine::walk::stamps::Stamps;

use crate::args::Format;
use crate::args::reputation::ReputationArgs;
use crate::output::{print, table};

/// Runs the command: what the evaluation lacks is made first.
pub fn run(home: &Home, args: &ReputationArgs, format: Format, bars: &dyn Progress) -> Result<()> {
    let context = super::open(home, &args.run, bars)?;
    let evaluation = evaluate::run(&context, &mut Stamps::read(&context.out), bars)?;
    let found = reputation::measure(&context, &evaluation, bars)?;
    let path = args.html.clone().unwrap_or_else(|| context.out.join("reputation.html"));
    std::fs::write(&path, reputation::render(&found)?).with_context(|| path.display().to_string())?;
    let json = context.out.join("reputation.json");
    std::fs::write(&json, serde_json::to_vec_pretty(&found)?).with_context(|| json.display().to_string())?;
    print(format, &found, text)
}

fn text(found: &Reputation) -> String {
    let row = |r: &reputation::ReputationRow| {
        vec![
            r.dataset.clone(),
            format!("{:.3}", r.score),
            format!("[{:.3}, {:.3}]", r.influence.low, r.influence.high),
            format!("{:.3} [{:.3}, {:.3}]", r.uniqueness.mean, r.uniqueness.low, r.uniqueness.high),
            format!("{:.1} %", 100.0 * r.duplication),
            format!("{:.0} %", 100.0 * r.licence_clarity),
        ]
    };
    let rows: Vec<Vec<String>> = found.datasets.iter().map(row).collect();
    let header = ["dataset", "score, nats", "interval", "lost when removed", "duplicates", "clarity"];
    let written = |s: Option<f64>| s.map_or("not defined".to_owned(), |s| format!("{s:.3}"));
    format!(
        "{}\nSpearman with leave-one-dataset-out retraining: {}; the bigram model alone (control): {}\n",
        table(&header, &rows),
        written(found.agreement.spearman),
        written(found.agreement.bigram_alone)
    )
}
