//! Addresses that a URL from a provider's response may lead to: public ones, and those in networks
//! that the operator allows.
//!
//! The excluded networks are those of the IANA special-purpose registries (RFC 6890 and its
//! updates) that are not globally reachable, and those that embed another address: 6to4, Teredo and
//! NAT64.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Networks of public addresses.
const PUBLIC: [&str; 2] = [
    "0.0.0.0/0",
    // Excludes loopback, unique local, link-local, multicast, IPv4-mapped and NAT64 addresses.
    "2000::/3",
];

/// Networks within [`PUBLIC`] that are not public.
const NOT_PUBLIC: [&str; 19] = [
    "0.0.0.0/8",       // this network
    "10.0.0.0/8",      // private
    "100.64.0.0/10",   // carrier-grade NAT
    "127.0.0.0/8",     // loopback
    "169.254.0.0/16",  // link-local, includes the metadata services of clouds
    "172.16.0.0/12",   // private
    "192.0.0.0/24",    // protocol assignments
    "192.0.2.0/24",    // documentation
    "192.88.99.0/24",  // 6to4 relays
    "192.168.0.0/16",  // private
    "198.18.0.0/15",   // benchmarks
    "198.51.100.0/24", // documentation
    "203.0.113.0/24",  // documentation
    "224.0.0.0/4",     // multicast
    "240.0.0.0/4",     // reserved, includes broadcast
    "2001::/23",       // protocol assignments, includes Teredo
    "2001:db8::/32",   // documentation
    "2002::/16",       // 6to4
    "3fff::/20",       // documentation
];

/// Returns whether an address is on the public internet.
fn is_public(address: IpAddr) -> bool {
    static NETWORKS: LazyLock<[Vec<IpNet>; 2]> =
        LazyLock::new(|| [parse(&PUBLIC), parse(&NOT_PUBLIC)]);
    let [public, not_public] = &*NETWORKS;
    let is_in = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
    is_in(public) && !is_in(not_public)
}

#[expect(clippy::expect_used, reason = "the constants are valid")]
fn parse(networks: &[&str]) -> Vec<IpNet> {
    let networks = networks.iter();
    networks
        .map(|network| network.parse().expect("valid network"))
        .collect()
}

/// The addresses that a client may connect to.
///
/// As a resolver, it resolves host names to these addresses only. The client connects to exactly the
/// addresses that were checked, so a DNS answer that changes between check and connection has no
/// effect.
#[derive(Clone)]
pub(super) struct Reachable {
    includes_public: bool,
    allow: Arc<[IpNet]>,
}

impl Reachable {
    /// Public addresses, and those in `allow`.
    pub(super) fn public_and(allow: &[IpNet]) -> Self {
        Self {
            includes_public: true,
            allow: allow.into(),
        }
    }

    /// Addresses in `allow`.
    pub(super) fn only(allow: &[IpNet]) -> Self {
        Self {
            includes_public: false,
            ..Self::public_and(allow)
        }
    }

    /// Returns whether no address is included.
    pub(super) fn is_nothing(&self) -> bool {
        !self.includes_public && self.allow.is_empty()
    }

    /// Returns whether an address is included.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let is_allowed = || self.allow.iter().any(|network| network.contains(&address));
        (self.includes_public && is_public(address)) || is_allowed()
    }
}

/// No address of the host is allowed.
#[derive(Debug, thiserror::Error)]
#[error("host has no public address")]
struct NonPublicAddress;

impl Resolve for Reachable {
    fn resolve(&self, name: Name) -> Resolving {
        let reachable = self.clone();
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = addresses
                .filter(|address| reachable.contains(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(NonPublicAddress.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_public_addresses_are_rejected() {
        for (address, expected) in [
            ("1.1.1.1", true),
            ("8.8.8.8", true),
            ("9.255.255.255", true),
            ("11.0.0.0", true),
            ("100.63.255.255", true),
            ("100.128.0.0", true),
            ("172.15.255.255", true),
            ("172.32.0.0", true),
            ("192.0.1.1", true),
            ("192.167.255.255", true),
            ("198.17.255.255", true),
            ("198.20.0.0", true),
            ("223.255.255.255", true),
            ("2606:4700:4700::1111", true),
            ("2a00:1450:4001:80e::200e", true),
            ("2001:4860:4860::8888", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("198.19.255.255", false),
            ("198.51.100.7", false),
            ("203.0.113.7", false),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.1", false),
            ("250.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", false),
            ("::8.8.8.8", false),
            ("64:ff9b::8.8.8.8", false),
            ("64:ff9b:1::1", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:2::1", false),
            ("2001:20::1", false),
            ("2001:1ff::1", false),
            ("2001:db8::1", false),
            ("2002:7f00:1::1", false),
            ("3fff::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd12:3456::1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), expected, "{address}");
        }
    }
    #[test]
    fn allowed_networks_extend_the_public_addresses() {
        let allow = ["10.0.0.0/8".parse().unwrap()];
        for (address, public, only) in [
            ("1.1.1.1", true, false),
            ("10.1.2.3", true, true),
            ("127.0.0.1", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(Reachable::public_and(&allow).contains(address), public);
            assert_eq!(Reachable::only(&allow).contains(address), only);
        }
        assert!(Reachable::only(&[]).is_nothing());
        assert!(!Reachable::public_and(&[]).is_nothing());
    }
}
