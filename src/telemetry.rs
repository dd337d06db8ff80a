//! Logs on standard error, and metrics at `/metrics`.
//!
//! Standard output is reserved for the output of a command. Logging never blocks a request. Lines
//! are dropped and counted while the buffer of standard error is full.

mod dependencies;
mod labels;
mod line_limit;
mod log;
mod metrics;

use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use labels::{
    AdmissionRejection, ArchiveFailure, AttemptOutcome, CallOutcome, ConnectionKind,
    DestinationKind, DestinationStatus, Limit, ProviderOperation, ProviderState, WebhookOutcome,
};
pub use line_limit::LineLimit;
pub use metrics::{METRICS_CONTENT_TYPE, Metrics, OpenConnection};

use dependencies::DependencyThrottle;
use log::LogBuffer;

/// Maximum time at exit to write the remaining log lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The log of the process. Empty before logging is initialized.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    buffer: LogBuffer,
    suppressed: Arc<AtomicU64>,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable text, in color if standard error is a terminal.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// The name of a log format is unknown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("log format must be 'pretty' or 'json'")]
pub struct UnknownLogFormat;

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(text: &str) -> Result<Self, UnknownLogFormat> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(UnknownLogFormat),
        }
    }
}

/// Logging could not be initialized.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The log filter is invalid.
    #[error("log filter must be a level or directives such as info,progress_hub=debug")]
    InvalidFilter(#[source] tracing_subscriber::filter::ParseError),
    /// `RUST_LOG` is not valid Unicode.
    #[error("RUST_LOG must be valid UTF-8")]
    NotUnicode,
    /// The process has a logger already.
    #[error("logging is already initialized")]
    AlreadyInitialized(#[source] tracing_subscriber::util::TryInitError),
    /// The thread that writes the log could not be started.
    #[error("failed to start the log thread")]
    Thread(#[source] io::Error),
}

/// Guard that writes the remaining log lines when it is dropped.
#[must_use = "the last log lines are lost unless this is dropped at the end of the process"]
pub struct LogGuard(LogBuffer);

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

/// Numbers of log lines that were not written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostLines {
    /// Lines that were dropped because the buffer was full or the write failed.
    pub(crate) dropped: u64,
    /// Repeated lines of other crates.
    pub(crate) suppressed: u64,
}

/// Returns the numbers of log lines of the process that were not written.
pub(crate) fn lost_lines() -> LostLines {
    LOG.get().map_or_else(LostLines::default, |log| LostLines {
        dropped: log.buffer.dropped(),
        suppressed: log.suppressed.load(Ordering::Relaxed),
    })
}

/// Initializes logging of the process, to standard error. `RUST_LOG` overrides `filter` if it is set
/// and not empty.
///
/// # Errors
/// Returns [`InitError`] if the filter is invalid or logging is initialized already.
pub fn init(format: LogFormat, filter: &str) -> Result<LogGuard, InitError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => directives,
        Ok(_) | Err(std::env::VarError::NotPresent) => filter.to_owned(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(InitError::NotUnicode),
    };
    let filter = EnvFilter::try_new(filter).map_err(InitError::InvalidFilter)?;
    let (buffer, throttle) = (LogBuffer::default(), DependencyThrottle::default());
    let suppressed = throttle.suppressed();
    let layer = tracing_subscriber::fmt::layer().with_writer(buffer.clone());
    let registry = tracing_subscriber::registry().with(filter).with(throttle);
    let result = match format {
        LogFormat::Pretty => {
            let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
            registry.with(layer.with_ansi(is_terminal)).try_init()
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false);
            registry.with(layer).try_init()
        }
    };
    result.map_err(InitError::AlreadyInitialized)?;
    let report = |lines| tracing::warn!(log.dropped = lines, "log lines dropped");
    let started = buffer.start(io::stderr(), report);
    started.map_err(InitError::Thread)?;
    let log = Log {
        buffer: buffer.clone(),
        suppressed,
    };
    LOG.get_or_init(|| log);
    Ok(LogGuard(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_format_parses_pretty_and_json() {
        assert_eq!("pretty".parse(), Ok(LogFormat::Pretty));
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("JSON".parse::<LogFormat>(), Err(UnknownLogFormat));
    }

    #[test]
    fn init_logging_twice_fails() {
        // Another test of this process may have initialized logging already.
        let _ = init(LogFormat::Json, "error");
        let again = init(LogFormat::Pretty, "error").err().unwrap();
        assert_eq!(again.to_string(), "logging is already initialized");
    }
}
