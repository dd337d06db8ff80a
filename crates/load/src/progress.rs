//! What is seen of a run while it goes on: a bar for each of its stages, with rates.
//!
//! It goes to standard error, so that standard output is for figures alone. Where nobody watches a
//! terminal it is a line now and then.
//!
//! Invariant: nothing is measured here; a run without a view finds the same.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The stages of a run, as they are seen.
pub(super) struct ProgressView {
    bars: Option<MultiProgress>,
}

/// One stage.
pub(super) struct Stage {
    name: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    last_line: Cell<Option<Instant>>,
}

impl ProgressView {
    pub fn new() -> Self {
        let is_watched = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self {
            bars: is_watched.then(MultiProgress::new),
        }
    }

    /// Begins a stage that has so many steps.
    pub fn begin(&self, name: &'static str, total: u64) -> Stage {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total));
            let template = "  {prefix:<9.bold} {bar:24.cyan/blue.dim} {percent:>3} %  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(name);
            bar.tick();
            bar
        });
        Stage {
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
            // What follows begins below the bars.
            let _ = writeln!(std::io::stderr());
        }
    }
}

impl Stage {
    /// Shows how far it is.
    pub fn at(&self, position: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(position.min(self.total));
            bar.set_message(message());
            return;
        }
        let is_due = self
            .last_line
            .get()
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if is_due {
            self.last_line.set(Some(Instant::now()));
            self.line(&message());
        }
    }

    /// Shows how it came out.
    pub fn end(self, message: String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.total);
                bar.finish_with_message(message);
            }
            None => self.line(&message),
        }
    }

    fn line(&self, message: &str) {
        // Whoever listened may have gone.
        let _ = writeln!(std::io::stderr(), "{:<9} {message}", self.name);
    }
}
