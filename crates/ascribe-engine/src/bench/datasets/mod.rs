//! The setting of whole datasets: exact Shapley values by retraining on every subset, and every method against them.
//!
//! Truth: royalty shares of Shapley values (`eval::game`) of the mean bank. Every figure is on queries that a fit did not see.
//! The default is a calibrated game: predicted utilities of all subsets (`methods::group::utility`) from the bigram proxy, the
//! trajectory of block-Fisher influence and similarity, whose own Shapley values are its shares. Here never lives: how channels
//! are made (`channels`, `groups`), the mathematics (eval, methods).

pub mod channels;
mod groups;

use std::collections::{BTreeMap, BTreeSet};

use ascribe_core::{Digest, Progress};
use ascribe_eval::game::{Fit, Game, additivity, banzhaf_msr, royalty, shapley_permutations};
use ascribe_eval::rank::spearman;
use ascribe_eval::shares::{raw_shares, total_variation};
use ascribe_eval::{Estimate, bootstrap_mean, paired_difference};
use ascribe_linalg::Stream;
use ascribe_methods::combine::{Channel, FitOptions, Holdout, Splits, TrueShares, cross_fit};
use ascribe_methods::group::utility::{GroupCalibration, GroupChannel, cross_fit_group, mean_table};
use ndarray::{Array2, ArrayView2, Axis};

use self::channels::{BIGRAMS, Channels, channels};
use super::report::{GateFigure, MethodFigure, SettingReport, TruthFigure};
use super::runners::{open_decoder, read_bank};
use super::setting::{Setting, Subject};
use crate::error::EngineError;
use crate::home::Home;
use crate::recipe::Recipe;

/// Name of the default method.
pub const DEFAULT: &str = "calibrated_game";
/// Name of the control that is a game, too.
const PROXY: &str = "bigram_game";
/// Channels of the default besides the bigram proxy, as means over a subset's examples.
const DEFAULT_CHANNELS: [&str; 3] = ["trajectory_fisher", "embedding_top20", "bm25_top20"];
/// Splits into halves, and the seed of splits and intervals.
const SPLITS: (usize, u64) = (5, 7);
/// Pairs of orders, and subsets, that are drawn of the measured table to show what sampling costs where no table can be had.
const SAMPLED: (usize, usize) = (4, 32);

/// A method that can take part in a game of datasets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GameMethod {
    /// Name.
    pub name: String,
    /// What it computes.
    pub about: String,
    /// Where its formula stands.
    pub source: String,
    /// True for controls.
    pub control: bool,
}

/// Everything that takes part in the game of a decoder of this recipe: games of predicted utilities, then single channels.
pub fn methods_of(recipe: &Recipe) -> Vec<GameMethod> {
    let games = [
        (DEFAULT, "utilities of all subsets predicted from a bigram model, influence and similarity", false),
        (PROXY, "utilities of all subsets predicted from a bigram model alone", true),
    ];
    let game = |(name, about, control): (&str, &str, bool)| GameMethod {
        name: name.into(),
        about: about.into(),
        source: "own".into(),
        control,
    };
    games.into_iter().map(game).chain(channels::known(recipe)).collect()
}

/// Measures of one method per query.
type PerQuery = Vec<Option<f64>>;

struct Board {
    game: Game,
    shares: Array2<f64>,
    usable: Vec<usize>,
    own: Vec<u32>,
}

impl Board {
    fn splits(holdout: Holdout) -> Splits {
        Splits { holdout, n: SPLITS.0, seed: SPLITS.1 }
    }

    fn tv(&self, shares: ArrayView2<'_, f64>) -> PerQuery {
        let one = |q: usize| total_variation(shares.row(q), self.shares.row(q));
        (0..self.own.len()).map(|q| self.usable.binary_search(&q).is_ok().then(|| one(q))).collect()
    }

    /// Shares of Shapley values, equal where none is positive.
    fn shares_of(values: &Array2<f64>) -> Array2<f64> {
        let mut out = values.clone();
        out.rows_mut().into_iter().for_each(|mut row| {
            let shares = raw_shares(row.view());
            row.assign(&shares);
        });
        out
    }

    /// Spearman per query over all subsets between a predicted table and the measured one.
    fn lds(&self, table: ArrayView2<'_, f64>) -> PerQuery {
        let truth = self.game.utilities();
        (0..self.own.len()).map(|q| spearman(&table.column(q).to_vec(), &truth.column(q).to_vec())).collect()
    }

