//! Retrain banks of any kind: which subsets were trained on, and what came out for every query under every seed.
//!
//! A bank is a folder:
//!
//! | file | what |
//! |---|---|
//! | `bank.json` | the plan: players, how the subsets were drawn, recipe and data digests, the measure, the command that rebuilds it |
//! | `subsets.txt` | one line per subset: hex bits of the kept players (player 0 is the first bit), or `-3,17`: all but these |
//! | `seed-S.safetensors` | finished outcomes of one seed; `seed-S.part-I-of-N.safetensors` where processes shared the work |
//!
//! Outcomes are written as they are finished, so a bank can be stopped, resumed, shared and committed while it grows. Here
//! never lives: how a model is trained (`runners`), what the outcomes are compared with (eval).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ascribe_core::{Digest, Progress};
use ascribe_linalg::Stream;
use ascribe_store::{FactorData, FactorFile};
use ndarray::{Array2, Array3, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::EngineError;
use crate::files;

/// Version of the folder's layout.
pub const RETRAIN_BANK_FORMAT_VERSION: u32 = 1;
/// The plan in a bank's folder.
pub const PLAN_FILE: &str = "bank.json";
/// The subsets in a bank's folder.
pub const SUBSETS_FILE: &str = "subsets.txt";
const KIND: &str = "retrain_outcomes";

/// How the subsets were drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Draw {
    /// `m` subsets of `round(alpha·n)` players each, uniform, from the stream `bench/subsets` under `seed`.
    Random {
        /// Subsets.
        m: usize,
        /// Part of the players that is kept.
        alpha: f64,
        /// Seed of the stream.
        seed: u64,
    },
    /// All `2^n` subsets; subset `m` keeps player `k` where bit `k` of `m` is set. The empty one is the untrained model.
    PowerSet,
    /// All players, then for each of `m` random players all but that one (all players if `m` is `n`).
    LeaveOneOut {
        /// Players left out, one at a time.
        m: usize,
        /// Seed of the stream.
        seed: u64,
    },
}

/// What fixes a bank: a bank of another plan is refused, never mixed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankPlan {
    /// [`RETRAIN_BANK_FORMAT_VERSION`].
    pub format_version: u32,
    /// Setting that it belongs to.
    pub setting: String,
    /// `examples`, or the names of the datasets that are the players.
    pub players: Players,
    /// How the subsets were drawn.
    pub draw: Draw,
    /// SHA-256 of the training recipe (without its seed).
    pub recipe: Digest,
    /// SHA-256 of the data: examples, their order, and queries.
    pub data: Digest,
    /// Queries.
    pub n_queries: usize,
    /// What an outcome is; larger is better for the query (`margin`, `negative_nats`).
    pub measure: String,
    /// The command that makes the bank again.
    pub command: String,
}

/// Who is in or out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Players {
    /// Training examples, by their position.
    Examples(usize),
    /// Datasets, by name in the order of their ordinals.
    Datasets(Vec<String>),
}

impl Players {
    /// Their number.
    pub fn len(&self) -> usize {
        match self {
            Self::Examples(n) => *n,
            Self::Datasets(names) => names.len(),
        }
    }

    /// True without players.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One training that a bank asks for.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Number of the subset.
    pub subset: usize,
    /// `[n]`: the players that are kept.
    pub kept: &'a [bool],
    /// Seed of weights and order.
    pub seed: u64,
}

/// A bank's finished seeds.
#[derive(Clone, Debug)]
pub struct RetrainBank {
    /// Its plan.
    pub plan: BankPlan,
    /// `[M, N]`: the players that subset m keeps.
    pub kept: Array2<bool>,
    /// Seeds with every outcome, rising.
    pub seeds: Vec<u64>,
    /// `[S, M, Q]`, larger is better.
    pub outcomes: Array3<f64>,
    /// SHA-256 over plan, subsets and outcomes: what a calibration cites.
    pub digest: Digest,
}

