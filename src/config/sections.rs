//! Every setting: key, type, default, bounds and meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use progress_hub_auth::jwt::AuthConfig;
use secrecy::SecretString;
use url::Url;

use super::kinds::{
    amount, boolean, bytes, duration, file, headers, list, number, parsed, prices, redis_password,
    secret, signing_secret, store_url, text, webhook_secret, webhook_url,
};
use super::parse;
use super::reader::SectionReader;
use super::setting::{Section, Setting, section};
use super::smtp::MailServer;
use crate::egress::HostAndPort;
use crate::outbox::{Event, RETRY_DELAYS};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

section! {
    /// `[server]`: the HTTP server.
    pub struct ServerConfig {
        /// Address and port to listen on. Port 0 selects a free port.
        bind: SocketAddr = parsed(parse::address).or(([127, 0, 0, 1], 8080).into()),
        /// URL at which providers and browsers reach the hub, including the path prefix of a proxy.
        /// Without it, providers receive no callback URL and the hub polls.
        public_url: Option<Url> = parsed(parse::base_url).or_none(),
        /// Browser origins that may use the hub in addition to its own, such as
        /// `https://app.example.com`. `http://localhost:*` allows every port, `*` every origin.
        allowed_origins: Vec<String> = list(parsed(parse::origin)).or_empty(),
        /// Address and port of a second listener, for health checks and metrics only. With it,
        /// `bind` does not serve metrics.
        admin_bind: Option<SocketAddr> = parsed(parse::address).or_none(),
        /// Addresses and networks of proxies. The hub trusts their `forwarded_header`, and does not
        /// apply limits per address to them. By default loopback, private and link-local networks.
        trusted_proxies: Vec<IpNet> = list(parsed(parse::network)).or(private_networks()),
        /// Header in which a trusted proxy passes the address of its client: `x-forwarded-for` or
        /// `forwarded`.
        forwarded_header: ForwardedHeader = parsed(parse::forwarded_header).or(ForwardedHeader::XForwardedFor),
        /// Maximum number of WebSockets, event streams and long polls.
        max_connections: usize = number(1..=10_000_000).or(100_000),
        /// Maximum size of a request body in bytes.
        max_body_bytes: usize = bytes(1 << 10..=64 << 20).or(1 << 20),
        /// Time limit for receiving the head of a request. The body has the same limit, extended by
        /// one second for each 64 KiB received.
        request_timeout: Duration = duration(100 * MILLISECOND..=5 * MINUTE).or(10 * SECOND),
        /// Time for open connections to close at shutdown.
        drain: Duration = duration(Duration::ZERO..=10 * MINUTE).or(20 * SECOND),
        /// PEM file with the certificate chain. Enables TLS. Reloaded when it changes, and on SIGHUP.
        tls_cert: Option<PathBuf> = file().or_none(),
        /// PEM file with the private key of the certificate.
        tls_key: Option<PathBuf> = file().or_none(),
    }
}

section! {
    impl AuthConfig {
        /// Secrets that verify HS256 tokens. The first one also signs.
        hs256_secrets = list(signing_secret()).or_empty(),
        /// RSA, EC (P-256, P-384) or Ed25519 public keys, as PEM text or path of a PEM file.
        public_keys = list(text()).or_empty(),
        /// URL of the issuer's key set: https, or http on loopback.
        jwks_url = parsed(parse::secure_url).or_none(),
        /// Required `iss` of every token.
        issuer = text().or_none(),
        /// Required `aud` of every token. Set it with `jwks_url`, because an issuer's keys also sign
        /// the tokens of its other applications.
        audience = text().or_none(),
        /// Tolerated clock difference.
        leeway = duration(Duration::ZERO..=5 * MINUTE).or(5 * SECOND),
    }
}

section! {
    /// `[store]`: the job store.
    pub struct StoreConfig {
        /// URL of the store. It may contain a password.
        url: String = store_url().or("sqlite://progress-hub.db".to_owned()),
        /// Password for Redis, instead of one in the URL. It is not percent-encoded.
        password: Option<SecretString> = redis_password().or_none(),
        /// Prefix of every Redis key and channel. SQLite ignores it.
        prefix: String = parsed(parse::prefix).limits("1 to 64 of `A-Z a-z 0-9 . _ : -`").or("ph".to_owned()),
        /// Number of Redis replicas that must confirm a write before it is acknowledged. SQLite
        /// ignores it.
        replicas: usize = number(0..=16).or(0),
        /// Time a job is kept after it became final.
        retain_final: Duration = duration(SECOND..=YEAR).or(24 * HOUR),
        /// Time an unfinished job is kept after its last change. Also the maximum deadline.
        retain_active: Duration = duration(SECOND..=YEAR).or(24 * HOUR),
    }
}