    /// Held-out measures of a calibrated game: total variation and rank correlation, means over splits.
    fn calibrated_game(
        &self,
        tables: &[GroupChannel<'_>],
        holdout: Holdout,
    ) -> Result<(PerQuery, PerQuery), EngineError> {
        let runs = cross_fit_group(tables, self.game.utilities(), &self.own, Self::splits(holdout))?;
        let (mut tv, mut lds) = (Vec::new(), Vec::new());
        for table in runs {
            lds.push(self.lds(table.view()));
            tv.push(self.tv(Self::shares_of(&Game::new(table)?.shapley()).view()));
        }
        Ok((mean_of(&tv), mean_of(&lds)))
    }

    /// Held-out total variation of one channel calibrated to the true shares by weight and temperature.
    fn calibrated(&self, channel: Channel<'_>, holdout: Holdout) -> Result<PerQuery, EngineError> {
        let truth = TrueShares { shares: self.shares.view(), usable: &self.usable, own: &self.own };
        let fitted = cross_fit(&[channel], &truth, Self::splits(holdout), &FitOptions::default())?;
        Ok(fitted.per_query(|q, s| Some(total_variation(s, self.shares.row(q)))))
    }
}

/// Runs the setting: the chosen channels, raw and calibrated, and games against exact Shapley shares; all if none is chosen.
///
/// Deterministic but for CPU seconds. Cost: one gradient pass per kept checkpoint of the model, if a channel of gradients or
/// the default is chosen.
///
/// # Errors
/// A subject that is no decoder, an unknown method, no complete seed of bank `all`, data that is not the bank's, what methods
/// refuse.
pub fn run(
    home: &Home,
    setting: &Setting,
    chosen: &[String],
    progress: &dyn Progress,
) -> Result<SettingReport, EngineError> {
    let Subject::Decoder { model } = &setting.subject else {
        let expected = "a decoder on datasets".to_owned();
        return Err(EngineError::Setting { setting: "subject", expected, found: "images".into() });
    };
    let bank = read_bank(setting, "all")?;
    let data = open_decoder(home, model)?;
    check(setting, &bank.plan.data, data.corpus.manifest.digest(), "corpus")?;
    let recipe = Recipe { seed: 0, ..data.recipe.clone() }.digest();
    check(setting, &bank.plan.recipe, recipe, "recipe")?;
    let known = methods_of(&data.recipe);
    if let Some(unknown) = chosen.iter().find(|name| known.iter().all(|m| m.name != **name)) {
        let names: Vec<&str> = known.iter().map(|m| m.name.as_str()).collect();
        let expected = format!("some of {}", names.join(", "));
        return Err(EngineError::Setting { setting: "--methods", expected, found: unknown.clone() });
    }
    let known = known.into_iter().filter(|m| chosen.is_empty() || chosen.contains(&m.name)).collect::<Vec<_>>();
    let own: Vec<u32> = data.corpus.queries.iter().map(|q| q.dataset).collect();
    progress.start("dataset channels", 0, "");
    let wanted = |name: &str| {
        let by_game = |m: &GameMethod| match m.name.as_str() {
            DEFAULT => name == BIGRAMS || DEFAULT_CHANNELS.contains(&name),
            PROXY => name == BIGRAMS,
            own => own == name,
        };
        known.iter().any(by_game)
    };
    let channels = channels(home, model, &data, &wanted)?;
    progress.finish(&format!("{} channels", channels.list.len()));
    let game = Game::from_subsets(bank.kept.view(), bank.mean().view())?;
    let truth = royalty(game.shapley().view())?;
    let board = Board { game, shares: truth.shares, usable: truth.usable, own };
    let mut sizes = vec![0.0; data.corpus.n_datasets()];
    data.corpus.examples.iter().for_each(|e| sizes[e.id.dataset as usize] += 1.0);
    let mut report = SettingReport {
        setting: setting.name.clone(),
        about: setting.about.clone(),
        queries: board.own.len(),
        examples: data.corpus.n_datasets(),
        truth: TruthFigure {
            about: "Shapley shares of trainings on every subset of the datasets".into(),
            bank: Some(bank.digest),
            command: bank.plan.command.clone(),
            subsets: bank.kept.nrows(),
            seeds: bank.seeds.len(),
            ceiling: ceiling(&bank)?,
        },
        methods: BTreeMap::new(),
        gates: Vec::new(),
        notes: Vec::new(),
    };
    let lds = methods(&board, &channels, &sizes, &known, &mut report)?;
    truths(&board, &mut report)?;
    gates(&lds, &mut report)?;
    Ok(report)
}

fn check(setting: &Setting, expected: &Digest, found: Digest, what: &str) -> Result<(), EngineError> {
    match *expected == found {
        true => Ok(()),
        false => Err(EngineError::Content {
            path: setting.bank_dir("all"),
            expected: format!("a bank of {what} {found}"),
            found: format!("{what} {expected}"),
        }),
    }
}

/// One seed's Shapley shares against those of the mean of the others.
fn ceiling(bank: &super::bank::RetrainBank) -> Result<Option<Estimate>, EngineError> {
    if bank.seeds.len() < 2 {
        return Ok(None);
    }
    let mut per_seed = Vec::new();
    for seed in 0..bank.seeds.len() {
        let others: Vec<usize> = (0..bank.seeds.len()).filter(|s| *s != seed).collect();
        let rest = bank.outcomes.select(Axis(0), &others).mean_axis(Axis(0)).expect("there is another seed");
        let shares = |table: ArrayView2<'_, f64>| -> Result<Array2<f64>, EngineError> {
            Ok(Board::shares_of(&Game::from_subsets(bank.kept.view(), table)?.shapley()))
        };
        let (a, b) = (shares(bank.outcomes.index_axis(Axis(0), seed))?, shares(rest.view())?);
        per_seed.push(a.rows().into_iter().zip(b.rows()).map(|(a, b)| Some(total_variation(a, b))).collect());
    }
    Ok(Some(bootstrap_mean(&mean_of(&per_seed), SPLITS.1)?))
}

