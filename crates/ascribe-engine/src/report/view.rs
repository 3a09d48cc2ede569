//! What the template gets: every text cleaned, every figure written, every mark placed, in the order of the page.
//!
//! Here lives the reading order and the wording that depends on data. Here never lives markup.

use serde::Serialize;

use super::data::{DatasetRow, PayoutRow, ReportData, ResponseRow};
use super::figures::{self, Map, Matrix, Methods, ShareAxis, Step};
use super::format::{
    clean, count, fixed, is_code, lang, language_name, letter, one_line, percent, percent_range, percent_whole, place,
    seconds, significant, without_blank_lines,
};

/// Colours that a reader can tell apart; datasets past that many repeat them with hatching.
const N_COLOURS: usize = 12;
/// Responses that stand open at the top.
const N_FEATURED: usize = 3;
/// Longest text of a prompt or a response, in characters.
const TEXT_CAP: usize = 6_000;
/// Longest text of a source record's span, in characters.
const SNIPPET_CAP: usize = 600;
/// Longest name, owner, label or note, in characters.
const LABEL_CAP: usize = 400;
/// Longest first line of a closed response, in characters.
const EXCERPT_CAP: usize = 110;

/// The whole page.
#[derive(Serialize)]
pub(super) struct Page {
    n_datasets: String,
    n_responses: String,
    pool: Amount,
    pool_text: String,
    unattributed: String,
    unattributed_part: String,
    coverage: String,
    coverage_place: String,
    coverage_note: String,
    verdict: Option<Verdict>,
    sets: Vec<SetView>,
    has_truth: bool,
    share_parts: usize,
    share_end: String,
    featured: Vec<ResponseView>,
    groups: Vec<GroupView>,
    legend: Vec<Step>,
    map: Map,
    table: Vec<TableRow>,
    matrices: Vec<Matrix>,
    methods: Methods,
    payees: Vec<PayeeView>,
    payout_parts: usize,
    payout_end: String,
    facts: Vec<FactView>,
    timings: Vec<TimingView>,
    total_time: String,
    index: IndexView,
}

#[derive(Serialize)]
struct Amount {
    number: String,
    unit: String,
}

/// The default method beside the best control.
#[derive(Serialize)]
struct Verdict {
    name: String,
    error: String,
    interval: String,
    control: Option<String>,
    control_error: Option<String>,
}

#[derive(Serialize)]
struct SetView {
    letter: String,
    colour: usize,
    hatched: bool,
    name: String,
    title: String,
    owner: String,
    licence: String,
    language: String,
    lang: Option<String>,
    code: bool,
    records: String,
    examples: String,
    root: String,
    bits: [String; 3],
    bits_at: [String; 3],
    bits_best: usize,
}

#[derive(Serialize)]
struct GroupView {
    set: usize,
    closed: Vec<ResponseView>,
    /// Indices and ids of the responses of this group that stand open above.
    above: Vec<(usize, u32)>,
}

#[derive(Serialize)]
struct ResponseView {
    index: usize,
    id: u32,
    set: usize,
    prompt: String,
    response: String,
    excerpt: String,
    bits: String,
    verdict: String,
    error: Option<String>,
    shares: Vec<ShareView>,
    segments: Vec<Segment>,
    hits: Vec<HitView>,
}

#[derive(Serialize)]
struct ShareView {
    set: usize,
    share: String,
    interval: String,
    width: String,
    low: String,
    span: String,
    truth: Option<String>,
    truth_at: Option<String>,
}

#[derive(Serialize)]
struct Segment {
    set: usize,
    /// Share in percent: the segments divide the strip in these proportions.
    weight: String,
    /// Whether the letter fits inside.
    wide: bool,
}

#[derive(Serialize)]
struct HitView {
    set: usize,
    record: String,
    score: String,
    snippet: String,
}

#[derive(Serialize)]
struct TableRow {
    index: usize,
    id: u32,
    set: usize,
    shares: Vec<String>,
}

#[derive(Serialize)]
struct PayeeView {
    owner: String,
    account: String,
    sets: Vec<PayeeSet>,
    amount: String,
    part: String,
    interval: String,
    width: String,
    low: String,
    span: String,
}