section! {
    /// `[socket]`: WebSocket connections.
    pub struct SocketConfig {
        /// Interval of heartbeats.
        heartbeat: Duration = duration(SECOND..=10 * MINUTE).or(25 * SECOND),
        /// Time within which a WebSocket must authenticate.
        auth_timeout: Duration = duration(100 * MILLISECOND..=5 * MINUTE).or(10 * SECOND),
        /// Write timeout for slow clients.
        write_timeout: Duration = duration(100 * MILLISECOND..=5 * MINUTE).or(10 * SECOND),
        /// Maximum size of a client's message in bytes.
        max_message_bytes: usize = bytes(1 << 10..=16 << 20).or(16 << 10),
        /// Maximum number of jobs that a connection subscribes to by id. A feed does not count.
        max_subscriptions: usize = number(1..=100_000).or(256),
    }
}

section! {
    /// `[callback]`: callback URLs for providers.
    pub struct CallbackConfig {
        /// Secret that signs the per-job tokens in callback URLs and the links to authenticated
        /// outputs. Required if `server.public_url` and a provider are set.
        secret: Option<SecretString> = signing_secret().or_none(),
        /// Earlier values of `secret`. Tokens and links that they signed stay valid.
        previous_secrets: Vec<SecretString> = list(signing_secret()).or_empty(),
    }
}

section! {
    /// `[defaults]`: values for submissions that do not set them.
    pub struct Defaults {
        /// Provider of submissions that name none. Without it, the only provider that accepts
        /// submissions.
        provider: Option<String> = text().or_none(),
        /// Limit of the resolution: `development` and `staging` cap submissions at 720p,
        /// `production` does not.
        tier: Tier = parsed(parse::tier).or(Tier::Production),
    }
}

section! {
    /// `[limits]`: limits on the resources of one client, which is an address or the subject of a
    /// token.
    #[derive(Copy)]
    pub struct Limits {
        /// Open connections from one address. For IPv6, from one /56 network.
        connections_per_address: usize = number(1..=10_000_000).or(1000),
        /// Open connections from one address that are not authenticated.
        unauthenticated_per_address: usize = number(1..=10_000_000).or(256),
        /// TLS handshakes per second from one address, with bursts of four seconds.
        handshakes_per_second: usize = number(1..=1_000_000).or(100),
        /// WebSockets, event streams and long polls of one subject.
        connections_per_subject: usize = number(1..=10_000_000).or(1000),
        /// Jobs that one subject subscribes to by id, on all its connections together.
        subscriptions_per_subject: usize = number(1..=10_000_000).or(20_000),
        /// HTTP requests of one subject per second, with bursts of four seconds. Tokens of workers
        /// have no limit.
        requests_per_second: usize = number(1..=1_000_000).or(1000),
        /// WebSocket messages, event streams and long polls of one subject per second, with bursts of
        /// four seconds.
        messages_per_second: usize = number(1..=1_000_000).or(100),
        /// Job ids in the subscriptions of one subject per second, with bursts of four seconds. A feed
        /// counts as 64 ids.
        ids_per_second: usize = number(1..=1_000_000).or(2000),
        /// Outputs that the hub streams at the same time from the jobs of one owner.
        downloads_per_owner: usize = number(1..=10_000).or(16),
        /// Outputs that the hub streams at the same time through one link.
        downloads_per_link: usize = number(1..=10_000).or(8),
        /// Memory in bytes for the bodies of webhooks that are not verified yet.
        unverified_body_bytes: usize = bytes(1 << 10..=1 << 30).or(64 << 20),
        /// Number of jobs that one owner may submit per clock minute.
        submits_per_minute: usize = number(1..=1_000_000).or(600),
        /// Number of jobs of one owner that may wait for their first submission attempt.
        queued_jobs: usize = number(1..=1_000_000).or(1000),
        /// Total size in bytes of the requests of these jobs.
        queued_bytes: usize = bytes(64 << 10..=1 << 30).or(16 << 20),
    }
}