/// Per query the mean over runs where it is defined.
fn mean_of(runs: &[PerQuery]) -> PerQuery {
    let mean = |q: usize| {
        let defined: Vec<f64> = runs.iter().filter_map(|run| run[q]).collect();
        (!defined.is_empty()).then(|| defined.iter().sum::<f64>() / defined.len() as f64)
    };
    (0..runs.first().map_or(0, Vec::len)).map(mean).collect()
}

fn value(values: &[Option<f64>]) -> Option<f64> {
    bootstrap_mean(values, SPLITS.1).ok().map(|e| e.mean)
}

/// Fills in channels and games; returns the dataset-level rank correlations per query by name, with who is a control.
fn methods(
    board: &Board,
    channels: &Channels,
    sizes: &[f64],
    known: &[GameMethod],
    report: &mut SettingReport,
) -> Result<BTreeMap<String, (bool, PerQuery)>, EngineError> {
    let mut all = BTreeMap::new();
    let mut tables: Vec<(&str, Array2<f64>)> = Vec::new();
    let named = |name: &str| known.iter().find(|m| m.name == name);
    for c in &channels.list {
        let table = mean_table(c.scores.view(), sizes)?;
        if let Some(method) = named(&c.name) {
            let (figure, lds) = channel_figure(board, c, &table, method)?;
            report.methods.insert(c.name.clone(), figure);
            all.insert(c.name.clone(), (c.control, lds));
        }
        if DEFAULT_CHANNELS.contains(&c.name.as_str()) {
            tables.push((&c.name, table));
        }
    }
    let Some(proxy) = &channels.proxy else { return Ok(all) };
    let proxy = GroupChannel { name: "bigram", table: proxy.view() };
    let mut default = vec![proxy];
    default.extend(tables.iter().map(|(name, table)| GroupChannel { name, table: table.view() }));
    for (method, game) in [(named(DEFAULT), &default[..]), (named(PROXY), &default[..1])] {
        let Some(method) = method else { continue };
        let (figure, lds) = game_figure(board, channels, game, method, report.truth.bank)?;
        report.methods.insert(method.name.clone(), figure);
        all.insert(method.name.clone(), (method.control, lds));
    }
    Ok(all)
}

/// One channel, calibrated by weight and temperature, and what its sums say about utilities.
fn channel_figure(
    board: &Board,
    c: &channels::MeasuredChannel,
    table: &Array2<f64>,
    method: &GameMethod,
) -> Result<(MethodFigure, PerQuery), EngineError> {
    let channel = Channel { name: &c.name, scores: c.scores.view() };
    let held_out = board.calibrated(channel, Holdout::Queries)?;
    let unseen = board.calibrated(channel, Holdout::Datasets)?;
    let estimate = bootstrap_mean(&held_out, SPLITS.1).ok();
    let mut figure = MethodFigure::new(&c.name, "tv_shapley").estimated(estimate.as_ref(), board.own.len());
    (figure.about, figure.source, figure.control) = (method.about.clone(), method.source.clone(), method.control);
    (figure.cpu_score, figure.bytes_per_example) = (c.cpu_seconds, c.bytes_per_example);
    // A method that predicts subsets itself is no mean of its values.
    let lds = board.lds(c.game.as_ref().unwrap_or(table).view());
    let additive = board.lds(ascribe_methods::group::utility::sum_table(c.scores.view())?.view());
    let raw = board.tv(Board::shares_of(&c.scores).view());
    let r2 = additivity(&board.game, c.scores.view(), Fit::Scaled)?.r2;
    figure.extra = [
        ("tv_raw", value(&raw)),
        ("tv_unseen_datasets", value(&unseen)),
        ("lds", value(&lds)),
        ("lds_additive", value(&additive)),
        ("additive_r2", value(&r2)),
    ]
    .map(|(name, v)| (name.to_owned(), v))
    .into();
    figure.extra.extend(c.found.iter().map(|(name, v)| (name.clone(), Some(*v))));
    Ok((figure, lds))
}

