//! Scores become shares: the policy step, and `shares.json`.

use std::path::PathBuf;

use ascribe_core::{Digest, QueryId};
use ascribe_shares::{
    DatasetEntry, Evidence, InfluenceProportional, OwnerMap, Provenance, SharePolicy, TOO_NOISY_WIDTH_PPM, Values,
};
use ndarray::{Array3, Axis, CowArray};
use numpy::PyReadonlyArray3;
use pyo3::prelude::*;

use crate::arrays;
use crate::error::{AscribeError, OrRaise, value_error};
use crate::registry::Registry;
use crate::table::{Column, Table, finite};

/// What the policy decided, response by response.
#[pyclass(frozen, module = "ascribe")]
pub struct ShareBook {
    book: ascribe_shares::ShareBook,
}

#[pymethods]
impl ShareBook {
    #[getter]
    fn coverage_ppm(&self) -> u32 {
        self.book.coverage_ppm
    }

    fn __len__(&self) -> usize {
        self.book.responses.len()
    }

    /// The bytes of `shares.json`.
    fn to_json(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        py.detach(|| self.book.to_json()).or_raise()
    }

    /// A row per response and dataset with a weight.
    fn datasets(&self, py: Python<'_>) -> PyResult<Table> {
        py.detach(|| self.datasets_table())
    }

    /// A row per response and owner with a weight.
    fn owners(&self, py: Python<'_>) -> PyResult<Table> {
        py.detach(|| self.owners_table())
    }

    /// A row per response: its verdict and how many datasets share it.
    fn responses(&self, py: Python<'_>) -> PyResult<Table> {
        py.detach(|| self.responses_table())
    }
}

impl ShareBook {
    fn datasets_table(&self) -> PyResult<Table> {
        let owners = &self.book.owners;
        let mut rows = Vec::new();
        for response in &self.book.responses {
            for share in &response.shares {
                rows.push((response, share, owners.dataset(share.dataset).or_raise()?));
            }
        }
        let ppm = |of: &dyn Fn(&ascribe_core::Share) -> u32| {
            Column::F64(rows.iter().map(|(_, share, _)| f64::from(of(share)) / 1e6).collect())
        };
        Ok(Table::of(vec![
            ("query", Column::U32(rows.iter().map(|(response, _, _)| response.query.0).collect())),
            ("dataset", Column::text(rows.iter().map(|(_, _, entry)| &entry.name))?),
            ("owner", Column::text(rows.iter().map(|(_, _, entry)| &entry.owner))?),
            ("weight", Column::U64(rows.iter().map(|(_, share, _)| share.weight).collect())),
            ("share", ppm(&|share| share.share_ppm)),
            ("low", ppm(&|share| share.low_ppm)),
            ("high", ppm(&|share| share.high_ppm)),
            ("verdict", verdicts(rows.iter().map(|(response, _, _)| *response))?),
        ]))
    }

    fn owners_table(&self) -> PyResult<Table> {
        let rows: Vec<_> =
            self.book.responses.iter().flat_map(|r| r.owners.iter().map(move |owner| (r, owner))).collect();
        let names = self.book.owners.owners();
        Ok(Table::of(vec![
            ("query", Column::U32(rows.iter().map(|(response, _)| response.query.0).collect())),
            ("owner", Column::text(rows.iter().map(|(_, share)| &names[share.owner as usize]))?),
            ("weight", Column::text(rows.iter().map(|(_, share)| share.weight.to_string()))?),
            ("share", Column::F64(rows.iter().map(|(_, share)| f64::from(share.share_ppm) / 1e6).collect())),
            ("verdict", verdicts(rows.iter().map(|(response, _)| *response))?),
        ]))
    }

    fn responses_table(&self) -> PyResult<Table> {
        let all = &self.book.responses;
        Ok(Table::of(vec![
            ("query", Column::U32(all.iter().map(|response| response.query.0).collect())),
            ("verdict", verdicts(all.iter())?),
            ("datasets", Column::U32(all.iter().map(|response| response.shares.len() as u32).collect())),
        ]))
    }
}

