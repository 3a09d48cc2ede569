//! The contest: every method of a lab scores the same queries, and the scores are held against the setting's retrain banks.
//!
//! Scores are kept in the output folder under the digest of everything that decides them, so a run that was stopped goes on
//! where it was. Here never lives: a method (the labs' contestants), how a bank is trained (`runners`).

mod shapley;

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, Progress};
use ascribe_eval::lds::{lds, lds_removed};
use ascribe_eval::loo::loo_correlation;
use ascribe_eval::{Estimate, bootstrap_mean};
use ascribe_store::{FactorData, FactorFile};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bank::{Draw, Players, RetrainBank};
use super::report::{MethodFigure, TruthFigure};
use crate::error::EngineError;

/// Seed of the bootstrap over queries.
const BOOTSTRAP_SEED: u64 = 1;
/// Queries of one block of the evaluation.
const QUERY_BLOCK: usize = 8;
const SCORES_KIND: &str = "bench_scores";

/// What a method gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// `[q, N]`, positive = proponent, for the first `q` of the lab's queries (a costly method may explain fewer than all);
    /// `N` training examples, or one column per dataset.
    pub values: Array2<f32>,
    /// CPU seconds spent once, whatever the queries.
    pub cpu_fit: f64,
    /// CPU seconds spent on the queries.
    pub cpu_score: f64,
    /// Bytes kept per training example between fit and score.
    pub bytes_per_example: f64,
    /// Settings that the method chose or was given, for the report.
    pub settings: Value,
}

/// A method that takes part, over a lab `L`: a trained model with its training examples and queries.
pub trait Contestant<L: ?Sized>: Send + Sync {
    /// Short name, as on the command line.
    fn name(&self) -> &str;
    /// What it computes, in a sentence.
    fn about(&self) -> &str;
    /// Where its formula stands.
    fn source(&self) -> &str;
    /// True for what methods have to beat.
    fn control(&self) -> bool {
        false
    }
    /// What decides its scores besides the lab: scores kept under other settings are not used again.
    fn settings(&self) -> Value {
        Value::Null
    }
    /// Fits and scores.
    ///
    /// # Errors
    /// The method's; [`EngineError::Stopped`].
    fn run(&self, lab: &L, progress: &dyn Progress) -> Result<Scores, EngineError>;
}

/// What scores are held against.
#[derive(Clone, Debug, Default)]
pub struct Truths {
    /// Banks by name; those over random subsets or all subsets judge by LDS, those that leave one out by Pearson.
    pub banks: Vec<(String, RetrainBank)>,
    /// `[N]`: the dataset of every training example, where datasets are the players of a bank.
    pub datasets: Option<Vec<u32>>,
    /// `[Q]`: the dataset that every query was held out from, where it is known.
    pub queries: Option<Vec<u32>>,
}

/// Scores of a method in the output folder: what decides them, so that nothing stale is used again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoresKey {
    /// Setting.
    pub setting: String,
    /// Method.
    pub method: String,
    /// Its settings.
    pub settings: Value,
    /// SHA-256 of the lab: data and recipe.
    pub lab: Digest,
    /// Queries asked for.
    pub queries: usize,
    /// SHA-256 of the program that made them; `None` asks for scores of any build.
    pub program: Option<Digest>,
}

impl ScoresKey {
    /// What stands in the file besides the program.
    fn spec(&self) -> Result<Digest, EngineError> {
        Ok(Digest::of_json(&Self { program: None, ..self.clone() })?)
    }
}

impl Scores {
    /// Reads scores of this key; `None` if the file is missing or belongs to another key.
    ///
    /// # Errors
    /// A damaged file.
    pub fn read(path: &Path, key: &ScoresKey) -> Result<Option<Self>, EngineError> {
        if !path.exists() {
            return Ok(None);
        }
        let file = FactorFile::read(path, None)?;
        if file.kind != SCORES_KIND || file.spec != key.spec()? {
            return Ok(None);
        }
        let program = key.program.map(|digest| digest.to_string());
        if program.is_some() && program.as_ref() != file.metadata.get("program") {
            return Ok(None);
        }
        let number = |name: &str| file.metadata.get(name).and_then(|text| text.parse::<f64>().ok());
        let values = file.tensors.get("values").and_then(FactorData::as_f32);
        let parts = (values, number("cpu_fit"), number("cpu_score"), number("bytes_per_example"));
        let (Some(values), Some(cpu_fit), Some(cpu_score), Some(bytes_per_example)) = parts else { return Ok(None) };
        let Ok(values) = values.clone().into_dimensionality() else { return Ok(None) };
        let settings = file.metadata.get("settings").map_or(Ok(Value::Null), |text| serde_json::from_str(text))?;
        Ok(Some(Self { values, cpu_fit, cpu_score, bytes_per_example, settings }))
    }

