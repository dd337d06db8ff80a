//! Logs on standard error, and metrics at `/metrics`.
//!
//! Standard output is reserved for the output of a command.

mod labels;
mod metrics;

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use labels::{
    AdmissionRejection, CallOutcome, ConnectionKind, Limit, ProviderOperation, ProviderState,
    WebhookOutcome,
};
pub use metrics::{METRICS_CONTENT_TYPE, Metrics, OpenConnection};

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
}

/// Initializes logging of the process, to standard error. `RUST_LOG` overrides `filter` if it is set
/// and not empty.
///
/// # Errors
/// Returns [`InitError`] if the filter is invalid or logging is initialized already.
pub fn init(format: LogFormat, filter: &str) -> Result<(), InitError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if !directives.is_empty() => directives,
        Ok(_) | Err(std::env::VarError::NotPresent) => filter.to_owned(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(InitError::NotUnicode),
    };
    let filter = EnvFilter::try_new(filter).map_err(InitError::InvalidFilter)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let result = match format {
        LogFormat::Pretty => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            registry.with(layer.with_ansi(is_terminal)).try_init()
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false);
            registry.with(layer).try_init()
        }
    };
    result.map_err(InitError::AlreadyInitialized)
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
        let again = init(LogFormat::Pretty, "error").unwrap_err();
        assert_eq!(again.to_string(), "logging is already initialized");
    }
}
