//! The hub under test: its address, requests and connections to it, and the source addresses of sockets.
//!
//! Invariant: a hub that is not on loopback is only contacted with `--allow-remote`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::{RequestBuilder, redirect};
use tokio::net::{TcpSocket, TcpStream};
use url::Url;

use super::arguments::ArgumentErrors;

/// Maximum sockets per source address. Linux has 28,232 ephemeral ports by default.
pub(super) const MAX_SOCKETS_PER_SOURCE: u64 = 24_000;

/// Maximum number of source addresses, all of them in 127.0.0.0/24.
pub(super) const MAX_SOURCES: u64 = 250;

/// Maximum time to establish a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Kernel receive buffer of a slow client. Everything beyond it waits in the hub.
const SLOW_CLIENT_BUFFER_BYTES: u32 = 4096;

/// A hub with a resolved address.
#[derive(Clone, Debug)]
pub(super) struct Target {
    url: Url,
    address: SocketAddr,
    sources: u64,
    client: reqwest::Client,
}

impl Target {
    /// Resolves the hub at `url`.
    ///
    /// # Errors
    /// The URL is not a valid hub URL, the host is unknown, or it is not on loopback and `allow_remote` is false.
    pub fn resolve(url: Url, sources: u64, allow_remote: bool) -> anyhow::Result<Self> {
        let error = |text: &str| Err(ArgumentErrors::one(format!("--url {url}: {text}")).into());
        if !url.username().is_empty() || url.password().is_some() {
            // The message omits the URL because it contains a password.
            let message = "--url: must not contain a user name or password";
            return Err(ArgumentErrors::one(message).into());
        }
        if url.scheme() != "http" || url.query().is_some() || url.fragment().is_some() {
            return error("must be http://HOST:PORT, without TLS and without a query");
        }
        let addresses = url.socket_addrs(|| None).unwrap_or_default();
        let Some(&address) = addresses.first() else {
            return error("unknown host");
        };
        let is_loopback = address.ip().is_loopback();
        if !is_loopback && !allow_remote {
            return error("not a loopback address; to load a remote hub, pass --allow-remote");
        }
        let has_sources = is_loopback && address.is_ipv4();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            .no_gzip()
            .no_proxy()
            // The address that was checked to be loopback is the one that is used.
            .resolve(url.host_str().unwrap_or_default(), address);
        Ok(Self {
            sources: if has_sources { sources } else { 1 },
            client: client.build()?,
            url,
            address,
        })
    }

    /// Returns the URL of `path` on the hub, which may itself be mounted below a path.
    pub fn endpoint(&self, scheme: &str, path: &str) -> String {
        let base = self.url.path().trim_end_matches('/');
        format!("{scheme}://{}{base}{path}", self.url.authority())
    }

    /// Creates a GET request without credentials.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.endpoint("http", path))
    }

    /// Creates a POST request without credentials.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.endpoint("http", path))
    }

    /// Returns whether the hub runs on this machine.
    pub fn is_local(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Connects from the source address that belongs to socket number `nth`. A slow client gets a small kernel
    /// receive buffer.
    pub async fn connect(&self, nth: u64, is_slow: bool) -> std::io::Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.sources > 1 {
            let source = Ipv4Addr::new(127, 0, 0, (nth % self.sources) as u8 + 1);
            socket.set_reuseaddr(true)?;
            socket.bind((IpAddr::V4(source), 0).into())?;
        }
        if is_slow {
            socket.set_recv_buffer_size(SLOW_CLIENT_BUFFER_BYTES)?;
        }
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(self.address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str, allow_remote: bool) -> Result<Target, String> {
        Target::resolve(url.parse().unwrap(), 3, allow_remote).map_err(|error| error.to_string())
    }

    #[test]
    fn remote_targets_require_allow_remote() {
        assert!(resolve("http://127.0.0.1:8080", false).is_ok());
        assert!(resolve("http://[::1]:8080/", false).is_ok());
        let error = resolve("http://192.0.2.1:8080", false).unwrap_err();
        assert!(error.contains("--allow-remote"), "{error}");
        assert!(resolve("http://192.0.2.1:8080", true).is_ok());
    }

    #[test]
    fn invalid_urls_are_rejected_without_repeating_a_password() {
        for url in [
            "https://127.0.0.1/",
            "ftp://127.0.0.1/",
            "http://127.0.0.1/?token=a",
        ] {
            assert!(resolve(url, true).is_err(), "{url}");
        }
        let error = resolve("http://user:hunter2@127.0.0.1/", true).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn base_path_is_preserved() {
        let target = resolve("http://127.0.0.1:8080/hub/", false).unwrap();
        assert_eq!(
            target.endpoint("ws", "/v1/ws"),
            "ws://127.0.0.1:8080/hub/v1/ws"
        );
        assert_eq!(target.url.host_str(), Some("127.0.0.1"));
    }
}
