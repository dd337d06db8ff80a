//! The configuration: every setting of the hub, typed and checked, before anything is served.
//!
//! Built-in defaults, then the TOML file, then the environment, then the flags; later ones win.
//! Invariant: a [`Config`] exists only if nothing was wrong with any of them. What was wrong is
//! reported at once, each mistake by its key, and no secret ever appears in a mistake, in
//! [`Config::shown`] or in `Debug`.

mod duration;
mod layers;
mod parse;
mod reader;
mod redacted;
mod sections;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use progress_hub_auth::jwt::AuthConfig;
use secrecy::SecretString;
use url::Url;

use layers::Layers;
use reader::Reader;

/// All that can be set, section by section. An empty text counts as absent everywhere.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`: where and how the hub listens.
    pub server: ServerConfig,
    /// `[auth]`: how bearer tokens are verified.
    pub auth: AuthConfig,
    /// `[store]`: where jobs are kept, and for how long.
    pub store: StoreConfig,
    /// `[socket]`: the life of a WebSocket.
    pub socket: SocketConfig,
    /// `[callback]`: the callback URLs given to providers.
    pub callback: CallbackConfig,
    /// `[defaults]`: what a submission does not say.
    pub defaults: Defaults,
    /// `[limits]`: how often an owner may submit.
    pub limits: Limits,
    /// `[budgets]`: what submitted jobs may cost.
    pub budgets: Budgets,
    /// `[providers.<name>]`: by the name that stands in webhook URLs and in `job.provider`,
    /// 1 to 32 characters of `a-z`, `0-9` and `-`. Default: none.
    pub providers: BTreeMap<String, ProviderConfig>,
}

/// `[server]`: where and how the hub listens.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `server.bind`: address and port to listen on; port 0 takes a free one.
    /// Default: `127.0.0.1:8080`.
    pub bind: SocketAddr,
    /// `server.public_url`: the URL under which providers and browsers reach the hub, with a path
    /// prefix if a proxy adds one. Without it no callback URL is given to a provider.
    /// Default: none.
    pub public_url: Option<Url>,
    /// `server.allowed_origins`: the browser origins that may use the hub, in the form browsers
    /// send (`https://app.example.com`); `*` allows all of them. Default: none, which allows the
    /// hub's own host.
    pub allowed_origins: Vec<String>,
    /// `server.max_connections`: connections at one time, 1 to 10,000,000. Default: `100000`.
    pub max_connections: usize,
    /// `server.max_body_bytes`: bytes in a request's body, 1 KiB to 64 MiB. Default: `1048576`.
    pub max_body_bytes: usize,
    /// `server.drain`: how long open connections may take to leave at shutdown, 0 to 10 minutes.
    /// Default: `20s`.
    pub drain: Duration,
    /// `server.tls_cert` and `server.tls_key`: PEM files; both, or neither for plain HTTP.
    /// Default: none.
    pub tls: Option<TlsFiles>,
}

/// `server.tls_cert` and `server.tls_key`, which existed when the configuration was read.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// `server.tls_cert`: the certificate chain.
    pub cert: PathBuf,
    /// `server.tls_key`: its private key.
    pub key: PathBuf,
}

/// `[store]`: where jobs are kept, and for how long.
#[derive(Clone)]
pub struct StoreConfig {
    /// `store.url`: `sqlite://<path>`, `sqlite::memory:`, `redis://…`, `rediss://…`,
    /// `redis-cluster://a,b,c` or `redis-sentinel://a,b/master`; it may carry a password, so it
    /// is no text to log. Default: `sqlite://progress-hub.db`.
    pub url: String,
    /// `store.prefix`: stands before every key in Redis; 1 to 64 of `A-Z a-z 0-9 . _ : -`.
    /// Default: `ph`.
    pub prefix: String,
    /// `store.replicas`: how many of a Redis's replicas must have a change before it counts, 0 to
    /// 16. Default: `0`.
    pub replicas: usize,
    /// `store.retain_final`: how long a job is kept after its end, 1 second to 1 year.
    /// Default: `24h`.
    pub retain_final: Duration,
    /// `store.retain_active`: how long a job without an end is kept after its last change,
    /// 1 second to 1 year. Default: `24h`.
    pub retain_active: Duration,
}

/// `[socket]`: the life of a WebSocket.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// `socket.heartbeat`: between two heartbeats, 1 second to 10 minutes. Default: `25s`.
    pub heartbeat: Duration,
    /// `socket.auth_timeout`: until the first frame has proven who is there, 100 ms to 5 minutes.
    /// Default: `10s`.
    pub auth_timeout: Duration,
    /// `socket.write_timeout`: how long a client may leave its socket unread, 100 ms to 5 minutes.
    /// Default: `10s`.
    pub write_timeout: Duration,
    /// `socket.max_message_bytes`: bytes in one message of a client, 1 KiB to 16 MiB.
    /// Default: `16384`.
    pub max_message_bytes: usize,
    /// `socket.max_subscriptions`: jobs one connection may watch, 1 to 100,000. Default: `256`.
    pub max_subscriptions: usize,
}

/// `[callback]`: the callback URLs given to providers.
#[derive(Clone, Debug)]
pub struct CallbackConfig {
    /// `callback.secret`: signs the per-job token in them, at least 32 bytes. Needed when
    /// `server.public_url` and a provider are set. Default: none.
    pub secret: Option<SecretString>,
}

