//! Parsers of single values. An error never contains the text, because a URL may carry a password.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use jiff::fmt::friendly::{Spacing, SpanParser, SpanPrinter};
use progress_hub_auth::jwt::is_encrypted_or_local;
use toml::Value;
use url::{Host, Url};

use super::{ForwardedHeader, Tier};
use crate::egress::HostAndPort;
use crate::outbox::Event;

type Parsed<T> = Result<T, &'static str>;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Largest amount of money. The store counts in millionths, as `i64`.
pub(super) const MAX_AMOUNT: usize = 1_000_000_000;

/// Parses an IP address and a port.
pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:8080")
}

/// Parses an IP address, or a network such as `10.0.0.0/8`.
pub(super) fn network(text: &str) -> Parsed<IpNet> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| address())
        .map(|network| network.trunc())
        .map_err(|_| "must be an IP address or a network, such as 10.0.0.0/8")
}

/// Parses the name of a header that carries the address of a client.
pub(super) fn forwarded_header(text: &str) -> Parsed<ForwardedHeader> {
    [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded]
        .into_iter()
        .find(|header| header.as_str() == text)
        .ok_or("must be x-forwarded-for or forwarded")
}

/// Parses the name of a tier.
pub(super) fn tier(text: &str) -> Parsed<Tier> {
    [Tier::Development, Tier::Staging, Tier::Production]
        .into_iter()
        .find(|tier| tier.as_str() == text)
        .ok_or("must be development, staging or production")
}

/// Parses a duration. A number needs a unit. Days, the largest unit, are multiples of 24 hours and
/// come first.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    const FORM: &str = "must be a duration such as \"500ms\", \"20s\" or \"1h30m\"";
    let (days, rest) = match text.split_once('d') {
        Some((days, "")) => (days, "0s"),
        Some((days, rest)) => (days, rest),
        None => ("0", text),
    };
    let days: u32 = days.parse().map_err(|_| FORM)?;
    let rest = SpanParser::new().parse_unsigned_duration(rest.trim());
    Ok(DAY * days + rest.map_err(|_| FORM)?)
}

/// Parses a number of bytes, with or without a unit.
pub(super) fn byte_count(text: &str) -> Parsed<usize> {
    const FORM: &str = "must be a number of bytes, such as 1048576, \"500MiB\" or \"2GiB\"";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(FORM),
    };
    let number: usize = number.parse().map_err(|_| FORM)?;
    number.checked_mul(1 << shift).ok_or(FORM)
}

/// Parses the URL of an archive: a bucket or container with an optional prefix, or a folder.
pub(super) fn archive_url(text: &str) -> Parsed<Url> {
    const FORM: &str = "must be s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or \
                        file:///absolute/path";
    let url = Url::parse(text).map_err(|_| FORM)?;
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    let is_complete = match url.scheme() {
        "s3" | "gs" | "az" => has_host && url.port().is_none(),
        "file" => !has_host && url.path() != "/",
        _ => false,
    };
    if !url.username().is_empty() || url.password().is_some() {
        Err("must not contain credentials; they are read from the environment")
    } else if url.query().is_some() || url.fragment().is_some() {
        Err("must not have ?options or a #fragment")
    } else if is_complete {
        Ok(url)
    } else {
        Err(FORM)
    }
}

/// Prints a duration in its shortest form, which [`duration`] parses.
pub(super) fn print_duration(duration: Duration) -> String {
    SpanPrinter::new()
        .spacing(Spacing::None)
        .unsigned_duration_to_string(&duration)
}

/// Parses an amount of money.
pub(super) fn amount(value: &Value) -> Parsed<f64> {
    let integer = || value.as_integer().map(|amount| amount as f64);
    value
        .as_float()
        .or_else(integer)
        .filter(|amount| (0.0..=MAX_AMOUNT as f64).contains(amount))
        .ok_or("must be a number between 0 and 1000000000")
}

/// Parses an http(s) URL to which paths are appended, so it must have no query.
pub(super) fn base_url(text: &str) -> Parsed<Url> {
    let url = web_url(text)?;
    if url.query().is_some() {
        return Err("must not have a query");
    }
    Ok(url)
}

/// Parses an http(s) URL without credentials and fragment.
pub(super) fn web_url(text: &str) -> Parsed<Url> {
    let url = Url::parse(text).map_err(|_| "must be a URL such as https://hub.example.com")?;
    if !matches!(url.scheme(), "http" | "https") {
        Err("must begin with http:// or https://")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must not contain a user name or password")
    } else if url.fragment().is_some() {
        Err("must not have a #fragment")
    } else {
        Ok(url)
    }
}

/// Parses the URL of a server that publishes or receives keys: https, or http on loopback.
pub(super) fn secure_url(text: &str) -> Parsed<Url> {
    secure(web_url(text)?)
}

/// As [`secure_url`], for a URL to which paths are appended.
pub(super) fn secure_base_url(text: &str) -> Parsed<Url> {
    secure(base_url(text)?)
}

fn secure(url: Url) -> Parsed<Url> {
    if is_encrypted_or_local(&url) {
        Ok(url)
    } else {
        Err("must be https, or http on loopback")
    }
}

/// Parses the URL of an endpoint for webhooks.
pub(super) fn webhook_url(text: &str) -> Parsed<Url> {
    if text.contains(char::is_control) {
        return Err("must not contain control characters");
    }
    web_url(text)
}

