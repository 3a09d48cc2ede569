//! What each policy pays in a world: parts of the pool by owner. Raw-score policies run the rules of `ascribe_shares`; the calibrated
//! ones run the fitted method of the walk.

use std::collections::BTreeMap;

use ascribe_core::ExampleId;
use ascribe_methods::aggregate::{Aggregate, to_datasets};
use ascribe_methods::combine::{Calibration, Channel, Transform};
use ascribe_methods::controls::ngram::{Bigrams, FOLLOWER_PSEUDO_COUNT};
use ascribe_shares::{Duplicates, Holdings, Rule, Scored, SharesError, Summed, quantise_row, sum_rows};
use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::scorer::Tables;
use super::world::World;
use crate::error::EngineError;

/// Examples that count in the top means of similarity, as in the walk.
const TOP_MEAN_K: usize = 20;

/// Name of the policy that is paid by default.
pub const DEFAULT_POLICY: &str = "calibrated";

/// A way to pay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Scores of influence through a rule.
    Raw {
        /// The rule.
        rule: Rule,
        /// Duplicates count for the earliest licence.
        dedup: bool,
        /// An owner's net must exceed the noise of planted records.
        gate: bool,
        /// Who is netted before clipping.
        clip: Clip,
    },
    /// The walk's calibrated shares by dataset.
    Calibrated {
        /// Duplicates count for the earliest licence.
        dedup: bool,
    },
    /// The walk's calibrated shares by dataset; the part of each that earlier licences cover is moved, as `ascribe pay --duplicates` does.
    CalibratedMoved,
    /// The same channels by person and by amount of text, over deduplicated records, less what planted noise gets.
    CalibratedByText,
}

/// Who is netted before negatives are clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clip {
    /// The owner.
    Person,
    /// Each dataset.
    Dataset,
    /// Each example.
    Item,
}

/// What a policy needs besides scores.
pub struct Basis<'a> {
    /// Scores; the last `planted` columns are noise that the operator planted and that nobody owns.
    pub tables: &'a Tables,
    /// Number of planted columns.
    pub planted: usize,
    /// Per response, what planted noise of the size of a dataset nets, whatever its sign: an owner's net must exceed it.
    pub floors: &'a [f64],
    /// The fitted calibration.
    pub calibration: &'a Calibration,
    /// Mean examples of an honest dataset: the unit of size.
    pub unit: f64,
}

impl Policy {
    /// All policies with their names, the default first.
    pub fn all() -> Vec<(&'static str, Self, &'static str)> {
        let raw = |rule, dedup, gate, clip| Self::Raw { rule, dedup, gate, clip };
        let influence = Rule::InfluenceProportional;
        vec![
            (
                DEFAULT_POLICY,
                Self::CalibratedMoved,
                "default: the walk's calibrated shares by dataset; what earlier licences cover is moved to them (`pay --duplicates`)",
            ),
            (
                "calibrated, not moved",
                Self::Calibrated { dedup: false },
                "the same, copies count for whoever registered them",
            ),
            ("calibrated, by record", Self::Calibrated { dedup: true }, "calibrated over deduplicated records"),
            (
                "calibrated by text",
                Self::CalibratedByText,
                "by person and amount of text, over deduplicated records, less what planted noise gets",
            ),
            (
                "influence",
                raw(influence, true, true, Clip::Person),
                "raw influence: net per person over deduplicated records, gated by planted noise, clipped at zero",
            ),
            (
                "without dedup",
                raw(influence, false, true, Clip::Person),
                "the same, copies count for whoever registered them",
            ),
            ("without gate", raw(influence, true, false, Clip::Person), "the same, any positive net is paid"),
            (
                "clip per dataset",
                raw(influence, false, false, Clip::Dataset),
                "each dataset clipped by itself, no dedup, no gate",
            ),
            (
                "clip per item",
                raw(influence, false, false, Clip::Item),
                "each example clipped by itself, no dedup, no gate",
            ),
            (
                "shapley",
                raw(Rule::Shapley, true, true, Clip::Person),
                "Shapley values of owners' net influence (at most 12 owners)",
            ),
            (
                "blend 50 %",
                raw(Rule::Blend { alpha_ppm: 500_000 }, true, true, Clip::Person),
                "half influence, half registered records",
            ),
            ("pro rata", raw(Rule::ProRata, true, false, Clip::Person), "registered records"),
            ("equal", raw(Rule::Equal, true, false, Clip::Person), "a fixed fee for each owner"),
        ]
    }

