//! `ascribe run`, and the recording of trainings.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use ascribe_core::Digest;
use ascribe_engine::train::run::RUN_RECORD_FILE;
use ascribe_registry::{
    ModelKey, Registry, RunFacts, RunFinding, RunPolicy, RunRecord, RunTrust, StartEvidence, check_run_start,
    check_subjects, finish_run, open_run, plan_run, read_dataset_list, sign_model, sign_run, tiles, verify_model,
};
use ascribe_tlog::{Ed25519PublicKey, NoteSigner, write_secret};
use serde::Serialize;
use serde_json::json;

use super::log::{log_key, read, read_signer, read_verifier, read_verifiers};
use crate::args::Format;
use crate::args::run_record::{RecordArgs, RunCommand, SealArgs, VerifyArgs};
use crate::output::print;

/// Runs the command.
pub fn run(command: RunCommand, format: Format) -> Result<ExitCode> {
    match command {
        RunCommand::Record(args) => record(&args, format)?,
        RunCommand::Verify(args) => return verify(&args, format),
        RunCommand::Sign { dir, key, model_key } => {
            let signed = sign_run(&dir.join(RUN_RECORD_FILE), read_signer(&key)?.key())?;
            let model =
                model_key.map(|path| Ok::<_, anyhow::Error>(sign_model(&dir, &ModelKey::read(&path)?)?)).transpose()?;
            let value = json!({ "run": signed.invocation_id, "model_sha256": model });
            print(format, &value, |_| format!("run {} is signed", signed.invocation_id))?;
        }
        RunCommand::Keygen { out } => {
            let key = ModelKey::generate()?;
            write_secret(&out, key.to_pem().as_bytes())?;
            print(format, &json!({ "public_pem": key.public_pem() }), |_| key.public_pem())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A finding refuses, or is told on stderr.
fn judge(findings: &[RunFinding], policy: RunPolicy) -> Result<()> {
    let refused: Vec<&str> = findings.iter().filter(|f| policy.refuses(f)).map(|f| f.message.as_str()).collect();
    if !refused.is_empty() {
        bail!("the run is refused:\n  {}", refused.join("\n  "));
    }
    for finding in findings {
        // If stderr is closed there is nobody to warn.
        let _ = writeln!(std::io::stderr(), "warning: {}", finding.message);
    }
    Ok(())
}

/// Judges what is wrong with the datasets of a run.
fn check(registry: &Registry, record: &RunRecord, policy: RunPolicy) -> Result<()> {
    judge(&registry.check_run_datasets(record), policy)
}

fn record(args: &RecordArgs, format: Format) -> Result<()> {
    let registry = Registry::open(&args.registered)?;
    let recipe = args.recipe.clone().unwrap_or_else(|| args.model_dir.join("config.json"));
    let start = match &args.checkpoint {
        Some(path) => StartEvidence {
            checkpoint: Some(String::from_utf8(read(path)?).with_context(|| path.display().to_string())?),
            time_stamp: args.time_stamp.as_deref().map(read).transpose()?,
        },
        None => StartEvidence::of_registry(&registry)?,
    };
    let facts = RunFacts {
        invocation_id: args.id.clone(),
        trainer: Some(args.trainer.clone()),
        started_unix_s: args.started,
        finished_unix_s: args.finished,
        recipe_sha256: Digest::of(&read(&recipe)?),
        seed: args.seed,
        steps: args.steps,
        epochs: args.epochs.clone(),
        code_commit: args.code_commit.clone(),
        base_model_sha256: args.base_model.as_deref().map(read).transpose()?.map(|bytes| Digest::of(&bytes)),
        start,
    };
    let planned = plan_run(&registry, &read_dataset_list(&args.datasets)?, facts)?;
    check(&registry, &planned, args.policy.into())?;
    let seal = Seal {
        planned,
        signer: args.key.as_deref().map(read_signer).transpose()?,
        model_key: args.model_key.as_deref().map(ModelKey::read).transpose()?,
    };
    print(format, &seal.write(&args.model_dir)?, sealed_text)
}

/// A training that is being recorded.
pub struct Seal {
    planned: RunRecord,
    signer: Option<NoteSigner>,
    model_key: Option<ModelKey>,
}

/// What was written.
#[derive(Serialize)]
pub struct Sealed {
    run: String,
    record: PathBuf,
    files: usize,
    model_sha256: Option<Digest>,
    signer: Option<String>,
    model_signed: bool,
}

fn sealed_text(sealed: &Sealed) -> String {
    let signer = sealed.signer.as_deref().unwrap_or("nobody");
    format!("run {} over {} files in {}, signed by {signer}", sealed.run, sealed.files, sealed.record.display())
}

impl Seal {
    /// Before a training on records of registered datasets: reads the list, checks licences by the policy.
    pub fn begin(args: &SealArgs, settings: &Path, base_model: Option<&Path>, seed: u64) -> Result<Option<Self>> {
        let (Some(list), Some(registry)) = (&args.datasets, &args.registered) else { return Ok(None) };
        let registry = Registry::open(registry)?;
        let weights = base_model.map(|dir| dir.join("model.safetensors")).filter(|path| path.exists());
        let facts = RunFacts {
            invocation_id: String::new(),
            trainer: None,
            started_unix_s: unix_now()?,
            finished_unix_s: u64::MAX,
            recipe_sha256: Digest::of(&read(settings)?),
            seed,
            steps: 1,
            epochs: "1".to_owned(),
            code_commit: args.code_commit.clone(),
            base_model_sha256: weights.as_deref().map(read).transpose()?.map(|bytes| Digest::of(&bytes)),
            start: StartEvidence::of_registry(&registry)?,
        };
        let planned = plan_run(&registry, &read_dataset_list(list)?, facts)?;
        check(&registry, &planned, args.policy.into())?;
        let signer = args.run_key.as_deref().map(read_signer).transpose()?;
        Ok(Some(Self { planned, signer, model_key: args.model_key.as_deref().map(ModelKey::read).transpose()? }))
    }

    /// After it: the record with every file of the folder.
    pub fn finish(mut self, out: &Path, settings_sha256: Digest, steps: u64, epochs: f64) -> Result<Sealed> {
        self.planned.recipe_sha256 = settings_sha256;
        (self.planned.steps, self.planned.finished_unix_s) = (steps, unix_now()?);
        self.planned.epochs = format!("{epochs:.3}");
        for used in &mut self.planned.datasets {
            used.epochs.clone_from(&self.planned.epochs);
        }
        self.write(out)
    }

    fn write(self, out: &Path) -> Result<Sealed> {
        let record = finish_run(self.planned, out)?;
        let path = out.join(RUN_RECORD_FILE);
        record.write_signed(&path, self.signer.as_ref().map(NoteSigner::key))?;
        if let Some(key) = &self.model_key {
            sign_model(out, key)?;
        }
        Ok(Sealed {
            run: record.invocation_id,
            record: path,
            files: record.subjects.len(),
            model_sha256: record.detail.output_model_sha256,
            signer: self.signer.map(|signer| signer.key().public().did_key()),
            model_signed: self.model_key.is_some(),
        })
    }
}

/// Signs what a training of registered datasets has written itself.
pub fn seal_written(args: &SealArgs, out: &Path) -> Result<()> {
    if let Some(key) = &args.run_key {
        sign_run(&out.join(RUN_RECORD_FILE), read_signer(key)?.key())?;
    }
    if let Some(key) = &args.model_key {
        sign_model(out, &ModelKey::read(key)?)?;
    }
    Ok(())
}

fn unix_now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// What `run verify` found.
#[derive(Serialize)]
struct Verified {
    run: String,
    signer: Option<String>,
    files: usize,
    datasets: usize,
    model_sha256: Option<Digest>,
    witnessed_unix_s: Option<u64>,
    time_stamped_unix_s: Option<u64>,
    accepted: bool,
    findings: Vec<RunFinding>,
}

fn verify(args: &VerifyArgs, format: Format) -> Result<ExitCode> {
    let path = if args.dir.is_dir() { args.dir.join(RUN_RECORD_FILE) } else { args.dir.clone() };
    let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
    let key = args.key.as_deref().map(operator_key).transpose()?;
    let signed = open_run(&path, key.as_ref())?;
    let files = check_subjects(&signed.record, &folder)?;
    let model_sha256 = match &args.model_key {
        Some(pem) => Some(verify_model(&folder, &String::from_utf8_lossy(&read(pem)?))?),
        None => None,
    };
    let registry = Registry::open(&args.registered)?;
    let mut findings = registry.check_run_datasets(&signed.record);
    let tiles_dir = args.registered.join(tiles::TILES_DIR);
    let has_log = args.log_key.is_some() || tiles_dir.exists();
    let trust = RunTrust {
        log: if has_log { Some(log_key(&tiles_dir, args.log_key.as_deref())?) } else { None },
        witnesses: read_verifiers(&args.witness)?,
        authorities_pem: args.tsa.as_deref().map(read).transpose()?.unwrap_or_default(),
    };
    let (proof, unproven) = check_run_start(&signed.record, &trust);
    findings.extend(unproven);
    if signed.signer.is_none() {
        findings.push(RunFinding::unsigned());
    }
    let policy = RunPolicy::from(args.policy);
    let verified = Verified {
        run: signed.record.invocation_id.clone(),
        signer: signed.signer.map(|key| key.did_key()),
        files,
        datasets: signed.record.datasets.len(),
        model_sha256,
        witnessed_unix_s: proof.witnessed_unix_s,
        time_stamped_unix_s: proof.time_stamp.map(|stamp| stamp.unix_s),
        accepted: !findings.iter().any(|finding| policy.refuses(finding)),
        findings,
    };
    print(format, &verified, verified_text)?;
    Ok(if verified.accepted { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A verifier key line, a `did:key`, or a file with either.
fn operator_key(text: &str) -> Result<Ed25519PublicKey> {
    let is_did = |text: &str| text.trim().starts_with("did:key:");
    if is_did(text) {
        return Ok(Ed25519PublicKey::from_did_key(text.trim())?);
    }
    if Path::new(text).is_file() {
        let line = String::from_utf8_lossy(&read(Path::new(text))?).into_owned();
        if is_did(&line) {
            return Ok(Ed25519PublicKey::from_did_key(line.trim())?);
        }
    }
    Ok(read_verifier(text)?.key())
}

fn verified_text(v: &Verified) -> String {
    let mut text = format!(
        "run {}: {} files hold, {} datasets, signed by {}\n",
        v.run,
        v.files,
        v.datasets,
        v.signer.as_deref().unwrap_or("nobody")
    );
    for (what, time) in [("witnessed", v.witnessed_unix_s), ("time-stamped", v.time_stamped_unix_s)] {
        if let Some(unix_s) = time {
            text += &format!("licence log {what} before the start, at {unix_s}\n");
        }
    }
    for finding in &v.findings {
        text += &format!(
            "{}: {}\n",
            serde_json::to_string(&finding.fault).unwrap_or_default().trim_matches('"'),
            finding.message
        );
    }
    text + if v.accepted { "accepted\n" } else { "refused\n" }
}
