//! `ascribe log usage`.

use anyhow::{Context as _, Result, bail};
use ascribe_core::Progress;
use ascribe_registry::{SignedUsage, UsageLog, UsageReceipt, UsageSalts, salted_hash, verify_usage_log};
use ascribe_tlog::open_checkpoint;
use serde_json::json;

use super::log::{deliver, log_key, read, read_signer};
use crate::args::Format;
use crate::args::log::UsageCommand;
use crate::output::print;

/// Runs the command.
pub fn run(command: UsageCommand, format: Format, bars: &dyn Progress) -> Result<()> {
    match command {
        UsageCommand::Append { dir, receipts, key } => {
            let signer = read_signer(&key)?;
            let bytes = read(&receipts)?;
            let lines = bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
            let parse = |(i, line): (usize, &[u8])| {
                let receipt: UsageReceipt =
                    serde_json::from_slice(line).with_context(|| format!("{}: line {}", receipts.display(), i + 1))?;
                receipt.validate().with_context(|| format!("{}: line {}", receipts.display(), i + 1))?;
                Ok(receipt.sign(signer.key()))
            };
            let signed = lines.map(parse).collect::<Result<Vec<_>>>()?;
            let (n, mut log) = (signed.len(), UsageLog::open(&dir, read_signer(&key)?)?);
            let (first, checkpoint) = log.append(signed, bars)?;
            let value = json!({ "first_index": first, "receipts": n, "root": checkpoint.head().root });
            print(format, &value, |_| format!("{n} receipts from {first} on, root {}", checkpoint.head().root))
        }
        UsageCommand::Verify { dir, key, older } => {
            let key = log_key(&dir.join("log"), key.as_deref())?;
            let older = older.iter().map(|path| Ok(open_checkpoint(path, &key, &[])?)).collect::<Result<Vec<_>>>()?;
            let found = verify_usage_log(&dir, &key, &older, bars)?;
            print(format, &found, |f| {
                let revenue: Vec<String> = f.revenue.iter().map(|(c, n)| format!("{n} {c}")).collect();
                format!(
                    "{} receipts, {} erased; every signature and digest holds; settled, in smallest units: {}",
                    f.receipts,
                    f.erased,
                    revenue.join(", ")
                )
            })
        }
        UsageCommand::Open { dir, index, key, output } => {
            let signer = read_signer(&key)?;
            let proof = UsageLog::open(&dir, read_signer(&key)?)?.prove(index)?;
            let receipt = SignedUsage::parse(proof.extra.as_deref().unwrap_or_default())?.receipt;
            let salt = UsageSalts::of(signer.key()).salt(&receipt.request_id);
            let hash = receipt.output_salted_sha256;
            if let Some(path) = &output
                && salted_hash(&salt, &read(path)?) != hash
            {
                bail!("{}: not the output of receipt {index}, whose salted hash is {hash}", path.display());
            }
            let salt: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
            let opened = output.is_some();
            let value =
                json!({ "request_id": receipt.request_id, "salt": salt, "salted_sha256": hash, "opened": opened });
            print(format, &value, |_| {
                let holds = if opened { "; the output is the one" } else { "" };
                format!("{}: salt {salt}, salted hash {hash}{holds}", receipt.request_id)
            })
        }
        UsageCommand::Prove { dir, index, key, out } => {
            let proof = UsageLog::open(&dir, read_signer(&key)?)?.prove(index)?;
            deliver(proof.to_text().as_bytes(), out.as_deref())
        }
    }
}