    /// Per response, parts of its revenue by owner ordinal; `None` where the policy cannot decide in this world.
    ///
    /// # Errors
    /// Scores that are not finite.
    pub fn pay(&self, world: &World, basis: &Basis<'_>) -> Result<Option<Array2<f64>>, EngineError> {
        match *self {
            Self::Raw { rule, dedup, gate, clip } => raw(world, basis, rule, dedup, gate, clip),
            Self::CalibratedMoved => moved(world, basis).map(Some),
            Self::Calibrated { dedup } => calibrated(world, basis, dedup).map(Some),
            Self::CalibratedByText => by_text(world, basis).map(Some),
        }
    }
}

fn raw(
    world: &World,
    basis: &Basis<'_>,
    rule: Rule,
    dedup: bool,
    gate: bool,
    clip: Clip,
) -> Result<Option<Array2<f64>>, EngineError> {
    let owner_of = world.owner_of();
    let n_owners = world.owners().len();
    let n = world.datasets.len() as u32;
    let holdings = Holdings {
        owner_of: if clip == Clip::Dataset { (0..n).collect() } else { owner_of.clone() },
        stands_for: (0..n).collect(),
        records: records(world, dedup),
        licensed: vec![true; n as usize],
        ..Holdings::default()
    };
    let claims = if dedup { &world.first_claim } else { &world.dataset_of };
    let n_queries = basis.tables.influence.nrows();
    let row = |q: usize| -> Result<Vec<f64>, SharesError> {
        let scores = basis.tables.influence.row(q);
        let score = |(i, dataset): (usize, &u32)| {
            let score = f64::from(scores[i]);
            Scored { dataset: *dataset, score: if clip == Clip::Item { score.max(0.0) } else { score } }
        };
        let mut rows: Vec<Scored> = claims.iter().enumerate().map(score).collect();
        let (sums, floor) = sum_rows(q, &mut rows, if gate { basis.floors[q] } else { 0.0 })?;
        let weighed = rule.weigh(&holdings, &sums, floor)?;
        let total: f64 = weighed.lines.iter().map(|(_, weight)| *weight as f64).sum();
        let mut paid = vec![0.0; n_owners];
        for (dataset, weight) in weighed.lines {
            paid[owner_of[dataset as usize] as usize] += weight as f64 / total;
        }
        Ok(paid)
    };
    let rows: Result<Vec<Vec<f64>>, SharesError> = (0..n_queries).into_par_iter().map(row).collect();
    let rows = match rows {
        Err(SharesError::TooManyOwners { .. }) => return Ok(None),
        found => found?,
    };
    Ok(Some(Array2::from_shape_fn((n_queries, n_owners), |(q, owner)| rows[q][owner])))
}

/// Registered records; with deduplication those that no earlier licence covers, by the examples that were moved.
fn records(world: &World, dedup: bool) -> Vec<u64> {
    let kept = |d: usize| {
        let of = world.dataset_of.iter().filter(|x| **x as usize == d).count().max(1) as u64;
        let pairs = world.dataset_of.iter().zip(&world.first_claim);
        let own = pairs.filter(|(x, first)| **x as usize == d && x == first).count() as u64;
        world.datasets[d].records * own / of
    };
    (0..world.datasets.len()).map(|d| if dedup { kept(d) } else { world.datasets[d].records }).collect()
}

fn columns(
    world: &World,
    basis: &Basis<'_>,
    unit_of: &[u32],
    n: usize,
    name: &str,
) -> Result<Array2<f64>, EngineError> {
    let top = Aggregate::TopMean { k: TOP_MEAN_K };
    let (table, how) = match name {
        "block_fisher" => (&basis.tables.last, Aggregate::Sum),
        "trajectory_fisher" => (&basis.tables.influence, Aggregate::Sum),
        "trajectory_fisher_exchange" => (&basis.tables.influence, Aggregate::Exchange),
        "bm25" => (&basis.tables.bm25, Aggregate::Mean),
        "bm25_top20" => (&basis.tables.bm25, top),
        "bm25_exchange" => (&basis.tables.bm25, Aggregate::Exchange),
        "embedding" => (&basis.tables.embedding, Aggregate::Mean),
        "embedding_top20" => (&basis.tables.embedding, top),
        "embedding_exchange" => (&basis.tables.embedding, Aggregate::Exchange),
        "bigram" => return bigram(basis.tables, unit_of, n),
        other => {
            let expected = "block_fisher, trajectory_fisher, bm25, embedding, their variants, or bigram".to_owned();
            return Err(EngineError::Setting {
                setting: "channels of the attack bench",
                expected,
                found: other.into(),
            });
        }
    };
    let ids: Vec<ExampleId> = (0u32..).zip(unit_of).map(|(idx, &dataset)| ExampleId { dataset, idx }).collect();
    debug_assert!(unit_of.len() >= world.dataset_of.len());
    Ok(to_datasets(table.slice(ndarray::s![.., ..unit_of.len()]), &ids, n, how)?)
}