#[derive(Serialize)]
struct PayeeSet {
    name: String,
    set: Option<usize>,
}

#[derive(Serialize)]
struct FactView {
    label: String,
    value: String,
    mono: bool,
}

#[derive(Serialize)]
struct TimingView {
    stage: String,
    time: String,
    width: String,
    note: String,
}

#[derive(Serialize)]
struct IndexView {
    rows: String,
    dim: String,
    recall: String,
    bytes: String,
}

/// Builds the view. `data` must have passed the door.
pub(super) fn page(data: &ReportData) -> Page {
    let widest_bits = data
        .datasets
        .iter()
        .flat_map(|d| [d.bits_per_byte, d.bits_per_byte_bigram, d.bits_per_byte_unigram])
        .fold(f64::MIN_POSITIVE, f64::max);
    let axis = share_axis(data);
    let chosen = featured(data);
    let view = |&i: &usize| response_view(data, i, &axis);
    let payout_axis = ShareAxis::over(data.payout.iter().flat_map(|p| [p.part, p.part_high]));
    let longest = data.timings.iter().map(|t| t.seconds).fold(f64::MIN_POSITIVE, f64::max);
    Page {
        n_datasets: count(data.datasets.len() as u64),
        n_responses: count(data.responses.len() as u64),
        pool: amount(&data.pool),
        pool_text: clean(&data.pool, LABEL_CAP),
        unattributed: clean(&data.unattributed, LABEL_CAP),
        unattributed_part: percent(1.0 - data.coverage),
        coverage: percent_whole(data.coverage),
        coverage_place: place(data.coverage),
        coverage_note: clean(&data.coverage_note, LABEL_CAP),
        verdict: verdict(data),
        sets: data.datasets.iter().enumerate().map(|(i, d)| set_view(i, d, widest_bits)).collect(),
        has_truth: data.responses.iter().any(|r| r.truth.is_some()),
        share_parts: axis.parts(),
        share_end: axis.end(),
        featured: chosen.iter().map(view).collect(),
        groups: groups(data, &chosen, &axis),
        legend: figures::legend(),
        map: figures::map(data),
        table: table(data),
        matrices: figures::matrices(data),
        methods: figures::methods(data),
        payees: data.payout.iter().map(|p| payee_view(data, p, &payout_axis)).collect(),
        payout_parts: payout_axis.parts(),
        payout_end: payout_axis.end(),
        facts: data
            .facts
            .iter()
            .map(|f| FactView {
                label: clean(&f.label, LABEL_CAP),
                value: clean(&f.value, LABEL_CAP),
                mono: is_hash(&f.value),
            })
            .collect(),
        timings: data
            .timings
            .iter()
            .map(|t| TimingView {
                stage: clean(&t.stage, LABEL_CAP),
                time: seconds(t.seconds),
                width: place(t.seconds / longest),
                note: clean(&t.note, LABEL_CAP),
            })
            .collect(),
        total_time: seconds(data.timings.iter().map(|t| t.seconds).sum()),
        index: IndexView {
            rows: count(data.index.rows),
            dim: count(data.index.dim),
            recall: percent(data.index.recall_at_10),
            bytes: count(data.index.bytes_per_example.round() as u64),
        },
    }
}

/// `1000.00 USD` as number and unit, because the two are set in different sizes.
fn amount(text: &str) -> Amount {
    let text = clean(text, LABEL_CAP);
    match text.rsplit_once(' ') {
        Some((number, unit)) => Amount { number: number.to_owned(), unit: unit.to_owned() },
        None => Amount { number: text, unit: String::new() },
    }
}

/// The calibrated figures of both sides: an uncalibrated control would be a straw man.
fn verdict(data: &ReportData) -> Option<Verdict> {
    let default = data.methods.iter().find(|m| m.name == data.default_method)?;
    let control = data
        .methods
        .iter()
        .filter(|m| m.control)
        .min_by(|a, b| a.calibrated.total_cmp(&b.calibrated).then_with(|| a.name.cmp(&b.name)));
    Some(Verdict {
        name: clean(&default.name, LABEL_CAP),
        error: fixed(default.calibrated, 3),
        interval: super::format::range(default.calibrated_low, default.calibrated_high, 3),
        control: control.map(|c| clean(&c.name, LABEL_CAP)),
        control_error: control.map(|c| fixed(c.calibrated, 3)),
    })
}

