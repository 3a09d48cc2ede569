//! Figures: where each mark of a map, a matrix and a plot stands, and how dark it is.
//!
//! Here live positions along axes (as percentages, so that the drawing follows the width of the page) and the steps of
//! the shade. Colours live in `style.css`, elements in `template.html`.

use serde::Serialize;

use super::data::{MethodRow, ReportData};
use super::format::{fixed, percent, percent_whole, place, range};

/// Upper ends of the shade's steps but the last. Finer below, because most shares of a response are small.
pub(super) const STEPS: [f64; 7] = [0.02, 0.05, 0.10, 0.20, 0.35, 0.50, 0.70];
/// White between two groups of the map, in columns.
const GROUP_GAP: f64 = 0.8;
/// Part of a column that its cell fills; the rest separates it from the next.
const CELL_FILL: f64 = 0.88;

/// The step of the shade for a share, 0 to 7.
pub(super) fn level(share: f64) -> usize {
    STEPS.iter().filter(|&&end| share >= end).count()
}

/// One entry of the shade's legend.
#[derive(Serialize)]
pub(super) struct Step {
    level: usize,
    label: String,
}

/// The shade's legend, lightest first.
pub(super) fn legend() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(STEPS.len() + 1);
    let mut low = 0.0;
    for (level, &high) in STEPS.iter().enumerate() {
        steps.push(Step { level, label: format!("{}\u{2013}{}", fixed(100.0 * low, 0), percent_whole(high)) });
        low = high;
    }
    steps.push(Step { level: STEPS.len(), label: format!("{} and more", percent_whole(low)) });
    steps
}

/// The dataset × response map.
#[derive(Serialize)]
pub(super) struct Map {
    /// Responses side by side, one group per dataset that they come from.
    groups: Vec<MapGroup>,
    /// One row per dataset.
    rows: Vec<MapRow>,
    cell_width: String,
    /// Columns and gaps together: sets the least width at which columns can be told apart.
    n_columns: usize,
}

#[derive(Serialize)]
struct MapGroup {
    set: usize,
    x: String,
    width: String,
    middle: String,
}

#[derive(Serialize)]
struct MapRow {
    set: usize,
    cells: Vec<MapCell>,
    /// Frame around the responses that come from this very dataset.
    own: Option<MapGroup>,
}

#[derive(Serialize)]
struct MapCell {
    x: String,
    level: usize,
    /// Index of the response on the page.
    response: usize,
    /// The response's id in the score files.
    id: u32,
    from: usize,
    share: String,
}

/// Lays the map out: responses ordered by the dataset that they come from, then by position.
pub(super) fn map(data: &ReportData) -> Map {
    let mut order: Vec<usize> = (0..data.responses.len()).collect();
    order.sort_by_key(|&r| (data.responses[r].source_dataset, r));
    // Left end of every column, in columns.
    let mut lefts = Vec::with_capacity(order.len());
    let mut cursor = 0.0;
    for (k, &r) in order.iter().enumerate() {
        if k > 0 && data.responses[order[k - 1]].source_dataset != data.responses[r].source_dataset {
            cursor += GROUP_GAP;
        }
        lefts.push(cursor);
        cursor += 1.0;
    }
    let total = cursor;
    let mut groups = Vec::new();
    let mut start = 0;
    while start < order.len() {
        let set = data.responses[order[start]].source_dataset;
        let n = order[start..].iter().take_while(|&&r| data.responses[r].source_dataset == set).count();
        let (left, width) = (lefts[start], n as f64 - (1.0 - CELL_FILL));
        groups.push(MapGroup {
            set: set as usize,
            x: place(left / total),
            width: place(width / total),
            middle: place((left + width / 2.0) / total),
        });
        start += n;
    }
    let rows = (0..data.datasets.len())
        .map(|set| MapRow {
            set,
            cells: order
                .iter()
                .zip(&lefts)
                .map(|(&r, &left)| {
                    let response = &data.responses[r];
                    let share = response.shares[set].share;
                    MapCell {
                        x: place(left / total),
                        level: level(share),
                        response: r,
                        id: response.id,
                        from: response.source_dataset as usize,
                        share: percent(share),
                    }
                })
                .collect(),
            own: groups.iter().find(|g| g.set == set).map(|g| MapGroup {
                set,
                x: g.x.clone(),
                width: g.width.clone(),
                middle: g.middle.clone(),
            }),
        })
        .collect();
    Map { groups, rows, cell_width: place(CELL_FILL / total), n_columns: total.ceil() as usize }
}

