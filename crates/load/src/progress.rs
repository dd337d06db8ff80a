//! Progress display on standard error: a bar per phase on a terminal, one line per second otherwise.
//!
//! Invariant: standard output is reserved for the results.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Interval between lines if standard error is not a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Display of one phase of a run. The bar is hidden if there is no terminal.
pub(super) struct Phase {
    bar: ProgressBar,
    next_line: Cell<Instant>,
}

impl Phase {
    /// Starts a phase with `total` steps.
    pub fn start(name: &'static str, total: u64) -> Self {
        let is_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let target = if is_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_prefix(name);
        let template = "  {prefix:<10.bold} {bar:24.cyan/blue.dim} {percent:>3}%  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self {
            bar,
            next_line: Cell::new(Instant::now()),
        }
    }

    /// Shows the current position.
    pub fn update(&self, position: u64, message: impl FnOnce() -> String) {
        if !self.bar.is_hidden() {
            self.bar.set_position(position);
            self.bar.set_message(message());
        } else if Instant::now() >= self.next_line.get() {
            self.next_line.set(Instant::now() + LINE_INTERVAL);
            self.print_line(&message());
        }
    }

    /// Shows the result of the phase.
    pub fn finish(self, message: String) {
        if self.bar.is_hidden() {
            self.print_line(&message);
        }
        self.bar.finish_with_message(message);
    }

    fn print_line(&self, message: &str) {
        // Standard error may be closed. The run continues without progress.
        let _ = writeln!(std::io::stderr(), "{:<10} {message}", self.bar.prefix());
    }
}
