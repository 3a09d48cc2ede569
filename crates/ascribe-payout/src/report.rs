//! Pages for people: `report.html` for the run, a statement for each payee. Readable with scripts off; every text is escaped.

use std::collections::BTreeMap;

use ascribe_ledger::payout::merkle::{PayoutTree, hash_text};
use ascribe_ledger::{BatchRow, Caip10, Currency, Money, SubUnits, UnattributedReason};
use ascribe_shares::Rule;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde_json::{Value as Json, json};

use crate::error::PayError;
use crate::evidence::TopResponse;
use crate::outputs::share_interval;
use crate::{Computed, PayTotals};

/// Payees that the page of the run lists.
const LISTED: usize = 200;
/// Payees beyond which no statements are written: a million pages help nobody.
pub const STATEMENTS_MAX: usize = 2_000;

const STYLE: &str = include_str!("page.css");
const REPORT: &str = include_str!("report.html");
const STATEMENT: &str = include_str!("statement.html");

/// Parts per million as a percentage with two decimals.
fn percent(ppm: u64) -> String {
    format!("{}.{:02} %", ppm / 10_000, ppm % 10_000 / 100)
}

/// Mean share of a row's owner with its ends, in ppm.
fn share_of(computed: &Computed, found: &BatchRow) -> (u64, u64, u64) {
    let owner = computed.owners.binary_search(&found.row.owner).ok();
    owner.map_or((0, 0, 0), |owner| share_interval(computed, owner))
}

/// The right end of an axis that shows everything up to `most`, in ppm.
fn axis_end(most: u64) -> u64 {
    const ENDS: [u64; 8] = [10_000, 20_000, 40_000, 100_000, 200_000, 400_000, 600_000, 800_000];
    ENDS.into_iter().find(|end| most <= *end).unwrap_or(1_000_000)
}

/// Whole per cents, as ends of axes are.
fn axis_text(end: u64) -> String {
    format!("{} %", end / 10_000)
}

fn line(computed: &Computed, found: &BatchRow, number: usize, axis: u64) -> Json {
    let row = &found.row;
    let currency = row.amount.currency;
    let owner = computed.owners.binary_search(&row.owner).ok();
    let (mean, low, high) = share_of(computed, found);
    let top = owner.and_then(|owner| computed.gathered.top.get(owner)).map_or(&[][..], Vec::as_slice);
    let text = |amount: SubUnits| shown(amount, currency);
    let high_of = |top: &TopResponse| top.interval.map_or(top.share_ppm, |(_, high)| high.max(top.share_ppm));
    let top_axis = axis_end(top.iter().map(high_of).max().unwrap_or(0).into());
    json!({
        "number": number,
        "owner": row.owner,
        "account": row.account.as_ref().map_or("", Caip10::as_str),
        "paid": row.amount.to_string(),
        "earned": text(SubUnits(found.accrued)),
        "carried_in": text(SubUnits(found.carried_in)),
        "carried": text(row.carried),
        "share": percent(mean),
        "low": percent(low),
        "high": percent(high),
        "responses": row.responses,
        "datasets": row.datasets,
        "share_css": css(mean, axis),
        "low_css": css(low, axis),
        "width_css": css(high.saturating_sub(low), axis),
        "top": top.iter().map(|top| top_line(top, top_axis)).collect::<Vec<_>>(),
        "top_axis": axis_text(top_axis),
    })
}

fn top_line(top: &TopResponse, axis: u64) -> Json {
    let ends = |(low, high): (u32, u32)| format!("{} and {}", percent(low.into()), percent(high.into()));
    let (low, width) = top.interval.map_or((None, None), |(low, high)| {
        (Some(css(low.into(), axis)), Some(css(high.saturating_sub(low).into(), axis)))
    });
    json!({
        "query": top.response,
        "share": percent(top.share_ppm.into()),
        "share_css": css(top.share_ppm.into(), axis),
        "low_css": low,
        "width_css": width,
        "interval": top.interval.map_or_else(|| "not known".to_owned(), ends),
    })
}

/// An amount for people: whole smallest coins. The exact one stands in `payees.csv` and `run.json`.
fn shown(amount: SubUnits, currency: Currency) -> String {
    let minor = amount.minor_floor();
    match (minor, amount.0) {
        (0, 1..) => format!("under {}", Money { minor: 1, currency }),
        _ => Money { minor, currency }.to_string(),
    }
}

/// A width for a style sheet, as a part of `of` ppm; commas and spaces of words would break it.
fn css(ppm: u64, of: u64) -> String {
    let ppm = (ppm.min(of) * 1_000_000).checked_div(of).unwrap_or(0);
    format!("{}.{:02}%", ppm / 10_000, ppm % 10_000 / 100)
}

/// How the rule splits, for people.
fn rule_words(rule: &Rule) -> String {
    match rule {
        Rule::InfluenceProportional => "by each owner's net influence on each response".into(),
        Rule::Shapley => "by the owners' Shapley values in each response".into(),
        Rule::Blend { alpha_ppm } => {
            format!("{} by influence, the rest by registered records", percent((*alpha_ppm).into()))
        }
        Rule::ProRata => "by registered records".into(),
        Rule::Equal => "evenly over all owners".into(),
    }
}

/// Why money went to nobody, for people.
fn words(reason: UnattributedReason) -> &'static str {
    match reason {
        UnattributedReason::Coverage => "outside of what was measured",
        UnattributedReason::NoShares => "no dataset is shown to have helped, or too noisy to pay",
        UnattributedReason::NoPayee => "the licence names nobody to pay",
        UnattributedReason::Unregistered => "datasets that are not registered",
        UnattributedReason::NotLicensed => "no licence for training in force",
        UnattributedReason::Embargo => "under embargo in this period",
        UnattributedReason::Cap => "above what the policy or the licence gives one owner",
    }
}

