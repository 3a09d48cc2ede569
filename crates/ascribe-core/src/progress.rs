//! How long work tells what it does. Libraries take `&dyn Progress`; only the command line draws bars.

/// A listener to long work. Implementations must be cheap: they are called from worker threads.
pub trait Progress: Send + Sync {
    /// A stage begins; `total` is in `unit`s (0 when unknown).
    fn start(&self, stage: &str, total: u64, unit: &str);
    /// `n` more units of the current stage are done.
    fn advance(&self, n: u64);
    /// The current stage is over; `note` is one line for a person.
    fn finish(&self, note: &str);
    /// True when the user asked to stop; work then ends at the next safe point and can be resumed.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Listens to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _stage: &str, _total: u64, _unit: &str) {}
    fn advance(&self, _n: u64) {}
    fn finish(&self, _note: &str) {}
}
