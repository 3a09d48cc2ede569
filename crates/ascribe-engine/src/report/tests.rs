//! Tests of the page as a whole.

use super::data::{DatasetRow, Fact, IndexFacts, MethodRow, PayoutRow, ResponseRow, ShareBar, SourceHit, Timing};
use super::{ReportData, ReportError, render};

fn dataset(name: &str, language: &str) -> DatasetRow {
    DatasetRow {
        name: name.to_owned(),
        title: format!("Title of {name}"),
        owner: format!("Owner of {name}"),
        licence: "MIT".to_owned(),
        language: language.to_owned(),
        records: 1_234,
        examples: 2_345,
        content_root: "ab".repeat(32),
        bits_per_byte: 1.5,
        bits_per_byte_bigram: 2.25,
        bits_per_byte_unigram: 3.125,
    }
}

fn response(id: u32, source_dataset: u32, response: &str) -> ResponseRow {
    let bar = |share: f64| ShareBar { share, low: share / 2.0, high: share * 1.25 };
    ResponseRow {
        id,
        source_dataset,
        prompt: format!("prompt {id} "),
        response: response.to_owned(),
        bits_per_byte: 1.875,
        verdict: "Payable.".to_owned(),
        shares: vec![bar(0.25), bar(0.625), bar(0.125)],
        truth: Some(vec![0.25, 0.5, 0.25]),
        top: vec![SourceHit {
            dataset: 1,
            record: format!("beta/{id}"),
            score: 0.001_25,
            snippet: "a snippet".to_owned(),
        }],
    }
}

fn method(name: &str, control: bool, calibrated: f64) -> MethodRow {
    MethodRow {
        name: name.to_owned(),
        control,
        share_error: 0.3125,
        share_error_low: 0.25,
        share_error_high: 0.375,
        calibrated,
        calibrated_low: calibrated - 0.0625,
        calibrated_high: calibrated + 0.0625,
        top1: 0.75,
        spearman: -0.25,
        low: -0.5,
        high: 0.125,
        spearman_others: 0.0,
    }
}

fn sample() -> ReportData {
    let mut responses: Vec<ResponseRow> =
        (0..9).map(|id| response(id, id % 3, &format!("words of response {id}"))).collect();
    responses[8].truth = None;
    ReportData {
        facts: vec![Fact { label: "Seed".to_owned(), value: "7".to_owned() }],
        datasets: vec![dataset("alpha", "en"), dataset("beta", "zh"), dataset("gamma", "code-py")],
        responses,
        methods: vec![method("bm25", true, 0.25), method("mixed", false, 0.125)],
        ceiling: Some(method("retraining", false, f64::NAN)),
        default_method: "mixed".to_owned(),
        payout: vec![PayoutRow {
            owner: "Owner of alpha".to_owned(),
            account: "eip155:1:0xab".to_owned(),
            datasets: vec!["alpha".to_owned(), "unheard-of".to_owned()],
            amount: "62.00 USD".to_owned(),
            part: 0.5,
            part_low: 0.25,
            part_high: 0.625,
        }],
        pool: "1000.00 USD".to_owned(),
        unattributed: "380.00 USD".to_owned(),
        coverage: 0.62,
        coverage_note: "Measured so.".to_owned(),
        index: IndexFacts { rows: 9_216, dim: 512, recall_at_10: 0.99, bytes_per_example: 1_034.0 },
        timings: vec![Timing { stage: "fit".to_owned(), seconds: 3.25, note: "26 modules".to_owned() }],
        truth_heat: vec![vec![0.5; 3]; 3],
    }
}

fn page(data: &ReportData) -> String {
    render(data).expect("the sample can be drawn")
}

/// The page without its style and script.
fn body(html: &str) -> &str {
    let start = html.find("<body>").expect("a page has a body");
    let end = html.rfind("<script>").expect("a page ends in its script");
    &html[start..end]
}

/// Every tag of the page with its attributes.
fn tags(html: &str) -> Vec<&str> {
    body(html).split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default()).collect()
}

#[test]
fn same_data_same_bytes() {
    assert_eq!(page(&sample()), page(&sample()));
}

