//! Where a Redis is: what a `redis…` URL means, and how to speak to what is there.
//!
//! Invariant: no command waits longer than [`PATIENCE`], none is sent twice, and none waits in line
//! for a server that is away.

use std::time::Duration;

use fred::clients::Client;
use fred::prelude::{Builder, Config, ReconnectPolicy, ServerConfig, TlsConfig, TlsConnector};
use fred::types::RespVersion;
use fred::types::config::{Server, UnresponsiveConfig};
use url::Url;

/// How long a command may take.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_millis(700);

/// How long a server may take to accept a connection and to greet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands that wait to be written to a server that is there; a further one is refused.
const MAX_QUEUED_COMMANDS: usize = 16 * 1024;

/// Messages that wait to be taken in by one that listens; beyond it some are lost, which is noticed.
/// Room for them is taken from the beginning, so those that don't listen have next to none.
const SUBSCRIBER_BUFFER: usize = 64 * 1024;
const COMMAND_CLIENT_BUFFER: usize = 16;

/// A Redis, by its URL.
#[derive(Clone)]
pub(super) struct Endpoint {
    config: Config,
}

impl Endpoint {
    /// Understands `redis[s]://[user:password@]host[:port][/database]`,
    /// `redis[s]-cluster://[user:password@]host:port,…` and
    /// `redis[s]-sentinel://[user:password@]host:port,…/master`.
    ///
    /// # Errors
    /// What is wrong, without quoting anything that may be secret.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "is no URL of a Redis";
        let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
        let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (kind, is_secure) = match scheme {
            "redis" | "redis-cluster" | "redis-sentinel" => (scheme, false),
            "rediss" => ("redis", true),
            "rediss-cluster" => ("redis-cluster", true),
            "rediss-sentinel" => ("redis-sentinel", true),
            _ => return Err(FORM.to_owned()),
        };
        let usual_port = if kind == "redis-sentinel" {
            26379
        } else {
            6379
        };
        let hosts = hosts
            .split(',')
            .map(|host| server(host, usual_port))
            .collect::<Result<Vec<_>, _>>()?;
        let (server, database) = match kind {
            "redis-cluster" => {
                let policy = fred::types::config::ClusterDiscoveryPolicy::UseCache;
                (ServerConfig::Clustered { hosts, policy }, None)
            }
            "redis-sentinel" => {
                let service_name = path.to_owned();
                (
                    ServerConfig::Sentinel {
                        hosts,
                        service_name,
                    },
                    None,
                )
            }
            _ => {
                let server = hosts.into_iter().next().ok_or(FORM)?;
                let database = path.parse().ok();
                (ServerConfig::Centralized { server }, database)
            }
        };
        let (username, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let config = Config {
            server,
            username: decoded(username),
            password: decoded(password),
            database,
            // The newer protocol lets a connection that listens answer a ping, too.
            version: RespVersion::RESP3,
            // A server that is not there at first is waited for like one that went away.
            fail_fast: false,
            tls: is_secure.then(tls).transpose()?,
            ..Config::default()
        };
        Ok(Self { config })
    }

    /// Whether keys are spread over several servers.
    pub(super) fn is_clustered(&self) -> bool {
        self.config.server.is_clustered()
    }

    /// A client that is yet to connect. It comes back from every loss, at intervals that grow to a
    /// second or two.
    ///
    /// # Errors
    /// What the client library says of it.
    pub(super) fn client(&self) -> Result<Client, fred::error::Error> {
        self.client_with(COMMAND_CLIENT_BUFFER)
    }

    /// The same, for one that listens.
    ///
    /// # Errors
    /// What the client library says of it.
    pub(super) fn subscriber_client(&self) -> Result<Client, fred::error::Error> {
        self.client_with(SUBSCRIBER_BUFFER)
    }

    fn client_with(&self, heard: usize) -> Result<Client, fred::error::Error> {
        Builder::from_config(self.config.clone())
            .set_policy(ReconnectPolicy::new_exponential(0, 50, 1_500, 2))
            .with_performance_config(|performance| {
                performance.broadcast_channel_capacity = heard;
                performance.default_command_timeout = COMMAND_TIMEOUT;
            })
            .with_connection_config(|connection| {
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = MAX_QUEUED_COMMANDS;
                connection.unresponsive = UnresponsiveConfig {
                    max_timeout: Some(Duration::from_secs(2)),
                    interval: Duration::from_millis(500),
                };
                connection.connection_timeout = CONNECT_TIMEOUT;
                connection.internal_command_timeout = CONNECT_TIMEOUT;
                connection.reconnect_on_auth_error = true;
                connection.tcp.nodelay = Some(true);
            })
            .build()
    }
}

/// A host with or without a port, as a URL has it.
fn server(text: &str, usual_port: u16) -> Result<Server, String> {
    let wrong = || "must name hosts as host or host:port, separated by commas".to_owned();
    let url = Url::parse(&format!("redis://{text}")).map_err(|_| wrong())?;
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(Server::new(host, url.port().unwrap_or(usual_port)))
}

/// A part of the credentials, where there is one; what a URL can't hold is escaped in it.
fn decoded(text: &str) -> Option<String> {
    let pairs = format!("it={}", text.replace('+', "%2B"));
    let mut pairs = url::form_urlencoded::parse(pairs.as_bytes());
    let (_, text) = pairs.next()?;
    (!text.is_empty()).then(|| text.into_owned())
}

fn tls() -> Result<TlsConfig, String> {
    let connector = TlsConnector::default_rustls();
    connector
        .map(TlsConfig::from)
        .map_err(|error| format!("has no TLS: {}", error.details()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Config {
        Endpoint::parse(url)
            .unwrap_or_else(|error| panic!("{url}: {error}"))
            .config
    }

    #[test]
    fn every_form_names_its_servers_and_credentials() {
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
        for url in ["redis", "http://host", "redis://", "redis-cluster://a,,b"] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }
}