section! {
    /// `[budgets]`: limits of what submitted jobs may cost.
    pub struct Budgets {
        /// Unit of prices and budgets, as in the `cost` that providers report.
        unit: String = text().or("usd".to_owned()),
        /// Maximum cost of one job.
        per_job: Option<f64> = amount().or_none(),
        /// Maximum cost of one owner's jobs per UTC day.
        per_owner_day: Option<f64> = amount().or_none(),
    }
}

section! {
    /// `[archive]`: copies of the outputs in a bucket or folder of yours.
    pub struct ArchiveConfig {
        /// Where outputs are copied to: `s3://bucket/prefix`, `gs://bucket/prefix`,
        /// `az://container/prefix` or `file:///folder`. Without it, outputs are not copied. The
        /// credentials come from the environment, as those of the vendors' SDKs.
        url: Option<Url> = parsed(parse::archive_url).or_none(),
        /// Template of the name of a copy, below the prefix or folder. It can use `job`, which is the
        /// document, `n`, the position of the output from 0, and `ext`, its file extension. It must
        /// use `job.id` and `n`. Characters other than `A-Z a-z 0-9 . _ -` in values become `-`.
        key: String = text().or("{{ job.owner }}/{{ job.id }}/{{ n }}.{{ ext }}".to_owned()),
        /// URL at which everybody can read the bucket or folder, such as a CDN. The links of outputs
        /// then redirect there instead of to a signed URL.
        public_url: Option<Url> = parsed(parse::base_url).or_none(),
        /// Time for which a signed URL is valid.
        link_ttl: Duration = duration(SECOND..=7 * DAY).or(15 * MINUTE),
        /// Maximum size of an output in bytes. A larger one is not copied.
        max_bytes: usize = bytes(1 << 10..=64 << 30).or(2 << 30),
        /// Time for which a copy should be kept. It is recorded with the copy. A lifecycle rule of the
        /// bucket must delete it.
        keep: Duration = duration(HOUR..=10 * YEAR).or(30 * DAY),
        /// Networks from which outputs are read although their addresses are private. In these
        /// networks http is allowed too.
        allow: Vec<IpNet> = list(parsed(parse::network)).or_empty(),
        /// Number of outputs that are copied at the same time. Each needs up to 24 MiB of memory.
        max_concurrent: usize = number(1..=64).or(4),
        /// URL of the storage service if it is not that of the cloud provider, as for Cloudflare R2,
        /// Supabase Storage and MinIO.
        endpoint: Option<Url> = parsed(parse::base_url).or_none(),
        /// URL of the storage service in signed URLs, if browsers reach it at another URL than the
        /// hub.
        public_endpoint: Option<Url> = parsed(parse::base_url).or_none(),
        /// Whether the bucket is in the path of S3 URLs. Otherwise it is in their host name.
        path_style: bool = boolean().or(true),
        /// Region of an S3 bucket. By default `AWS_REGION`, `auto` for Cloudflare R2, otherwise
        /// `us-east-1`.
        region: Option<String> = text().or_none(),
    }
}

