//! Section by section, what is given becomes a [`Config`]; the defaults and ranges stand here.
//!
//! Invariant: every key of the documentation is read here exactly once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Reader, Section, nearest};
use super::{
    AuthConfig, Budgets, CallbackConfig, Config, Defaults, Limits, ProviderConfig, ServerConfig,
    SocketConfig, StoreConfig, Tier, TlsFiles, duration, parse,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// HMAC-SHA-256 is as strong as its key up to this length (RFC 7518, 3.2).
const STRONG_SECRET_BYTES: usize = 32;

/// Reads all sections; where something is wrong, the default stands in its place.
pub(super) fn config(reader: &mut Reader) -> Config {
    let config = Config {
        server: server(&mut reader.section("server")),
        auth: auth(&mut reader.section("auth")),
        store: store(&mut reader.section("store")),
        socket: socket(&mut reader.section("socket")),
        callback: CallbackConfig {
            secret: reader
                .section("callback")
                .secret("secret", STRONG_SECRET_BYTES),
        },
        defaults: defaults(&mut reader.section("defaults")),
        limits: Limits {
            submits_per_minute: reader
                .section("limits")
                .number("submits_per_minute", 1..=1_000_000),
        },
        budgets: budgets(&mut reader.section("budgets")),
        providers: providers(reader),
    };
    cross_field_checks(&config, reader);
    config
}

fn server(section: &mut Section<'_>) -> ServerConfig {
    ServerConfig {
        bind: section
            .parsed("bind", parse::address)
            .unwrap_or_else(|| ([127, 0, 0, 1], 8080).into()),
        public_url: section.parsed("public_url", parse::base_url),
        allowed_origins: section.items("allowed_origins", |text| Ok(parse::origin(&text)?)),
        max_connections: section
            .number("max_connections", 1..=10_000_000)
            .unwrap_or(100_000),
        max_body_bytes: section
            .number("max_body_bytes", 1 << 10..=64 << 20)
            .unwrap_or(1 << 20),
        drain: section
            .duration("drain", Duration::ZERO..=10 * MINUTE)
            .unwrap_or(20 * SECOND),
        tls: tls(section),
    }
}

fn tls(section: &mut Section<'_>) -> Option<TlsFiles> {
    let [cert, key] = ["tls_cert", "tls_key"].map(|key| {
        let path = PathBuf::from(section.text(key)?);
        if !path.is_file() {
            section.wrong(key, format!("{} is not a file", path.display()));
        }
        Some(path)
    });
    match (cert, key) {
        (Some(cert), Some(key)) => return Some(TlsFiles { cert, key }),
        (Some(_), None) => section.wrong("tls_key", "missing: tls_cert is set"),
        (None, Some(_)) => section.wrong("tls_cert", "missing: tls_key is set"),
        (None, None) => {}
    }
    None
}

fn auth(section: &mut Section<'_>) -> AuthConfig {
    AuthConfig {
        hs256_secrets: section.secrets("hs256_secrets", STRONG_SECRET_BYTES),
        public_keys: section.items("public_keys", Ok),
        jwks_url: section.parsed("jwks_url", parse::web_url),
        issuer: section.text("issuer"),
        audience: section.text("audience"),
        leeway: section
            .duration("leeway", Duration::ZERO..=5 * MINUTE)
            .unwrap_or(5 * SECOND),
    }
}

fn store(section: &mut Section<'_>) -> StoreConfig {
    StoreConfig {
        url: section
            .parsed("url", parse::store_url)
            .unwrap_or_else(|| "sqlite://progress-hub.db".to_owned()),
        prefix: section
            .parsed("prefix", parse::prefix)
            .unwrap_or_else(|| "ph".to_owned()),
        replicas: section.number("replicas", 0..=16).unwrap_or(0),
        retain_final: section
            .duration("retain_final", SECOND..=YEAR)
            .unwrap_or(DAY),
        retain_active: section
            .duration("retain_active", SECOND..=YEAR)
            .unwrap_or(DAY),
    }
}

fn socket(section: &mut Section<'_>) -> SocketConfig {
    let patience = Duration::from_millis(100)..=5 * MINUTE;
    SocketConfig {
        heartbeat: section
            .duration("heartbeat", SECOND..=10 * MINUTE)
            .unwrap_or(25 * SECOND),
        auth_timeout: section
            .duration("auth_timeout", patience.clone())
            .unwrap_or(10 * SECOND),
        write_timeout: section
            .duration("write_timeout", patience)
            .unwrap_or(10 * SECOND),
        max_message_bytes: section
            .number("max_message_bytes", 1 << 10..=16 << 20)
            .unwrap_or(16 << 10),
        max_subscriptions: section
            .number("max_subscriptions", 1..=100_000)
            .unwrap_or(256),
    }
}

fn defaults(section: &mut Section<'_>) -> Defaults {
    Defaults {
        provider: section.text("provider"),
        tier: section
            .parsed("tier", parse::tier)
            .unwrap_or(Tier::Production),
    }
}

fn budgets(section: &mut Section<'_>) -> Budgets {
    Budgets {
        unit: section.text("unit").unwrap_or_else(|| "usd".to_owned()),
        per_job: section.sum("per_job"),
        per_owner_day: section.sum("per_owner_day"),
    }
}

fn providers(reader: &mut Reader) -> BTreeMap<String, ProviderConfig> {
    let mut providers = BTreeMap::new();
    for name in reader.names_in("providers") {
        let key = format!("providers.{name}");
        let read = provider(&mut reader.section(&key));
        if !parse::provider_name(&name) {
            reader.push_error(key, "a provider's name is 1 to 32 of a-z, 0-9 and -");
        }
        providers.insert(name, read);
    }
    providers
}

fn provider(section: &mut Section<'_>) -> ProviderConfig {
    let cadence = Duration::from_millis(50)..=DAY;
    ProviderConfig {
        spec: section.text("spec").unwrap_or_else(|| {
            section.wrong(
                "spec",
                "missing: a built-in spec, or the path of a spec file",
            );
            String::new()
        }),
        base_url: section.parsed("base_url", parse::base_url),
        api_key: section.secret("api_key", 1),
        secret_key: section.secret("secret_key", 1),
        webhook_secrets: section.secrets("webhook_secrets", 1),
        jwks_url: section.parsed("jwks_url", parse::web_url),
        poll_after: section.duration("poll_after", cadence.clone()),
        poll_every: section.duration("poll_every", cadence),
        cool_down: section.duration("cool_down", Duration::ZERO..=DAY),
        deadline: section.duration("deadline", SECOND..=YEAR),
        max_concurrent: section.number("max_concurrent", 1..=100_000),
        prices: section.prices("prices"),
        budget_per_day: section.sum("budget_per_day"),
    }
}

/// What two sections must agree on.
fn cross_field_checks(config: &Config, reader: &mut Reader) {
    let auth = &config.auth;
    let blind =
        auth.hs256_secrets.is_empty() && auth.public_keys.is_empty() && auth.jwks_url.is_none();
    let tried = ["auth.hs256_secrets", "auth.public_keys", "auth.jwks_url"];
    if blind && !tried.iter().any(|key| reader.has_error_for(key)) {
        reader.push_error(
            "auth",
            "missing: no token can be verified without hs256_secrets, public_keys or jwks_url",
        );
    }
    let called_back = config.server.public_url.is_some() && !config.providers.is_empty();
    if called_back && config.callback.secret.is_none() && !reader.has_error_for("callback.secret") {
        reader.push_error(
            "callback.secret",
            "missing: server.public_url and a provider are set, and it signs their callback URLs",
        );
    }
    if let Some(name) = &config.defaults.provider
        && !config.providers.contains_key(name)
    {
        let problem = match nearest(name, config.providers.keys()) {
            Some(near) => format!("names no configured provider, did you mean {near}?"),
            None => "names no configured provider".to_owned(),
        };
        reader.push_error("defaults.provider", problem);
    }
    let kept = config.store.retain_active;
    for (name, provider) in &config.providers {
        if let Some(deadline) = provider.deadline.filter(|deadline| *deadline > kept) {
            let [deadline, kept] = [deadline, kept].map(duration::text);
            reader.push_error(
                format!("providers.{name}.deadline"),
                format!("must be at most store.retain_active ({kept}), found {deadline}"),
            );
        }
    }
}
