//! `ascribe._ascribe`: the engine's stations for Python.
//!
//! Here live conversions: numpy arrays and paths in, arrays, tables and exceptions out; the interpreter's lock is let go of
//! while Rust works. Here never lives: arithmetic, policy, formats (the crates below), or what is pleasant in a notebook
//! (`python/ascribe`, which wraps this module and is what users import).
//!
//! Arrays go in and out without copies where they can: rows that are read lie in the mapped shard, queries are borrowed, results
//! are handed over. Tables go out through Arrow's C data interface ([`table`]).

mod arrays;
mod c_data;
mod error;
mod index;
mod layout;
mod ledger;
mod methods;
mod metrics;
mod progress;
mod project;
mod registrar;
mod registry;
mod shares;
mod store;
mod table;
mod writer;

use pyo3::prelude::*;

/// The module.
#[pymodule]
mod _ascribe {
    use super::*;

    #[pymodule_export]
    use crate::error::{
        AscribeError, EvalError, LedgerError, LockedError, MethodError, NotFiniteError, RegistryError, SearchError,
        SharesError, SpecMismatchError, StoreError, UnfinishedError,
    };
    #[pymodule_export]
    use crate::index::Index;
    #[pymodule_export]
    use crate::ledger::{read_journal, read_payout};
    #[pymodule_export]
    use crate::methods::{BlockFisher, dataset_scores, fit, read_scores, score, write_scores};
    #[pymodule_export]
    use crate::metrics::{
        auprc, bootstrap_mean, brittleness, evaluate, found_area, hit_at, label_top1, lds, lds_removed, loo,
        paired_difference, pearson, recall_at, reciprocal_ranks, removal_effect, roc_auc, share_error, spearman,
        tail_patch,
    };
    #[pymodule_export]
    use crate::project::{spec_hash, stream_words, two_sided};
    #[pymodule_export]
    use crate::registrar::{registry_add, registry_init};
    #[pymodule_export]
    use crate::registry::Registry;
    #[pymodule_export]
    use crate::shares::{ShareBook, read_shares, shares};
    #[pymodule_export]
    use crate::store::{Store, convert, make_companion, merge};
    #[pymodule_export]
    use crate::table::Table;
    #[pymodule_export]
    use crate::writer::StoreWriter;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
