//! The address of a client and its usage.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use actix_web::http::header::HeaderMap;
use ipnet::IpNet;
use tokio::time::Instant;

use super::table::Usage;
use super::{release, try_acquire};
use crate::config::{ForwardedHeader, ServerConfig};
use crate::rate_limit::Rate;

/// Usage of one address.
#[derive(Debug, Default)]
pub(super) struct AddressUsage {
    connections: AtomicUsize,
    unauthenticated: AtomicUsize,
    /// Bytes of request bodies in memory.
    body_bytes: AtomicUsize,
    pub(super) handshakes: Rate,
}

impl Usage for AddressUsage {
    fn is_idle(&self, now: Instant) -> bool {
        self.handshakes.is_idle(now)
    }
}

/// The limit that an address has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressLimit {
    Connections,
    Unauthenticated,
}

/// An open connection of an address. Dropping it releases the connection.
#[derive(Debug)]
pub struct AddressPermit {
    usage: Arc<AddressUsage>,
    is_authenticated: AtomicBool,
}

impl AddressPermit {
    /// Counts a connection as unauthenticated.
    pub(super) fn acquire(
        usage: Arc<AddressUsage>,
        max_connections: usize,
        max_unauthenticated: usize,
    ) -> Result<Self, AddressLimit> {
        if !try_acquire(&usage.connections, 1, max_connections) {
            return Err(AddressLimit::Connections);
        }
        if !try_acquire(&usage.unauthenticated, 1, max_unauthenticated) {
            release(&usage.connections, 1);
            return Err(AddressLimit::Unauthenticated);
        }
        Ok(Self {
            usage,
            is_authenticated: AtomicBool::new(false),
        })
    }

    /// Records that the client has authenticated.
    pub fn set_authenticated(&self) {
        if !self.is_authenticated.swap(true, Ordering::Relaxed) {
            release(&self.usage.unauthenticated, 1);
        }
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        self.set_authenticated();
        release(&self.usage.connections, 1);
    }
}

/// The address permit of a connection, which its requests share. `None` if addresses are not
/// counted.
#[derive(Clone, Debug)]
pub struct ClientAddress(Option<Arc<AddressPermit>>);

impl ClientAddress {
    /// Creates a shared permit. The connection is released when the last clone is dropped.
    pub fn new(permit: Option<AddressPermit>) -> Self {
        Self(permit.map(Arc::new))
    }

    /// Records that the client has authenticated.
    pub fn set_authenticated(&self) {
        if let Some(permit) = &self.0 {
            permit.set_authenticated();
        }
    }

    /// Counts bytes of a request body, unless the address would have more than `max` of them.
    /// Returns whether they were counted.
    pub(super) fn try_reserve_body(&self, bytes: usize, max: usize) -> bool {
        self.0
            .as_ref()
            .is_none_or(|permit| try_acquire(&permit.usage.body_bytes, bytes, max))
    }

    /// Releases bytes that [`Self::try_reserve_body`] has counted.
    pub(super) fn release_body(&self, bytes: usize) {
        if let Some(permit) = &self.0 {
            release(&permit.usage.body_bytes, bytes);
        }
    }
}

/// Finds the address of a client behind trusted proxies.
#[derive(Debug)]
pub(super) struct ClientAddresses {
    trusted: Vec<IpNet>,
    header: ForwardedHeader,
}

impl ClientAddresses {
    pub(super) fn new(server: &ServerConfig) -> Self {
        Self {
            trusted: server.trusted_proxies.clone(),
            header: server.forwarded_header,
        }
    }

    pub(super) fn is_trusted(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted
            .iter()
            .any(|network| network.contains(&address))
    }

    /// Returns the client address that trusted proxies forward, or `None` if `peer` is not a
    /// trusted proxy or the header has no valid client address.
    ///
    /// Each proxy appends the address of its own client to the header. The client controls the
    /// values before the appended ones. The last address that is not a trusted proxy is therefore
    /// the client.
    pub(super) fn forwarded(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.is_trusted(peer) {
            return None;
        }
        let values: Vec<&str> = headers
            .get_all(self.header.as_str())
            .map(|value| value.to_str().unwrap_or_default())
            .collect();
        for hop in values.iter().rev().flat_map(|value| value.rsplit(',')) {
            let address = match self.header {
                ForwardedHeader::XForwardedFor => parse_address(hop),
                ForwardedHeader::Forwarded => forwarded_for(hop),
            }?;
            if !self.is_trusted(address) {
                return Some(address);
            }
        }
        None
    }
}

/// Parses an address with or without a port, such as `203.0.113.7`, `[2001:db8::1]:4711` and
/// `2001:db8::1`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => address,
        None => match text.split_once(':') {
            Some((address, port)) if !port.contains(':') => address,
            Some(_) | None => text,
        },
    };
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