/// A game of predicted utilities, fitted on queries that it is not judged on.
fn game_figure(
    board: &Board,
    channels: &Channels,
    game: &[GroupChannel<'_>],
    method: &GameMethod,
    bank: Option<Digest>,
) -> Result<(MethodFigure, PerQuery), EngineError> {
    let n = board.own.len();
    let (tv, lds) = board.calibrated_game(game, Holdout::Queries)?;
    let (tv_unseen, lds_unseen) = board.calibrated_game(game, Holdout::Datasets)?;
    let mut figure =
        MethodFigure::new(&method.name, "tv_shapley").estimated(bootstrap_mean(&tv, SPLITS.1).ok().as_ref(), n);
    let parts: Vec<&channels::MeasuredChannel> = channels
        .list
        .iter()
        .filter(|c| c.name == BIGRAMS || (!method.control && DEFAULT_CHANNELS.contains(&c.name.as_str())))
        .collect();
    (figure.about, figure.source, figure.control) = (method.about.clone(), method.source.clone(), method.control);
    figure.cpu_score = parts.iter().map(|c| c.cpu_seconds).sum();
    figure.bytes_per_example = parts.iter().map(|c| c.bytes_per_example).sum();
    let everyone: Vec<usize> = (0..n).collect();
    let fitted = GroupCalibration::fit(game, board.game.utilities(), &everyone)?;
    figure.settings = serde_json::json!({ "calibration": fitted, "bank": bank });
    figure.extra =
        [("lds", value(&lds)), ("lds_unseen_datasets", value(&lds_unseen)), ("tv_unseen_datasets", value(&tv_unseen))]
            .map(|(name, v)| (name.to_owned(), v))
            .into();
    Ok((figure, lds))
}

/// What the truth itself would reach in forms that methods are confined to: Banzhaf and leave-one-out shares, sums of the exact
/// Shapley values.
fn truths(board: &Board, report: &mut SettingReport) -> Result<(), EngineError> {
    for (name, values) in [("banzhaf", board.game.banzhaf()), ("leave-one-out", board.game.leave_one_out())] {
        let tv = value(&board.tv(Board::shares_of(&values).view())).unwrap_or(f64::NAN);
        report.notes.push(format!("exact {name} shares differ from Shapley shares by {tv:.3} (total variation)"));
    }
    let phi = board.game.shapley();
    let table = ascribe_methods::group::utility::sum_table(phi.view())?;
    let (lds, r2) = (value(&board.lds(table.view())), value(&additivity(&board.game, phi.view(), Fit::Scaled)?.r2));
    report.notes.push(format!(
        "sums of the exact Shapley values themselves reach an LDS of {:.3} and explain {:.2} of the utilities' variance: the game \
         is not additive",
        lds.unwrap_or(f64::NAN),
        r2.unwrap_or(f64::NAN)
    ));
    let found = sampled(&board.game)?;
    let all = board.game.utilities().nrows();
    report.notes.push(format!(
        "Shapley shares from {} orders, which ask for {} of the {all} subsets, differ from the exact ones by {:.3} (total variation); \
         Banzhaf shares from {} subsets drawn with chance ½ each, {} of them different, from theirs by {:.3}",
        2 * SAMPLED.0,
        found.orders.subsets,
        found.orders.tv,
        SAMPLED.1,
        found.draws.subsets,
        found.draws.tv
    ));
    Ok(())
}

/// A sampled estimate held against the exact values of the same table.
struct AgainstExact {
    /// Different subsets whose utilities were asked for.
    subsets: usize,
    /// Mean total variation over queries between shares of sampled and of exact values.
    tv: f64,
}

/// What sampling costs where the table could be had.
struct SampledGame {
    /// Permutations, against Shapley values.
    orders: AgainstExact,
    /// Maximum sample reuse, against Banzhaf values.
    draws: AgainstExact,
}

/// Permutation and Banzhaf sampling on a table that knows the answer. Seeded; cost of a few dozen look-ups.
fn sampled(game: &Game) -> Result<SampledGame, EngineError> {
    let (k, utilities) = (game.n_players(), game.utilities());
    let mean_tv = |a: &Array2<f64>, b: &Array2<f64>| {
        let (a, b) = (Board::shares_of(a), Board::shares_of(b));
        let total: f64 = a.rows().into_iter().zip(b.rows()).map(|(a, b)| total_variation(a, b)).sum();
        total / a.nrows().max(1) as f64
    };
    let mut asked = BTreeSet::new();
    let orders = shapley_permutations(k, SAMPLED.0, SPLITS.1, |kept| -> Result<Vec<f64>, EngineError> {
        let mask = kept.iter().enumerate().fold(0usize, |mask, (k, &kept)| mask | usize::from(kept) << k);
        asked.insert(mask);
        Ok(utilities.row(mask).to_vec())
    })?;
    let orders = AgainstExact { subsets: asked.len(), tv: mean_tv(&orders.values, &game.shapley()) };
    let mut stream = Stream::new(SPLITS.1, "bench/banzhaf");
    let masks: Vec<usize> = (0..SAMPLED.1).map(|_| stream.below(1 << k) as usize).collect();
    let kept = Array2::from_shape_fn((masks.len(), k), |(m, k)| masks[m] >> k & 1 == 1);
    let draws = banzhaf_msr(kept.view(), utilities.select(Axis(0), &masks).view())?;
    let different: BTreeSet<usize> = masks.into_iter().collect();
    let draws = AgainstExact { subsets: different.len(), tv: mean_tv(&draws.values, &game.banzhaf()) };
    Ok(SampledGame { orders, draws })
}

fn gates(lds: &BTreeMap<String, (bool, PerQuery)>, report: &mut SettingReport) -> Result<(), EngineError> {
    let mut gate = |about: String, threshold: f64, found: Option<f64>, met: Option<bool>| {
        let method = Some(DEFAULT.to_owned());
        report.gates.push(GateFigure { about, method, threshold: Some(threshold), found, met, anchor: "none".into() });
    };
    let default = report.methods.get(DEFAULT);
    let tv = default.and_then(|m| m.value);
    gate("total variation to exact Shapley shares at most 0.10".into(), 0.10, tv, tv.map(|v| v <= 0.10));
    let found = default.and_then(|m| m.figure("lds"));
    gate("dataset-level LDS at least 0.90".into(), 0.90, found, found.map(|v| v >= 0.90));
    let Some((_, ours)) = lds.get(DEFAULT) else { return Ok(()) };
    for (name, (_, theirs)) in lds.iter().filter(|(_, (control, _))| *control) {
        if theirs.iter().any(Option::is_some) {
            let lead = paired_difference(ours, theirs, SPLITS.1)?;
            gate(format!("LDS above control {name} on the same queries"), 0.0, Some(lead.low), Some(lead.low > 0.0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In an additive game every order gives the exact values; so do orders and their reverses in a game of pairs, but not in
    /// steeper ones. Half of the subsets leave Banzhaf values an error.
    #[test]
    fn sampling_is_held_against_the_table_it_draws_from() {
        let weight = |mask: usize| (0..6).filter(|k| mask >> k & 1 == 1).map(|k| (k + 1) as f64).sum::<f64>();
        let additive = Game::new(Array2::from_shape_fn((64, 2), |(mask, q)| (q + 1) as f64 * weight(mask))).unwrap();
        let found = sampled(&additive).unwrap();
        assert!(found.orders.tv < 1e-12 && found.orders.subsets < 64, "{}", found.orders.tv);
        assert!(found.draws.tv > 1e-3 && found.draws.tv < 0.5, "{}", found.draws.tv);
        assert!(found.draws.subsets <= SAMPLED.1);
        let pairs = Game::new(Array2::from_shape_fn((64, 2), |(mask, _)| weight(mask).powi(2))).unwrap();
        let again = sampled(&pairs).unwrap();
        // Antithetic orders are exact for games of pairs: gains are linear in who came before.
        assert!(again.orders.tv < 1e-12, "{}", again.orders.tv);
        let steep = Game::new(Array2::from_shape_fn((64, 2), |(mask, _)| weight(mask).powi(4))).unwrap();
        assert!(sampled(&steep).unwrap().orders.tv > 1e-4);
    }
}
