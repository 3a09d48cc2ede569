//! The guided way into a registry: what was not said is derived from the folder, or asked for at a terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ascribe_registry::prepare::NewDataset;
use ascribe_registry::registrar::NewContent;
use ascribe_registry::{Fields, Payee, Source, SourceSet, check_account, check_name, normalise_licence};

use crate::args::registry::AddArgs;

/// Files of a folder that hold its legal text, in order of preference.
const TERMS_FILES: [&str; 8] =
    ["terms.txt", "LICENSE", "LICENCE", "LICENSE.txt", "LICENCE.txt", "LICENSE.md", "COPYING", "NOTICE"];

/// A whole, in parts per million.
const WHOLE_PPM: u32 = 1_000_000;

/// Seconds since 1970, now.
pub(super) fn now_unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What `registry add` registers.
///
/// # Errors
/// A folder without records; without a terminal, a licence or payee that was not given.
pub(super) fn new_dataset(args: &AddArgs) -> Result<(NewDataset, NewContent)> {
    let set = SourceSet::find(&args.folder)?;
    let mut asker = Asker { asks: std::io::stdin().is_terminal() && std::io::stderr().is_terminal() };
    let suggested = name_of(&args.folder);
    let guided = args.licence.is_none() || args.payees.is_empty();
    if guided && asker.asks {
        asker.say(&format!(
            "{}: {} files of {:?}, {} bytes\n",
            args.folder.display(),
            set.files.len(),
            set.format,
            set.len_bytes
        ))?;
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None if !guided => suggested,
        None => asker.ask("Name of the dataset (a-z, 0-9, -)", Some(&suggested), "--name", &|name| {
            Ok(check_name(Path::new("name"), name)?)
        })?,
    };
    let licence = match &args.licence {
        Some(licence) => licence.clone(),
        None => {
            let question = "Licence, as an SPDX expression (CC-BY-4.0, or LicenseRef-mine for terms of your own)";
            asker.ask(question, None, "--licence", &|licence| {
                Ok(normalise_licence(Path::new("licence"), licence).map(drop)?)
            })?
        }
    };
    let payees = if args.payees.is_empty() {
        let question = "Account that is paid, as CAIP-10 (eip155:1:0x... for Ethereum)";
        vec![asker.ask(question, None, "--payee", &|account| payees_of(&[account.to_owned()]).map(drop))?]
    } else {
        args.payees.clone()
    };
    let payees = payees_of(&payees)?;
    let fallback = payees[0].account.clone();
    let owner = match &args.owner {
        Some(owner) => owner.clone(),
        None if asker.asks && args.payees.is_empty() => {
            asker.ask("Owner, for people", Some(&fallback), "--owner", &|_| Ok(()))?
        }
        None => fallback,
    };
    let terms = terms_of(args, &licence)?;
    let new = NewDataset {
        title: args.title.clone().unwrap_or_else(|| name.clone()),
        name,
        owner,
        language: args.language.clone(),
        licence,
        permits: args.permits.clone(),
        prohibits: args.prohibits.clone(),
        payees,
        source: Source {
            registry: "own".to_owned(),
            package: args.source.clone(),
            version: args.source_version.clone(),
        },
        notes: args.notes.clone(),
        terms,
    };
    let fields = Fields { id: args.id_field.clone(), text: args.text_field.clone(), skip_empty: args.skip_empty };
    Ok((new, NewContent { set, fields, in_place: args.in_place }))
}

/// `ACCOUNT` alone, or `ACCOUNT=PPM` each.
fn payees_of(given: &[String]) -> Result<Vec<Payee>> {
    let mut payees = Vec::with_capacity(given.len());
    for text in given {
        let (account, share_ppm) = match text.split_once('=') {
            Some((account, share)) => {
                let ppm = share.parse().ok().with_context(|| {
                    format!("--payee {text}: expected ACCOUNT=PPM with parts per million, found {share:?}")
                })?;
                (account, ppm)
            }
            None if given.len() == 1 => (text.as_str(), WHOLE_PPM),
            None => bail!("--payee {text}: expected ACCOUNT=PPM, because there are several payees"),
        };
        check_account(Path::new("--payee"), "account", account)?;
        payees.push(Payee { account: account.to_owned(), share_ppm });
    }
    Ok(payees)
}

/// A dataset name out of the folder's.
fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let bare = name.split('.').next().unwrap_or_default();
    let plain: String = bare.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    if plain.is_empty() { "dataset".to_owned() } else { plain.chars().take(64).collect() }
}

fn terms_of(args: &AddArgs, licence: &str) -> Result<String> {
    let found = args
        .terms
        .clone()
        .or_else(|| TERMS_FILES.iter().map(|file| args.folder.join(file)).find(|file| file.is_file()));
    match found {
        Some(file) => std::fs::read_to_string(&file).with_context(|| file.display().to_string()),
        None => Ok(format!("Licensed under the terms of the SPDX licence expression {licence}.\n")),
    }
}

/// Asks at a terminal; elsewhere, what is missing is an error.
struct Asker {
    asks: bool,
}

/// What is wrong with an answer.
type CheckAnswer<'a> = &'a dyn Fn(&str) -> Result<()>;

impl Asker {
    fn say(&self, text: &str) -> Result<()> {
        let mut talk = std::io::stderr();
        write!(talk, "{text}")?;
        Ok(talk.flush()?)
    }

    /// Asks until the answer is a good one; the end of the input is an error.
    fn ask(
        &mut self,
        question: &str,
        suggested: Option<&str>,
        argument: &str,
        check: CheckAnswer<'_>,
    ) -> Result<String> {
        if !self.asks {
            bail!("{argument}: expected it, found none (hint: at a terminal, ascribe registry add asks)");
        }
        let shown = suggested.map_or_else(String::new, |text| format!(" [{text}]"));
        loop {
            self.say(&format!("{question}{shown}: "))?;
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line)? == 0 {
                bail!("{argument}: expected an answer, found the end of the input");
            }
            let answer = match (line.trim(), suggested) {
                ("", Some(text)) => text,
                (text, _) => text,
            };
            match check(answer) {
                Ok(()) => return Ok(answer.to_owned()),
                Err(error) => self.say(&format!("{error}\n"))?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";

    #[test]
    fn payees_are_read_and_checked() {
        assert_eq!(payees_of(&[ACCOUNT.to_owned()]).unwrap()[0].share_ppm, WHOLE_PPM);
        assert_eq!(payees_of(&[format!("{ACCOUNT}=5")]).unwrap()[0].share_ppm, 5);
        let two = payees_of(&[ACCOUNT.to_owned(), ACCOUNT.to_owned()]).unwrap_err().to_string();
        assert!(two.contains("expected ACCOUNT=PPM, because there are several"), "{two}");
        let lower = payees_of(&[ACCOUNT.to_ascii_lowercase()]).unwrap_err().to_string();
        assert!(lower.contains("expected 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"), "{lower}");
    }

    #[test]
    fn names_come_from_folders() {
        assert_eq!(name_of(Path::new("/nowhere/My Corpus_2.jsonl.gz")), "my-corpus-2");
        assert_eq!(name_of(Path::new("/nowhere/___")), "dataset");
    }
}
