//! `ascribe licence`.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ascribe_registry::registrar::{Accepted, Registrar};
use ascribe_registry::typed_data::{self, Unsigned};
use ascribe_registry::{
    Address, Did, DidLicence, Licence, Licensor as _, NewSigned, Revocation, SignedLicence, Signer as _, keystore,
    sign_licence,
};
use serde_json::json;
use zeroize::Zeroizing;

use super::guide::now_unix_s;
use super::registry::{dir_of, find, open, readable};
use crate::args::registry::{KeyArgs, LicenceCommand, PassphraseArgs, RegistryDir, WindowArgs};
use crate::args::{Cli, Format};
use crate::output::print;

/// Longest passphrase.
const PASSPHRASE_CAP_BYTES: u64 = 4096;

/// Runs a licence command.
///
/// # Errors
/// Whatever the registry or the keystore refuses.
pub fn run(cli: &Cli, command: &LicenceCommand) -> Result<()> {
    let format = cli.format;
    match command {
        LicenceCommand::NewKey { out, kind, passphrase } => {
            let signer = keystore::create(out, &read_passphrase(passphrase, true)?, (*kind).into())?;
            let made = json!({ "licensor": signer.licensor(), "keystore": out });
            print(format, &made, |_| format!("{} in {}", signer.licensor(), out.display()))
        }
        LicenceCommand::Sign { id, key, window, registry } => sign(format, id, key, window, registry),
        LicenceCommand::Prepare { id, licensor, revoke, reason, effective_from, window, out, registry } => {
            let mut registrar = open(registry)?;
            let unsigned = if *revoke {
                let (licensor, message) = registrar.prepare_revocation(id, *effective_from, reason)?;
                if licensor.starts_with("did:") {
                    bail!(
                        "{id}: expected a licence of an address, found one of {licensor} (hint: ascribe licence revoke)"
                    );
                }
                Unsigned::Revocation(message)
            } else {
                let licensor = licensor.as_deref().unwrap_or_default();
                let licensor = Address::parse(licensor).map_err(anyhow::Error::msg).context("--licensor")?;
                Unsigned::Licence(registrar.prepare(id, licensor, window.valid_from, window.valid_until)?)
            };
            let data = typed_data::write(registrar.domain(), &unsigned);
            match out {
                None => print(Format::Json, &data, |_| String::new()),
                Some(out) => {
                    let text = serde_json::to_string_pretty(&data)? + "\n";
                    ascribe_engine::files::write_atomic(out, text.as_bytes())?;
                    print(format, &json!({ "typed_data": out }), |_| format!("{}", out.display()))
                }
            }
        }
        LicenceCommand::Submit { typed_data, signature, file, registry } => {
            let mut registrar = open(registry)?;
            let accepted = match (typed_data, signature, file) {
                (Some(path), Some(signature), _) => submit_typed(&mut registrar, path, signature)?,
                (_, _, Some(path)) => submit_file(&mut registrar, path)?,
                _ => bail!("expected --typed-data with --signature, or --file"),
            };
            print(format, &accepted, accepted_text)
        }
        LicenceCommand::Verify { id, at, registry } => verify(cli, id, at.unwrap_or_else(now_unix_s), registry),
        LicenceCommand::Revoke { id, key, reason, effective_from, registry } => {
            let mut registrar = open(registry)?;
            let (licensor, message) = registrar.prepare_revocation(id, *effective_from, reason)?;
            let signer = keystore::open(&key.keystore, &read_passphrase(&key.passphrase, false)?)?;
            if signer.licensor() != licensor {
                bail!(
                    "{}: expected the key of {licensor}, found that of {}",
                    key.keystore.display(),
                    signer.licensor()
                );
            }
            let revocation = Revocation::sign(Path::new(id), registrar.domain().clone(), message, &signer)?;
            print(format, &registrar.revoke(&revocation)?, accepted_text)
        }
    }
}

