//! Registries, made and added to: what `ascribe registry init` and `registry add` do, without questions. Licences are signed by the
//! command or in a wallet: no key passes through here.

use std::path::PathBuf;

use ascribe_registry::prepare::NewDataset;
use ascribe_registry::registrar::{NewContent, Registrar};
use ascribe_registry::{DEFAULT_DATABASE, Fields, Payee, Settings, Source, SourceSet, check_account};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::OrRaise;
use crate::progress::Listener;

/// A dataset as the wrapper describes it, every field given.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Description {
    name: String,
    title: String,
    owner: String,
    language: String,
    licence: String,
    permits: Vec<String>,
    prohibits: Vec<String>,
    payees: Vec<(String, u32)>,
    source: String,
    source_version: String,
    notes: String,
    terms: String,
    text_field: String,
    id_field: String,
    skip_empty: bool,
    in_place: bool,
}

impl Description {
    fn parts(self) -> (NewDataset, Fields) {
        let payees = self.payees.into_iter().map(|(account, share_ppm)| Payee { account, share_ppm });
        let source = Source { registry: "own".to_owned(), package: self.source, version: self.source_version };
        let new = NewDataset {
            name: self.name,
            title: self.title,
            owner: self.owner,
            language: self.language,
            licence: self.licence,
            permits: self.permits,
            prohibits: self.prohibits,
            payees: payees.collect(),
            source,
            notes: self.notes,
            terms: self.terms,
        };
        (new, Fields { id: self.id_field, text: self.text_field, skip_empty: self.skip_empty })
    }
}

/// Makes a registry in a folder that is none yet.
#[pyfunction]
#[pyo3(signature = (path, name=None, chain_id=1))]
pub fn registry_init(py: Python<'_>, path: PathBuf, name: Option<String>, chain_id: u64) -> PyResult<()> {
    py.detach(|| {
        let name = name.map_or_else(Settings::random_name, Ok)?;
        Registrar::init(&path, &Settings::new(&name, chain_id, DEFAULT_DATABASE)).map(drop)
    })
    .or_raise()
}

/// Registers the records in `folder`, as a dataset or as its next version.
#[pyfunction]
#[pyo3(signature = (path, folder, description, progress=None))]
pub fn registry_add<'py>(
    py: Python<'py>,
    path: PathBuf,
    folder: PathBuf,
    description: Description,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let in_place = description.in_place;
    let (new, fields) = description.parts();
    let listener = Listener::new(progress);
    let added = py.detach(|| {
        for payee in &new.payees {
            check_account(std::path::Path::new("payees"), "account", &payee.account)?;
        }
        let content = NewContent { set: SourceSet::find(&folder)?, fields, in_place };
        Registrar::open(&path)?.add(&new, &content, &listener)
    });
    let added = listener.settle(added.or_raise())?;
    let found = PyDict::new(py);
    found.set_item("name", added.name)?;
    found.set_item("uuid", added.uuid)?;
    found.set_item("version", added.version)?;
    found.set_item("new", added.new)?;
    found.set_item("records", added.record_count)?;
    found.set_item("len_bytes", added.len_bytes)?;
    found.set_item("content_root", added.content_root.to_string())?;
    Ok(found)
}