impl RetrainBank {
    /// `[M, Q]`: mean outcome over seeds.
    pub fn mean(&self) -> Array2<f64> {
        self.outcomes.mean_axis(Axis(0)).expect("a bank has at least one complete seed")
    }

    /// Reads the plan, the subsets and all complete seeds; `None` when no seed is complete.
    ///
    /// # Errors
    /// Files that do not parse, belong to another plan, or contradict each other.
    pub fn read(dir: &Path) -> Result<Option<Self>, EngineError> {
        let plan = read_plan(dir)?;
        let kept = read_subsets(dir, &plan)?;
        let mut seeds = Vec::new();
        let mut tables = Vec::new();
        let mut bytes = plan_digest(&plan, &kept).0.to_vec();
        for (seed, table) in read_outcomes(dir, &plan, &kept)? {
            let rows: Option<Vec<&Vec<f32>>> = table.iter().map(Option::as_ref).collect();
            let Some(rows) = rows else { continue };
            seeds.push(seed);
            let flat: Vec<f64> = rows.iter().flat_map(|row| row.iter().map(|&x| f64::from(x))).collect();
            bytes.extend(seed.to_le_bytes());
            bytes.extend(flat.iter().flat_map(|x| x.to_le_bytes()));
            tables.extend(flat);
        }
        if seeds.is_empty() {
            return Ok(None);
        }
        let shape = (seeds.len(), kept.nrows(), plan.n_queries);
        let outcomes = Array3::from_shape_vec(shape, tables).expect("every row has one number per query");
        Ok(Some(Self { plan, kept, seeds, outcomes, digest: Digest::of(&bytes) }))
    }
}