/// Returns the address in the `for` parameter of an element of `Forwarded` (RFC 7239). `None` for
/// `unknown` and for obfuscated names.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let parameters = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut addresses = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = addresses.next()?;
    parse_address(value.trim().trim_matches('"'))
}

/// Returns the network that counts as one client: an IPv4 address, or the /56 network of an IPv6
/// address. Internet providers commonly assign a /56 network to a customer.
pub(super) fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let mask = u128::MAX << (128 - 56);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::config::Config;

    fn addresses(header: ForwardedHeader) -> ClientAddresses {
        let server = ServerConfig {
            forwarded_header: header,
            ..Config::defaults().server
        };
        ClientAddresses::new(&server)
    }

    /// Returns the client of a proxy at `peer` that sends these values of the header.
    fn client(header: ForwardedHeader, peer: &str, values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            let name = HeaderName::from_static(header.as_str());
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let client = addresses(header).forwarded(peer.parse().unwrap(), &headers);
        client.map(|address| address.to_string())
    }

    #[test]
    fn client_is_the_last_address_that_is_not_a_proxy() {
        let x = |peer, values: &[&str]| client(ForwardedHeader::XForwardedFor, peer, values);
        let is = |address: &str| Some(address.to_owned());
        assert_eq!(x("127.0.0.1", &["203.0.113.7"]), is("203.0.113.7"));
        // The client sets the first address, and the outer proxy appends the second.
        let forged = ["198.51.100.1, 203.0.113.7, 10.0.0.2"];
        assert_eq!(x("10.0.0.1", &forged), is("203.0.113.7"));
        let repeated = ["198.51.100.1", "203.0.113.7", "10.0.0.2"];
        assert_eq!(x("10.0.0.1", &repeated), is("203.0.113.7"));
        assert_eq!(x("::1", &["203.0.113.7:4711"]), is("203.0.113.7"));
        assert_eq!(x("::1", &["[2001:db8::1]:4711"]), is("2001:db8::1"));
        assert_eq!(x("::1", &["2001:db8::1"]), is("2001:db8::1"));
        assert_eq!(
            x("::ffff:127.0.0.1", &["::ffff:203.0.113.7"]),
            is("203.0.113.7")
        );
    }

    #[test]
    fn header_of_an_untrusted_peer_is_ignored() {
        let x = |peer, values: &[&str]| client(ForwardedHeader::XForwardedFor, peer, values);
        assert_eq!(x("203.0.113.1", &["203.0.113.7"]), None);
        assert_eq!(x("127.0.0.1", &[]), None);
        assert_eq!(x("127.0.0.1", &["10.0.0.1"]), None);
        assert_eq!(x("127.0.0.1", &["203.0.113.7, unknown"]), None);
        assert_eq!(x("127.0.0.1", &["203.0.113.7, "]), None);
    }

    #[test]
    fn forwarded_elements_are_parsed() {
        let f = |values: &[&str]| client(ForwardedHeader::Forwarded, "127.0.0.1", values);
        let is = |address: &str| Some(address.to_owned());
        let forged = ["for=198.51.100.1, for=203.0.113.7;proto=https;by=10.0.0.2"];
        assert_eq!(f(&forged), is("203.0.113.7"));
        assert_eq!(
            f(&[r#"proto=https; For="[2001:db8::1]:4711""#]),
            is("2001:db8::1")
        );
        assert_eq!(f(&["for=203.0.113.7, for=_hidden"]), None);
        assert_eq!(f(&["for=203.0.113.7, for=unknown"]), None);
        assert_eq!(f(&["by=203.0.113.7"]), None);
    }

    #[test]
    fn ipv6_clients_are_counted_by_network() {
        let network = |text: &str| client_network(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:1ff::1"), network("2001:db8:1:100::2"));
        assert_ne!(network("2001:db8:1:200::1"), network("2001:db8:1:100::1"));
        assert_ne!(network("203.0.113.1"), network("203.0.113.2"));
        assert_eq!(network("::ffff:203.0.113.1"), network("203.0.113.1"));
    }

    #[test]
    fn authentication_and_drop_release_the_connection() {
        let usage = Arc::new(AddressUsage::default());
        let acquire = || AddressPermit::acquire(Arc::clone(&usage), 3, 1);
        let first = acquire().unwrap();
        assert_eq!(acquire().unwrap_err(), AddressLimit::Unauthenticated);
        first.set_authenticated();
        first.set_authenticated();
        let second = acquire().unwrap();
        second.set_authenticated();
        let third = acquire().unwrap();
        third.set_authenticated();
        assert_eq!(acquire().unwrap_err(), AddressLimit::Connections);
        drop((first, second, third));
        assert!(acquire().is_ok());
    }
}