    /// Writes the scores of a key.
    ///
    /// # Errors
    /// The operating system's; scores that are not finite.
    pub fn write(&self, path: &Path, key: &ScoresKey) -> Result<(), EngineError> {
        let mut file = FactorFile::new(SCORES_KIND, key.spec()?);
        if let Some(program) = key.program {
            file.metadata.insert("program".to_owned(), program.to_string());
        }
        let costs =
            [("cpu_fit", self.cpu_fit), ("cpu_score", self.cpu_score), ("bytes_per_example", self.bytes_per_example)];
        for (name, value) in costs {
            file.metadata.insert(name.to_owned(), value.to_string());
        }
        file.metadata.insert("settings".to_owned(), self.settings.to_string());
        file.tensors.insert("values".into(), FactorData::F32(self.values.clone().into_dyn()));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| EngineError::io(parent, e))?;
        }
        Ok(file.write(path)?)
    }

    /// Refuses scores that do not fit the lab or are not finite.
    ///
    /// # Errors
    /// [`EngineError::Scores`] with the place.
    pub fn check(&self, method: &str, n_queries: usize, n_columns: &[usize]) -> Result<(), EngineError> {
        let refuse =
            |expected: String, found: String| Err(EngineError::Scores { method: method.to_owned(), expected, found });
        let (q, n) = self.values.dim();
        if q == 0 || q > n_queries || !n_columns.contains(&n) {
            let widths: Vec<String> = n_columns.iter().map(ToString::to_string).collect();
            return refuse(format!("1 to {n_queries} rows of {} columns", widths.join(" or ")), format!("{q} × {n}"));
        }
        match self.values.indexed_iter().find(|(_, v)| !v.is_finite()) {
            Some(((q, i), v)) => refuse("finite numbers".into(), format!("{v} for query {q}, example {i}")),
            None => Ok(()),
        }
    }
}

/// What the banks say about scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Mean over queries of the main measure; `None` if it is defined for none, or no bank speaks to it.
    pub main: Option<Estimate>,
    /// Further measures.
    pub extra: BTreeMap<String, Option<f64>>,
}

/// Holds scores against every bank. The first bank over subsets gives `lds`, others `lds@NAME`; a bank that leaves one out
/// gives `loo_pearson` with its interval; one over all subsets also `tv_shapley`, the distance to its exact Shapley shares.
///
/// # Errors
/// Scores that do not fit the players; fewer than two subsets.
pub fn judge(method: &str, values: ArrayView2<'_, f32>, truths: &Truths) -> Result<Verdict, EngineError> {
    let mut verdict = Verdict::default();
    let mut first = true;
    if truths.banks.iter().any(|(_, bank)| !matches!(bank.plan.draw, Draw::LeaveOneOut { .. })) {
        for (name, half) in ["lds_first_half", "lds_second_half"].into_iter().zip(halves(method, values, truths)?) {
            verdict.extra.insert(name.into(), half.map(|e| e.mean));
        }
    }
    for (name, bank) in &truths.banks {
        let scores = over_players(method, values, bank, truths)?;
        if matches!(bank.plan.draw, Draw::LeaveOneOut { .. }) {
            let estimate = estimated(&leave_one_out(scores.view(), bank)?)?;
            verdict.extra.insert("loo_pearson".into(), estimate.map(|e| e.mean));
            verdict.extra.insert("loo_pearson_low".into(), estimate.map(|e| e.low));
            verdict.extra.insert("loo_pearson_high".into(), estimate.map(|e| e.high));
            continue;
        }
        let measured = -&bank.mean().slice(s![.., ..scores.nrows()]);
        let kept = estimated(&by_query(lds, scores.view(), &bank.kept, measured.t())?)?;
        let without = estimated(&by_query(lds_removed, scores.view(), &bank.kept, measured.t())?)?;
        let suffix = if first { String::new() } else { format!("@{name}") };
        verdict.extra.insert(format!("lds_removed{suffix}"), without.map(|e| e.mean));
        if bank.plan.draw == Draw::PowerSet {
            for (measure, value) in shapley::share_errors(&scores, bank, truths.queries.as_deref())? {
                verdict.extra.insert(format!("{measure}{suffix}"), value);
            }
        }
        if first {
            verdict.main = kept;
            let one = -&bank.outcomes.index_axis(Axis(0), 0).slice(s![.., ..scores.nrows()]);
            let one = estimated(&by_query(lds, scores.view(), &bank.kept, one.t())?)?;
            verdict.extra.insert("lds_one_seed".into(), one.map(|e| e.mean));
        } else {
            verdict.extra.insert(format!("lds{suffix}"), kept.map(|e| e.mean));
        }
        first = false;
    }
    Ok(verdict)
}

