//! Datasets under other owners or licences: a new generation whose rows, sums per dataset and deleted rows are the old one's files.

use std::path::Path;

use super::delete::refuse_pending;
use super::generation::{Generation, remove_old};
use super::layout::Paths;
use super::sums::DatasetSums;
use super::terms::{DatasetTerms, Terms};
use super::writer::open_to_change;
use crate::error::StoreError;

/// Changes what the store at `dir` knows of its datasets; returns the new generation, or the old one if nothing changed.
///
/// Rows and sums per dataset are not touched: sums per owner are made of the latter, so their bytes depend on these and on who
/// owns what, not on the way there. Companions, curvature and graphs stay what they were. Cost: one read of the sums per dataset, one
/// write of those per owner.
///
/// # Errors
/// [`StoreError::NoSuchRow`] for a dataset that never had a row, what [`Terms::set`] refuses (nothing is changed then);
/// [`StoreError::Pending`] beside an unfinished append; [`StoreError::Locked`]; those of opening and of the file system.
pub fn relicense(dir: &Path, changes: &[DatasetTerms]) -> Result<Generation, StoreError> {
    let paths = Paths::new(dir);
    let (header, base, _lock) = open_to_change(&paths)?;
    refuse_pending(&paths, &base)?;
    let before = Terms::of(&paths, &header, &base)?;
    let mut after = before.clone();
    for change in changes {
        if change.dataset >= base.n_datasets {
            return Err(StoreError::NoSuchRow {
                path: paths.root,
                what: format!("a row of dataset {}", change.dataset),
            });
        }
        after.set(change)?;
    }
    if after == before {
        return Ok(base);
    }
    let sums = DatasetSums::of(&paths, &header, &base)?;
    let mut next = base.next("relicense");
    let committed = after.write(&paths, &header, &mut next, &sums).and_then(|()| next.commit(&paths));
    if committed.is_err() && !paths.generation(next.generation).exists() {
        // Nothing names what was written; if it stays, the next writer removes it.
        let _ = remove_old(&paths, &header, &base);
    }
    committed?;
    remove_old(&paths, &header, &next)?;
    Generation::read(&paths, &header, next.generation)
}
