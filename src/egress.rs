//! Outgoing HTTP: what all clients of the hub share, and the addresses that they may connect to.

mod address;
mod host;

use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use url::Url;

pub use address::{AddressPolicy, ForbiddenUrl, PolicyResolver};
pub use host::HostAndPort;

/// Timeout of a TCP and TLS connection attempt.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Headers that the hub or its HTTP client sets.
const RESERVED_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// An HTTP client could not be created, for example because of invalid TLS roots.
#[derive(Debug, thiserror::Error)]
#[error("failed to build HTTP client: {0}")]
pub struct ClientBuildError(String);

/// Returns a builder of clients that send exactly the requests they are given: no redirects, no
/// proxies from the environment, no hidden retries. HTTP/1.1 only, because an error of a connection
/// must concern one request.
pub fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .http1_only()
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("progress-hub/", env!("CARGO_PKG_VERSION")))
}

/// Creates a client.
///
/// # Errors
/// [`ClientBuildError`] if the TLS roots of the system are unusable.
pub fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, ClientBuildError> {
    builder
        .build()
        .map_err(|error| ClientBuildError(describe(error)))
}

/// Returns the root cause of an error without the URL, which may contain a secret.
pub fn describe(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "request timed out".to_owned();
    }
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Returns the origin of a URL, followed by `/…` if the URL has a path or a query, which may contain
/// a secret.
#[must_use]
pub fn masked(url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    if url.path() == "/" && url.query().is_none() {
        origin
    } else {
        format!("{origin}/…")
    }
}

/// Checks a header that an operator adds to requests.
///
/// # Errors
/// The reason why it cannot be added, without the value.
pub fn check_header(name: &str, value: &str) -> Result<(), &'static str> {
    let Ok(name) = HeaderName::try_from(name) else {
        return Err("is not a valid name of a header");
    };
    if RESERVED_HEADERS.contains(&name.as_str()) {
        Err("is set by the hub")
    } else if HeaderValue::try_from(value).is_err() {
        Err("must not contain control characters")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_masked() {
        for (url, expected) in [
            (
                "https://hooks.slack.com/services/T0/B0/x",
                "https://hooks.slack.com/…",
            ),
            (
                "https://gotify.example.com:8443/?token=x",
                "https://gotify.example.com:8443/…",
            ),
            ("https://app.example.com/", "https://app.example.com"),
        ] {
            assert_eq!(masked(&Url::parse(url).unwrap()), expected);
        }
    }

    #[test]
    fn headers_of_the_protocol_cannot_be_replaced() {
        assert_eq!(check_header("Authorization", "Bearer x"), Ok(()));
        for (name, value) in [
            ("Webhook-Id", "x"),
            ("Host", "x"),
            ("a b", "x"),
            ("x-a", "a\nb"),
        ] {
            assert!(check_header(name, value).is_err(), "{name}");
        }
    }
}
