//! Reading ahead of a scan whose rows do not lie in memory.
//!
//! A page that is touched and not there is read while its thread waits, so two cores keep two requests of a disk under way that wants
//! many. The system's own advice is for less than a wave (it cuts what it is asked for to one request), and asking takes a while even
//! where all is there. So: if a wave was slow, and pages had to be fetched from a disk in it, some threads that do nothing else
//! read the rows of the next one, until that turns out to be as quick as memory. What is found does not depend on it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ascribe_store::FeatureStore;

use super::scan::Part;

/// Requests of the disk under way.
const READERS: usize = 4;
/// Parts of one request, one after the other: 4 MiB.
const RUN_PARTS: usize = 16;
/// A wave that is scanned at more bytes a second did not wait for a disk.
const SLOW: f64 = 3e9;
/// Rows that are read ahead at more than this lie in memory already.
const QUICK: f64 = 8e9;

/// Whether rows come from a disk, as far as a pass has seen.
pub(super) struct Ahead {
    n_fetched: u64,
    is_cold: bool,
}

impl Ahead {
    /// At the start of a pass.
    pub fn new() -> Self {
        Self { n_fetched: n_fetched(), is_cold: false }
    }

    /// Does `work`, a wave of `bytes`, and reads the rows of `next` beside it where they come from a disk.
    pub fn beside<T>(&mut self, store: &FeatureStore, bytes: usize, next: &[Part], work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        if !self.is_cold {
            let done = work();
            if (bytes as f64) < SLOW * begun.elapsed().as_secs_f64() {
                let fetched = n_fetched();
                self.is_cold = fetched > self.n_fetched;
                self.n_fetched = fetched;
            }
            return done;
        }
        let (at, stride) = (AtomicUsize::new(0), store.header().stride());
        let runs: Vec<&[Part]> =
            next.chunk_by(|a, b| a.0 == b.0).flat_map(|of_shard| of_shard.chunks(RUN_PARTS)).collect();
        let reader = || {
            while let Some(run) = runs.get(at.fetch_add(1, Ordering::Relaxed)) {
                let ((shard, first), (_, last)) = (&run[0], &run[run.len() - 1]);
                store.read_ahead(*shard, first.start..last.end);
            }
            begun.elapsed().as_secs_f64()
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS.min(runs.len())).map(|_| scope.spawn(reader)).collect();
            let done = work();
            let seconds = readers.into_iter().filter_map(|reader| reader.join().ok()).fold(0.0, f64::max);
            let next_bytes = next.iter().map(|(_, rows)| rows.len() * stride).sum::<usize>() as f64;
            self.is_cold = next_bytes < QUICK * seconds;
            done
        })
    }
}

/// Pages that this process had to wait for a disk for, so far; 0 where the system does not tell.
fn n_fetched() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in brackets, may hold anything; behind it the tenth field counts major faults.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split(' ').nth(9).and_then(|field| field.parse().ok()).unwrap_or(0)
}
