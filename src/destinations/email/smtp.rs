//! A connection to the mail server for each mail.
//!
//! Connections are not reused: an attempt that is cut off leaves its connection in an unknown state,
//! in which the next mail could become part of the previous one.

use std::time::Duration;

use lettre::Message;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailBodyParameter, MailParameter};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use url::Host;

use crate::config::{Encryption, MailServer};

/// Time limit of a TCP connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of the good-bye. The mail has been accepted already.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Replies that concern the login, at whatever command they arrive (RFC 4954, section 6).
const LOGIN_REPLIES: [u16; 4] = [530, 534, 535, 538];

const MECHANISMS: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];

/// Connects to one mail server.
pub(super) struct MailClient {
    server: MailServer,
    host: String,
    tls: TlsParameters,
    client_id: ClientId,
}

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// The server does not accept this mail.
    #[error("{error}")]
    Rejected { status: Option<u16>, error: String },
    /// The server accepts no mail from this sender.
    #[error("{error}")]
    Misconfigured { status: Option<u16>, error: String },
    /// The server can't be reached, or accepts no mail now.
    #[error("{error}")]
    Failed { status: Option<u16>, error: String },
}

impl SendError {
    /// Returns the status of the server's reply.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Rejected { status, .. }
            | Self::Misconfigured { status, .. }
            | Self::Failed { status, .. } => *status,
        }
    }

    /// An error before the mail is sent, which would be the same for any other mail.
    fn of_connection(error: &Error) -> Self {
        let (status, text) = (status(error), error.to_string());
        if error.is_permanent() || error.is_client() {
            Self::Misconfigured {
                status,
                error: text,
            }
        } else {
            Self::Failed {
                status,
                error: text,
            }
        }
    }

    /// An error of a command that concerns this mail only.
    fn of_mail(error: &Error) -> Self {
        let status = status(error);
        let is_login = status.is_some_and(|status| LOGIN_REPLIES.contains(&status));
        if error.is_permanent() && !is_login {
            let error = error.to_string();
            Self::Rejected { status, error }
        } else {
            Self::of_connection(error)
        }
    }
}

fn status(error: &Error) -> Option<u16> {
    error.status().map(u16::from)
}

impl MailClient {
    /// Prepares connections to a server.
    ///
    /// # Errors
    /// The error of the TLS library.
    pub(super) fn new(server: &MailServer) -> Result<Self, String> {
        let host = match &server.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let tls = TlsParameters::new(host.clone()).map_err(|error| error.to_string())?;
        let name = server.client_name.clone().map(ClientId::Domain);
        Ok(Self {
            server: server.clone(),
            host,
            tls,
            client_id: name.unwrap_or_default(),
        })
    }

    /// Connects and logs in.
    pub(super) async fn check(&self) -> Result<Option<u16>, SendError> {
        let connection = self.connect().await;
        quit(connection.map_err(|error| SendError::of_connection(&error))?).await;
        Ok(None)
    }

    /// Sends a mail. Returns the status of the server's reply.
    pub(super) async fn send(&self, message: &Message) -> Result<Option<u16>, SendError> {
        let (envelope, bytes) = (message.envelope(), message.formatted());
        let connection = self.connect().await;
        let mut connection = connection.map_err(|error| SendError::of_connection(&error))?;
        let mut options = Vec::new();
        let server = connection.server_info();
        if envelope
            .to()
            .iter()
            .chain(envelope.from())
            .any(|address| !address.to_string().is_ascii())
        {
            if !server.supports_feature(Extension::SmtpUtfEight) {
                let error = "address has characters that the server does not support".to_owned();
                let status = None;
                return Err(SendError::Rejected { status, error });
            }
            options.push(MailParameter::SmtpUtfEight);
        }
        if !bytes.is_ascii() && server.supports_feature(Extension::EightBitMime) {
            options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        let from = Mail::new(envelope.from().cloned(), options);
        let accepted = connection.command(from).await;
        accepted.map_err(|error| SendError::of_connection(&error))?;
        let sent = async {
            for recipient in envelope.to() {
                let to = Rcpt::new(recipient.clone(), Vec::new());
                connection.command(to).await?;
            }
            connection.command(Data).await?;
            connection.message(&bytes).await
        };
        let reply = sent.await.map_err(|error| SendError::of_mail(&error))?;
        quit(connection).await;
        Ok(Some(reply.code().into()))
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, Error> {
        let address = (self.host.as_str(), self.server.port);
        let tls = match self.server.encryption {
            Encryption::Tls => Some(self.tls.clone()),
            Encryption::StartTls | Encryption::Plain => None,
        };
        let limit = Some(CONNECT_TIMEOUT);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(address, limit, &self.client_id, tls, None).await?;
        if self.server.encryption == Encryption::StartTls {
            let tls = self.tls.clone();
            connection.starttls(tls, &self.client_id).await?;
        }
        if let Some((user, password)) = &self.server.login {
            let password = password.expose_secret().to_owned();
            let credentials = Credentials::new(user.clone(), password);
            connection.auth(&MECHANISMS, &credentials).await?;
        }
        Ok(connection)
    }
}

/// Ends a connection. Its result does not matter.
async fn quit(mut connection: AsyncSmtpConnection) {
    drop(timeout(QUIT_TIMEOUT, connection.quit()).await);
}
