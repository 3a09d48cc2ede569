//! `ascribe pay run | plan | verify | diff`: arguments to jobs, results to words.

use std::path::Path;

use anyhow::{Context as _, Result};
use ascribe_core::Progress;
use ascribe_payout::approval::{self, ApprovalState};
use ascribe_payout::diff::Side;
use ascribe_payout::outputs::share_interval;
use ascribe_payout::settings::PaySettings;
use ascribe_payout::usage::{UsageCheck, UsageFound, UsageJob};
use ascribe_payout::{self as payout, Computed, PayDiff, PayJob, PaySummary};
use serde::Serialize;

use crate::args::Format;
use crate::args::pay::{PayCommand, PayJobArgs, PayPlanArgs};
use crate::args::registry::KeyArgs;
use crate::commands::licence::read_passphrase;
use crate::commands::log::read_verifier;
use crate::output::{print, table};

/// Payees that the summary of a run lists for people.
const SHOWN: usize = 20;

/// Runs one of the commands.
///
/// # Errors
/// Whatever the engine refuses.
pub fn run(command: &PayCommand, format: Format, progress: &dyn Progress) -> Result<()> {
    match command {
        PayCommand::Run(args) => {
            let job = job(&args.job, Some(&args.out))?;
            let usage = UsageJob {
                log: args.usage_log.clone(),
                key: args.usage_key.clone(),
                run_record: args.run_record.clone(),
                outputs: args.outputs.clone(),
            };
            let summary = payout::run_with(&job, &usage, &args.out, progress)?;
            print(format, &summary, |s| run_text(s, &args.out))
        }
        PayCommand::Plan(args) => plan(args, format, progress),
        PayCommand::Verify { dir, scores, usage_log, usage_key } => {
            let key = usage_key.as_deref().map(read_verifier).transpose()?;
            verify(dir, scores.as_deref(), &UsageCheck { log: usage_log.clone(), key }, format, progress)
        }
        PayCommand::Approve { dir, run_id, key } => approve(dir, run_id.as_deref(), key, format),
        PayCommand::Diff { before, after } => {
            let found = payout::diff(before, after)?;
            print(format, &found, diff_text)
        }
    }
}

/// `ascribe pay verify`.
///
/// # Errors
/// Any difference.
fn verify(
    dir: &Path,
    scores: Option<&Path>,
    usage: &UsageCheck,
    format: Format,
    progress: &dyn Progress,
) -> Result<()> {
    let found = payout::verify_with(dir, scores, usage, progress)?;
    print(format, &found, |f| {
        format!("run {}: {} files made again with the same bytes; the books close", f.run_id, f.files)
            + &receipts_text(&f.receipts)
    })
}

/// What was found of a run's receipts, as further lines.
pub fn receipts_text(found: &UsageFound) -> String {
    match &found.unchecked {
        Some(why) => format!("\nreceipts not checked: {why}"),
        None => format!("\n{} receipts are those of the run, {} were erased", found.checked, found.erased),
    }
}

fn job(args: &PayJobArgs, out: Option<&Path>) -> Result<PayJob> {
    let mut settings = args.policy.as_deref().map(PaySettings::read).transpose()?.unwrap_or_default();
    if let Some(coverage) = args.coverage {
        settings.coverage_ppm = payout::settings::coverage(coverage)?;
    }
    settings.token = args.token.clone().or(settings.token);
    settings.token_decimals = args.token_decimals.or(settings.token_decimals);
    settings.chain_id = args.chain.or(settings.chain_id);
    let period = match &args.period {
        Some(period) => period.parse().context("--period")?,
        None => payout::default_period(out)?,
    };
    Ok(PayJob {
        scores: args.scores.clone(),
        registry: args.registry.clone(),
        pool: args.pool.as_deref().map(str::parse).transpose().context("--pool")?,
        period,
        method: args.method.clone(),
        duplicates: args.duplicates.clone(),
        previous: args.previous.clone(),
        settings,
    })
}

fn approve(dir: &Path, run_id: Option<&str>, key: &KeyArgs, format: Format) -> Result<()> {
    let run_id = match run_id {
        Some(text) => text.parse().map_err(|_| anyhow::anyhow!("--run-id: expected 64 hex digits, found {text:?}"))?,
        None => approval::run_id_of(dir)?,
    };
    let signer = ascribe_registry::keystore::open(&key.keystore, &read_passphrase(&key.passphrase, false)?)?;
    let found = approval::approve(dir, &run_id, &signer)?;
    print(format, &found, |f| format!("run {} approved by {}", f.run_id, f.approver))
}

#[derive(Serialize)]
struct PlanRow {
    owner: String,
    account: String,
    pays: String,
    carried_subunits: String,
    share_ppm: u64,
    share_low_ppm: u64,
    share_high_ppm: u64,
    responses: u32,
    datasets: u32,
    best_responses: Vec<String>,
}

#[derive(Serialize)]
struct Plan {
    run_id: String,
    pool: String,
    currency: String,
    payees: usize,
    rows: Vec<PlanRow>,
    unattributed_subunits: std::collections::BTreeMap<String, String>,
    dust_subunits: String,
    approval: ApprovalState,
    against_previous: PayDiff,
}