fn set_view(i: usize, d: &DatasetRow, widest_bits: f64) -> SetView {
    let bits = [d.bits_per_byte, d.bits_per_byte_bigram, d.bits_per_byte_unigram];
    let mut bits_best = 0;
    for (k, value) in bits.iter().enumerate() {
        if *value < bits[bits_best] {
            bits_best = k;
        }
    }
    SetView {
        letter: letter(i),
        colour: i % N_COLOURS,
        hatched: i >= N_COLOURS,
        name: clean(&d.name, LABEL_CAP),
        title: clean(&d.title, LABEL_CAP),
        owner: clean(&d.owner, LABEL_CAP),
        licence: clean(&d.licence, LABEL_CAP),
        language: language_name(&d.language),
        lang: lang(&d.language),
        code: is_code(&d.language),
        records: count(d.records),
        examples: count(d.examples),
        root: clean(&d.content_root, LABEL_CAP),
        bits: bits.map(|b| fixed(b, 2)),
        bits_at: bits.map(|b| place(b / widest_bits)),
        bits_best,
    }
}

/// One scale for every bar of shares, so that bars can be compared across responses.
fn share_axis(data: &ReportData) -> ShareAxis {
    let bars = data.responses.iter().flat_map(|r| r.shares.iter().flat_map(|b| [b.share, b.high]));
    let truth = data.responses.iter().filter_map(|r| r.truth.as_ref()).flatten().copied();
    ShareAxis::over(bars.chain(truth))
}

/// Which responses stand open: the first of each kind of text (a language, or code), then the first that are left. A
/// rule that looks at no score picks no cherries.
fn featured(data: &ReportData) -> Vec<usize> {
    let kind = |i: usize| {
        let language = &data.datasets[data.responses[i].source_dataset as usize].language;
        language.split('-').next().unwrap_or_default()
    };
    let mut chosen: Vec<usize> = Vec::new();
    for i in 0..data.responses.len() {
        if chosen.len() < N_FEATURED && !chosen.iter().any(|&c| kind(c) == kind(i)) {
            chosen.push(i);
        }
    }
    for i in 0..data.responses.len() {
        if chosen.len() < N_FEATURED && !chosen.contains(&i) {
            chosen.push(i);
        }
    }
    chosen.sort_unstable();
    chosen
}

fn groups(data: &ReportData, chosen: &[usize], axis: &ShareAxis) -> Vec<GroupView> {
    (0..data.datasets.len())
        .map(|set| {
            let of_set = || (0..data.responses.len()).filter(|&i| data.responses[i].source_dataset as usize == set);
            GroupView {
                set,
                closed: of_set().filter(|i| !chosen.contains(i)).map(|i| response_view(data, i, axis)).collect(),
                above: of_set().filter(|i| chosen.contains(i)).map(|i| (i, data.responses[i].id)).collect(),
            }
        })
        .filter(|group| !group.closed.is_empty() || !group.above.is_empty())
        .collect()
}

fn response_view(data: &ReportData, index: usize, axis: &ShareAxis) -> ResponseView {
    let row = &data.responses[index];
    ResponseView {
        index,
        id: row.id,
        set: row.source_dataset as usize,
        prompt: clean(&row.prompt, TEXT_CAP),
        response: clean(&row.response, TEXT_CAP),
        excerpt: one_line(&row.response, EXCERPT_CAP),
        bits: fixed(row.bits_per_byte, 2),
        verdict: clean(&row.verdict, LABEL_CAP),
        error: row.truth.as_ref().map(|truth| fixed(share_error(row, truth), 2)),
        shares: share_views(row, axis),
        segments: segments(row),
        hits: row
            .top
            .iter()
            .map(|hit| HitView {
                set: hit.dataset as usize,
                record: clean(&hit.record, LABEL_CAP),
                score: significant(hit.score),
                snippet: snippet(&hit.snippet, is_code(&data.datasets[hit.dataset as usize].language)),
            })
            .collect(),
    }
}

