//! Errors that the user can fix.

use progress_hub::config::ConfigError;
use progress_hub::server::BindError;

/// Invalid arguments or an invalid configuration. The exit code is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

impl From<Vec<ConfigError>> for UsageError {
    fn from(errors: Vec<ConfigError>) -> Self {
        let plural = if errors.len() == 1 { "" } else { "s" };
        let mut message = format!("invalid configuration: {} error{plural}", errors.len());
        for error in errors {
            message.push_str(&format!("\n  {error}"));
        }
        Self(message)
    }
}

/// Converts an error of [`Server::bind`](progress_hub::server::Server::bind).
pub(crate) fn bind_error(error: BindError) -> anyhow::Error {
    if let BindError::Config(errors) = error {
        UsageError::from(errors).into()
    } else {
        error.into()
    }
}
