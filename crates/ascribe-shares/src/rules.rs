//! Policies for responses that come as sparse sums: a tagged configuration, and what each makes of one response.
//!
//! | kind | weight of an owner |
//! |---|---|
//! | `influence_proportional` | net of its datasets' scores above the noise floor, else 0 |
//! | `shapley` | its Shapley value in the game `v(S) = max(0, Σ net)`, else 0 |
//! | `blend` | `α` of the first, `1 − α` of the licensed pro-rata |
//! | `pro_rata` | registered records of the datasets that took part in training |
//! | `equal` | the same for every owner with a registered dataset |
//!
//! The default is the first. Clipping per person, not per item or dataset, is what keeps noise farms poor (`net`).

use serde::{Deserialize, Serialize};

use crate::book::PPM;
use crate::dedup::Duplicates;
use crate::error::SharesError;
use crate::net::net_by_owner;
use crate::quantise::TOP_BITS;
use crate::sparse::Summed;

/// Owners per response up to which Shapley values are enumerated.
pub const SHAPLEY_OWNERS_MAX: usize = 12;
/// A clipped total below 2⁻²⁰ of a response's largest sum is what cancellation left: rounding, not evidence.
const CANCELLED_BITS: u32 = 20;

/// A policy with its figures, as it stands in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Weights in proportion to net influence.
    #[default]
    InfluenceProportional,
    /// Shapley values of the owners' net influence.
    Shapley,
    /// Influence and licensed pro-rata, mixed: for evidence whose measured reliability is low.
    Blend {
        /// Part of influence, in ppm.
        alpha_ppm: u32,
    },
    /// By registered records.
    ProRata,
    /// A fixed fee for each owner.
    Equal,
}

/// What rules know of the datasets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Owner ordinal by dataset ordinal.
    pub owner_of: Vec<u32>,
    /// Dataset that stands for it by dataset ordinal: of duplicates the one with the earliest licence, else itself.
    pub stands_for: Vec<u32>,
    /// Registered records by dataset ordinal.
    pub records: Vec<u64>,
    /// Datasets that a run may pay for.
    pub licensed: Vec<bool>,
    /// Parts of datasets that say what earlier licences cover.
    pub duplicates: Duplicates,
}

/// What became of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Weighed {
    /// Positive weights of registered datasets, below `2^63`, in the order of owners, then datasets.
    pub lines: Vec<(u32, u64)>,
    /// Weight of datasets that are not registered.
    pub unknown: u128,
    /// True when scores cancelled to less than rounding, so that nobody is paid.
    pub cancelled: bool,
}

impl Holdings {
    /// The dataset whose sum a row of `dataset` joins: of duplicates the one with the earliest licence. Strangers stand for themselves.
    pub fn stand_in(&self, dataset: u32) -> u32 {
        self.stands_for.get(dataset as usize).copied().unwrap_or(dataset)
    }

    /// Owner ordinal of a dataset; strangers own themselves.
    fn owner(&self, dataset: u32) -> u64 {
        match self.owner_of.get(dataset as usize) {
            Some(owner) => u64::from(*owner),
            None => (1 << 32) + u64::from(dataset),
        }
    }
}

impl Rule {
    /// Checks figures.
    ///
    /// # Errors
    /// [`SharesError::NotAFraction`].
    pub fn check(&self) -> Result<(), SharesError> {
        match self {
            Self::Blend { alpha_ppm } if u128::from(*alpha_ppm) > PPM => {
                Err(SharesError::NotAFraction { what: "alpha", found: f64::from(*alpha_ppm) / 1e6 })
            }
            _ => Ok(()),
        }
    }

    /// Weights of one response. `sums` ascend by dataset; `floor` is the noise floor in their unit: an owner's net at or below it
    /// earns nothing. What was copied from earlier licences is moved first ([`Duplicates::apply`]). Exact integers. Cost: linear, for
    /// Shapley `2^n·n` with n owners.
    ///
    /// # Errors
    /// [`SharesError::TooManyOwners`] for Shapley with more than [`SHAPLEY_OWNERS_MAX`] owners.
    pub fn weigh(&self, holdings: &Holdings, sums: &[Summed], floor: u64) -> Result<Weighed, SharesError> {
        let (sums, floor) = holdings.duplicates.apply(sums, floor);
        let sums = sums.as_slice();
        match self {
            Self::InfluenceProportional => Ok(finish(influence(holdings, sums, floor), sums, holdings)),
            Self::Shapley => Ok(finish(shapley(holdings, sums, floor)?, sums, holdings)),
            Self::ProRata => Ok(Weighed { lines: sorted(pro_rata(holdings), holdings), ..Weighed::default() }),
            Self::Equal => Ok(Weighed { lines: sorted(equal(holdings), holdings), ..Weighed::default() }),
            Self::Blend { alpha_ppm } => {
                let found = finish(influence(holdings, sums, floor), sums, holdings);
                Ok(blend(found, holdings, (*alpha_ppm).into()))
            }
        }
    }
}