fn sign(format: Format, id: &str, key: &KeyArgs, window: &WindowArgs, registry: &RegistryDir) -> Result<()> {
    let mut registrar = open(registry)?;
    let signer = keystore::open(&key.keystore, &read_passphrase(&key.passphrase, false)?)?;
    let (path, domain) = (Path::new(id), registrar.domain().clone());
    let who = signer.licensor();
    let licence = if who.starts_with("did:") {
        let did = Did::parse(&who).map_err(anyhow::Error::msg)?;
        let message = registrar.prepare(id, did, window.valid_from, window.valid_until)?;
        SignedLicence::Did(Box::new(DidLicence::sign(path, domain, message, now_unix_s(), &signer)?))
    } else {
        let address = Address::parse(&who).map_err(anyhow::Error::msg)?;
        let message = registrar.prepare(id, address, window.valid_from, window.valid_until)?;
        let owner = registrar.owner_of(id)?;
        SignedLicence::Eip712(sign_licence(path, domain, message, &owner, &signer)?)
    };
    print(format, &registrar.accept(&licence)?, accepted_text)
}

fn submit_typed(registrar: &mut Registrar, path: &Path, signature: &str) -> Result<Accepted> {
    let domain = registrar.domain().clone();
    match typed_data::read(path, &domain)? {
        Unsigned::Licence(message) => {
            let owner = registrar.owner_of(&message.dataset)?;
            let signature = typed_data::parse_signature(path, signature)?;
            Ok(registrar.accept(&SignedLicence::Eip712(Licence::new(domain, message, signature, &owner)))?)
        }
        Unsigned::Revocation(message) => {
            let licensor = registrar.licensor_of(message.licence)?;
            let signature = typed_data::parse_signature(path, signature)?;
            Ok(registrar.revoke(&Revocation::new(domain, licensor, message, &signature))?)
        }
    }
}

fn submit_file(registrar: &mut Registrar, path: &Path) -> Result<Accepted> {
    match NewSigned::read(path)? {
        NewSigned::Licence(licence) => Ok(registrar.accept(&licence)?),
        NewSigned::Revocation(revocation) => Ok(registrar.revoke(&revocation)?),
    }
}

fn verify(cli: &Cli, id: &str, at: u64, registry: &RegistryDir) -> Result<()> {
    let path = Path::new(id);
    if path.is_file() {
        let NewSigned::Licence(licence) = NewSigned::read(path)? else {
            bail!("{id}: expected a licence, found a revocation");
        };
        // By itself a file proves who signed what, in the domain that it names; the registry's domain when there is one.
        let domain = match dir_of(registry) {
            Ok(dir) => ascribe_registry::Settings::read(&dir)?.domain,
            Err(_) => licence.domain().clone(),
        };
        licence.check_signed(path, &domain)?;
        let found = json!({ "digest": licence.digest(), "licensor": licence.licensor(), "kind": licence.kind() });
        return print(cli.format, &found, |_| format!("{} signed {}", licence.licensor(), licence.digest()));
    }
    let registry = readable(cli, registry)?;
    let dataset = find(&registry, id)?;
    let report = registry.verify_licence_of(dataset, at)?;
    print(cli.format, &report, |r| {
        format!("{}: licence {} by {} holds, log index {}", r.name, r.licence_digest, r.licensor, r.log_index)
    })
}

fn accepted_text(accepted: &Accepted) -> String {
    let Accepted { digest, log_index, kind, dataset, licensor, nonce } = accepted;
    format!("{kind} of {dataset} by {licensor} registered: log index {log_index}, nonce {nonce}\n{digest}\n")
}

/// A passphrase out of a file, stdin or the terminal.
pub(super) fn read_passphrase(args: &PassphraseArgs, twice: bool) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    match &args.passphrase_file {
        Some(path) if path == Path::new("-") => {
            std::io::stdin().lock().take(PASSPHRASE_CAP_BYTES).read_until(b'\n', &mut bytes)?;
        }
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
            let mut reader = std::io::BufReader::new(file.take(PASSPHRASE_CAP_BYTES));
            reader.read_until(b'\n', &mut bytes).with_context(|| path.display().to_string())?;
        }
        None if std::io::stdin().is_terminal() => {
            *bytes = rpassword::prompt_password("Passphrase: ")?.into_bytes();
            if twice && *bytes != *Zeroizing::new(rpassword::prompt_password("Again: ")?.into_bytes()) {
                bail!("passphrase: expected the same twice, found two");
            }
        }
        None => bail!("passphrase: expected --passphrase-file FILE (- is stdin), or a terminal to ask at"),
    }
    while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
}