/// Losses of a bigram model that is counted without each unit.
fn bigram(tables: &Tables, unit_of: &[u32], n: usize) -> Result<Array2<f64>, EngineError> {
    let windows = unit_of.iter().copied().zip(tables.tokens.iter().map(Vec::as_slice));
    let queries: Vec<(&[u32], usize)> =
        tables.predicted.iter().map(|(tokens, from)| (tokens.as_slice(), *from)).collect();
    Ok(Bigrams::build(tables.vocab_size, n, windows)?.leave_one_out(&queries, FOLLOWER_PSEUDO_COUNT)?)
}

fn calibrated(world: &World, basis: &Basis<'_>, dedup: bool) -> Result<Array2<f64>, EngineError> {
    let claims = if dedup { &world.first_claim } else { &world.dataset_of };
    // A dataset that has no record of its own has no column.
    let mut kept: Vec<u32> = claims.clone();
    kept.sort_unstable();
    kept.dedup();
    let units: Vec<u32> = claims.iter().map(|d| kept.partition_point(|k| k < d) as u32).collect();
    let mut tables = Vec::new();
    for channel in &basis.calibration.channels {
        tables.push((channel.name.clone(), columns(world, basis, &units, kept.len(), &channel.name)?));
    }
    let channels: Vec<Channel<'_>> =
        tables.iter().map(|(name, table)| Channel { name, scores: table.view() }).collect();
    let shares = basis.calibration.predict(&channels)?;
    let owner_of = world.owner_of();
    let mut paid = Array2::zeros((shares.nrows(), world.owners().len()));
    for ((q, unit), share) in shares.indexed_iter() {
        paid[(q, owner_of[kept[unit] as usize] as usize)] += share;
    }
    Ok(paid)
}

/// Calibrated shares by dataset, quantised, and moved by the parts that earlier licences cover.
fn moved(world: &World, basis: &Basis<'_>) -> Result<Array2<f64>, EngineError> {
    let n = world.datasets.len();
    let mut tables = Vec::new();
    for channel in &basis.calibration.channels {
        tables.push((channel.name.clone(), columns(world, basis, &world.dataset_of, n, &channel.name)?));
    }
    let channels: Vec<Channel<'_>> =
        tables.iter().map(|(name, table)| Channel { name, scores: table.view() }).collect();
    let shares = basis.calibration.predict(&channels)?;
    let (duplicates, owner_of) = (Duplicates::new(&world.parts)?, world.owner_of());
    let mut paid = Array2::zeros((shares.nrows(), world.owners().len()));
    for (q, row) in shares.rows().into_iter().enumerate() {
        let not_finite = |(dataset, found)| SharesError::NotFinite { what: "share", query: q, dataset, found };
        let weights = quantise_row(&row.to_vec()).map_err(not_finite)?;
        let sums: Vec<Summed> = (0u32..).zip(weights).map(|(dataset, score)| Summed { dataset, score }).collect();
        let (sums, _) = duplicates.apply(&sums, 0);
        let total: f64 = sums.iter().map(|sum| sum.score as f64).sum();
        sums.iter().for_each(|s| paid[(q, owner_of[s.dataset as usize] as usize)] += s.score as f64 / total);
    }
    Ok(paid)
}

