//! What operators see: log lines on standard error, and numbers at `/metrics`.
//!
//! Invariant: standard output stays free for what a command prints, and nothing here can make a
//! request fail.

mod labels;
mod metrics;

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use labels::{
    AdmissionRejection, CallOutcome, ConnectionKind, ProviderOperation, ProviderState,
    WebhookOutcome,
};
pub use metrics::{METRICS_CONTENT_TYPE, Metrics, OpenConnection};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people, with colours where standard error is a terminal.
    #[default]
    Pretty,
    /// One JSON object a line, for machines.
    Json,
}

/// The text is neither `pretty` nor `json`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a log format is 'pretty' or 'json'")]
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

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// `RUST_LOG` is set and is no filter.
    #[error("RUST_LOG is not a filter such as info,progress_hub=debug")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// `RUST_LOG` is set and is not text.
    #[error("RUST_LOG is not UTF-8")]
    NotText,
    /// Logging began before.
    #[error("logging is already set up")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Begins logging for the whole process, to standard error, at `level` (`"info"` is the usual one)
/// or as `RUST_LOG` says where it is set and not empty.
///
/// # Errors
/// [`InitError`] when `RUST_LOG` is wrong or logging began before.
pub fn init(format: LogFormat, level: &str) -> Result<(), InitError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => text,
        Ok(_) | Err(std::env::VarError::NotPresent) => level.to_owned(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(InitError::NotText),
    };
    let filter = EnvFilter::try_new(filter).map_err(InitError::Filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let begun = match format {
        LogFormat::Pretty => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(lines.with_ansi(colours)).try_init()
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            registry.with(lines).try_init()
        }
    };
    begun.map_err(InitError::Twice)
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
        // Another test of this process may have been first.
        let _ = init(LogFormat::Json, "error");
        let again = init(LogFormat::Pretty, "error").unwrap_err();
        assert_eq!(again.to_string(), "logging is already set up");
    }
}