/// Code keeps its lines; prose loses blank ones, which would push the next source out of sight.
fn snippet(text: &str, code: bool) -> String {
    if code { clean(text, SNIPPET_CAP) } else { clean(&without_blank_lines(text), SNIPPET_CAP) }
}

/// Total variation between the shares and the measured ones: half the sum of the absolute differences.
fn share_error(row: &ResponseRow, truth: &[f64]) -> f64 {
    0.5 * row.shares.iter().zip(truth).map(|(bar, t)| (bar.share - t).abs()).sum::<f64>()
}

/// Bars, largest share first, ties by ordinal.
fn share_views(row: &ResponseRow, axis: &ShareAxis) -> Vec<ShareView> {
    let mut order: Vec<usize> = (0..row.shares.len()).collect();
    order.sort_by(|&a, &b| row.shares[b].share.total_cmp(&row.shares[a].share).then(a.cmp(&b)));
    order
        .into_iter()
        .map(|set| {
            let bar = &row.shares[set];
            let truth = row.truth.as_ref().map(|t| t[set]);
            ShareView {
                set,
                share: percent(bar.share),
                interval: percent_range(bar.low, bar.high),
                width: axis.place(bar.share),
                low: axis.place(bar.low),
                span: axis.place(bar.high - bar.low),
                truth: truth.map(percent),
                truth_at: truth.map(|t| axis.place(t)),
            }
        })
        .collect()
}

/// The strip beside a closed response: shares end to end, in registered order.
fn segments(row: &ResponseRow) -> Vec<Segment> {
    let total: f64 = row.shares.iter().map(|b| b.share).sum();
    row.shares
        .iter()
        .enumerate()
        // Below a fifth of a percent a segment is thinner than a hairline.
        .filter(|(_, bar)| total > 0.0 && bar.share / total >= 0.002)
        .map(|(set, bar)| Segment { set, weight: fixed(100.0 * bar.share / total, 1), wide: bar.share / total >= 0.08 })
        .collect()
}

fn table(data: &ReportData) -> Vec<TableRow> {
    let mut rows: Vec<TableRow> = data
        .responses
        .iter()
        .enumerate()
        .map(|(index, row)| TableRow {
            index,
            id: row.id,
            set: row.source_dataset as usize,
            shares: row.shares.iter().map(|b| fixed(100.0 * b.share, 1)).collect(),
        })
        .collect();
    rows.sort_by_key(|row| (row.set, row.index));
    rows
}

fn payee_view(data: &ReportData, row: &PayoutRow, axis: &ShareAxis) -> PayeeView {
    PayeeView {
        owner: clean(&row.owner, LABEL_CAP),
        account: clean(&row.account, LABEL_CAP),
        sets: row
            .datasets
            .iter()
            .map(|name| PayeeSet {
                name: clean(name, LABEL_CAP),
                set: data.datasets.iter().position(|d| &d.name == name),
            })
            .collect(),
        amount: clean(&row.amount, LABEL_CAP),
        part: percent(row.part),
        interval: percent_range(row.part_low, row.part_high),
        width: axis.place(row.part),
        low: axis.place(row.part_low),
        span: axis.place(row.part_high - row.part_low),
    }
}

/// Hashes, ids and accounts are set in a fixed width; a sentence or a name is not.
fn is_hash(value: &str) -> bool {
    value.len() >= 16 && !value.contains(char::is_whitespace) && value.bytes().any(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_split_at_the_unit() {
        let split = amount("1,000.00 USD");
        assert_eq!((split.number.as_str(), split.unit.as_str()), ("1,000.00", "USD"));
        assert_eq!(amount("12").number, "12");
    }

    #[test]
    fn hashes_are_told_from_sentences() {
        assert!(is_hash("sha256:9f86d081884c7d659a2feaa0c55ad015"));
        assert!(!is_hash("AdamW, cosine schedule, 3 epochs"));
        assert!(!is_hash("42"));
    }
}
