//! The door of the report: every number finite and in its range, every ordinal and length right, or a named refusal.
//!
//! Here lives what must hold of [`ReportData`] before a line of HTML is made. Here never lives repair: a figure that
//! cannot be shown as it is stops the page.

use super::ReportError;
use super::data::{MethodRow, ReportData, ResponseRow};

/// Most registered datasets a page can hold: more columns than that no reader can tell apart.
pub const MAX_DATASETS: usize = 64;
/// Most responses a page can hold; at about 12 kB each that is the size a browser still opens at once.
pub const MAX_RESPONSES: usize = 1_000;
/// Room for the last bit of a sum: shares are sums of a few dozen rounded numbers, each off by at most 2⁻⁵³.
const SLACK: f64 = 1e-9;

/// Checks everything that the page will show.
pub(super) fn check(data: &ReportData) -> Result<(), ReportError> {
    length("datasets", data.datasets.len(), 1, MAX_DATASETS)?;
    length("responses", data.responses.len(), 1, MAX_RESPONSES)?;
    unit("coverage", data.coverage)?;
    for (i, dataset) in data.datasets.iter().enumerate() {
        positive(&format!("datasets[{i}].bits_per_byte"), dataset.bits_per_byte)?;
        positive(&format!("datasets[{i}].bits_per_byte_bigram"), dataset.bits_per_byte_bigram)?;
        positive(&format!("datasets[{i}].bits_per_byte_unigram"), dataset.bits_per_byte_unigram)?;
    }
    for (i, response) in data.responses.iter().enumerate() {
        check_response(&format!("responses[{i}]"), response, data.datasets.len())?;
    }
    for (i, method) in data.methods.iter().enumerate() {
        check_method(&format!("methods[{i}]"), method)?;
        let at = format!("methods[{i}]");
        unit(&format!("{at}.calibrated"), method.calibrated)?;
        interval(&at, ("calibrated_low", method.calibrated_low), ("calibrated_high", method.calibrated_high), 0.0)?;
    }
    if let Some(ceiling) = &data.ceiling {
        check_method("ceiling", ceiling)?;
    }
    if !data.methods.is_empty() && !data.methods.iter().any(|m| m.name == data.default_method) {
        return Err(ReportError::UnknownDefault {
            found: data.default_method.clone(),
            expected: data.methods.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", "),
        });
    }
    for (i, payee) in data.payout.iter().enumerate() {
        let at = format!("payout[{i}]");
        unit(&format!("{at}.part"), payee.part)?;
        interval(&at, ("part_low", payee.part_low), ("part_high", payee.part_high), 0.0)?;
    }
    unit("index.recall_at_10", data.index.recall_at_10)?;
    positive("index.bytes_per_example", data.index.bytes_per_example)?;
    for (i, timing) in data.timings.iter().enumerate() {
        positive(&format!("timings[{i}].seconds"), timing.seconds)?;
    }
    check_heat(data)
}

fn check_response(at: &str, response: &ResponseRow, n_datasets: usize) -> Result<(), ReportError> {
    ordinal(&format!("{at}.source_dataset"), response.source_dataset, n_datasets)?;
    positive(&format!("{at}.bits_per_byte"), response.bits_per_byte)?;
    length(&format!("{at}.shares"), response.shares.len(), n_datasets, n_datasets)?;
    for (d, bar) in response.shares.iter().enumerate() {
        let at = format!("{at}.shares[{d}]");
        unit(&format!("{at}.share"), bar.share)?;
        interval(&at, ("low", bar.low), ("high", bar.high), 0.0)?;
    }
    if let Some(truth) = &response.truth {
        length(&format!("{at}.truth"), truth.len(), n_datasets, n_datasets)?;
        for (d, &share) in truth.iter().enumerate() {
            unit(&format!("{at}.truth[{d}]"), share)?;
        }
    }
    for (k, hit) in response.top.iter().enumerate() {
        ordinal(&format!("{at}.top[{k}].dataset"), hit.dataset, n_datasets)?;
        finite(&format!("{at}.top[{k}].score"), hit.score)?;
    }
    Ok(())
}

/// What a method row and the ceiling row have in common; the ceiling has no calibration.
fn check_method(at: &str, method: &MethodRow) -> Result<(), ReportError> {
    unit(&format!("{at}.share_error"), method.share_error)?;
    interval(at, ("share_error_low", method.share_error_low), ("share_error_high", method.share_error_high), 0.0)?;
    unit(&format!("{at}.top1"), method.top1)?;
    between(&format!("{at}.spearman"), method.spearman, -1.0, 1.0)?;
    interval(at, ("low", method.low), ("high", method.high), -1.0)?;
    between(&format!("{at}.spearman_others"), method.spearman_others, -1.0, 1.0)
}

fn check_heat(data: &ReportData) -> Result<(), ReportError> {
    if data.truth_heat.is_empty() {
        return Ok(());
    }
    let n = data.datasets.len();
    length("truth_heat", data.truth_heat.len(), n, n)?;
    for (d, row) in data.truth_heat.iter().enumerate() {
        length(&format!("truth_heat[{d}]"), row.len(), n, n)?;
        for (own, &share) in row.iter().enumerate() {
            unit(&format!("truth_heat[{d}][{own}]"), share)?;
        }
    }
    Ok(())
}

fn finite(field: &str, found: f64) -> Result<(), ReportError> {
    if found.is_finite() { Ok(()) } else { Err(ReportError::NotFinite { field: field.to_owned(), found }) }
}

fn between(field: &str, found: f64, low: f64, high: f64) -> Result<(), ReportError> {
    finite(field, found)?;
    if found < low - SLACK || found > high + SLACK {
        return Err(ReportError::OutOfRange { field: field.to_owned(), found, low, high });
    }
    Ok(())
}

fn unit(field: &str, found: f64) -> Result<(), ReportError> {
    between(field, found, 0.0, 1.0)
}

fn positive(field: &str, found: f64) -> Result<(), ReportError> {
    between(field, found, 0.0, f64::MAX)
}

/// Both ends inside `[floor, 1]` and in order. The estimate itself may lie outside: a percentile interval of a bootstrap
/// does not promise to hold it.
fn interval(at: &str, low: (&str, f64), high: (&str, f64), floor: f64) -> Result<(), ReportError> {
    between(&format!("{at}.{}", low.0), low.1, floor, 1.0)?;
    between(&format!("{at}.{}", high.0), high.1, floor, 1.0)?;
    if low.1 > high.1 {
        return Err(ReportError::OutOfRange {
            field: format!("{at}.{}", low.0),
            found: low.1,
            low: floor,
            high: high.1,
        });
    }
    Ok(())
}

fn ordinal(field: &str, found: u32, n_datasets: usize) -> Result<(), ReportError> {
    if (found as usize) < n_datasets {
        Ok(())
    } else {
        Err(ReportError::UnknownDataset { field: field.to_owned(), found, n_datasets })
    }
}

fn length(field: &str, found: usize, least: usize, most: usize) -> Result<(), ReportError> {
    if (least..=most).contains(&found) {
        Ok(())
    } else {
        Err(ReportError::Length { field: field.to_owned(), found, least, most })
    }
}