/// Mean shares, `[dataset][dataset that the responses come from]`.
#[derive(Serialize)]
pub(super) struct Matrix {
    title: String,
    note: String,
    rows: Vec<Vec<MatrixCell>>,
}

#[derive(Serialize)]
struct MatrixCell {
    text: String,
    level: usize,
}

/// The mean shares of the default method, and beside them the measured ones where there is a truth bank.
pub(super) fn matrices(data: &ReportData) -> Vec<Matrix> {
    let n = data.datasets.len();
    let mut counts = vec![0u32; n];
    let mut sums = vec![vec![0.0; n]; n];
    for response in &data.responses {
        let own = response.source_dataset as usize;
        counts[own] += 1;
        for (row, bar) in sums.iter_mut().zip(&response.shares) {
            row[own] += bar.share;
        }
    }
    let cell = |mean: f64, own: usize| match counts[own] {
        0 => MatrixCell { text: "\u{2013}".to_owned(), level: 0 },
        _ => MatrixCell { text: fixed(100.0 * mean, 0), level: level(mean) },
    };
    let predicted = sums
        .iter()
        .map(|row| row.iter().enumerate().map(|(own, sum)| cell(sum / f64::from(counts[own].max(1)), own)).collect())
        .collect();
    let mut out = vec![Matrix {
        title: "What Ascribe says".to_owned(),
        note: "Mean share over the responses of a column, in percent.".to_owned(),
        rows: predicted,
    }];
    if !data.truth_heat.is_empty() {
        out.push(Matrix {
            title: "What retraining shows".to_owned(),
            note: "The same, measured by training again without the dataset of a row.".to_owned(),
            rows: data
                .truth_heat
                .iter()
                .map(|row| row.iter().enumerate().map(|(own, &mean)| cell(mean, own)).collect())
                .collect(),
        });
    }
    out
}

/// A dot with its whisker on an axis.
#[derive(Serialize)]
pub(super) struct Dot {
    at: String,
    low: String,
    high: String,
    width: String,
    /// The figure in digits.
    text: String,
    interval: String,
    best: bool,
}

/// Methods against retraining: one row per method and control, smallest calibrated share error first.
#[derive(Serialize)]
pub(super) struct Methods {
    rows: Vec<MethodLine>,
    ceiling: Option<MethodLine>,
    ticks: Vec<Tick>,
}

#[derive(Serialize)]
struct Tick {
    at: String,
    label: String,
}

#[derive(Serialize)]
struct MethodLine {
    name: String,
    control: bool,
    default: bool,
    raw: Dot,
    calibrated: Dot,
    top1: Figure,
    spearman: Dot,
    others: Figure,
}

#[derive(Serialize)]
struct Figure {
    text: String,
    best: bool,
}

/// Orders the methods, marks the best figure of each column, and places the dots.
pub(super) fn methods(data: &ReportData) -> Methods {
    let mut order: Vec<&MethodRow> = data.methods.iter().collect();
    order.sort_by(|a, b| a.calibrated.total_cmp(&b.calibrated).then_with(|| a.name.cmp(&b.name)));
    let reach = |m: &MethodRow| m.share_error.max(m.share_error_high).max(m.calibrated).max(m.calibrated_high);
    let longest = order.iter().map(|m| reach(m)).fold(0.0, f64::max);
    let longest = data.ceiling.as_ref().map_or(longest, |c| longest.max(c.share_error).max(c.share_error_high));
    let (axis, ticks) = axis(longest, |x| fixed(x, 1));
    let least = |pick: fn(&MethodRow) -> f64| order.iter().map(|m| pick(m)).fold(f64::INFINITY, f64::min);
    let most = |pick: fn(&MethodRow) -> f64| order.iter().map(|m| pick(m)).fold(f64::NEG_INFINITY, f64::max);
    let best = Best {
        share_error: least(|m| m.share_error),
        calibrated: least(|m| m.calibrated),
        top1: most(|m| m.top1),
        spearman: most(|m| m.spearman),
        others: most(|m| m.spearman_others),
    };
    Methods {
        rows: order.iter().map(|m| method_line(m, axis, &best, m.name == data.default_method)).collect(),
        ceiling: data.ceiling.as_ref().map(|c| method_line(c, axis, &Best::NONE, false)),
        ticks,
    }
}

