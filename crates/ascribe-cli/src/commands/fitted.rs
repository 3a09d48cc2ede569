//! What `ascribe fit` prints: the station's stamp, and the damping curves of every module.

use std::collections::BTreeMap;

use ascribe_engine::recipe::DampingRule;
use ascribe_engine::walk::damping::{Curve, DampingCurves, Point};
use ascribe_engine::walk::stamps::Stamp;
use ascribe_engine::walk::{Context, fit};
use serde::Serialize;

use crate::output::table;

/// The station's result.
#[derive(Serialize)]
pub struct Fitted {
    /// Key and outputs of the station.
    #[serde(flatten)]
    stamp: Option<Stamp>,
    /// Damping of each checkpoint when it is fixed, relative to a module's mean eigenvalue.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    fixed: BTreeMap<String, f64>,
    /// The curves.
    damping: DampingCurves,
}

impl Fitted {
    /// Puts together what is known after the fit.
    pub fn new(context: &Context, stamp: Option<&Stamp>, damping: DampingCurves) -> Self {
        let of = |c: &ascribe_engine::walk::context::Checkpoint| (c.name.clone(), fit::damping_rel(context, c));
        let fixed = match damping.rule {
            DampingRule::Fixed => context.checkpoints.iter().map(of).collect(),
            DampingRule::HeldOutLikelihood => BTreeMap::new(),
        };
        Self { stamp: stamp.cloned(), fixed, damping }
    }
}

/// Tables for a person: modules down, every second damping of the grid across, heights below the best of the row.
pub fn text(found: &Fitted) -> String {
    let mut out = format!(
        "curvature fitted\n\nheld-out log-likelihood below its best, in nats per example, by damping ({}, seed {})\n",
        found.damping.criterion, found.damping.options.seed
    );
    for (checkpoint, curves) in &found.damping.checkpoints {
        out += &match found.fixed.get(checkpoint) {
            Some(fixed) => format!("\n{checkpoint}: used are {fixed} everywhere (damping = \"fixed\")\n"),
            None => format!("\n{checkpoint}: used are the best (damping = \"held_out_likelihood\")\n"),
        };
        out += &self::curves(curves);
    }
    out
}

/// Curves as a table.
pub fn curves(curves: &[Curve]) -> String {
    let Some(longest) = curves.iter().max_by_key(|c| c.points.len()) else { return String::new() };
    let grid: Vec<String> = longest.points.iter().step_by(2).map(|p| format!("{:.0e}", p.damping_rel)).collect();
    let header: Vec<&str> = ["module", "best"].into_iter().chain(grid.iter().map(String::as_str)).collect();
    table(&header, &curves.iter().map(|c| row(c, grid.len())).collect::<Vec<_>>())
}

fn row(curve: &Curve, n_columns: usize) -> Vec<String> {
    let best = match (curve.points.is_empty(), curve.at_edge) {
        (true, _) => "no gradients".to_owned(),
        (_, true) => format!("{:.1e} (edge)", curve.chosen.damping_rel),
        _ => format!("{:.1e}", curve.chosen.damping_rel),
    };
    let mut cells = vec![curve.module.clone(), best];
    let below = |p: &Point| format!("{:.1}", curve.chosen.log_likelihood - p.log_likelihood);
    cells.extend(curve.points.iter().step_by(2).map(below));
    cells.resize(n_columns + 2, String::new());
    cells
}
