//! A registry to write to, on either engine.

use std::fs;
use std::path::{Path, PathBuf};

use ascribe_core::NoProgress;
use ascribe_registry::keystore::{self, KeyKind, KeystoreSigner};
use ascribe_registry::prepare::NewDataset;
use ascribe_registry::registrar::{Accepted, Added, NewContent, Registrar};
use ascribe_registry::{
    Address, Fields, Licence, LicenceMessage, Licensor as _, Payee, Registry, RegistryError, Revocation, Settings,
    SignedLicence, Signer as _, Source, SourceSet, sign_licence,
};
use ascribe_sql::Database;
use tempfile::TempDir;

pub const PAYEE: &str = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";

/// A folder, and which database goes with it.
pub struct Place {
    pub dir: TempDir,
    pub settings: Settings,
}

impl Place {
    pub fn sqlite() -> Self {
        Self { dir: TempDir::new().unwrap(), settings: Settings::new("a test registry", 1, "sqlite:registry.db") }
    }

    /// A new database on the server that `ASCRIBE_TEST_POSTGRES` names.
    pub fn postgres(name: &str) -> Self {
        let server =
            std::env::var("ASCRIBE_TEST_POSTGRES").expect("ASCRIBE_TEST_POSTGRES holds the address of a server");
        let database = format!("registry_{}_{name}", std::process::id());
        let mut db = Database::open(&server).unwrap();
        db.execute(&format!("CREATE DATABASE {database}"), &[]).unwrap();
        let address = server.replace("/postgres?", &format!("/{database}?"));
        Self { dir: TempDir::new().unwrap(), settings: Settings::new("a test registry", 1, &address) }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    pub fn init(&self) -> Registrar {
        Registrar::init(&self.root(), &self.settings).unwrap()
    }

    pub fn open(&self) -> Registrar {
        Registrar::open(&self.root()).unwrap()
    }

    pub fn folder(&self) -> Registry {
        Registry::open(&self.root()).unwrap()
    }

    /// The rows behind the registry.
    pub fn database(&self) -> Database {
        let address = self.settings.database.replace("sqlite:", &format!("sqlite:{}/", self.root().display()));
        Database::open(&address).unwrap()
    }

    /// A source file beside the registry.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn add(&self, registrar: &mut Registrar, name: &str, lines: &str) -> Result<Added, RegistryError> {
        let path = self.file(&format!("{name}.jsonl"), lines);
        registrar.add(&described(name), &content(&path), &NoProgress)
    }
}

/// Five records of a dataset.
pub fn lines(name: &str) -> String {
    (0..5).map(|i| format!("{{\"id\":\"{name}/{i}\",\"text\":\"text {i} of {name}\"}}\n")).collect()
}

pub fn content(path: &Path) -> NewContent {
    NewContent { set: SourceSet::find(path).unwrap(), fields: Fields::default(), in_place: false }
}

pub fn described(name: &str) -> NewDataset {
    NewDataset {
        name: name.to_owned(),
        title: format!("The {name}"),
        owner: format!("Owner of {name}"),
        language: "en".to_owned(),
        licence: "CC-BY-4.0".to_owned(),
        permits: vec!["ai-train".to_owned()],
        prohibits: vec!["search".to_owned()],
        payees: vec![Payee { account: PAYEE.to_owned(), share_ppm: 1_000_000 }],
        source: Source { registry: "own".to_owned(), package: name.to_owned(), version: "1".to_owned() },
        notes: String::new(),
        terms: format!("Terms of {name}.\n"),
    }
}

/// A key that nobody else has, in a keystore of its own.
pub fn key(kind: KeyKind) -> KeystoreSigner {
    let dir = TempDir::new().unwrap();
    keystore::create(&dir.path().join("key.json"), b"phrase", kind).unwrap()
}

pub fn address(signer: &KeystoreSigner) -> Address {
    Address::parse(&signer.licensor()).unwrap()
}

/// A licence as `licence sign` makes it, with a change of the message before it is signed.
pub fn signed(
    registrar: &mut Registrar,
    name: &str,
    signer: &KeystoreSigner,
    change: impl FnOnce(&mut LicenceMessage),
) -> Licence {
    let mut message = registrar.prepare(name, address(signer), None, 0).unwrap();
    change(&mut message);
    let domain = registrar.domain().clone();
    sign_licence(Path::new("licence.json"), domain, message, &format!("Owner of {name}"), signer).unwrap()
}

pub fn license(registrar: &mut Registrar, name: &str, signer: &KeystoreSigner) -> Accepted {
    let licence = signed(registrar, name, signer, |_| ());
    registrar.accept(&SignedLicence::Eip712(licence)).unwrap()
}

pub fn revoke(
    registrar: &mut Registrar,
    name: &str,
    signer: &KeystoreSigner,
    from: u64,
) -> Result<Accepted, RegistryError> {
    let (_, message) = registrar.prepare_revocation(name, Some(from), "sold").unwrap();
    let domain = registrar.domain().clone();
    let revocation = Revocation::sign(Path::new("revocation.json"), domain, message, signer).unwrap();
    registrar.revoke(&revocation)
}

/// The message of a refusal.
pub fn message<T>(result: Result<T, RegistryError>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}
