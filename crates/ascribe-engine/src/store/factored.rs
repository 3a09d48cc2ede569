//! Records to whitened factors in one call: dense rows beside the store, their factors into it, the dense rows away.
//!
//! The whitening is of the curvature of all rows, so no factor can be written before the last row is there. Until then the dense rows
//! lie in `OUT.dense`; a kill leaves them, and the same call goes on.

use std::path::{Path, PathBuf};

use ascribe_core::{FeatureReader as _, Progress, RowType};
use ascribe_models::Projection;
use ascribe_store::features::read_note;
use ascribe_store::{FeatureStore, StoreError};
use serde::Serialize;

use super::Made;
use super::notes::NOTES;
use super::whitened::{self, WhitenRequest, Whitened};
use crate::error::EngineError;
use crate::lab::features::{self, FeaturesReport, FeaturesRequest};

/// Ending of the folder of dense rows.
const DENSE: &str = "dense";

/// What is kept of dense rows.
#[derive(Clone, Copy, Debug)]
pub struct FactorSettings {
    /// Columns of the factors.
    pub rank: usize,
    /// Damping of each side, relative to its mean eigenvalue.
    pub damping: f64,
    /// How numbers are kept.
    pub row_type: RowType,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct Factored {
    /// The dense rows; none if the factors were there already.
    pub features: Option<FeaturesReport>,
    /// The store of factors.
    #[serde(flatten)]
    pub made: Made,
}

/// Makes a store of whitened factors ([`whitened`]) at `request.out` of the records of `request`. Resumes; a store that is there already
/// is held to the request. Needs the room of the dense rows in `request.row_type` meanwhile. Bytes are those of
/// [`features::run`] and [`whitened::make`] one after the other.
///
/// # Errors
/// Rows of another projection than a two-sided one, or a part of a build, before anything is read; a store that was made of
/// something else; those of the two.
pub fn run(
    request: &FeaturesRequest,
    settings: FactorSettings,
    progress: &dyn Progress,
) -> Result<Factored, EngineError> {
    check(request, settings)?;
    let (out, dense) = (&request.out, dense_folder(&request.out));
    if !dense.exists()
        && let Some(made) = made_before(request, settings, progress)?
    {
        return Ok(Factored { features: None, made });
    }
    let features = features::run(&FeaturesRequest { out: dense.clone(), ..request.clone() }, progress)?;
    let FactorSettings { rank, damping, row_type } = settings;
    let made =
        whitened::make(&WhitenRequest { store: dense.clone(), out: out.clone(), rank, damping, row_type }, progress)?;
    std::fs::remove_dir_all(&dense).map_err(|error| EngineError::io(&dense, error))?;
    Ok(Factored { features: Some(features), made })
}

fn dense_folder(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{DENSE}"));
    name.into()
}

/// Refuses what would be found out only after all rows were made.
fn check(request: &FeaturesRequest, settings: FactorSettings) -> Result<(), EngineError> {
    let refuse = |setting, expected: &str, found: String| {
        Err(EngineError::Setting { setting, expected: expected.to_owned(), found })
    };
    let taps = &request.taps;
    if request.embeddings || taps.projection != Projection::TwoSided {
        return refuse(
            "--factors",
            "gradients of two-sided projections (`--projection INxOUT`)",
            format!("{:?}", taps.projection),
        );
    }
    let rank_max = taps.k_in.min(taps.k_out);
    if settings.rank == 0 || settings.rank > rank_max {
        return refuse("--factors", &format!("a rank from 1 to {rank_max}"), settings.rank.to_string());
    }
    if request.part != (0, 1) {
        let expected = "all rows: the whitening is of all of them (make the parts, then `ascribe store merge` and `store convert --factors`)";
        return refuse("--shard", expected, format!("{}/{}", request.part.0, request.part.1));
    }
    Ok(())
}

/// The store that an earlier call ended, if it did: its notes are those of this request, its whitening has these settings.
fn made_before(
    request: &FeaturesRequest,
    settings: FactorSettings,
    progress: &dyn Progress,
) -> Result<Option<Made>, EngineError> {
    let out = &request.out;
    let store = match FeatureStore::open(out, None) {
        Ok(store) => store,
        Err(StoreError::Missing { .. } | StoreError::Unfinished { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let refuse = |setting, expected: String, found: String| Err(EngineError::Setting { setting, expected, found });
    let at = out.display();
    for (name, wanted) in NOTES.into_iter().zip(features::notes_of(request, progress)?) {
        if read_note(out, name)?.is_none_or(|found| found != wanted.as_bytes()) {
            return refuse(
                "--out",
                format!("a folder of these records, model and taps ({name})"),
                format!("{at} of others"),
            );
        }
    }
    let Some(whitened) = Whitened::of(out, &store)? else {
        return refuse("--out", "a store of whitened factors".to_owned(), format!("{:?}", store.spec().projector));
    };
    let found = FactorSettings { rank: whitened.rank(), damping: whitened.damping(), row_type: store.row_type() };
    let text = |s: FactorSettings| format!("rank {}, damping {}, {}", s.rank, s.damping, s.row_type.name());
    if text(found) != text(settings) {
        return refuse("--factors", format!("what {at} was made with: {}", text(found)), text(settings));
    }
    Ok(Some(Made::of(out, &store)))
}