/// Part of the pool, in ppm.
fn of_pool(computed: &Computed, amount: u128) -> u64 {
    let funded = computed.statement.funded.0.max(1);
    // Two more digits than a percentage shows; a pool is below 2^126.
    let ppm = (amount / 1_000_000).saturating_mul(1_000_000).checked_div(funded / 1_000_000).unwrap_or(0);
    u64::try_from(ppm).unwrap_or(1_000_000).min(1_000_000)
}

fn head(computed: &Computed) -> Json {
    json!({
        "run_id": computed.run_id.to_string(),
        "from": computed.run.period.start(),
        "to": computed.run.period.end(),
        "pool": computed.run.policy.pool.to_string(),
        "rule": rule_words(&computed.settings.rule),
        "coverage": percent(computed.settings.coverage_ppm.into()),
        "responses": computed.gathered.responses,
        "paid_responses": computed.gathered.paid_responses,
        "rows": computed.gathered.rows,
        "inputs": computed.run.inputs,
    })
}

fn draw(name: &str, template: &str, page: Json) -> Result<String, PayError> {
    let mut env = Environment::new();
    // A misspelt name in a template is an error, not an empty string on the page.
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    let context = minijinja::context! { page => value(page), style => Value::from_safe_string(STYLE.to_owned()) };
    Ok(env.template_from_named_str(name, template)?.render(context)?)
}

/// minijinja is built without its serde bridge.
fn value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(flag),
        Json::Number(number) => number.as_u64().map_or_else(|| Value::from(number.as_f64()), Value::from),
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            Value::from(fields.into_iter().map(|(name, field)| (name, value(field))).collect::<BTreeMap<_, _>>())
        }
    }
}

/// The page of the run: totals, the payees with the largest amounts, what was not paid and why.
///
/// # Errors
/// A template that does not fit its view, which would be a defect.
pub fn report(computed: &Computed, totals: &PayTotals, notes: &[String]) -> Result<String, PayError> {
    let mut rows: Vec<(usize, &BatchRow)> = computed.statement.rows.iter().enumerate().collect();
    rows.sort_by(|(a_idx, a), (b_idx, b)| b.accrued.cmp(&a.accrued).then(a_idx.cmp(b_idx)));
    let axis = axis_end(rows.iter().take(LISTED).map(|(_, row)| share_of(computed, row).2).max().unwrap_or(0));
    let listed: Vec<_> = rows.iter().take(LISTED).map(|(number, row)| line(computed, row, *number, axis)).collect();
    let statement = &computed.statement;
    let currency = computed.run.policy.pool.currency;
    let reasons = statement.unattributed.iter().map(|(reason, n)| {
        json!({
            "words": words(*reason),
            "amount": shown(SubUnits(*n), currency),
            "percent": percent(of_pool(computed, *n)),
        })
    });
    let of_name = |name: &str| match name {
        "Embargo" => words(UnattributedReason::Embargo),
        _ => words(UnattributedReason::NotLicensed),
    };
    let blocked = computed.gathered.blocked.iter();
    let (paid, carried) = (of_pool(computed, statement.settled().0), of_pool(computed, statement.carried().0));
    let page = json!({
        "head": head(computed),
        "totals": totals,
        "unattributed": shown(statement.unattributed_total(), currency),
        "paid": shown(statement.settled(), currency),
        "carried": shown(statement.carried(), currency),
        "carried_in": shown(SubUnits(statement.rows.iter().map(|row| row.carried_in).sum()), currency),
        "reasons": reasons.collect::<Vec<_>>(),
        "paid_percent": percent(paid),
        "paid_css": css(paid, 1_000_000),
        "carried_percent": percent(carried),
        "carried_css": css(carried, 1_000_000),
        "payees": statement.rows.len(),
        "paid_payees": statement.rows.iter().filter(|row| row.row.amount.minor > 0).count(),
        "rows": listed,
        "axis": axis_text(axis),
        "more": rows.len().saturating_sub(LISTED),
        "statements": rows.len() <= STATEMENTS_MAX,
        "blocked": blocked.map(|(name, reason)| json!({"name": name, "words": of_name(reason)})).collect::<Vec<_>>(),
        "unregistered": computed.gathered.unregistered,
        "notes": notes,
    });
    draw("report", REPORT, page)
}

/// The statement of the payee in row `number`: earned, for which responses, with which certainty, how to claim.
///
/// # Errors
/// As [`report`].
pub fn statement(computed: &Computed, number: usize, tree: Option<&PayoutTree>) -> Result<String, PayError> {
    let found = &computed.statement.rows[number];
    let evm = found.row.account.as_ref().and_then(Caip10::evm);
    let claim = evm.zip(tree).and_then(|((_, account), tree)| {
        let leaf = tree.leaves().binary_search_by(|leaf| leaf.account.cmp(&account)).ok()?;
        let proof: Vec<String> = tree.proof(leaf)?.iter().map(hash_text).collect();
        let leaf = tree.leaves()[leaf];
        Some(json!({
            "account": leaf.account.to_string(),
            "token": leaf.token.to_string(),
            "no_token": computed.settings.token.is_none(),
            "amount": leaf.amount.to_string(),
            "root": hash_text(&tree.root()),
            "proof": proof,
        }))
    });
    let axis = axis_end(share_of(computed, found).2);
    let row = line(computed, found, number, axis);
    let page = json!({ "head": head(computed), "row": row, "axis": axis_text(axis), "claim": claim });
    draw("statement", STATEMENT, page)
}