#[test]
fn hostile_text_stays_text() {
    const ATTACK: &str = "</mark><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\0\u{202e}{{ page }}";
    let clean = tags(&page(&sample())).len();
    let mut data = sample();
    for row in &mut data.datasets {
        for field in [&mut row.title, &mut row.owner, &mut row.licence, &mut row.content_root] {
            *field = ATTACK.to_owned();
        }
    }
    for row in &mut data.responses {
        row.prompt = ATTACK.to_owned();
        row.response = ATTACK.to_owned();
        row.top[0].snippet = ATTACK.to_owned();
        row.top[0].record = ATTACK.to_owned();
    }
    data.datasets[0].name = ATTACK.to_owned();
    data.datasets[0].language = ATTACK.to_owned();
    data.methods[0].name = ATTACK.to_owned();
    data.default_method = ATTACK.to_owned();
    data.payout[0].owner = ATTACK.to_owned();
    data.payout[0].account = ATTACK.to_owned();
    data.payout[0].datasets = vec![ATTACK.to_owned(), format!("unheard-of {ATTACK}")];
    data.pool = ATTACK.to_owned();
    data.unattributed = ATTACK.to_owned();
    data.coverage_note = ATTACK.to_owned();
    data.facts[0] = Fact { label: ATTACK.to_owned(), value: ATTACK.to_owned() };
    data.timings[0].stage = ATTACK.to_owned();
    data.timings[0].note = ATTACK.to_owned();
    let html = page(&data);
    let body = body(&html);
    assert!(!body.contains("<script") && !body.contains("<img"), "markup out of data reached the page");
    assert!(body.contains("&lt;script&gt;alert(1)"), "the text itself has to be readable");
    assert!(body.contains('␀') && body.contains("⟨U+202E⟩"), "control characters have to be visible");
    assert!(!html.contains('\0') && !html.contains('\u{202e}'));
    assert!(body.contains("{{ page }}"), "data is not a template");
    assert_eq!(tags(&html).len(), clean, "data changed the number of elements");
    assert!(
        tags(&html).iter().all(|tag| !tag.contains("onerror") && !tag.contains("alert")),
        "data became an attribute"
    );
}

#[test]
fn every_response_stands_once() {
    let data = sample();
    let html = page(&data);
    for (i, row) in data.responses.iter().enumerate() {
        assert_eq!(html.matches(&format!(" id=\"r{i}\"")).count(), 1, "anchor of response {i}");
        assert!(html.contains(&format!("<mark>{}</mark>", row.response)), "text of response {i}");
        assert!(html.contains(&format!("beta&#x2f;{i}")), "source of response {i}");
    }
    assert_eq!(html.matches("<article").count(), 3);
    assert_eq!(html.matches("<details class=\"response\"").count(), data.responses.len() - 3);
}

#[test]
fn the_page_asks_nothing_of_the_network() {
    let mut data = sample();
    data.responses[0].response = "see https://example.org/a.png".to_owned();
    let html = page(&data);
    for tag in tags(&html) {
        assert!(!tag.contains(" src=") && !tag.starts_with("link") && !tag.starts_with("iframe"), "{tag}");
        if let Some(at) = tag.find("href=\"") {
            assert!(tag[at + 6..].starts_with('#'), "a link leaves the page: {tag}");
        }
    }
    assert!(!html.contains("http://") && !html.contains("https://"), "an address outside of escaped text");
    assert!(!html.contains("@import") && !html.contains("url("));
    assert!(html.contains("default-src 'none'"));
}

#[test]
fn figures_are_written_as_agreed() {
    let html = page(&sample());
    for figure in [
        "62.5%",              // share
        "31.2–78.1%",         // interval of a share
        "0.00125",            // score
        "1,234",              // records
        "1.88 bits per byte", // 1.875, ties to even
        "share error against retraining <b>0.12</b>",
        "0.125",                           // calibrated error of the default
        "−0.25",                           // correlation
        "−0.50 to 0.12",                   // its interval
        "3.25 s",                          // time
        "99.0%",                           // recall
        "<dd>62%</dd>",                    // coverage
        "1000.00 <small>USD</small>",      // pool
        "0.250 of the best control, bm25", // verdict
    ] {
        assert!(html.contains(figure), "{figure}");
    }
}

#[test]
fn the_default_leads_and_the_best_is_bold() {
    let html = page(&sample());
    let table = &html[html.find("Agreement with retraining").expect("a methods table")..];
    let (mixed, bm25) = (table.find("mixed"), table.find("bm25"));
    assert!(mixed < bm25, "rows are ordered by calibrated share error");
    assert!(table.contains("<b>0.125</b>") && !table.contains("<b>0.250</b>"));
    assert!(table.contains(">control</span>") && table.contains(">agreement with the others</span>"));
}