section! {
    /// `[providers.<name>]`: one account at a provider.
    pub struct ProviderConfig {
        /// Name of a built-in provider, or path of a provider definition.
        spec: String = text().required("required: a built-in provider, or the path of a provider definition"),
        /// Base URL of the provider's API: https, or http on loopback.
        base_url: Option<Url> = parsed(parse::secure_base_url).or_definition(),
        /// The API key, or the public half of a key pair.
        api_key: Option<SecretString> = secret().or_none(),
        /// The secret half of a key pair.
        secret_key: Option<SecretString> = secret().or_none(),
        /// Secrets that may sign webhooks. Several allow rotation.
        webhook_secrets: Vec<SecretString> = list(secret()).or_empty(),
        /// URL of the public keys for webhooks: https, or http on loopback.
        jwks_url: Option<Url> = parsed(parse::secure_url).or_definition(),
        /// Your account at the provider, if its webhooks name the account, as those of fal do. Webhooks
        /// for another account are rejected.
        account: Option<String> = text().or_none(),
        /// Time without an update after which the hub polls a job.
        poll_after: Option<Duration> = duration(50 * MILLISECOND..=24 * HOUR).or_definition(),
        /// Interval of further polls.
        poll_every: Option<Duration> = duration(50 * MILLISECOND..=24 * HOUR).or_definition(),
        /// Minimum time between a poll and the next one that an unverified webhook may trigger, at
        /// most `poll_every`.
        cool_down: Option<Duration> = duration(Duration::ZERO..=24 * HOUR).or_definition(),
        /// Number of polls per minute and node that webhooks with neither a verified signature nor a
        /// callback token may trigger. If `server.public_url` is set and the provider accepts a
        /// callback URL for each job, such webhooks trigger none.
        unverified_polls_per_minute: usize = number(0..=1_000_000).or(60),
        /// Time after which a job fails with `timeout`. At most `store.retain_active`, and less
        /// than the provider keeps its tasks.
        deadline: Option<Duration> = duration(SECOND..=YEAR).or_definition(),
        /// Maximum number of jobs at the provider, from submission to terminal status.
        max_concurrent: Option<usize> = number(1..=100_000).or_definition(),
        /// Table of prices by model. A model is a name or a pattern with `*`, a price is a number
        /// or an expression over the request's parameters, such as `"0.07 * duration"`. A name
        /// takes precedence over a pattern, and a longer pattern over a shorter one.
        prices: BTreeMap<String, Price> = prices().or_empty(),
        /// Keys of a request's `input` that are accepted when a budget or a tier applies, such as
        /// `settings.audio`, in addition to those that the provider definition allows. Prices must
        /// take them into account.
        allowed_input: Vec<String> = list(text()).or_empty(),
        /// Maximum cost of this provider's jobs per UTC day.
        budget_per_day: Option<f64> = amount().or_none(),
    }
}

section! {
    /// `[email]`: mails about jobs.
    pub struct EmailConfig {
        /// URL of the mail server: `smtps://user:password@host` for TLS, or
        /// `smtp://user:password@host?tls=required` for STARTTLS. `smtp://host` is not encrypted, and
        /// allows a password on loopback only. User name and password are percent-encoded. A path is
        /// the name with which the hub introduces itself.
        smtp_url: Option<MailServer> = parsed(MailServer::parse).or_none(),
        /// Sender, such as `Video Studio <videos@example.com>`. Required if `smtp_url` is set.
        from: Option<String> = text().or_none(),
        /// Template of the recipient's address. A job for which it has no value causes no mail.
        to: String = text().or("{{ job.owner_email }}".to_owned()),
        /// Template of the subject. Control characters are removed, and it is cut to 120 characters.
        subject: String = text().or("Your video: {{ job.status }}".to_owned()),
        /// Template of the text.
        text: String = text().or(DEFAULT_TEXT.to_owned()),
        /// Template of an HTML version of the text.
        html: Option<String> = text().or_none(),
        /// Events to send: `job.created`, `job.succeeded`, `job.failed`, `job.cancelled`.
        events: Vec<Event> = list(parsed(parse::mail_event)).or(vec![Event::Succeeded, Event::Failed]),
        /// Domains to which mails may be sent, without their subdomains. By default all, but then `to`
        /// must not use fields that a caller can set, such as `job.metadata`.
        allowed_domains: Vec<String> = list(parsed(parse::domain)).or_empty(),
        /// Number of mails about the jobs of one owner per UTC day.
        per_owner_per_day: usize = number(1..=1_000_000).or(50),
        /// Time limit of an attempt, from connecting to the reply of the mail server.
        timeout: Duration = duration(100 * MILLISECOND..=10 * MINUTE).or(MINUTE),
        /// Template of an https URL for the header `List-Unsubscribe`. It must accept a POST request
        /// without login (RFC 8058).
        unsubscribe_url: Option<String> = text().or_none(),
    }
}

/// Default of `email.text`.
const DEFAULT_TEXT: &str = "Job {{ job.id }}: {{ job.status }}. {{ job.error.message }}\
    {% for output in job.outputs %}{{ output.url }} {% endfor %}";