/// Shares by person and text. With n_u the person's deduplicated examples in units of an honest dataset, influence per n_u, and the
/// similarities' top means, `p_u ∝ n_u · max(0, e^{l_u} − e^{l_noise})`: l is the calibration's sum of channels, standardised with
/// weights n_u, and l_noise that of the planted noise. Whoever splits text splits n_u; whoever adds noise adds nothing.
fn by_text(world: &World, basis: &Basis<'_>) -> Result<Array2<f64>, EngineError> {
    let owner_of = world.owner_of();
    let n_owners = world.owners().len();
    let mut units: Vec<u32> = world.first_claim.iter().map(|d| owner_of[*d as usize]).collect();
    units.extend(std::iter::repeat_n(n_owners as u32, basis.planted));
    let mut size = Array1::<f64>::zeros(n_owners + 1);
    units.iter().for_each(|unit| size[*unit as usize] += 1.0 / basis.unit);
    let n_queries = basis.tables.influence.nrows();
    let mut logits = Array2::<f64>::zeros((n_queries, n_owners + 1));
    for (spec, theta) in basis.calibration.channels.iter().zip(basis.calibration.theta()) {
        let mut table = columns(world, basis, &units, n_owners + 1, &spec.name)?;
        for mut row in table.rows_mut() {
            let is_sum = spec.name == "block_fisher" || spec.name.starts_with("trajectory_fisher");
            if is_sum || spec.name == "bigram" {
                row.zip_mut_with(&size, |score, size| *score = if *size > 0.0 { *score / size } else { 0.0 });
            }
            standardise(row.as_slice_mut().expect("rows are contiguous"), &size, n_owners, spec.transform);
        }
        logits.scaled_add(theta, &table);
    }
    let mut paid = Array2::zeros((n_queries, n_owners));
    for (q, row) in logits.rows().into_iter().enumerate() {
        let top = row.iter().fold(f64::MIN, |m, v| m.max(*v));
        let noise = (row[n_owners] - top).exp();
        let weight = |u: usize| size[u] * ((row[u] - top).exp() - noise).max(0.0);
        let total: f64 = (0..n_owners).map(weight).sum();
        (0..n_owners).filter(|_| total > 0.0).for_each(|u| paid[(q, u)] = weight(u) / total);
    }
    Ok(paid)
}

/// Mean 0 and deviation 1 over the first `n` numbers with weights; ranks are weighted too: a place is the weight below it.
fn standardise(row: &mut [f64], size: &Array1<f64>, n: usize, transform: Transform) {
    if transform == Transform::Rank {
        let values = row.to_vec();
        let below = |v: f64, strict: bool| -> f64 {
            let counts = |(u, other): (usize, &f64)| if *other < v || (!strict && *other == v) { size[u] } else { 0.0 };
            values[..n].iter().enumerate().map(counts).sum()
        };
        row.iter_mut().zip(&values).for_each(|(place, v)| *place = (below(*v, true) + below(*v, false)) / 2.0);
    }
    let total: f64 = size.iter().take(n).sum();
    let mean = (0..n).map(|u| size[u] * row[u]).sum::<f64>() / total;
    let variance = (0..n).map(|u| size[u] * (row[u] - mean).powi(2)).sum::<f64>() / total;
    let scale = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
}

/// Parts of a pool by owner name: the mean over responses, each paid the same, extra events included.
pub fn pool(world: &World, paid: &Array2<f64>, wash: bool) -> BTreeMap<String, f64> {
    let mut events = vec![1u64; paid.nrows()];
    world.wash.iter().filter(|_| wash).for_each(|(response, n)| events[*response] += n);
    let total: u64 = events.iter().sum();
    let mut out = BTreeMap::new();
    for (owner, name) in world.owners().into_iter().enumerate() {
        let sum: f64 = events.iter().enumerate().map(|(q, n)| paid[(q, owner)] * *n as f64).sum();
        out.insert(name, sum / total as f64);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two equal persons; the same with one of them in two parts: weights keep mean and deviation.
    #[test]
    fn splitting_a_person_moves_no_standard() {
        for transform in [Transform::ZScore, Transform::Rank] {
            let mut whole = [3.0, 1.0, 0.5];
            standardise(&mut whole, &Array1::from(vec![1.0, 1.0, 0.3]), 2, transform);
            let mut parts = [3.0, 3.0, 1.0, 0.5];
            standardise(&mut parts, &Array1::from(vec![0.5, 0.5, 1.0, 0.3]), 3, transform);
            assert!((whole[0] - parts[0]).abs() < 1e-12 && (whole[1] - parts[2]).abs() < 1e-12, "{transform:?}");
            assert!((whole[2] - parts[3]).abs() < 1e-12, "{transform:?}");
        }
    }
}
