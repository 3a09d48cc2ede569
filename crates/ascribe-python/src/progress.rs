//! A Python listener behind `dyn Progress`, and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};

use ascribe_core::Progress;
use pyo3::prelude::*;

/// Calls `start(stage, total, unit)`, `advance(n)` and `finish(note)` of a Python object, if there is one. A listener that raises
/// stops the work at its next safe point, and so does a pending signal.
pub struct Listener {
    object: Option<Py<PyAny>>,
    stop: AtomicBool,
    error: std::sync::Mutex<Option<PyErr>>,
}

impl Listener {
    /// Listens through `object`.
    pub fn new(object: Option<Py<PyAny>>) -> Self {
        Self { object, stop: AtomicBool::new(false), error: std::sync::Mutex::new(None) }
    }

    /// What the listener raised, or the result.
    ///
    /// # Errors
    /// The first exception that a call raised; else that of `result`.
    pub fn settle<T>(&self, result: PyResult<T>) -> PyResult<T> {
        let raised = self.error.lock().ok().and_then(|mut error| error.take());
        raised.map_or(result, Err)
    }

    fn call(&self, work: impl for<'py> FnOnce(&Bound<'py, PyAny>) -> PyResult<()>) {
        let Some(object) = &self.object else { return };
        Python::attach(|py| {
            if let Err(error) = work(object.bind(py)) {
                self.keep(error);
            }
        });
    }

    fn keep(&self, error: PyErr) {
        self.stop.store(true, Ordering::Relaxed);
        if let Ok(mut kept) = self.error.lock() {
            kept.get_or_insert(error);
        }
    }
}

impl Progress for Listener {
    fn start(&self, stage: &str, total: u64, unit: &str) {
        self.call(|object| object.call_method1("start", (stage, total, unit)).map(drop));
    }

    fn advance(&self, n: u64) {
        self.call(|object| object.call_method1("advance", (n,)).map(drop));
    }

    fn finish(&self, note: &str) {
        self.call(|object| object.call_method1("finish", (note,)).map(drop));
    }

    fn stop_requested(&self) -> bool {
        if !self.stop.load(Ordering::Relaxed)
            && let Err(error) = Python::attach(|py| py.check_signals())
        {
            self.keep(error);
        }
        self.stop.load(Ordering::Relaxed)
    }
}
