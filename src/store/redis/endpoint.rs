//! Redis URLs, and the client configuration derived from them.
//!
//! Commands fail fast: none waits longer than [`Timeouts::command`], none is sent twice, and none is
//! queued while the server is unavailable.

use std::time::Duration;

use fred::clients::{Client, Pool};
use fred::prelude::{Builder, Config, ReconnectPolicy, ServerConfig, TlsConfig, TlsConnector};
use fred::types::RespVersion;
use fred::types::config::{ClusterDiscoveryPolicy, Options, Server, UnresponsiveConfig};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::is_redis_credential;

/// Timeout for a TCP connection and the handshake on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands waiting to be written to a connection. Further commands are rejected.
const MAX_QUEUED_COMMANDS: usize = 16 * 1024;

/// Pub/sub messages waiting to be processed. Further messages are dropped, which is detected. The
/// memory is allocated up front, so clients without subscriptions have a minimal buffer.
const SUBSCRIBER_BUFFER: usize = 64 * 1024;
const COMMAND_CLIENT_BUFFER: usize = 16;

/// Delays between attempts to reconnect, in milliseconds.
const MIN_RECONNECT_DELAY_MS: u32 = 50;
const MAX_RECONNECT_DELAY_MS: u32 = 1_500;

/// Time limits that decide when Redis counts as unavailable.
///
/// The defaults detect an outage within seconds. Longer limits suit tests on a busy machine, where a
/// healthy server may answer late.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Maximum duration of a command, of the wait for replicas, and of a subscription.
    pub command: Duration,
    /// Maximum wait for the job of another operation that has claimed the same unique key.
    pub claim: Duration,
    /// Maximum duration of a health check. A connection that takes longer is replaced.
    pub health_check: Duration,
    /// Maximum age of the last pub/sub probe received. If it is older, the subscriptions are renewed.
    pub probe: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            command: Duration::from_millis(700),
            claim: Duration::from_secs(2),
            health_check: Duration::from_secs(2),
            probe: Duration::from_millis(2_500),
        }
    }
}

/// A single server, a primary behind Sentinels, or a cluster.
pub(super) struct Endpoint {
    config: Config,
    pub(super) timeouts: Timeouts,
}

