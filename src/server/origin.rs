//! Checks the origin of requests from browser pages, and logs rejected origins.
//!
//! A browser does not show the response to a page of a rejected origin. The log therefore contains
//! the cause.

use std::time::Instant;

use actix_web::dev::ServiceRequest;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use url::Url;

use super::error::{ErrorCode, Problem};
use crate::config::ServerConfig;
use crate::telemetry::LineLimit;

/// Maximum length of a header value in the log, in bytes.
const MAX_LOGGED_BYTES: usize = 200;

/// Decides which origins may use the hub: those of `server.allowed_origins`, and the hub's own.
pub struct OriginPolicy {
    allowed: Vec<String>,
    public_url: Option<Url>,
    /// Limits the warnings by origin and host.
    warnings: LineLimit<(String, String)>,
}

impl OriginPolicy {
    /// Creates the policy of a configuration.
    pub fn new(server: &ServerConfig) -> Self {
        Self {
            allowed: server.allowed_origins.clone(),
            public_url: server.public_url.clone(),
            warnings: LineLimit::default(),
        }
    }

    /// Returns whether every origin is allowed.
    pub fn allows_all(&self) -> bool {
        self.allowed.iter().any(|allowed| allowed == "*")
    }

    /// Returns whether `server.allowed_origins` contains this origin. An entry that ends with `:*`
    /// allows every port.
    pub fn is_listed(&self, origin: &str) -> bool {
        self.allows_all()
            || self.allowed.iter().any(|allowed| {
                let Some(host) = allowed.strip_suffix(":*") else {
                    return allowed.eq_ignore_ascii_case(origin);
                };
                match origin.get(..host.len()) {
                    Some(start) if start.eq_ignore_ascii_case(host) => {
                        let port = &origin[host.len()..];
                        port.is_empty()
                            || port
                                .strip_prefix(':')
                                .is_some_and(|port| port.parse::<u16>().is_ok())
                    }
                    Some(_) | None => false,
                }
            })
    }

    /// Checks the origin of a request. Clients other than browsers send none. Logs a rejected origin.
    ///
    /// # Errors
    /// `origin_refused`.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if !headers.contains_key(header::ORIGIN) {
            return Ok(());
        }
        let (origin, host) = (text(headers, &header::ORIGIN), text(headers, &header::HOST));
        if self.is_listed(origin) || self.is_own(origin, host) {
            return Ok(());
        }
        if let Some(suppressed) = self.admit_warning(origin, host, Instant::now()) {
            tracing::warn!(
                http.origin = shorten(origin),
                http.host = shorten(host),
                suppressed,
                "origin rejected; check server.allowed_origins, server.public_url and Host header"
            );
        }
        let detail = "pages of this origin may not use the hub; add it to server.allowed_origins";
        Err(Problem::new(ErrorCode::OriginRefused, detail))
    }

    /// Returns the number of suppressed warnings with this origin and host, or `None` to suppress
    /// this one too.
    fn admit_warning(&self, origin: &str, host: &str, now: Instant) -> Option<u64> {
        let cause = (shorten(origin).to_owned(), shorten(host).to_owned());
        self.warnings.admit(cause, now)
    }

    /// Returns whether the origin has the host and port of the request or of the public URL.
    fn is_own(&self, origin: &str, host: &str) -> bool {
        let Ok(origin) = Url::parse(origin) else {
            return false;
        };
        let host = Url::parse(&format!("{}://{host}", origin.scheme())).ok();
        [host.as_ref(), self.public_url.as_ref()]
            .into_iter()
            .flatten()
            .any(|own| {
                // Without the scheme: a proxy may terminate TLS.
                own.has_host() && own.host() == origin.host() && own.port() == origin.port()
            })
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

fn shorten(value: &str) -> &str {
    value.get(..MAX_LOGGED_BYTES).unwrap_or(value)
}

/// Rejects preflight requests of origins that may not use the API. The browser itself rejects the
/// responses to all other requests of such an origin, because they have no CORS headers.
///
/// # Errors
/// `origin_refused`.
pub fn check_preflight(policy: &OriginPolicy, request: &ServiceRequest) -> Result<(), Problem> {
    // Every page may import the client.
    let checked = match request.path() {
        "/progress-hub.js" => Ok(()),
        _ => policy.check(request.headers()),
    };
    let is_preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    match checked {
        Err(problem) if is_preflight => Err(problem),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actix_web::http::header::HeaderValue;

    use super::*;
    use crate::config::Config;

    fn policy(settings: &[(&str, &str)]) -> OriginPolicy {
        let settings = settings.iter();
        let flags = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let (config, errors) = Config::read(None, std::iter::empty(), flags.collect());
        assert!(errors.iter().all(|error| error.key == "auth"), "{errors:?}");
        OriginPolicy::new(&config.server)
    }

    fn is_allowed(policy: &OriginPolicy, origin: &'static str, host: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        headers.insert(header::HOST, HeaderValue::from_static(host));
        policy.check(&headers).is_ok()
    }

    #[test]
    fn own_page_is_allowed_whatever_is_configured() {
        for policy in [
            policy(&[("server.public_url", "https://hub.example.com/hub")]),
            policy(&[
                ("server.public_url", "https://hub.example.com"),
                ("server.allowed_origins", "https://app.example.com"),
            ]),
        ] {
            for (origin, host, expected) in [
                ("https://hub.example.com", "127.0.0.1:8080", true),
                ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
                ("https://hub.internal", "hub.internal:443", true),
                ("http://[::1]:8080", "[::1]:8080", true),
                ("http://127.0.0.1:8081", "127.0.0.1:8080", false),
                ("https://hub.example.com:8443", "127.0.0.1:8080", false),
                ("null", "127.0.0.1:8080", false),
                ("", "", false),
                ("file://", "", false),
            ] {
                assert_eq!(
                    is_allowed(&policy, origin, host),
                    expected,
                    "{origin} at {host}"
                );
            }
        }
    }

    #[test]
    fn listed_origins_match_exactly_or_with_any_port() {
        let origins = "https://a.example, http://localhost:*, http://[::1]:*";
        let policy = policy(&[("server.allowed_origins", origins)]);
        for (origin, expected) in [
            ("https://a.example", true),
            ("https://a.example:8443", false),
            ("http://a.example", false),
            ("http://localhost", true),
            ("http://localhost:5173", true),
            ("http://[::1]:3000", true),
            ("https://localhost:5173", false),
            ("http://localhost.evil.example", false),
            ("http://localhost:5173.evil.example", false),
            ("http://localhost:", false),
        ] {
            assert_eq!(is_allowed(&policy, origin, "hub"), expected, "{origin}");
        }
    }

    #[test]
    fn one_warning_a_minute_is_due_for_each_cause() {
        let (policy, start) = (policy(&[]), Instant::now());
        let admit = |origin: &str, host, seconds| {
            policy.admit_warning(origin, host, start + Duration::from_secs(seconds))
        };
        assert_eq!(admit("http://a", "hub", 0), Some(0));
        assert_eq!(admit("http://a", "hub", 59), None);
        assert_eq!(admit("http://a", "other", 59), Some(0), "another host");
        assert_eq!(admit("http://b", "hub", 59), Some(0));
        assert_eq!(admit("http://a", "hub", 60), Some(1));
        let flood = (0..1000).filter(|n| admit(&format!("http://{n}"), "hub", 61).is_some());
        assert!(flood.count() <= 100);
        assert!(admit("http://c", "hub", 130).is_some());
    }
}