/// Trains what is missing, `at_once` trainings side by side, and keeps outcomes as they are finished.
///
/// `shard = (i, n)` takes every n-th missing training from the i-th on and writes files of its own, so that processes or
/// machines share the work. Returns the number of trainings done.
///
/// # Errors
/// A folder that holds another plan; `train`'s errors; outcomes that are not finite; [`EngineError::Stopped`] (what is
/// finished is kept).
pub fn build(
    dir: &Path,
    plan: &BankPlan,
    seeds: &[u64],
    (shard, n_shards): (usize, usize),
    at_once: usize,
    progress: &dyn Progress,
    train: impl Fn(Job<'_>) -> Result<Vec<f64>, EngineError> + Sync,
) -> Result<usize, EngineError> {
    let kept = create(dir, plan)?;
    let done = read_outcomes(dir, plan, &kept)?;
    let rows: Vec<Vec<bool>> = kept.rows().into_iter().map(|row| row.to_vec()).collect();
    let mut trained = 0;
    for &seed in seeds {
        let path = dir.join(match n_shards {
            1 => format!("seed-{seed}.safetensors"),
            _ => format!("seed-{seed}.part-{shard}-of-{n_shards}.safetensors"),
        });
        let mut own = if path.exists() { read_rows(&path, plan, &kept, seed)? } else { BTreeMap::new() };
        let have = done.get(&seed);
        let missing: Vec<usize> =
            (0..rows.len()).filter(|m| m % n_shards == shard && have.is_none_or(|table| table[*m].is_none())).collect();
        progress.start(&format!("retrain bank, seed {seed}"), missing.len() as u64, "models");
        for group in missing.chunks(at_once.max(1)) {
            if progress.stop_requested() {
                return Err(EngineError::Stopped);
            }
            let results: Vec<Result<Vec<f64>, EngineError>> =
                group.par_iter().map(|&subset| train(Job { subset, kept: &rows[subset], seed })).collect();
            for (&subset, result) in group.iter().zip(results) {
                own.insert(subset, checked(result?, plan, &path, subset)?);
            }
            write_rows(&path, plan, &kept, seed, &own)?;
            trained += group.len();
            progress.advance(group.len() as u64);
        }
        progress.finish("");
    }
    Ok(trained)
}

/// Joins the parts of every seed into one file each and removes the parts.
///
/// # Errors
/// As [`RetrainBank::read`].
pub fn pack(dir: &Path) -> Result<(), EngineError> {
    let plan = read_plan(dir)?;
    let kept = read_subsets(dir, &plan)?;
    for (seed, table) in read_outcomes(dir, &plan, &kept)? {
        let rows = table.into_iter().enumerate().filter_map(|(m, row)| row.map(|row| (m, row))).collect();
        write_rows(&dir.join(format!("seed-{seed}.safetensors")), &plan, &kept, seed, &rows)?;
    }
    for (_, path) in outcome_files(dir)? {
        if path.to_string_lossy().contains(".part-") {
            std::fs::remove_file(&path).map_err(|e| EngineError::io(&path, e))?;
        }
    }
    Ok(())
}

fn checked(row: Vec<f64>, plan: &BankPlan, path: &Path, subset: usize) -> Result<Vec<f32>, EngineError> {
    let content = |expected: String, found: String| EngineError::Content { path: path.into(), expected, found };
    if row.len() != plan.n_queries {
        return Err(content(format!("{} outcomes of subset {subset}", plan.n_queries), row.len().to_string()));
    }
    if let Some(q) = row.iter().position(|x| !x.is_finite()) {
        return Err(content(format!("finite outcomes of subset {subset}"), format!("{} for query {q}", row[q])));
    }
    Ok(row.into_iter().map(|x| x as f32).collect())
}

/// Makes the folder with plan and subsets, or checks that it holds this very plan.
fn create(dir: &Path, plan: &BankPlan) -> Result<Array2<bool>, EngineError> {
    let path = dir.join(PLAN_FILE);
    if path.exists() {
        let found = read_plan(dir)?;
        // The command is for people: a moved folder is still the same bank.
        if (BankPlan { command: plan.command.clone(), ..found.clone() }) != *plan {
            let (expected, found) = (serde_json::to_string(plan)?, serde_json::to_string(&found)?);
            return Err(EngineError::Content { path, expected: format!("the plan {expected}"), found });
        }
        return read_subsets(dir, plan);
    }
    let kept = draw(plan)?;
    files::write_atomic(&dir.join(SUBSETS_FILE), subsets_text(plan, &kept).as_bytes())?;
    files::write_atomic(&path, &[serde_json::to_vec_pretty(plan)?, b"\n".to_vec()].concat())?;
    Ok(kept)
}

/// Draws the subsets of a plan, `[M, N]`.
///
/// # Errors
/// A plan that cannot be carried out: more than 12 players for all their subsets, `alpha` outside (0, 1), no players.
pub fn draw(plan: &BankPlan) -> Result<Array2<bool>, EngineError> {
    let n = plan.players.len();
    let refuse = |setting, expected: &str, found: String| {
        Err(EngineError::Setting { setting, expected: expected.to_owned(), found })
    };
    if n == 0 {
        return refuse("players", "at least one", "none".into());
    }
    match plan.draw {
        Draw::Random { m, alpha, seed } => {
            if !(alpha > 0.0 && alpha < 1.0) {
                return refuse("alpha", "a number between 0 and 1", alpha.to_string());
            }
            if m == 0 {
                return refuse("subsets", "at least one", "0".into());
            }
            let size = ((alpha * n as f64).round() as usize).clamp(1, n);
            let mut kept = Array2::from_elem((m, n), false);
            for (m, mut row) in kept.rows_mut().into_iter().enumerate() {
                let mut order: Vec<usize> = (0..n).collect();
                Stream::new(seed, &format!("bench/subsets/{m}")).shuffle(&mut order);
                order[..size].iter().for_each(|&i| row[i] = true);
            }
            Ok(kept)
        }
        Draw::PowerSet if n > 12 => refuse("players", "at most 12 for all their subsets", n.to_string()),
        Draw::PowerSet => Ok(Array2::from_shape_fn((1 << n, n), |(m, k)| m >> k & 1 == 1)),
        Draw::LeaveOneOut { m, .. } if m == 0 || m > n => {
            refuse("players left out", "between 1 and all", m.to_string())
        }
        Draw::LeaveOneOut { m, seed } => {
            let mut order: Vec<usize> = (0..n).collect();
            if m < n {
                Stream::new(seed, "bench/left_out").shuffle(&mut order);
                order.truncate(m);
                order.sort_unstable();
            }
            Ok(Array2::from_shape_fn((m + 1, n), |(row, i)| row == 0 || order[row - 1] != i))
        }
    }
}

fn subsets_text(plan: &BankPlan, kept: &Array2<bool>) -> String {
    let mut text = String::new();
    for row in kept.rows() {
        if matches!(plan.draw, Draw::LeaveOneOut { .. }) {
            let out: Vec<String> = (0..row.len()).filter(|&i| !row[i]).map(|i| i.to_string()).collect();
            text.push('-');
            text.push_str(&out.join(","));
        } else {
            let mut bytes = vec![0u8; row.len().div_ceil(8)];
            row.iter().enumerate().filter(|(_, kept)| **kept).for_each(|(i, _)| bytes[i / 8] |= 128 >> (i % 8));
            text.push_str(&hex::encode(bytes));
        }
        text.push('\n');
    }
    text
}

fn read_plan(dir: &Path) -> Result<BankPlan, EngineError> {
    let path = dir.join(PLAN_FILE);
    let content =
        |expected: &str, found: String| EngineError::Content { path: path.clone(), expected: expected.into(), found };
    let plan: BankPlan = serde_json::from_slice(&files::read(&path)?)
        .map_err(|e| content("the plan of a retrain bank", format!("other content ({e})")))?;
    if plan.format_version != RETRAIN_BANK_FORMAT_VERSION {
        let expected = format!("format version {RETRAIN_BANK_FORMAT_VERSION}");
        return Err(content(&expected, plan.format_version.to_string()));
    }
    Ok(plan)
}

fn read_subsets(dir: &Path, plan: &BankPlan) -> Result<Array2<bool>, EngineError> {
    let path = dir.join(SUBSETS_FILE);
    let text = String::from_utf8_lossy(&files::read(&path)?).into_owned();
    let n = plan.players.len();
    let mut rows: Vec<bool> = Vec::new();
    let mut count = 0;
    for (line_idx, line) in text.lines().enumerate() {
        let bad = |expected: String| EngineError::Content {
            path: path.clone(),
            expected: format!("{expected} on line {}", line_idx + 1),
            found: line.chars().take(40).collect(),
        };
        let start = rows.len();
        match line.strip_prefix('-') {
            Some(list) => {
                rows.resize(start + n, true);
                for part in list.split(',').filter(|part| !part.is_empty()) {
                    let i: usize = part.parse().map_err(|_| bad("numbers of players".into()))?;
                    *rows.get_mut(start + i).filter(|_| i < n).ok_or_else(|| bad(format!("players below {n}")))? =
                        false;
                }
            }
            None => {
                let bytes = hex::decode(line).map_err(|_| bad("hex digits".into()))?;
                if bytes.len() != n.div_ceil(8) {
                    return Err(bad(format!("the bits of {n} players")));
                }
                rows.extend((0..n).map(|i| bytes[i / 8] & (128 >> (i % 8)) != 0));
            }
        }
        count += 1;
    }
    let kept = Array2::from_shape_vec((count, n), rows).expect("every line gives one flag per player");
    if kept != draw(plan)? {
        let (expected, found) = ("the subsets that the plan draws".to_owned(), "others".to_owned());
        return Err(EngineError::Content { path, expected, found });
    }
    Ok(kept)
}

fn plan_digest(plan: &BankPlan, kept: &Array2<bool>) -> Digest {
    let plan = BankPlan { command: String::new(), ..plan.clone() };
    let json = serde_json::to_string(&plan).expect("strings and numbers always serialise");
    Digest::of((json + &subsets_text(&plan, kept)).as_bytes())
}

fn outcome_files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, EngineError> {
    let mut found = Vec::new();
    for name in files::list(dir)? {
        let seed = name
            .strip_prefix("seed-")
            .and_then(|rest| rest.strip_suffix(".safetensors"))
            .and_then(|rest| rest.split('.').next())
            .and_then(|seed| seed.parse().ok());
        if let Some(seed) = seed {
            found.push((seed, dir.join(name)));
        }
    }
    found.sort();
    Ok(found)
}

type SeedTable = Vec<Option<Vec<f32>>>;

fn read_outcomes(dir: &Path, plan: &BankPlan, kept: &Array2<bool>) -> Result<BTreeMap<u64, SeedTable>, EngineError> {
    let mut seeds: BTreeMap<u64, SeedTable> = BTreeMap::new();
    for (seed, path) in outcome_files(dir)? {
        let table = seeds.entry(seed).or_insert_with(|| vec![None; kept.nrows()]);
        for (subset, row) in read_rows(&path, plan, kept, seed)? {
            if table[subset].as_ref().is_some_and(|other| *other != row) {
                let expected = format!("the outcomes of subset {subset} that another file has");
                return Err(EngineError::Content { path, expected, found: "others".into() });
            }
            table[subset] = Some(row);
        }
    }
    Ok(seeds)
}

fn write_rows(
    path: &Path,
    plan: &BankPlan,
    kept: &Array2<bool>,
    seed: u64,
    rows: &BTreeMap<usize, Vec<f32>>,
) -> Result<(), EngineError> {
    let mut file = FactorFile::new(KIND, plan_digest(plan, kept));
    file.metadata.insert("seed".into(), seed.to_string());
    let flat: Vec<f32> = rows.values().flatten().copied().collect();
    let outcomes = Array2::from_shape_vec((rows.len(), plan.n_queries), flat).expect("one number per query and row");
    let subsets: Vec<f64> = rows.keys().map(|&m| m as f64).collect();
    file.tensors.insert("outcomes".into(), FactorData::F32(outcomes.into_dyn()));
    file.tensors.insert("subsets".into(), FactorData::F64(ndarray::Array1::from(subsets).into_dyn()));
    Ok(file.write(path)?)
}

fn read_rows(
    path: &Path,
    plan: &BankPlan,
    kept: &Array2<bool>,
    seed: u64,
) -> Result<BTreeMap<usize, Vec<f32>>, EngineError> {
    let content = |expected: &str, found: &str| EngineError::Content {
        path: path.into(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    let file = FactorFile::read(path, Some(plan_digest(plan, kept)))?;
    if file.kind != KIND || file.metadata.get("seed").map(String::as_str) != Some(seed.to_string().as_str()) {
        return Err(content(&format!("outcomes of seed {seed}"), &file.kind));
    }
    let outcomes = file.tensors.get("outcomes").and_then(FactorData::as_f32);
    let subsets = file.tensors.get("subsets").and_then(FactorData::as_f64);
    let (Some(outcomes), Some(subsets)) = (outcomes, subsets) else {
        return Err(content("tensors `outcomes` (F32) and `subsets` (F64)", "others"));
    };
    if outcomes.shape() != [subsets.len(), plan.n_queries] {
        return Err(content(
            &format!("{} × {} outcomes", subsets.len(), plan.n_queries),
            &format!("{:?}", outcomes.shape()),
        ));
    }
    let mut rows = BTreeMap::new();
    for (&subset, row) in subsets.iter().zip(outcomes.outer_iter()) {
        if !(subset >= 0.0 && subset < kept.nrows() as f64 && subset.fract() == 0.0) {
            return Err(content(&format!("subsets below {}", kept.nrows()), &subset.to_string()));
        }
        if let Some((query, found)) = row.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            let expected = format!("finite outcomes of subset {subset}");
            return Err(content(&expected, &format!("{found} for query {query}")));
        }
        rows.insert(subset as usize, row.iter().copied().collect());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