/// Parses a host with an optional port, into the form that [`HostAndPort`] has for a URL.
pub(super) fn host(text: &str) -> Parsed<HostAndPort> {
    const FORM: &str = "must be a host or host:port, such as hooks.example.com";
    let url = Url::parse(&format!("https://{text}")).map_err(|_| FORM)?;
    let has_host_only = url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && !text.ends_with('/')
        && url.query().is_none()
        && url.fragment().is_none();
    let host = HostAndPort::of(&url).filter(|_| has_host_only);
    host.filter(|host| !host.as_str().contains('*')).ok_or(FORM)
}

/// Parses the name of an event.
pub(super) fn event(text: &str) -> Parsed<Event> {
    let mut events = Event::ALL.into_iter();
    events
        .find(|event| event.as_str() == text)
        .ok_or("must be job.created, job.updated, job.succeeded, job.failed or job.cancelled")
}

/// Parses the name of an event that a job has only once.
pub(super) fn mail_event(text: &str) -> Parsed<Event> {
    match event(text) {
        Ok(event) if event != Event::Updated => Ok(event),
        Ok(_) | Err(_) => Err("must be job.created, job.succeeded, job.failed or job.cancelled"),
    }
}

/// Parses the domain of mail addresses into lower case.
pub(super) fn domain(text: &str) -> Parsed<String> {
    match Host::parse(text) {
        Ok(Host::Domain(domain)) if !domain.ends_with('.') => Ok(domain),
        Ok(_) | Err(_) => Err("must be a domain, such as example.com"),
    }
}

/// Parses `*`, or an origin into the form that browsers send. The port may be `*`.
pub(super) fn origin(text: &str) -> Parsed<String> {
    const FORM: &str = "must be scheme://host[:port] as browsers send it, scheme://host:* or *";
    if text == "*" {
        return Ok(text.to_owned());
    }
    if let Some(any_port) = text.strip_suffix(":*") {
        let origin = origin(any_port)?;
        let has_port = Url::parse(&origin).is_ok_and(|url| url.port().is_some());
        return if has_port {
            Err(FORM)
        } else {
            Ok(format!("{origin}:*"))
        };
    }
    let url = Url::parse(text).map_err(|_| FORM)?;
    let host = match url.host() {
        Some(Host::Domain("")) | None => return Err(FORM),
        Some(host) => host.to_string(),
    };
    let has_origin_only = url.username().is_empty()
        && url.password().is_none()
        && matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none();
    if !has_origin_only || host.contains('*') {
        return Err(FORM);
    }
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    Ok(format!("{}://{host}{port}", url.scheme()))
}

/// Parses a prefix of Redis keys.
pub(super) fn prefix(text: &str) -> Parsed<String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".:_-".contains(&byte);
    if text.len() <= 64 && text.bytes().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err("must be at most 64 characters of A-Z a-z 0-9 . _ : -")
    }
}

/// Returns whether a provider or a webhook may have this name.
pub(super) fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&name.len()) && name.bytes().all(is_allowed)
}

/// Checks the URL of a store.
pub(super) fn store_url(text: &str) -> Parsed<String> {
    const FORM: &str = "must be sqlite://path, sqlite::memory:, redis://host, rediss://host, \
                        redis-cluster://a,b,c or redis-sentinel://a,b/primary";
    let (scheme, rest) = text.split_once(':').ok_or(FORM)?;
    match scheme {
        "sqlite" => check_sqlite_path(rest)?,
        "redis" | "redis-cluster" | "redis-sentinel" | "rediss" | "rediss-cluster"
        | "rediss-sentinel" => check_redis_hosts(scheme, rest.strip_prefix("//").ok_or(FORM)?)?,
        _ => return Err(FORM),
    }
    Ok(text.to_owned())
}

/// Returns whether a user name or password can be sent to Redis. The client library sends them in an
/// inline command, which splits at white space and interprets quotes.
pub(crate) fn is_redis_credential(text: &str) -> bool {
    let is_special = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'');
    !text.chars().any(is_special)
}

fn check_sqlite_path(rest: &str) -> Parsed<()> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() {
        Err("must name a file, such as sqlite://progress-hub.db")
    } else if path.contains('?') {
        Err("must not have ?options after the path of the file")
    } else {
        Ok(())
    }
}

fn check_redis_hosts(scheme: &str, rest: &str) -> Parsed<()> {
    if rest.contains(['?', '#']) {
        return Err("must not have ?options; in a password, write ? as %3F and # as %23");
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = authority
        .rsplit_once('@')
        .map_or(authority, |(_, hosts)| hosts);
    let is_host = |text: &str| {
        let url = Url::parse(&format!("redis://{text}"));
        url.is_ok_and(|url| url.host_str().is_some_and(|host| !host.is_empty()))
    };
    if !hosts.split(',').all(is_host) {
        return Err("must name hosts as host or host:port, separated by commas");
    }
    match scheme {
        "redis-sentinel" | "rediss-sentinel" if path.is_empty() => {
            Err("must end with the name of the primary, such as redis-sentinel://a,b/mymaster")
        }
        "redis" | "rediss" if hosts.contains(',') => {
            Err("must name one host; for several, use redis-cluster:// or redis-sentinel://")
        }
        "redis" | "rediss" if !path.is_empty() && path.parse::<u32>().is_err() => {
            Err("must end with a database number or nothing, such as redis://host/0")
        }
        _ => Ok(()),
    }
}