/// `[defaults]`: what a submission does not say.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// `defaults.provider`: the name of a configured provider. Default: none, the submission says.
    pub provider: Option<String>,
    /// `defaults.tier`: `development`, `staging` or `production`. Default: `production`.
    pub tier: Tier,
}

/// How much a submission may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// At most 720p.
    Development,
    /// At most 720p.
    Staging,
    /// As asked.
    Production,
}

impl Tier {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }
}

/// `[limits]`: how often an owner may submit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `limits.submits_per_minute`: jobs that one owner may submit in a minute of the clock, 1 to
    /// 1,000,000. Default: none.
    pub submits_per_minute: Option<usize>,
}

/// `[budgets]`: what submitted jobs may cost, each sum 0 to 1,000,000,000.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// `budgets.unit`: what prices and budgets are counted in, as providers tell it. Default: `usd`.
    pub unit: String,
    /// `budgets.per_job`: the most that one job may cost. Default: none.
    pub per_job: Option<f64>,
    /// `budgets.per_owner_day`: the most that one owner's jobs of a UTC day may cost.
    /// Default: none.
    pub per_owner_day: Option<f64>,
}

/// What a job of a model costs.
#[derive(Clone, Debug, PartialEq)]
pub enum Price {
    /// The same for each.
    Fixed(f64),
    /// An expression over the request's parameters, such as `0.07 * duration`.
    Expression(String),
}

/// `[providers.<name>]`: one account at one provider.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// `providers.<name>.spec`: a built-in spec, or the path of a spec file. It has no default.
    pub spec: String,
    /// `providers.<name>.base_url`: where its API answers. Default: the spec's.
    pub base_url: Option<Url>,
    /// `providers.<name>.api_key`: the key, or the public half of a pair. Default: none.
    pub api_key: Option<SecretString>,
    /// `providers.<name>.secret_key`: the secret half of a pair. Default: none.
    pub secret_key: Option<SecretString>,
    /// `providers.<name>.webhook_secrets`: any of them may have signed a webhook. Default: none.
    pub webhook_secrets: Vec<SecretString>,
    /// `providers.<name>.jwks_url`: where it publishes the keys of its webhooks.
    /// Default: the spec's.
    pub jwks_url: Option<Url>,
    /// `providers.<name>.poll_after`: how long a job may be silent before it is asked about,
    /// 50 ms to 24 hours. Default: the spec's.
    pub poll_after: Option<Duration>,
    /// `providers.<name>.poll_every`: between two such questions, 50 ms to 24 hours.
    /// Default: the spec's.
    pub poll_every: Option<Duration>,
    /// `providers.<name>.cool_down`: between a question and the next that a callback without proof
    /// may bring, 0 to 24 hours and never more than `poll_every`. Default: the spec's.
    pub cool_down: Option<Duration>,
    /// `providers.<name>.deadline`: after which a job has failed, 1 second or more and at most
    /// `store.retain_active`. Default: the spec's.
    pub deadline: Option<Duration>,
    /// `providers.<name>.max_concurrent`: jobs it may have at one time, from
    /// being sent to their end, 1 to 100,000.
    /// Default: the spec's.
    pub max_concurrent: Option<usize>,
    /// `providers.<name>.prices`: a model's name, or a pattern with `*`, and what a job of it costs;
    /// the longest that fits counts. Default: none.
    pub prices: BTreeMap<String, Price>,
    /// `providers.<name>.budget_per_day`: the most that its jobs of a UTC day may cost, 0 to
    /// 1,000,000,000. Default: none.
    pub budget_per_day: Option<f64>,
}

/// One thing that is wrong, told without any secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ConfigError {
    /// The dotted key (`server.bind`, `providers.kling.poll_after`), the section, or for a file
    /// that can't be read its path, with `:line:column` where there is one.
    pub key: String,
    /// What is wrong with it, as a lower-case fragment.
    pub message: String,
}

impl Config {
    /// The configuration from the built-in defaults, `file`, `env` (of which only the names that
    /// begin with `PROGRESS_HUB__` matter) and `flags` (dotted key and value), later ones winning.
    ///
    /// # Errors
    /// Everything that is wrong, at once. Only a file that is not TOML stops the search: its
    /// syntax errors are then all that is reported.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let (config, mistakes) = Self::read(file, env, flags);
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(mistakes)
        }
    }

    /// As [`Config::load`], for those who look for further mistakes before they give up: with the
    /// default in the place of whatever is wrong.
    #[must_use]
    pub fn read(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> (Self, Vec<ConfigError>) {
        let mut layers = Layers::default();
        if let Some(path) = file
            && let Err(mistakes) = layers.add_file(path)
        {
            return (Self::defaults(), mistakes);
        }
        layers.add_environment(env);
        layers.add_flags(flags);
        let mut reader = Reader::new(layers);
        let config = sections::config(&mut reader);
        (config, reader.finish())
    }

    /// The built-in defaults alone. They can verify no token, so `serve` would refuse them.
    #[must_use]
    pub fn defaults() -> Self {
        sections::config(&mut Reader::new(Layers::default()))
    }

    /// The whole configuration as TOML, with `(set)` for every secret that is set. Without
    /// secrets, it can be loaded again.
    #[must_use]
    pub fn to_redacted_toml(&self) -> String {
        redacted::toml(self)
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("url", &redacted::redact_url(&self.url))
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("retain_final", &self.retain_final)
            .field("retain_active", &self.retain_active)
            .finish()
    }
}