struct Best {
    share_error: f64,
    calibrated: f64,
    top1: f64,
    spearman: f64,
    others: f64,
}

impl Best {
    /// Equals nothing.
    const NONE: Best =
        Best { share_error: f64::NAN, calibrated: f64::NAN, top1: f64::NAN, spearman: f64::NAN, others: f64::NAN };
}

fn method_line(m: &MethodRow, axis: f64, best: &Best, default: bool) -> MethodLine {
    let error = |x: f64, low: f64, high: f64, best: f64| Dot {
        at: place(x / axis),
        low: place(low / axis),
        high: place(high / axis),
        width: place((high - low) / axis),
        text: fixed(x, 3),
        interval: range(low, high, 3),
        best: x == best,
    };
    MethodLine {
        name: super::format::clean(&m.name, 120),
        control: m.control,
        default,
        raw: error(m.share_error, m.share_error_low, m.share_error_high, best.share_error),
        calibrated: error(m.calibrated, m.calibrated_low, m.calibrated_high, best.calibrated),
        top1: Figure { text: percent_whole(m.top1), best: m.top1 == best.top1 },
        spearman: Dot {
            at: String::new(),
            low: String::new(),
            high: String::new(),
            width: String::new(),
            text: fixed(m.spearman, 2),
            interval: range(m.low, m.high, 2),
            best: m.spearman == best.spearman,
        },
        others: Figure { text: fixed(m.spearman_others, 2), best: m.spearman_others == best.others },
    }
}

/// An axis from 0 that holds `longest`: its length, and a tick at every tenth (every fifth where a tenth is too dense).
fn axis(longest: f64, label: fn(f64) -> String) -> (f64, Vec<Tick>) {
    let tenths = ((longest * 10.0).ceil() as u32).clamp(1, 10);
    let step = if tenths > 6 { 2 } else { 1 };
    let tenths = tenths.div_ceil(step) * step;
    let length = f64::from(tenths) / 10.0;
    let ticks = (0..=tenths / step)
        .map(|i| f64::from(i * step) / 10.0)
        .map(|x| Tick { at: place(x / length), label: label(x) })
        .collect();
    (length, ticks)
}

/// An axis for shares, with percent labels; see `axis`.
pub(super) struct ShareAxis {
    /// The share at the right end.
    pub(super) length: f64,
    ticks: Vec<Tick>,
}

impl ShareAxis {
    /// The axis that holds every one of `shares`.
    pub(super) fn over(shares: impl Iterator<Item = f64>) -> Self {
        let (length, ticks) = axis(shares.fold(0.0, f64::max), percent_whole);
        Self { length, ticks }
    }

    /// Number of parts between ticks.
    pub(super) fn parts(&self) -> usize {
        self.ticks.len() - 1
    }

    /// The label at the right end.
    pub(super) fn end(&self) -> String {
        percent_whole(self.length)
    }

    /// The place of a share.
    pub(super) fn place(&self, share: f64) -> String {
        place(share / self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shade_has_eight_steps_and_a_label_for_each() {
        assert_eq!([0.0, 0.02, 0.049, 0.2, 0.69, 0.7, 1.0].map(level), [0, 1, 1, 4, 6, 7, 7]);
        let labels: Vec<String> = legend().into_iter().map(|s| s.label).collect();
        assert_eq!(labels[..2], ["0–2%", "2–5%"]);
        assert_eq!(labels[7], "70% and more");
    }

    #[test]
    fn an_axis_holds_what_it_has_to() {
        let (length, ticks) = axis(0.31, |x| fixed(x, 1));
        assert_eq!(length, 0.4);
        assert_eq!(ticks.iter().map(|t| t.label.as_str()).collect::<Vec<_>>(), ["0.0", "0.1", "0.2", "0.3", "0.4"]);
        assert_eq!(ticks[1].at, "25%");
        let (length, ticks) = axis(0.65, |x| fixed(x, 1));
        assert_eq!((length, ticks.len()), (0.8, 5));
        assert_eq!(axis(0.0, |x| fixed(x, 1)).0, 0.1);
        assert_eq!(axis(1.0, |x| fixed(x, 1)).0, 1.0);
    }
}
