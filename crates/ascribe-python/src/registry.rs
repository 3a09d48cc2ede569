//! Registry folders, read and verified.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::error::OrRaise;
use crate::progress::Listener;
use crate::table::{Column, Table};

/// A registry folder: datasets, owners, licences.
#[pyclass(frozen, module = "ascribe")]
pub struct Registry {
    pub(crate) registry: ascribe_registry::Registry,
    path: PathBuf,
}

#[pymethods]
impl Registry {
    /// Opens a registry. Manifests, licences and the log are read; `verify` checks record bytes and signatures.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let registry = py.detach(|| ascribe_registry::Registry::open(&path)).or_raise()?;
        Ok(Self { registry, path })
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    #[getter]
    fn digest(&self) -> String {
        self.registry.digest().to_string()
    }

    fn __len__(&self) -> usize {
        self.registry.datasets().len()
    }

    /// A row per dataset, in the order of their ordinals.
    fn datasets(&self, py: Python<'_>) -> PyResult<Table> {
        py.detach(|| self.datasets_table())
    }

    /// A row per owner and payee.
    fn owners(&self, py: Python<'_>) -> PyResult<Table> {
        py.detach(|| self.owners_table())
    }

    /// Recomputes every content root and licence signature; raises at the first that does not hold.
    #[pyo3(signature = (progress=None))]
    fn verify(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<Table> {
        let listener = Listener::new(progress);
        let report = py.detach(|| report_table(&self.registry.verify(None, &listener).or_raise()?.datasets));
        listener.settle(report)
    }
}

impl Registry {
    fn datasets_table(&self) -> PyResult<Table> {
        let all = self.registry.datasets();
        let text = |of: &dyn Fn(&ascribe_registry::Dataset) -> String| Column::text(all.iter().map(of));
        Ok(Table::of(vec![
            ("ordinal", Column::U32(all.iter().map(|d| d.ordinal).collect())),
            ("name", text(&|d| d.manifest.name.clone())?),
            ("uuid", text(&|d| d.manifest.uuid.clone())?),
            ("title", text(&|d| d.manifest.title.clone())?),
            ("owner", text(&|d| d.manifest.owner.clone())?),
            ("language", text(&|d| d.manifest.language.clone())?),
            ("licence", text(&|d| d.manifest.licence.clone())?),
            ("permits", text(&|d| d.manifest.permits.join(" "))?),
            ("records", Column::U64(all.iter().map(|d| d.manifest.record_count).collect())),
            ("bytes", Column::U64(all.iter().map(|d| d.manifest.len_bytes).collect())),
            ("content_root", text(&|d| d.manifest.content_root.to_string())?),
        ]))
    }

    fn owners_table(&self) -> PyResult<Table> {
        let owners = &self.registry.owners().owners;
        let rows: Vec<_> = owners.iter().flat_map(|o| o.payees.iter().map(move |payee| (o, payee))).collect();
        Ok(Table::of(vec![
            ("owner", Column::text(rows.iter().map(|(o, _)| &o.name))?),
            ("account", Column::text(rows.iter().map(|(_, payee)| &payee.account))?),
            ("share_ppm", Column::U32(rows.iter().map(|(_, payee)| payee.share_ppm).collect())),
            ("datasets", Column::U32(rows.iter().map(|(o, _)| o.datasets.len() as u32).collect())),
        ]))
    }
}

fn report_table(report: &[ascribe_registry::DatasetReport]) -> PyResult<Table> {
    Ok(Table::of(vec![
        ("name", Column::text(report.iter().map(|d| &d.name))?),
        ("owner", Column::text(report.iter().map(|d| &d.owner))?),
        ("licence", Column::text(report.iter().map(|d| &d.licence))?),
        ("licensor", Column::text(report.iter().map(|d| &d.licensor))?),
        ("licence_digest", Column::text(report.iter().map(|d| d.licence_digest.to_string()))?),
        ("content_root", Column::text(report.iter().map(|d| d.content_root.to_string()))?),
        ("records", Column::U64(report.iter().map(|d| d.record_count).collect())),
        ("log_index", Column::U64(report.iter().map(|d| d.log_index).collect())),
    ]))
}
