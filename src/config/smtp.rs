//! The address of a mail server.

use std::fmt;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

/// A mail server that accepts mails for delivery.
#[derive(Clone, Debug)]
pub struct MailServer {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// How the connection is encrypted.
    pub encryption: Encryption,
    /// User name and password for the login.
    pub login: Option<(String, SecretString)>,
    /// Name with which the hub introduces itself.
    pub client_name: Option<String>,
}

/// How the connection to a mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// TLS from the start.
    Tls,
    /// `STARTTLS`, without which nothing is sent.
    StartTls,
    /// None.
    Plain,
}

impl Encryption {
    fn default_port(self) -> u16 {
        match self {
            Self::Tls => 465,
            Self::StartTls => 587,
            Self::Plain => 25,
        }
    }
}

impl MailServer {
    /// Parses a URL such as `smtps://user:password@smtp.example.com`.
    ///
    /// # Errors
    /// What is wrong, without the URL.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "must be smtps://user:password@host, smtp://user:password@host?tls=required or smtp://host";
        let url = Url::parse(text).map_err(|_| FORM)?;
        let encryption = match (url.scheme(), url.query()) {
            ("smtps", None) => Encryption::Tls,
            ("smtp", Some("tls=required")) => Encryption::StartTls,
            ("smtp", None) => Encryption::Plain,
            _ => return Err(FORM),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(FORM)?;
        // The scheme is not special for URLs, so an address is not recognized as such.
        let host = Host::parse(host).map_err(|_| FORM)?;
        if url.fragment().is_some() || url.port() == Some(0) {
            return Err(FORM);
        }
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().ok()?;
            (!decoded.contains(char::is_control)).then(|| decoded.into_owned())
        };
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            ("", Some(_)) | (_, None | Some("")) => {
                return Err("must have both a user name and a password, or neither");
            }
            (user, Some(password)) => {
                const ENCODED: &str = "user name and password must be percent-encoded UTF-8";
                let user = decode(user).ok_or(ENCODED)?;
                Some((user, decode(password).ok_or(ENCODED)?.into()))
            }
        };
        if login.is_some() && encryption == Encryption::Plain && !is_loopback(&host) {
            return Err("would send the password unencrypted: use smtps:// or ?tls=required");
        }
        let client_name = match url.path().trim_start_matches('/') {
            "" => None,
            name if Host::parse(name).is_ok() => Some(name.to_owned()),
            _ => return Err("must have the name of this host as its path, or no path"),
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(encryption.default_port()),
            encryption,
            login,
            client_name,
        })
    }
}

/// The URL without user name and password.
impl fmt::Display for MailServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, query) = match self.encryption {
            Encryption::Tls => ("smtps", ""),
            Encryption::StartTls => ("smtp", "?tls=required"),
            Encryption::Plain => ("smtp", ""),
        };
        let login = self.login.as_ref().map_or("", |_| "(set)@");
        write!(f, "{scheme}://{login}{}:{}", self.host, self.port)?;
        if let Some(name) = &self.client_name {
            write!(f, "/{name}")?;
        }
        f.write_str(query)
    }
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn urls_are_parsed_and_printed_without_the_password() {
        for (url, printed) in [
            (
                "smtps://ada:s3cret@mail.example.com",
                "smtps://(set)@mail.example.com:465",
            ),
            (
                "smtp://ada:s3cret@mail.example.com?tls=required",
                "smtp://(set)@mail.example.com:587?tls=required",
            ),
            ("smtp://mail.example.com", "smtp://mail.example.com:25"),
            (
                "smtp://mail.example.com:2525/hub.example.com",
                "smtp://mail.example.com:2525/hub.example.com",
            ),
            (
                "smtp://ada:s3cret@127.0.0.1:1025",
                "smtp://(set)@127.0.0.1:1025",
            ),
            ("smtp://ada:s3cret@[::1]", "smtp://(set)@[::1]:25"),
            ("smtp://ada:s3cret@localhost", "smtp://(set)@localhost:25"),
        ] {
            let server = MailServer::parse(url).unwrap();
            assert_eq!(server.to_string(), printed);
            assert!(!format!("{server:?}").contains("s3cret"));
        }
        let server = MailServer::parse("smtps://ada%40example.com:p%40%3A%2F@mail.example.com");
        let (user, password) = server.unwrap().login.unwrap();
        assert_eq!(
            (user.as_str(), password.expose_secret()),
            ("ada@example.com", "p@:/")
        );
    }

    #[test]
    fn invalid_and_unencrypted_urls_are_rejected() {
        for (url, problem) in [
            ("mail.example.com", "must be smtps://"),
            ("https://mail.example.com", "must be smtps://"),
            ("smtps://", "must be smtps://"),
            ("smtps://mail.example.com?tls=required", "must be smtps://"),
            (
                "smtp://mail.example.com?tls=opportunistic",
                "must be smtps://",
            ),
            ("smtp://mail.example.com:0", "must be smtps://"),
            ("smtps://ada@mail.example.com", "must have both"),
            ("smtps://:s3cret@mail.example.com", "must have both"),
            (
                "smtps://ada:%FF@mail.example.com",
                "user name and password must be",
            ),
            (
                "smtps://ada:a%0Ab@mail.example.com",
                "user name and password must be",
            ),
            (
                "smtp://ada:s3cret@mail.example.com",
                "would send the password",
            ),
            ("smtp://ada:s3cret@10.0.0.1", "would send the password"),
            ("smtp://mail.example.com/a%20b", "must have the name"),
        ] {
            let found = MailServer::parse(url).unwrap_err();
            assert!(found.starts_with(problem), "{url}: {found}");
        }
    }
}
