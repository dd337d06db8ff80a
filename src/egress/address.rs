//! The addresses that a URL from outside may lead to: public ones, and those in allowed networks.
//!
//! The networks that are not public are those of the IANA special-purpose registries (RFC 6890 and its
//! updates) that are not globally reachable, and those that embed another address: 6to4, Teredo and
//! NAT64.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

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

/// The addresses that a client may connect to: public ones by https, and those in the allowed
/// networks by https and http. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    allowed: Arc<[IpNet]>,
}

/// A URL leads to an address that the client must not connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenUrl {
    /// The scheme is not https, and http is not allowed.
    #[error("must be https")]
    Scheme,
    /// The host is an IP address that is not allowed.
    #[error("must have a public address")]
    Address,
}

impl AddressPolicy {
    /// Creates a policy that also allows the addresses in these networks.
    #[must_use]
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self {
            allowed: allowed.into(),
        }
    }

    /// Checks what can be known about a URL without DNS. The parser of URLs has already converted
    /// every spelling of an IP address, such as `0x7f.1`.
    ///
    /// # Errors
    /// [`ForbiddenUrl`]. A name passes, because a [`PolicyResolver`] checks its addresses.
    pub fn check(&self, url: &Url) -> Result<(), ForbiddenUrl> {
        let is_encrypted = match url.scheme() {
            "https" => true,
            "http" if !self.allowed.is_empty() => false,
            _ => return Err(ForbiddenUrl::Scheme),
        };
        let is_permitted = match url.host() {
            Some(Host::Domain(_)) => true,
            Some(Host::Ipv4(address)) => self.permits(address.into(), is_encrypted),
            Some(Host::Ipv6(address)) => self.permits(address.into(), is_encrypted),
            None => false,
        };
        is_permitted.then_some(()).ok_or(ForbiddenUrl::Address)
    }

    /// Returns whether a client may connect to an address.
    #[must_use]
    pub fn permits(&self, address: IpAddr, is_encrypted: bool) -> bool {
        let mut allowed = self.allowed.iter();
        allowed.any(|network| network.contains(&address)) || (is_encrypted && is_public(address))
    }

    /// Returns the resolver of a client for one of the two schemes.
    #[must_use]
    pub fn resolver(&self, is_encrypted: bool) -> PolicyResolver {
        PolicyResolver {
            policy: self.clone(),
            is_encrypted,
        }
    }
}

/// Resolves host names, and refuses a name if the policy does not permit all of its addresses. The
/// client connects to exactly these addresses, so a DNS answer that changes between check and
/// connection has no effect. A client does not use its resolver for IP addresses.
pub struct PolicyResolver {
    policy: AddressPolicy,
    is_encrypted: bool,
}

/// The addresses of a name are not permitted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ForbiddenName {
    #[error("host has no address")]
    NoAddress,
    #[error("host has an address that is not allowed")]
    Address,
}

impl PolicyResolver {
    fn check(&self, addresses: &[SocketAddr]) -> Result<(), ForbiddenName> {
        let is_permitted =
            |address: &SocketAddr| self.policy.permits(address.ip(), self.is_encrypted);
        if addresses.is_empty() {
            Err(ForbiddenName::NoAddress)
        } else if addresses.iter().all(is_permitted) {
            Ok(())
        } else {
            Err(ForbiddenName::Address)
        }
    }
}

impl Resolve for PolicyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.policy.resolver(self.is_encrypted);
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = addresses.collect();
            resolver.check(&addresses)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
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

    fn policy(networks: &[&str]) -> AddressPolicy {
        AddressPolicy::new(parse(networks))
    }

    #[test]
    fn every_spelling_of_a_private_address_is_refused() {
        for host in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "①②⑦.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[fd00:ec2::254]",
        ] {
            let url = Url::parse(&format!("https://{host}/hook")).unwrap();
            let checked = AddressPolicy::default().check(&url);
            assert_eq!(checked, Err(ForbiddenUrl::Address), "{host}");
        }
    }

    #[test]
    fn plain_http_is_limited_to_allowed_networks() {
        let check = |networks: &[&str], url: &str| {
            let url = Url::parse(url).unwrap();
            policy(networks).check(&url)
        };
        for (networks, url, expected) in [
            (&[][..], "https://1.1.1.1/", Ok(())),
            (&[], "https://hooks.example.com/", Ok(())),
            (&[], "http://1.1.1.1/", Err(ForbiddenUrl::Scheme)),
            (&[], "http://hooks.example.com/", Err(ForbiddenUrl::Scheme)),
            (&[], "ftp://hooks.example.com/", Err(ForbiddenUrl::Scheme)),
            (&["10.0.0.0/8"], "http://10.1.2.3/", Ok(())),
            (&["10.0.0.0/8"], "https://10.1.2.3/", Ok(())),
            (&["10.0.0.0/8"], "https://1.1.1.1/", Ok(())),
            (&["10.0.0.0/8"], "http://nas.example.com/", Ok(())),
            (
                &["10.0.0.0/8"],
                "http://1.1.1.1/",
                Err(ForbiddenUrl::Address),
            ),
            (
                &["10.0.0.0/8"],
                "http://11.0.0.1/",
                Err(ForbiddenUrl::Address),
            ),
            (
                &["10.0.0.0/8"],
                "https://127.0.0.1/",
                Err(ForbiddenUrl::Address),
            ),
        ] {
            assert_eq!(check(networks, url), expected, "{networks:?} {url}");
        }
    }

    #[test]
    fn name_with_one_forbidden_address_is_refused() {
        let check = |networks: &[&str], is_encrypted: bool, addresses: &[&str]| {
            let addresses: Vec<SocketAddr> = addresses
                .iter()
                .map(|address| SocketAddr::new(address.parse().unwrap(), 0))
                .collect();
            policy(networks).resolver(is_encrypted).check(&addresses)
        };
        for (networks, is_encrypted, addresses, expected) in [
            (&[][..], true, &["1.1.1.1", "2606:4700::1"][..], Ok(())),
            (
                &[],
                true,
                &["1.1.1.1", "127.0.0.1"],
                Err(ForbiddenName::Address),
            ),
            (&[], true, &["169.254.169.254"], Err(ForbiddenName::Address)),
            (&[], true, &[], Err(ForbiddenName::NoAddress)),
            (&["10.0.0.0/8"], true, &["10.0.0.1", "1.1.1.1"], Ok(())),
            (&["10.0.0.0/8"], false, &["10.0.0.1"], Ok(())),
            (
                &["10.0.0.0/8"],
                false,
                &["10.0.0.1", "1.1.1.1"],
                Err(ForbiddenName::Address),
            ),
        ] {
            let checked = check(networks, is_encrypted, addresses);
            assert_eq!(checked, expected, "{networks:?} {addresses:?}");
        }
    }

    #[tokio::test]
    async fn resolver_refuses_names_of_this_machine() {
        let resolve = |policy: AddressPolicy| {
            let name = "localhost".parse().unwrap();
            policy.resolver(true).resolve(name)
        };
        assert!(resolve(AddressPolicy::default()).await.is_err());
        let loopback = policy(&["127.0.0.0/8", "::1/128"]);
        assert!(resolve(loopback).await.is_ok());
    }
}
