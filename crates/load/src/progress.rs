//! Progress display on standard error: a bar per phase on a terminal, one line per second otherwise.
//!
//! Invariant: standard output is reserved for the results.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Interval between lines if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Display of all phases of a run.
pub(super) struct ProgressView {
    bars: Option<MultiProgress>,
}

/// Display of one phase.
pub(super) struct Phase {
    name: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    last_line: Cell<Option<Instant>>,
}

impl ProgressView {
    pub fn new() -> Self {
        let is_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self {
            bars: is_terminal.then(MultiProgress::new),
        }
    }

    /// Starts a phase with `total` steps.
    pub fn start(&self, name: &'static str, total: u64) -> Phase {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total));
            let template = "  {prefix:<10.bold} {bar:24.cyan/blue.dim} {percent:>3}%  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(name);
            bar.tick();
            bar
        });
        Phase {
            name,
            total,
            bar,
            last_line: Cell::new(None),
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        if self.bars.is_some() {
            // Moves the cursor below the bars. A failure has no effect on the results.
            let _ = writeln!(std::io::stderr());
        }
    }
}

impl Phase {
    /// Shows the current position.
    pub fn update(&self, position: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(position.min(self.total));
            bar.set_message(message());
        } else if self
            .last_line
            .get()
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL)
        {
            self.last_line.set(Some(Instant::now()));
            self.print_line(&message());
        }
    }

    /// Shows the result of the phase.
    pub fn finish(self, message: String) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.total);
            bar.finish_with_message(message);
        } else {
            self.print_line(&message);
        }
    }

    fn print_line(&self, message: &str) {
        // Standard error may be closed. The run continues without progress.
        let _ = writeln!(std::io::stderr(), "{:<10} {message}", self.name);
    }
}
