//! Errors become Python exceptions with the Rust message, hint and all.

use std::error::Error;

use ascribe_index::IndexError;
use ascribe_methods::MethodError as Method;
use ascribe_store::StoreError as Store;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyTypeError, PyValueError};
use pyo3::prelude::*;

create_exception!(ascribe, AscribeError, PyException, "Anything that Ascribe refuses.");
create_exception!(
    ascribe,
    StoreError,
    AscribeError,
    "A feature store or a score file: damaged, missing, of another shape."
);
create_exception!(ascribe, SpecMismatchError, StoreError, "Two stores, or a store and queries, that do not compare.");
create_exception!(ascribe, LockedError, StoreError, "Somebody else writes to the store.");
create_exception!(ascribe, UnfinishedError, StoreError, "The store lacks rows that it was begun with.");
create_exception!(ascribe, NotFiniteError, StoreError, "A row holds a number that is not finite.");
create_exception!(ascribe, SearchError, AscribeError, "A search that cannot be answered.");
create_exception!(ascribe, MethodError, AscribeError, "A method that cannot be fitted or scored.");
create_exception!(ascribe, EvalError, AscribeError, "A measure that is not defined on what it was given.");
create_exception!(ascribe, SharesError, AscribeError, "Scores that cannot become shares.");
create_exception!(ascribe, RegistryError, AscribeError, "A registry that is damaged or contradicts itself.");
create_exception!(ascribe, LedgerError, AscribeError, "Books that do not close, or are damaged.");

/// An error with the chain of what caused it, as Python says it.
pub trait IntoPy {
    /// The exception.
    fn into_py(self) -> PyErr;
}

/// A result whose error is a Python exception.
pub trait OrRaise<T> {
    /// Maps the error.
    fn or_raise(self) -> PyResult<T>;
}

impl<T, E: IntoPy> OrRaise<T> for Result<T, E> {
    fn or_raise(self) -> PyResult<T> {
        self.map_err(IntoPy::into_py)
    }
}

/// The message and its causes, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

impl IntoPy for Store {
    fn into_py(self) -> PyErr {
        let text = chain(&self);
        match self {
            Self::SpecMismatch { .. } | Self::SettingMismatch { .. } => SpecMismatchError::new_err(text),
            Self::Locked { .. } => LockedError::new_err(text),
            Self::Unfinished { .. } => UnfinishedError::new_err(text),
            Self::NotFinite { .. } => NotFiniteError::new_err(text),
            _ => StoreError::new_err(text),
        }
    }
}

impl IntoPy for IndexError {
    fn into_py(self) -> PyErr {
        match self {
            // What the store said is the store's error, whoever asked.
            Self::Store(error) => error.into_py(),
            Self::SpecMismatch { .. } => SpecMismatchError::new_err(chain(&self)),
            other => SearchError::new_err(chain(&other)),
        }
    }
}

impl IntoPy for Method {
    fn into_py(self) -> PyErr {
        MethodError::new_err(chain(&self))
    }
}

impl IntoPy for ascribe_eval::EvalError {
    fn into_py(self) -> PyErr {
        EvalError::new_err(chain(&self))
    }
}

impl IntoPy for ascribe_shares::SharesError {
    fn into_py(self) -> PyErr {
        SharesError::new_err(chain(&self))
    }
}

impl IntoPy for ascribe_registry::RegistryError {
    fn into_py(self) -> PyErr {
        match self {
            Self::Stopped => PyKeyboardInterrupt::new_err("stopped"),
            other => RegistryError::new_err(chain(&other)),
        }
    }
}

impl IntoPy for ascribe_ledger::LedgerError {
    fn into_py(self) -> PyErr {
        LedgerError::new_err(chain(&self))
    }
}

impl IntoPy for serde_json::Error {
    fn into_py(self) -> PyErr {
        AscribeError::new_err(chain(&self))
    }
}

/// A wrong argument.
pub fn value_error(what: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(format!("{what}: expected {expected}, found {found}"))
}

/// An argument of a wrong type.
pub fn type_error(what: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display, hint: &str) -> PyErr {
    PyTypeError::new_err(format!("{what}: expected {expected}, found {found}; hint: {hint}"))
}