fn plan(args: &PayPlanArgs, format: Format, progress: &dyn Progress) -> Result<()> {
    let job = job(&args.job, None)?;
    let scratch = std::env::temp_dir();
    let computed = payout::compute(&job, &scratch, progress)?;
    let after = Side::of(&computed);
    let before = job.previous.as_deref().map(Side::read).transpose()?.unwrap_or_else(|| Side::none(&after));
    let mut against = payout::diff::compare(&before, &after)?;
    against.rows.truncate(args.top);
    let mut rows: Vec<_> = computed.statement.rows.iter().collect();
    rows.sort_by(|a, b| b.accrued.cmp(&a.accrued).then_with(|| a.row.owner.cmp(&b.row.owner)));
    let unattributed = computed.statement.unattributed.iter();
    let plan = Plan {
        run_id: computed.run_id.to_string(),
        pool: computed.run.policy.pool.to_string(),
        currency: computed.run.policy.pool.currency.to_string(),
        payees: computed.statement.rows.len(),
        rows: rows.into_iter().take(args.top).map(|row| plan_row(&computed, row)).collect(),
        unattributed_subunits: unattributed.map(|(why, n)| (format!("{why:?}"), n.to_string())).collect(),
        dust_subunits: computed.statement.dust.to_string(),
        approval: approval::state(None, &job.settings, &computed.run.policy.pool, &computed.run_id)?,
        against_previous: against,
    };
    print(format, &plan, plan_text)
}

fn plan_row(computed: &Computed, found: &ascribe_payout::BatchRow) -> PlanRow {
    let row = &found.row;
    let owner = computed.owners.binary_search(&row.owner).ok();
    let (share_ppm, share_low_ppm, share_high_ppm) = owner.map_or((0, 0, 0), |owner| share_interval(computed, owner));
    let top = owner.and_then(|owner| computed.gathered.top.get(owner)).map_or(&[][..], Vec::as_slice);
    PlanRow {
        owner: row.owner.clone(),
        account: row.account.as_ref().map_or(String::new(), ToString::to_string),
        pays: row.amount.decimal(),
        carried_subunits: row.carried.to_string(),
        share_ppm,
        share_low_ppm,
        share_high_ppm,
        responses: row.responses,
        datasets: row.datasets,
        best_responses: top
            .iter()
            .take(3)
            .map(|top| format!("{} ({} %)", top.response, percent(top.share_ppm.into())))
            .collect(),
    }
}

/// Parts per million as a percentage with two decimals.
fn percent(ppm: u64) -> String {
    format!("{}.{:02}", ppm / 10_000, ppm % 10_000 / 100)
}

fn plan_text(plan: &Plan) -> String {
    let row = |r: &PlanRow| {
        vec![
            r.owner.clone(),
            r.pays.clone(),
            format!("{} [{}, {}]", percent(r.share_ppm), percent(r.share_low_ppm), percent(r.share_high_ppm)),
            r.responses.to_string(),
            r.best_responses.first().cloned().unwrap_or_default(),
            if r.account.is_empty() { "no account, carried".to_owned() } else { r.account.clone() },
        ]
    };
    let rows: Vec<Vec<String>> = plan.rows.iter().map(row).collect();
    let pays = format!("pays {}", plan.currency);
    let header = ["owner", pays.as_str(), "share % [95 %]", "responses", "largest share in", "account"];
    let unattributed: String =
        plan.unattributed_subunits.iter().map(|(why, n)| format!("unattributed, {why}: {n} sub-units\n")).collect();
    let approval = match &plan.approval {
        needs if needs.needed => format!("{} people must approve it (ascribe pay approve)", needs.required),
        _ => "no approval is needed".to_owned(),
    };
    format!(
        "run {} (nothing written), pool {}, {} payees; {approval}\n\n{}\n{unattributed}dust: {} sub-units\n\nagainst the run before\n{}",
        plan.run_id,
        plan.pool,
        plan.payees,
        table(&header, &rows),
        plan.dust_subunits,
        diff_text(&plan.against_previous)
    )
}

fn diff_text(found: &PayDiff) -> String {
    let row = |r: &payout::diff::PayDiffRow| {
        vec![r.owner.clone(), r.before.clone(), r.after.clone(), r.change.clone(), r.why.clone()]
    };
    let rows: Vec<Vec<String>> = found.rows.iter().map(row).collect();
    let unchanged = format!("{} payees are paid the same\n", found.unchanged);
    table(&["owner", "before", "after", "change", "why"], &rows) + &unchanged
}

fn run_text(summary: &PaySummary, out: &Path) -> String {
    let record = &summary.record;
    let list = |map: &std::collections::BTreeMap<String, String>| -> String {
        map.iter().take(SHOWN).map(|(name, text)| format!("  {name}: {text}\n")).collect()
    };
    let totals = &record.totals;
    let done = if summary.already_done { "this run stood there already, nothing was done\n" } else { "" };
    let mut text = format!(
        "run {}\n{done}pool {}, {} of {} responses paid for, {} rows\npaid {} to {} payees, carried {}, dust {} sub-units\n",
        record.run_id,
        totals.funded,
        record.paid_responses,
        record.responses,
        record.rows,
        totals.paid,
        record.paid_payees,
        totals.carried,
        totals.dust_subunits,
    );
    for (title, map) in [
        ("not attributed", &totals.unattributed),
        ("datasets that may not be paid", &record.blocked),
        ("files that this run has not", &record.skipped),
    ] {
        if !map.is_empty() {
            text += &format!("{title}\n{}", list(map));
        }
    }
    record.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
    if let Some(usage) = &summary.usage_log {
        text += &format!(
            "{} receipts in {}, the log of {}\n",
            usage.appended + usage.there,
            usage.log.display(),
            usage.origin
        );
        if usage.demo_key {
            text += "note: receipts are signed with the public demo key, which proves nothing about who; pass --usage-key\n";
        }
    }
    text + &format!("{} files in {}\n", record.files.len() + 1, out.display())
}
