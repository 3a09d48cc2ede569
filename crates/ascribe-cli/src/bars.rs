//! Progress bars on stderr, only when stderr is a terminal; otherwise one line per finished station.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ascribe_core::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// Set by the first interrupt; work then stops at its next safe point.
pub static STOP: AtomicBool = AtomicBool::new(false);

/// The first interrupt asks for a stop at the next safe point; a second one ends the process at once.
///
/// # Errors
/// When the system refuses the handler.
pub fn watch_interrupts() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        let _ = writeln!(std::io::stderr(), "stopping at the next safe point; press again to stop at once");
    })?;
    Ok(())
}

/// Draws what the engine reports.
pub struct Bars {
    quiet: bool,
    terminal: bool,
    current: Mutex<Option<(String, Instant, ProgressBar)>>,
}

impl Bars {
    /// Bars, or silence.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, terminal: std::io::stderr().is_terminal(), current: Mutex::new(None) }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Option<(String, Instant, ProgressBar)>) -> R) -> R {
        // A poisoned lock only means that another thread panicked while drawing; the bar is still usable.
        f(&mut self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl Progress for Bars {
    fn start(&self, stage: &str, total: u64, unit: &str) {
        if self.quiet {
            return;
        }
        let bar = if !self.terminal {
            ProgressBar::hidden()
        } else if total == 0 {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar.with_message(stage.to_owned())
        } else {
            let template = "{msg:<24} {bar:32} {pos}/{len} {unit} {eta}".replace("{unit}", unit);
            // The template is a constant of ours; a refused one falls back to the library's.
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_message(stage.to_owned())
        };
        self.with(|current| *current = Some((stage.to_owned(), Instant::now(), bar)));
    }

    fn advance(&self, n: u64) {
        self.with(|current| {
            if let Some((_, _, bar)) = current {
                bar.inc(n);
            }
        });
    }

    fn finish(&self, note: &str) {
        self.with(|current| {
            if let Some((stage, started, bar)) = current.take() {
                bar.finish_and_clear();
                let seconds = started.elapsed().as_secs_f64();
                // Talk goes to stderr; if that is closed there is nobody to tell.
                let _ = writeln!(std::io::stderr(), "{stage:<24} {seconds:>7.1} s  {note}");
            }
        });
    }

    fn stop_requested(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}