/// LDS on the first bank over subsets, by halves of the bank's queries: the first half may choose a damping, the second judges it. A
/// half of which no query was explained has none.
///
/// # Errors
/// No bank over subsets; scores that do not fit the players.
pub fn halves(
    method: &str,
    values: ArrayView2<'_, f32>,
    truths: &Truths,
) -> Result<[Option<Estimate>; 2], EngineError> {
    let over_subsets = |(_, bank): &&(String, RetrainBank)| !matches!(bank.plan.draw, Draw::LeaveOneOut { .. });
    let (_, bank) = truths.banks.iter().find(over_subsets).ok_or_else(|| EngineError::Setting {
        setting: "bank",
        expected: "a bank over subsets".into(),
        found: "none".into(),
    })?;
    let scores = over_players(method, values, bank, truths)?;
    let measured = -&bank.mean().slice(s![.., ..scores.nrows()]);
    let per_query = by_query(lds, scores.view(), &bank.kept, measured.t())?;
    let (first, second) = per_query.split_at((bank.plan.n_queries / 2).min(per_query.len()));
    Ok([estimated(first)?, estimated(second)?])
}

/// The truth's own figure: banks, subsets, seeds, and the LDS of one seed against the mean of the others.
///
/// # Errors
/// Outcomes that are not finite.
pub fn truth_figure(truths: &Truths, n_queries: usize) -> Result<TruthFigure, EngineError> {
    let about = |(name, bank): &(String, RetrainBank)| {
        let players = match &bank.plan.players {
            Players::Examples(n) => format!("{n} examples"),
            Players::Datasets(names) => format!("{} datasets", names.len()),
        };
        let seeds = match bank.seeds.len() {
            1 => "1 seed".to_owned(),
            n => format!("{n} seeds"),
        };
        format!("bank `{name}`: {} trainings on subsets of {players}, {seeds}", bank.kept.nrows())
    };
    let mut figure =
        TruthFigure { about: truths.banks.iter().map(about).collect::<Vec<_>>().join("; "), ..Default::default() };
    let subsets = truths.banks.iter().find(|(_, bank)| !matches!(bank.plan.draw, Draw::LeaveOneOut { .. }));
    if let Some((_, bank)) = subsets.or(truths.banks.first()) {
        figure.bank = Some(bank.digest);
        figure.command.clone_from(&bank.plan.command);
        (figure.subsets, figure.seeds) = (bank.kept.nrows(), bank.seeds.len());
    }
    if let Some((_, bank)) = subsets {
        figure.ceiling = ceiling(bank, n_queries)?;
    }
    Ok(figure)
}

