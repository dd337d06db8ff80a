//! The hub that a run drives: where it is, and from which addresses it is reached.
//!
//! Invariant: nothing but loopback is ever driven unless that was asked for in so many words.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use url::Url;

use super::arguments::ArgumentErrors;

/// How many sockets one source address carries: fewer than the ports that Linux gives out by itself.
pub(super) const MAX_PER_SOURCE: u64 = 24_000;

/// How many addresses of 127.0.0.0/24 there are to connect from.
pub(super) const MAX_SOURCES: u64 = 250;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// What a slow reader's kernel holds for it; what is more waits in the hub.
const SLOW_BUFFER: u32 = 4096;

/// A hub, found.
#[derive(Clone, Debug)]
pub struct Target {
    url: Url,
    address: SocketAddr,
    sources: u64,
}

impl Target {
    /// Finds the hub of an address.
    ///
    /// # Errors
    /// When the URL is not one of a hub, is found nowhere, or is not loopback and `is_remote_allowed`
    /// is false.
    pub fn find(url: Url, sources: u64, is_remote_allowed: bool) -> Result<Self, ArgumentErrors> {
        let wrong = |text: String| Err(ArgumentErrors::one(format!("--url {url}: {text}")));
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ArgumentErrors::one(
                "--url: must carry no name and no password",
            ));
        }
        if url.scheme() != "http" || url.query().is_some() || url.fragment().is_some() {
            return wrong("must be http://HOST:PORT, without TLS and without a query".to_owned());
        }
        let Some(host) = url.host_str() else {
            return wrong("must name a host".to_owned());
        };
        let host = host.trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(80);
        let found = (host, port).to_socket_addrs();
        let Some(address) = found.ok().and_then(|mut found| found.next()) else {
            return wrong("there is no such host".to_owned());
        };
        if !address.ip().is_loopback() && !is_remote_allowed {
            return wrong(
                "is not on loopback; --allow-remote drives a hub that you may load".to_owned(),
            );
        }
        let is_many = sources > 1 && address.ip().is_loopback() && address.is_ipv4();
        Ok(Self {
            sources: if is_many { sources } else { 1 },
            url,
            address,
        })
    }

    /// The value of `Host`.
    pub fn authority(&self) -> &str {
        self.url.authority()
    }

    /// A path of the hub's, below the one that it is mounted at.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url.path().trim_end_matches('/'))
    }

    /// The hub's address, as it was given.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the hub's process can be on this machine.
    pub fn is_local(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// A connection; the `nth` of all tells its source address.
    pub async fn connect(&self, nth: u64, is_slow: bool) -> std::io::Result<TcpStream> {
        let socket = match self.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.sources > 1 {
            let last = (nth % self.sources) as u8 + 1;
            socket.set_reuseaddr(true)?;
            socket.bind((IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0).into())?;
        }
        if is_slow {
            socket.set_recv_buffer_size(SLOW_BUFFER)?;
        }
        let connecting = socket.connect(self.address);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(url: &str, is_remote_allowed: bool) -> Result<Target, String> {
        Target::find(url.parse().unwrap(), 3, is_remote_allowed).map_err(|error| error.to_string())
    }

    #[test]
    fn remote_targets_require_allow_remote() {
        assert!(find("http://127.0.0.1:8080", false).is_ok());
        assert!(find("http://[::1]:8080/", false).is_ok());
        let refused = find("http://192.0.2.1:8080", false).unwrap_err();
        assert!(refused.contains("--allow-remote"), "{refused}");
        assert!(find("http://192.0.2.1:8080", true).is_ok());
    }

    #[test]
    fn what_is_no_address_of_a_hub_is_refused_and_a_password_not_repeated() {
        for url in [
            "https://127.0.0.1/",
            "ftp://127.0.0.1/",
            "http://127.0.0.1/?token=a",
        ] {
            assert!(find(url, true).is_err(), "{url}");
        }
        let refused = find("http://user:hunter2@127.0.0.1/", true).unwrap_err();
        assert!(!refused.contains("hunter2"), "{refused}");
    }

    #[test]
    fn base_path_is_preserved() {
        let target = find("http://127.0.0.1:8080/hub/", false).unwrap();
        assert_eq!(target.path("/v1/ws"), "/hub/v1/ws");
        assert_eq!(target.authority(), "127.0.0.1:8080");
    }
}