#[test]
fn a_page_without_truth_claims_none() {
    let mut data = sample();
    for row in &mut data.responses {
        row.truth = None;
    }
    data.truth_heat.clear();
    data.methods.clear();
    data.ceiling = None;
    data.payout.clear();
    data.responses[1].top.clear();
    let html = page(&data);
    let body = body(&html);
    assert!(!body.contains("class=\"mark\"") && !body.contains("etraining") && !body.contains("id=\"methods\""));
    assert!(body.contains("No record was found"));
    assert_eq!(body.matches("class=\"matrix\"").count(), 1);
}

/// Applies `change` to the sample and expects a refusal that names `field`.
fn refused(field: &str, change: impl FnOnce(&mut ReportData)) {
    let mut data = sample();
    change(&mut data);
    let error = render(&data).expect_err("a report that cannot be shown is refused");
    assert!(!matches!(error, ReportError::Template(_) | ReportError::Values(_)), "refused too late: {error}");
    assert!(error.to_string().contains(&format!("`{field}`")), "{error} does not name {field}");
}

#[test]
fn what_cannot_be_shown_is_refused_by_name() {
    refused("responses[2].shares[1].high", |d| d.responses[2].shares[1].high = f64::NAN);
    refused("responses[0].truth[1]", |d| d.responses[0].truth.as_mut().expect("truth")[1] = f64::INFINITY);
    refused("responses[0].shares", |d| d.responses[0].shares.truncate(2));
    refused("responses[0].shares[0].share", |d| d.responses[0].shares[0].share = 1.5);
    refused("responses[0].shares[0].low", |d| d.responses[0].shares[0].low = 0.9);
    refused("responses[1].source_dataset", |d| d.responses[1].source_dataset = 3);
    refused("responses[4].top[0].dataset", |d| d.responses[4].top[0].dataset = 9);
    refused("responses[4].top[0].score", |d| d.responses[4].top[0].score = f64::NEG_INFINITY);
    refused("datasets[1].bits_per_byte", |d| d.datasets[1].bits_per_byte = -1.0);
    refused("datasets", |d| d.datasets.clear());
    refused("responses", |d| d.responses.clear());
    refused("methods[1].calibrated", |d| d.methods[1].calibrated = f64::NAN);
    refused("ceiling.spearman", |d| d.ceiling.as_mut().expect("a ceiling").spearman = -1.5);
    refused("payout[0].part", |d| d.payout[0].part = f64::NAN);
    refused("coverage", |d| d.coverage = f64::NAN);
    refused("index.recall_at_10", |d| d.index.recall_at_10 = 1.01);
    refused("timings[0].seconds", |d| d.timings[0].seconds = f64::NAN);
    refused("truth_heat", |d| d.truth_heat.truncate(2));
    refused("truth_heat[1][2]", |d| d.truth_heat[1][2] = f64::NAN);
    refused("nobody", |d| d.default_method = "nobody".to_owned());
}

#[test]
fn more_datasets_than_colours_are_told_apart() {
    let mut data = sample();
    for i in 3..30 {
        data.datasets.push(dataset(&format!("d{i}"), "en"));
    }
    for row in &mut data.responses {
        row.shares.resize(30, ShareBar { share: 0.0, low: 0.0, high: 0.0 });
        row.truth = None;
    }
    data.truth_heat.clear();
    let html = page(&data);
    assert!(html.contains("<span class=\"chip c0\">A</span>"));
    assert!(html.contains("<span class=\"chip c0 hatched\">M</span>"));
    assert!(html.contains(">AD</span>"));
}

#[test]
fn a_full_page_stays_small() {
    let mut data = sample();
    data.datasets = (0..10).map(|i| dataset(&format!("dataset-number-{i}"), "zh")).collect();
    data.truth_heat.clear();
    data.responses = (0..80)
        .map(|id| ResponseRow {
            prompt: "天".repeat(240),
            response: "地".repeat(130),
            shares: vec![ShareBar { share: 0.1, low: 0.054_32, high: 0.154_32 }; 10],
            truth: Some(vec![0.1; 10]),
            top: vec![
                SourceHit {
                    dataset: 3,
                    record: "dataset-number-3/42".to_owned(),
                    score: 0.1,
                    snippet: "玄".repeat(300)
                };
                5
            ],
            ..response(id, id % 10, "")
        })
        .collect();
    let size = page(&data).len();
    assert!(size <= 1_500_000, "{size} bytes");
}