/// Net per owner, handed to the owner's positive datasets.
fn influence(holdings: &Holdings, sums: &[Summed], floor: u64) -> Vec<(u32, u64)> {
    let (row, owners, _) = by_owner(holdings, sums);
    let weights = net_by_owner(&row, &owners, floor);
    sums.iter().zip(weights).filter(|(_, weight)| *weight > 0).map(|(sum, weight)| (sum.dataset, weight)).collect()
}

/// The scores with small owner numbers, and how many there are.
fn by_owner(holdings: &Holdings, sums: &[Summed]) -> (Vec<i64>, Vec<u32>, usize) {
    let mut owners: Vec<u64> = sums.iter().map(|sum| holdings.owner(sum.dataset)).collect();
    owners.sort_unstable();
    owners.dedup();
    let small = |sum: &Summed| owners.partition_point(|owner| *owner < holdings.owner(sum.dataset)) as u32;
    (sums.iter().map(|sum| sum.score).collect(), sums.iter().map(small).collect(), owners.len())
}

/// Owners' Shapley values in `v(S) = max(0, Σ_{i∈S} net_i)`, times n!, clipped at zero and put on the owner's best dataset.
fn shapley(holdings: &Holdings, sums: &[Summed], floor: u64) -> Result<Vec<(u32, u64)>, SharesError> {
    let (row, owners, n) = by_owner(holdings, sums);
    if n > SHAPLEY_OWNERS_MAX {
        return Err(SharesError::TooManyOwners { max: SHAPLEY_OWNERS_MAX, found: n });
    }
    // Twelve owners and twelve factorial: 4 + 29 bits above a score's, so 62 bits are shortened to be safe in 128.
    let mut net = vec![0i128; n];
    for (score, owner) in row.iter().zip(&owners) {
        net[*owner as usize] += i128::from(*score);
    }
    net.iter_mut().for_each(|net| {
        if net.unsigned_abs() <= u128::from(floor) {
            *net = 0;
        }
    });
    let value = |set: usize| (0..n).filter(|i| set >> i & 1 == 1).map(|i| net[i]).sum::<i128>().max(0);
    let values: Vec<i128> = (0..1usize << n).map(value).collect();
    let factorial: Vec<i128> = (0..=n)
        .scan(1i128, |f, i| {
            *f *= i.max(1) as i128;
            Some(*f)
        })
        .collect();
    let mut lines = Vec::new();
    for owner in 0..n {
        let mut worth = 0i128;
        for set in (0..1usize << n).filter(|set| set >> owner & 1 == 0) {
            let size = set.count_ones() as usize;
            worth += factorial[size] * factorial[n - size - 1] * (values[set | 1 << owner] - values[set]);
        }
        let worth = (worth / factorial[n]).max(0) as u128;
        // The owner's best dataset, ties to the lower ordinal, carries the owner's value.
        let of_owner = (0..row.len()).filter(|k| owners[*k] as usize == owner);
        let best = of_owner.reduce(|best, k| if row[k] > row[best] { k } else { best });
        if let (Some(best), true) = (best, worth > 0) {
            // At most twelve scores of 62 bits: shortened by four bits they fit 62 again.
            lines.push((sums[best].dataset, u64::try_from(worth >> 4).unwrap_or(u64::MAX >> 2)));
        }
    }
    lines.retain(|(_, weight)| *weight > 0);
    Ok(lines)
}

fn pro_rata(holdings: &Holdings) -> Vec<(u32, u64)> {
    let stands = |d: &usize| holdings.stands_for[*d] as usize == *d && holdings.licensed[*d];
    let own = |d: usize| {
        let (records, own) = (u128::from(holdings.records[d]), u128::from(holdings.duplicates.own_ppm(d as u32)));
        (records * own / PPM) as u64
    };
    let most = (0..holdings.records.len()).map(own).max().unwrap_or(0).max(1);
    // Records as they are; a registry of more than 2^62 of them does not exist, but a file may say so.
    let shift = (64 - most.leading_zeros()).saturating_sub(TOP_BITS.unsigned_abs());
    (0..holdings.records.len()).filter(stands).map(|d| (d as u32, own(d) >> shift)).collect()
}

