//! What single values must look like.
//!
//! Invariant: no error repeats the text it is about, because a URL may carry a password.

use std::net::SocketAddr;

use toml::Value;
use url::{Host, Url};

use super::Tier;

type Checked<T> = Result<T, &'static str>;

pub(super) fn address(text: &str) -> Checked<SocketAddr> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8080")
}

pub(super) fn tier(text: &str) -> Checked<Tier> {
    [Tier::Development, Tier::Staging, Tier::Production]
        .into_iter()
        .find(|tier| tier.as_str() == text)
        .ok_or("must be development, staging or production")
}

/// The largest sum: a thousand times as much fits into the store's millionths.
pub(super) const MAX_SUM: f64 = 1e9;

pub(super) const INVALID_SUM_MESSAGE: &str = "must be a number between 0 and 1000000000";

/// A sum of money.
#[expect(clippy::cast_precision_loss, reason = "exact up to the largest sum")]
pub(super) fn sum(value: &Value) -> Option<f64> {
    let sum = value
        .as_float()
        .or_else(|| value.as_integer().map(|whole| whole as f64))?;
    (0.0..=MAX_SUM).contains(&sum).then_some(sum)
}

/// An http(s) URL to which a path is added: it has no query.
pub(super) fn base_url(text: &str) -> Checked<Url> {
    let url = web_url(text)?;
    if url.query().is_some() {
        return Err("must have no query");
    }
    Ok(url)
}

/// An http(s) URL without credentials and fragment.
pub(super) fn web_url(text: &str) -> Checked<Url> {
    const FORM: &str = "must be a URL such as https://hub.example.com";
    let url = Url::parse(text).map_err(|_| FORM)?;
    if !matches!(url.scheme(), "http" | "https") {
        Err("must begin with http:// or https://")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must hold no user name or password")
    } else if url.fragment().is_some() {
        Err("must have no #fragment")
    } else {
        Ok(url)
    }
}

/// An origin in the form that browsers send, or `*`.
pub(super) fn origin(text: &str) -> Checked<String> {
    const FORM: &str = "must be scheme://host[:port] as browsers send it, or *";
    if text == "*" {
        return Ok(text.to_owned());
    }
    let url = Url::parse(text).map_err(|_| FORM)?;
    let host = match url.host() {
        Some(Host::Domain("")) | None => return Err(FORM),
        Some(host) => host.to_string(),
    };
    let bare = url.username().is_empty()
        && url.password().is_none()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    if !bare || host.contains('*') {
        return Err(FORM);
    }
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    Ok(format!("{}://{host}{port}", url.scheme()))
}

pub(super) fn prefix(text: &str) -> Checked<String> {
    let fits = text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".:_-".contains(&b));
    fits.then(|| text.to_owned())
        .ok_or("must be at most 64 of A-Z a-z 0-9 . _ : -")
}

/// Whether a provider may be called that.
pub(super) fn provider_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// One of the stores' URLs.
pub(super) fn store_url(text: &str) -> Checked<String> {
    const FORM: &str = "must be sqlite://path, sqlite::memory:, redis://host, rediss://host, \
                        redis-cluster://a,b,c or redis-sentinel://a,b/master";
    let (scheme, rest) = text.split_once(':').ok_or(FORM)?;
    match scheme {
        "sqlite" => sqlite_path(rest)?,
        "redis" | "redis-cluster" | "redis-sentinel" | "rediss" | "rediss-cluster"
        | "rediss-sentinel" => redis_hosts(scheme, rest.strip_prefix("//").ok_or(FORM)?)?,
        _ => return Err(FORM),
    }
    Ok(text.to_owned())
}

fn sqlite_path(rest: &str) -> Checked<()> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() {
        Err("must name a file, such as sqlite://progress-hub.db")
    } else if path.contains('?') {
        Err("takes no ?options after the file's path")
    } else {
        Ok(())
    }
}

fn redis_hosts(scheme: &str, rest: &str) -> Checked<()> {
    if rest.contains(['?', '#']) {
        return Err("takes no ?options; in a password, ? is %3F and # is %23");
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    let host = |text: &str| {
        let url = Url::parse(&format!("redis://{text}"));
        url.is_ok_and(|url| url.host_str().is_some_and(|h| !h.is_empty()))
    };
    if !hosts.split(',').all(host) {
        return Err("must name hosts as host or host:port, separated by commas");
    }
    match scheme {
        "redis-sentinel" | "rediss-sentinel" if path.is_empty() => {
            Err("must end with the master's name, such as redis-sentinel://a,b/mymaster")
        }
        "redis" | "rediss" if hosts.contains(',') => {
            Err("must name one host; several make redis-cluster:// or redis-sentinel://")
        }
        "redis" | "rediss" if !path.is_empty() && path.parse::<u32>().is_err() => {
            Err("must end with the database's number or nothing, such as redis://host/0")
        }
        _ => Ok(()),
    }
}
