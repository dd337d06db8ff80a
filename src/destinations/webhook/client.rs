//! The HTTP client that sends webhooks.
//!
//! It connects to permitted addresses only, follows no redirect, and reads a bounded part of the
//! response. Connections are reused per endpoint.

use std::time::Duration;

use reqwest::Client;
use reqwest::dns::Resolve;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::timeout;
use url::{Host, Url};

use crate::config::WebhookDefaults;
use crate::egress::{
    AddressPolicy, CONNECT_TIMEOUT, ClientBuildError, build, client_builder, describe,
};
use crate::time::Time;

/// Maximum number of bytes of a response that are read, so that its connection can be reused.
const MAX_RESPONSE_BYTES: usize = 16 << 10;

/// Sends webhooks. Cheap to clone.
#[derive(Clone)]
pub(super) struct WebhookClient {
    policy: AddressPolicy,
    /// For https.
    encrypted: Client,
    /// For http, which has stricter rules for addresses.
    plain: Client,
}

/// The head of a response.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// `Retry-After`, as sent.
    pub(super) retry_after: Option<Duration>,
}

impl WebhookClient {
    pub(super) fn new(settings: &WebhookDefaults) -> Result<Self, ClientBuildError> {
        let policy = AddressPolicy::new(settings.allow.clone());
        let client = |is_encrypted| {
            let builder = client_builder().no_gzip().timeout(settings.timeout);
            build(builder.dns_resolver(policy.resolver(is_encrypted)))
        };
        Ok(Self {
            encrypted: client(true)?,
            plain: client(false)?,
            policy,
        })
    }

    /// Resolves the host of a URL as a request does, within the time limit of a connection attempt.
    ///
    /// # Errors
    /// The reason why a request to it would fail.
    pub(super) async fn resolve(&self, url: &Url) -> Result<(), String> {
        self.policy.check(url).map_err(|error| error.to_string())?;
        let Some(Host::Domain(name)) = url.host() else {
            return Ok(());
        };
        let name = name.parse().map_err(|_| "host is not a name".to_owned())?;
        let resolver = self.policy.resolver(url.scheme() == "https");
        match timeout(CONNECT_TIMEOUT, resolver.resolve(name)).await {
            Ok(resolved) => resolved.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("host was not resolved in time".to_owned()),
        }
    }

    /// Sends a request. The status alone decides, so an incomplete response body is no error.
    ///
    /// # Errors
    /// The reason why there is no response, without the URL.
    pub(super) async fn post(
        &self,
        url: &Url,
        headers: HeaderMap,
        body: String,
    ) -> Result<Reply, String> {
        self.policy
            .check(url)
            .map_err(|error| format!("URL {error}"))?;
        let is_encrypted = url.scheme() == "https";
        let client = if is_encrypted {
            &self.encrypted
        } else {
            &self.plain
        };
        let request = client.post(url.clone()).headers(headers).body(body);
        let mut response = request.send().await.map_err(describe)?;
        // The resolver has checked the address already. This holds whatever the client does.
        let address = response.remote_addr().map(|address| address.ip());
        if !address.is_some_and(|address| self.policy.permits(address, is_encrypted)) {
            return Err("connected to an address that is not allowed".to_owned());
        }
        let reply = Reply {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers(), Time::now()),
        };
        let mut read = 0;
        while read < MAX_RESPONSE_BYTES
            && let Ok(Some(chunk)) = response.chunk().await
        {
            read += chunk.len();
        }
        Ok(reply)
    }
}

/// Returns the time in `Retry-After`, which is a number of seconds or a date.
fn retry_after(headers: &HeaderMap, now: Time) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let date = date.duration_since(std::time::UNIX_EPOCH).ok()?;
    let date = Time::from_millis(i64::try_from(date.as_millis()).ok()?);
    Some(date.saturating_duration_since(now))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = Time::from_millis(1_795_428_000_000);
        for (text, expected) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("Mon, 23 Nov 2026 10:01:00 GMT", Some(60)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            let delay = retry_after(&headers, now);
            assert_eq!(delay, expected.map(Duration::from_secs), "{text}");
        }
    }
}