fn equal(holdings: &Holdings) -> Vec<(u32, u64)> {
    let n_owners = holdings.owner_of.iter().map(|owner| *owner as usize + 1).max().unwrap_or(0);
    let mut first = vec![None; n_owners];
    for dataset in (0..holdings.owner_of.len()).rev().filter(|d| holdings.licensed[*d]) {
        first[holdings.owner_of[dataset] as usize] = Some(dataset as u32);
    }
    first.into_iter().flatten().map(|dataset| (dataset, 1)).collect()
}

/// `α` of the influence weights and `1 − α` of the pro-rata weights, both brought to a common total of about `2^40`.
fn blend(found: Weighed, holdings: &Holdings, alpha_ppm: u128) -> Weighed {
    const TOTAL: u128 = 1 << 40;
    let base = pro_rata(holdings);
    let sum = |lines: &[(u32, u64)]| lines.iter().map(|(_, weight)| u128::from(*weight)).sum::<u128>();
    let (all_found, all_base) = (sum(&found.lines) + found.unknown, sum(&base));
    let mut weights = std::collections::BTreeMap::<u32, u128>::new();
    // Without influence in a response, all of it is pro-rata.
    let alpha = if all_found == 0 { 0 } else { alpha_ppm };
    // Weights have 62 bits and the factor 60: shortened to 64 bits together the product stays within 128.
    let part = |weight: u128, all: u128, ppm: u128| {
        let lost = (128 - all.leading_zeros()).saturating_sub(64);
        ((weight >> lost) * (TOTAL * ppm / PPM)).checked_div(all >> lost).unwrap_or(0)
    };
    for (dataset, weight) in &found.lines {
        *weights.entry(*dataset).or_default() += part((*weight).into(), all_found, alpha);
    }
    for (dataset, weight) in base {
        *weights.entry(dataset).or_default() += part(weight.into(), all_base, PPM - alpha);
    }
    let lines = weights.into_iter().filter(|(_, weight)| *weight > 0).map(|(d, weight)| (d, weight as u64)).collect();
    Weighed { lines: sorted(lines, holdings), unknown: part(found.unknown, all_found, alpha), cancelled: false }
}

fn sorted(mut lines: Vec<(u32, u64)>, holdings: &Holdings) -> Vec<(u32, u64)> {
    lines.retain(|(_, weight)| *weight > 0);
    lines.sort_unstable_by_key(|(dataset, _)| (holdings.owner(*dataset), *dataset));
    lines
}