impl Endpoint {
    /// Parses `redis[s]://[user:password@]host[:port][/database]`,
    /// `redis[s]-cluster://[user:password@]host:port,…` or
    /// `redis[s]-sentinel://[user:password@]host:port,…/master`.
    ///
    /// # Errors
    /// A description of the error. It contains no part of the URL, which may be secret.
    pub(super) fn parse(url: &str, timeouts: Timeouts) -> Result<Self, String> {
        const INVALID: &str = "is not a Redis URL";
        let (scheme, rest) = url.split_once("://").ok_or(INVALID)?;
        let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_secure = scheme.starts_with("rediss");
        let kind = scheme.strip_prefix(if is_secure { "rediss" } else { "redis" });
        let default_port = match kind {
            Some("-sentinel") => 26379,
            _ => 6379,
        };
        let hosts = hosts
            .split(',')
            .map(|host| parse_server(host, default_port))
            .collect::<Result<Vec<_>, _>>()?;
        let mut database = None;
        let server = match kind {
            Some("-cluster") => ServerConfig::Clustered {
                hosts,
                policy: ClusterDiscoveryPolicy::UseCache,
            },
            Some("-sentinel") => ServerConfig::Sentinel {
                hosts,
                service_name: path.to_owned(),
            },
            Some("") => {
                database = path.parse().ok();
                let server = hosts.into_iter().next().ok_or(INVALID)?;
                ServerConfig::Centralized { server }
            }
            Some(_) | None => return Err(INVALID.to_owned()),
        };
        let tls = is_secure.then(TlsConnector::default_rustls).transpose();
        let tls = tls.map_err(|error| format!("TLS is not available: {}", error.details()))?;
        let (username, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (username, password) = (percent_decode(username), percent_decode(password));
        let is_valid = |text: &Option<String>| text.as_deref().is_none_or(is_redis_credential);
        if !is_valid(&username) || !is_valid(&password) {
            let message =
                "user and password must have no white space, quotes or control characters";
            return Err(message.to_owned());
        }
        let config = Config {
            server,
            username,
            password,
            database,
            // With RESP3, a subscribed connection answers PING as well.
            version: RespVersion::RESP3,
            // Keep trying to connect if the server is unavailable at startup.
            fail_fast: false,
            tls: tls.map(TlsConfig::from),
            ..Config::default()
        };
        Ok(Self { config, timeouts })
    }

    /// Replaces the password of the URL.
    pub(super) fn set_password(&mut self, password: &SecretString) {
        self.config.password = Some(password.expose_secret().to_owned());
    }

    pub(super) fn is_clustered(&self) -> bool {
        self.config.server.is_clustered()
    }

    /// Returns clients for commands. They are not connected yet, and reconnect after every loss.
    pub(super) fn pool(&self, size: usize) -> Result<Pool, fred::error::Error> {
        self.builder(COMMAND_CLIENT_BUFFER).build_pool(size)
    }

    /// Returns a client like those of [`Endpoint::pool`], with a buffer for pub/sub messages.
    pub(super) fn subscriber_client(&self) -> Result<Client, fred::error::Error> {
        self.builder(SUBSCRIBER_BUFFER).build()
    }

    fn builder(&self, message_buffer: usize) -> Builder {
        let timeouts = self.timeouts;
        let mut builder = Builder::from_config(self.config.clone());
        builder
            .set_policy(ReconnectPolicy::new_exponential(
                0,
                MIN_RECONNECT_DELAY_MS,
                MAX_RECONNECT_DELAY_MS,
                2,
            ))
            .with_performance_config(|performance| {
                performance.broadcast_channel_capacity = message_buffer;
                performance.default_command_timeout = timeouts.command;
            })
            .with_connection_config(|connection| {
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = MAX_QUEUED_COMMANDS;
                connection.unresponsive = UnresponsiveConfig {
                    max_timeout: Some(timeouts.health_check),
                    interval: Duration::from_millis(500),
                };
                connection.connection_timeout = CONNECT_TIMEOUT;
                connection.internal_command_timeout = CONNECT_TIMEOUT;
                connection.reconnect_on_auth_error = true;
                connection.tcp.nodelay = Some(true);
            });
        builder
    }
}

/// Returns the options of a command that is sent once, and is not queued while the server is
/// unavailable.
pub(super) fn fail_fast(timeout: Duration) -> Options {
    Options {
        max_attempts: Some(1),
        timeout: Some(timeout),
        fail_fast: true,
        ..Options::default()
    }
}

/// Parses `host` or `host:port`.
fn parse_server(text: &str, default_port: u16) -> Result<Server, String> {
    let invalid = || "must list hosts as host or host:port, separated by commas".to_owned();
    let url = Url::parse(&format!("redis://{text}")).map_err(|_| invalid())?;
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(invalid)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(Server::new(host, url.port().unwrap_or(default_port)))
}

/// Decodes a user name or password, or returns `None` if it is empty.
fn percent_decode(text: &str) -> Option<String> {
    // A form-encoded value, except that `+` is literal.
    let query = format!("value={}", text.replace('+', "%2B"));
    let (_, value) = url::form_urlencoded::parse(query.as_bytes()).next()?;
    (!value.is_empty()).then(|| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Config {
        Endpoint::parse(url, Timeouts::default())
            .unwrap_or_else(|error| panic!("{url}: {error}"))
            .config
    }

    #[test]
    fn all_url_forms_are_parsed() {
        let single = parsed("redis://ada:s%40cret+1@10.0.0.7/3");
        assert_eq!(single.server.hosts(), [Server::new("10.0.0.7", 6379)]);
        assert_eq!(single.username.as_deref(), Some("ada"));
        assert_eq!(single.password.as_deref(), Some("s@cret+1"));
        assert_eq!(single.database, Some(3));

        let only_password = parsed("redis://:secret@host:7000");
        assert_eq!(only_password.username, None);
        assert_eq!(only_password.password.as_deref(), Some("secret"));

        let cluster = parsed("redis-cluster://a:1,b:2,c");
        assert!(cluster.server.is_clustered());
        let hosts = [
            Server::new("a", 1),
            Server::new("b", 2),
            Server::new("c", 6379),
        ];
        assert_eq!(cluster.server.hosts(), hosts);

        let sentinel = parsed("redis-sentinel://a,b:26380/main");
        assert!(sentinel.server.is_sentinel());
        assert_eq!(sentinel.server.hosts()[0], Server::new("a", 26379));
        assert!(matches!(
            sentinel.server,
            ServerConfig::Sentinel { service_name, .. } if service_name == "main"
        ));
        assert!(
            parsed("redis://[::1]:7000").server.hosts()[0]
                .host
                .starts_with("::1")
        );
        assert!(parsed("rediss://host").tls.is_some());
    }

    #[test]
    fn invalid_redis_urls_are_rejected() {
        for url in [
            "redis",
            "http://host",
            "redis://",
            "redis-cluster://a,,b",
            "redis://:two%20words@host",
            "redis://a%22b@host",
            "redis://:line%0Abreak@host",
        ] {
            assert!(Endpoint::parse(url, Timeouts::default()).is_err(), "{url}");
        }
    }
}