section! {
    /// `[deliveries]`: attempts to deliver to destinations outside the hub.
    pub struct DeliveryConfig {
        /// Delays before the second and each further attempt, each varied by up to 20%. After the
        /// last attempt the delivery has failed.
        retries: Vec<Duration> = list(duration(MILLISECOND..=24 * HOUR)).or(RETRY_DELAYS.to_vec()),
        /// Time for which a destination is paused after four failed attempts in a row. It doubles
        /// with each further failure, up to one hour.
        pause: Duration = duration(MILLISECOND..=HOUR).or(MINUTE),
        /// Time without a success after which a failing destination is disabled.
        disable_after: Duration = duration(SECOND..=YEAR).or(120 * HOUR),
        /// Time after which a destination that was disabled by a response with status 410 is tried
        /// once more.
        recheck_after: Duration = duration(MILLISECOND..=24 * HOUR).or(HOUR),
    }
}

section! {
    /// `[webhook_defaults]`: settings that concern all outbound webhooks.
    pub struct WebhookDefaults {
        /// Hosts that `webhook_url` of a submission may name, as `host` for the default port of the
        /// scheme, or `host:port`. At most 64.
        hosts: Vec<HostAndPort> = list(parsed(parse::host)).or_empty(),
        /// Secret that signs the webhooks to these hosts. Required if `hosts` is set.
        secret: Option<SecretString> = webhook_secret().or_none(),
        /// Earlier values of `secret`. They sign too, so that receivers can change over.
        previous_secrets: Vec<SecretString> = list(webhook_secret()).or_empty(),
        /// Networks that webhooks may reach although they are private, such as `10.0.0.0/8`. Within
        /// them, http is allowed too.
        allow: Vec<IpNet> = list(parsed(parse::network)).or_empty(),
        /// Time limit of an attempt, from connecting to the end of the response.
        timeout: Duration = duration(100 * MILLISECOND..=MINUTE).or(15 * SECOND),
    }
}

section! {
    /// `[[webhooks]]`: an endpoint that receives webhooks of the hub.
    pub struct WebhookConfig {
        /// URL of the endpoint: https with a public address, or an address in a network of
        /// `webhook_defaults.allow`. The path is not printed, because chat services use it as a
        /// secret.
        url: Option<Url> = webhook_url().required_some("required: the URL of the endpoint"),
        /// Secrets that sign each webhook, the newest first. Several allow rotation.
        secrets: Vec<SecretString> = list(webhook_secret()).required("required: at least one secret that signs the webhooks"),
        /// Events to send: `job.created`, `job.updated`, `job.succeeded`, `job.failed`,
        /// `job.cancelled`.
        events: Vec<Event> = list(parsed(parse::event)).or(Event::FINAL.to_vec()),
        /// Owners whose jobs are sent. `*` matches any sequence of characters. By default, all.
        owners: Vec<String> = list(text()).or_empty(),
        /// Table of additional headers. The values are not printed.
        headers: BTreeMap<String, SecretString> = headers().or_empty(),
        /// MiniJinja template of the body. Without it, the body is the JSON of Standard Webhooks.
        body: Option<String> = text().or_none(),
    }
}

/// The header in which a proxy passes the address of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

impl ForwardedHeader {
    /// Returns the name of the header, which is also the value in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

impl fmt::Display for ForwardedHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns the loopback, private (RFC 1918, RFC 4193) and link-local networks.
fn private_networks() -> Vec<IpNet> {
    [
        IpNet::new_assert([127, 0, 0, 0].into(), 8),
        IpNet::new_assert([10, 0, 0, 0].into(), 8),
        IpNet::new_assert([172, 16, 0, 0].into(), 12),
        IpNet::new_assert([192, 168, 0, 0].into(), 16),
        IpNet::new_assert([169, 254, 0, 0].into(), 16),
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    ]
    .into()
}

/// PEM files for TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

impl ServerConfig {
    /// Returns the URL at which this machine reaches a server that listens on `address`.
    #[must_use]
    pub fn local_url(&self, mut address: SocketAddr) -> String {
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let scheme = if self.tls_cert.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{address}")
    }

    /// Returns the files for TLS, or `None` for plain HTTP.
    #[must_use]
    pub fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            cert: self.tls_cert.clone()?,
            key: self.tls_key.clone()?,
        })
    }
}

/// Limit of the resolution of submissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// At most 720p.
    Development,
    /// At most 720p.
    Staging,
    /// No limit.
    Production,
}

impl Tier {
    /// Returns the value in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Price of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Price {
    /// The same amount for every job.
    Fixed(f64),
    /// An expression over the parameters of the request, such as `0.07 * duration`.
    Expression(String),
}