/// Parts registered datasets from strangers and refuses totals that cancellation left.
fn finish(lines: Vec<(u32, u64)>, sums: &[Summed], holdings: &Holdings) -> Weighed {
    let total: u128 = lines.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let top = sums.iter().map(|sum| sum.score.unsigned_abs()).max().unwrap_or(0);
    if total > 0 && total < u128::from(top >> CANCELLED_BITS) {
        return Weighed { cancelled: true, ..Weighed::default() };
    }
    let (known, strangers): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|(dataset, _)| (*dataset as usize) < holdings.owner_of.len());
    let unknown = strangers.iter().map(|(_, weight)| u128::from(*weight)).sum();
    Weighed { lines: sorted(known, holdings), unknown, cancelled: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparse::{Scored, sum_rows};

    /// Ada has datasets 0 and 2, Bob 1, Cid 3 (a copy of Bob's).
    fn holdings() -> Holdings {
        Holdings {
            owner_of: vec![0, 1, 0, 2],
            stands_for: vec![0, 1, 2, 3],
            records: vec![10, 20, 30, 40],
            licensed: vec![true; 4],
            ..Holdings::default()
        }
    }

    fn weigh(rule: Rule, holdings: &Holdings, list: &[(u32, f64)]) -> Weighed {
        let scored = |&(dataset, score): &(u32, f64)| Scored { dataset: holdings.stand_in(dataset), score };
        let mut rows: Vec<Scored> = list.iter().map(scored).collect();
        let (sums, floor) = sum_rows(0, &mut rows, 0.0).unwrap();
        rule.weigh(holdings, &sums, floor).unwrap()
    }

    fn ppm(weighed: &Weighed) -> Vec<(u32, u128)> {
        let total: u128 = weighed.lines.iter().map(|(_, w)| u128::from(*w)).sum::<u128>() + weighed.unknown;
        weighed.lines.iter().map(|&(d, w)| (d, (u128::from(w) * PPM + total / 2) / total)).collect()
    }

    #[test]
    fn influence_nets_per_owner_and_parts_strangers() {
        let list = [(0, 4.0), (2, -2.0), (1, 1.0), (9, 1.0), (3, -1.0)];
        let found = weigh(Rule::InfluenceProportional, &holdings(), &list);
        assert_eq!(ppm(&found), [(0, 500_000), (1, 250_000)]);
        assert_eq!(found.unknown, u128::from(found.lines[1].1));
        for none in [&[(0, 0.0)][..], &[(0, -1.0), (1, -0.0)], &[]] {
            assert_eq!(weigh(Rule::InfluenceProportional, &holdings(), none), Weighed::default());
        }
        let left = weigh(Rule::InfluenceProportional, &holdings(), &[(0, 1.0), (2, -1.0 + 1e-9)]);
        assert!(left.cancelled && left.lines.is_empty());
    }

    /// A copy's score goes to the earlier licence; the copier gets nothing.
    #[test]
    fn duplicates_count_for_the_earliest_licence() {
        let mut holdings = holdings();
        holdings.stands_for[3] = 1;
        let found = weigh(Rule::InfluenceProportional, &holdings, &[(0, 2.0), (1, 1.0), (3, 1.0)]);
        assert_eq!(ppm(&found), [(0, 500_000), (1, 500_000)]);
    }

    /// Nets 3 and −1: v({a}) = 3, v({b}) = 0, v({a,b}) = 2, so a gets (3 + 2)/2 and b (0 − 1)/2, clipped.
    #[test]
    fn shapley_by_hand() {
        let found = weigh(Rule::Shapley, &holdings(), &[(0, 3.0), (1, -1.0)]);
        assert_eq!(ppm(&found), [(0, 1_000_000)]);
        let found = weigh(Rule::Shapley, &holdings(), &[(0, 3.0), (1, 1.0)]);
        assert_eq!(ppm(&found), [(0, 750_000), (1, 250_000)]);
        // Nets 2, 2 and −2: each positive owner gets 4/3 of 2, by the formula.
        let found = weigh(Rule::Shapley, &holdings(), &[(0, 2.0), (1, 2.0), (3, -2.0)]);
        assert_eq!(ppm(&found), [(0, 500_000), (1, 500_000)]);
        let many: Vec<(u32, f64)> = (0..13).map(|d| (100 + d, 1.0)).collect();
        let mut rows: Vec<Scored> = many.iter().map(|&(dataset, score)| Scored { dataset, score }).collect();
        let (sums, floor) = sum_rows(0, &mut rows, 0.0).unwrap();
        let error = Rule::Shapley.weigh(&holdings(), &sums, floor).unwrap_err();
        assert!(matches!(error, SharesError::TooManyOwners { max: 12, found: 13 }));
    }

    #[test]
    fn fixed_rules_ignore_scores() {
        assert_eq!(
            ppm(&weigh(Rule::ProRata, &holdings(), &[])),
            [(0, 100_000), (2, 300_000), (1, 200_000), (3, 400_000)]
        );
        assert_eq!(weigh(Rule::Equal, &holdings(), &[(0, 1.0)]).lines, [(0, 1), (1, 1), (3, 1)]);
    }

    #[test]
    fn a_blend_lies_between_its_parts() {
        let found = weigh(Rule::Blend { alpha_ppm: 500_000 }, &holdings(), &[(0, 1.0)]);
        assert_eq!(ppm(&found), [(0, 550_000), (2, 150_000), (1, 100_000), (3, 200_000)]);
        let without = weigh(Rule::Blend { alpha_ppm: 500_000 }, &holdings(), &[]);
        assert_eq!(ppm(&without), ppm(&weigh(Rule::ProRata, &holdings(), &[])));
        assert!(Rule::Blend { alpha_ppm: 1_000_001 }.check().is_err());
    }

    #[test]
    fn the_tag_is_the_kind() {
        let rule: Rule = serde_json::from_str("{\"kind\":\"blend\",\"alpha_ppm\":250000}").unwrap();
        assert_eq!(rule, Rule::Blend { alpha_ppm: 250_000 });
        assert!(serde_json::from_str::<Rule>("{\"kind\":\"luck\"}").is_err());
    }
}