fn verdicts<'a>(responses: impl Iterator<Item = &'a ascribe_shares::Response>) -> PyResult<Column> {
    let word = |response: &ascribe_shares::Response| match response.verdict {
        ascribe_shares::Verdict::Payable => "payable",
        ascribe_shares::Verdict::NoProponent => "no_proponent",
        ascribe_shares::Verdict::Cancelled => "cancelled",
        ascribe_shares::Verdict::TooNoisy => "too_noisy",
    };
    Column::text(responses.map(word))
}

/// Reads `shares.json`; everything in it is computed again.
#[pyfunction]
pub fn read_shares(py: Python<'_>, path: PathBuf) -> PyResult<ShareBook> {
    py.detach(|| Ok(ShareBook { book: ascribe_shares::ShareBook::from_json(&std::fs::read(&path)?).or_raise()? }))
}

/// Weighs datasets for responses. `values` `[Q, K]` f64 are calibrated shares, or raw scores with `noise_floor`; `intervals`
/// `[Q, K, 2]` f64 within 0 and 1 (none: from 0 to 1, which is too noisy to pay). Owners come from `registry`, or from `datasets`,
/// triples of uuid, name and owner.
#[pyfunction]
#[pyo3(signature = (values, registry=None, datasets=None, intervals=None, noise_floor=None, coverage=1.0, scores_sha256=None,
    spec_sha256=None, max_width=None))]
#[expect(clippy::too_many_arguments, reason = "keywords in Python")]
pub fn shares(
    py: Python<'_>,
    values: &Bound<'_, PyAny>,
    registry: Option<PyRef<'_, Registry>>,
    datasets: Option<Vec<(String, String, String)>>,
    intervals: Option<PyReadonlyArray3<'_, f64>>,
    noise_floor: Option<f64>,
    coverage: f64,
    scores_sha256: Option<&str>,
    spec_sha256: Option<&str>,
    max_width: Option<f64>,
) -> PyResult<ShareBook> {
    let values = arrays::matrix::<f64>("values", values)?;
    let values = values.as_array();
    let (owners, origin) = match (registry, datasets) {
        (Some(registry), None) => {
            let registry = &registry.registry;
            py.detach(|| Ok::<_, PyErr>((OwnerMap::of_registry(registry).or_raise()?, registry.digest())))?
        }
        (None, Some(datasets)) => {
            let entry = |(uuid, name, owner)| DatasetEntry { uuid, name, owner };
            let owners = py.detach(|| OwnerMap::new(datasets.into_iter().map(entry).collect()));
            (owners.or_raise()?, Digest::default())
        }
        _ => return Err(value_error("owners", "either registry or datasets", "both or neither")),
    };
    let intervals = match &intervals {
        Some(given) => CowArray::from(given.as_array()),
        None => {
            let mut whole = Array3::zeros((values.nrows(), values.ncols(), 2));
            whole.index_axis_mut(Axis(2), 1).fill(1.0);
            CowArray::from(whole)
        }
    };
    let digest = |text: Option<&str>| {
        text.map_or_else(
            || Ok(Digest::default()),
            |text| text.parse().map_err(|e| AscribeError::new_err(format!("{e}"))),
        )
    };
    let provenance = Provenance { scores_sha256: digest(scores_sha256)?, spec: digest(spec_sha256)?, registry: origin };
    let queries: Vec<QueryId> = (0..values.nrows() as u32).map(QueryId).collect();
    let evidence = Evidence {
        queries: &queries,
        values: noise_floor
            .map_or(Values::Calibrated(values), |noise_floor| Values::Raw { scores: values, noise_floor }),
        intervals: intervals.view(),
        coverage: finite("coverage", coverage)?,
        provenance,
    };
    let max_width_ppm = match max_width {
        Some(width) if (0.0..=1.0).contains(&width) => (width * 1e6) as u32,
        Some(width) => return Err(value_error("max_width", "0 to 1", width)),
        None => TOO_NOISY_WIDTH_PPM,
    };
    let policy = InfluenceProportional { max_width_ppm, ..InfluenceProportional::default() };
    Ok(ShareBook { book: py.detach(|| policy.shares(&evidence, &owners)).or_raise()? })
}
