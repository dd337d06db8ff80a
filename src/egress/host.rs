//! The host and port of a URL.

use std::fmt;

use url::Url;

/// The host of a URL, with the port if it is not the default of the scheme: `hooks.example.com`,
/// `[2001:db8::1]:8443`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAndPort(String);

impl HostAndPort {
    /// Returns the host and port of a URL, or `None` if it has no host.
    #[must_use]
    pub fn of(url: &Url) -> Option<Self> {
        let host = url.host_str().filter(|host| !host.is_empty())?;
        Some(Self(match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostAndPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