/// Spearman over subsets of one seed's outcomes with the mean of the others', mean over seeds, per query; `None` for a bank
/// of one seed.
///
/// # Errors
/// Outcomes that are not finite.
pub fn ceiling(bank: &RetrainBank, n_queries: usize) -> Result<Option<Estimate>, EngineError> {
    let n_seeds = bank.seeds.len();
    if n_seeds < 2 {
        return Ok(None);
    }
    let total = bank.outcomes.sum_axis(Axis(0));
    let per_query: Vec<Option<f64>> = (0..n_queries)
        .map(|q| {
            let one_seed = |seed: usize| {
                let own = bank.outcomes.slice(s![seed, .., q]);
                // Minus the own seed; the scale does not change ranks.
                let rest: Vec<f64> = total.column(q).iter().zip(own).map(|(t, o)| t - o).collect();
                ascribe_eval::rank::spearman(&own.to_vec(), &rest)
            };
            let defined: Vec<f64> = (0..n_seeds).filter_map(one_seed).collect();
            (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
        })
        .collect();
    estimated(&per_query)
}

/// The figure of a method without its costs.
pub fn figure<L: ?Sized>(contestant: &dyn Contestant<L>, scores: &Scores, verdict: Verdict) -> MethodFigure {
    let figure = MethodFigure::new(contestant.name(), "lds").estimated(verdict.main.as_ref(), scores.values.nrows());
    MethodFigure {
        about: contestant.about().to_owned(),
        source: contestant.source().to_owned(),
        control: contestant.control(),
        cpu_fit: scores.cpu_fit,
        cpu_score: scores.cpu_score,
        bytes_per_example: scores.bytes_per_example,
        settings: scores.settings.clone(),
        extra: verdict.extra,
        ..figure
    }
}

/// `[q, players]` in f64: columns as they are, or summed over the examples of every dataset.
fn over_players(
    method: &str,
    values: ArrayView2<'_, f32>,
    bank: &RetrainBank,
    truths: &Truths,
) -> Result<Array2<f64>, EngineError> {
    let n = bank.plan.players.len();
    if values.ncols() == n {
        return Ok(values.mapv(f64::from));
    }
    let refuse = |expected: String| EngineError::Scores {
        method: method.to_owned(),
        expected,
        found: format!("{} columns", values.ncols()),
    };
    match (&bank.plan.players, &truths.datasets) {
        (Players::Datasets(_), Some(datasets)) if datasets.len() == values.ncols() => {
            let mut sums = Array2::zeros((values.nrows(), n));
            for (i, &k) in datasets.iter().enumerate() {
                let mut column = sums.column_mut(k as usize);
                column.zip_mut_with(&values.column(i), |sum, &v| *sum += f64::from(v));
            }
            Ok(sums)
        }
        _ => Err(refuse(format!("one column for each of the bank's {n} players"))),
    }
}

/// One of the two forms of LDS.
type Form = fn(
    ArrayView2<'_, f64>,
    ArrayView2<'_, bool>,
    ArrayView2<'_, f64>,
) -> Result<Vec<Option<f64>>, ascribe_eval::EvalError>;

fn by_query(
    form: Form,
    scores: ArrayView2<'_, f64>,
    included: &Array2<bool>,
    losses: ArrayView2<'_, f64>,
) -> Result<Vec<Option<f64>>, EngineError> {
    let starts: Vec<usize> = (0..scores.nrows()).step_by(QUERY_BLOCK).collect();
    let blocks: Result<Vec<Vec<Option<f64>>>, _> = starts
        .par_iter()
        .map(|&start| {
            let rows = start..(start + QUERY_BLOCK).min(scores.nrows());
            form(scores.slice(s![rows.clone(), ..]), included.view(), losses.slice(s![rows, ..]))
        })
        .collect();
    Ok(blocks?.into_iter().flatten().collect())
}

/// Per query the Pearson correlation between the scores of the left-out players and what leaving them out cost.
fn leave_one_out(scores: ArrayView2<'_, f64>, bank: &RetrainBank) -> Result<Vec<Option<f64>>, EngineError> {
    let mean = bank.mean();
    let mut all = None;
    let mut left_out = Vec::new();
    for (m, row) in bank.kept.rows().into_iter().enumerate() {
        match row.iter().position(|&kept| !kept) {
            None => all = Some(m),
            Some(player) => left_out.push((m, player)),
        }
    }
    let all = all.expect("a bank that leaves one out begins with all");
    let cell = |(q, i): (usize, usize)| (scores[(q, left_out[i].1)], mean[(all, q)] - mean[(left_out[i].0, q)]);
    let shape = (scores.nrows(), left_out.len());
    let predicted = Array2::from_shape_fn(shape, |at| cell(at).0);
    let worth = Array2::from_shape_fn(shape, |at| cell(at).1);
    Ok(loo_correlation(predicted.view(), worth.view())?)
}

/// The mean with its interval; `None` where no query has a value.
fn estimated(values: &[Option<f64>]) -> Result<Option<Estimate>, EngineError> {
    if values.iter().all(Option::is_none) {
        return Ok(None);
    }
    Ok(Some(bootstrap_mean(values, BOOTSTRAP_SEED)?))
}

#[cfg(test)]
mod tests;
