//! The resolved configuration as TOML that may be read by anybody.
//!
//! Invariant: of a secret only whether it is set is told; a password in a URL is one.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use secrecy::SecretString;
use toml::Value;

use super::{Config, Price, ProviderConfig, duration};

/// What stands in the place of a secret.
const SET: &str = "(set)";

pub(super) fn toml(config: &Config) -> String {
    let Config {
        server,
        auth,
        store,
        socket,
        callback,
        defaults,
        limits,
        budgets,
        providers,
    } = config;
    let path = |path: &std::path::Path| text(&path.to_string_lossy());
    let tls = server.tls.as_ref();
    let mut page = Page::default();
    page.section("server");
    page.line("bind", text(&server.bind.to_string()));
    page.line("public_url", optional(server.public_url.as_ref()));
    page.line("allowed_origins", list(&server.allowed_origins));
    page.line("max_connections", number(server.max_connections));
    page.line("max_body_bytes", number(server.max_body_bytes));
    page.line("drain", time(server.drain));
    page.line("tls_cert", tls.map_or(text(""), |tls| path(&tls.cert)));
    page.line("tls_key", tls.map_or(text(""), |tls| path(&tls.key)));
    page.section("auth");
    page.line("hs256_secrets", secrets(&auth.hs256_secrets));
    page.line("public_keys", list(&auth.public_keys));
    page.line("jwks_url", optional(auth.jwks_url.as_ref()));
    page.line("issuer", optional(auth.issuer.as_ref()));
    page.line("audience", optional(auth.audience.as_ref()));
    page.line("leeway", time(auth.leeway));
    page.section("store");
    page.line("url", text(&redact_url(&store.url)));
    page.line("prefix", text(&store.prefix));
    page.line("replicas", number(store.replicas));
    page.line("retain_final", time(store.retain_final));
    page.line("retain_active", time(store.retain_active));
    page.section("socket");
    page.line("heartbeat", time(socket.heartbeat));
    page.line("auth_timeout", time(socket.auth_timeout));
    page.line("write_timeout", time(socket.write_timeout));
    page.line("max_message_bytes", number(socket.max_message_bytes));
    page.line("max_subscriptions", number(socket.max_subscriptions));
    page.section("callback");
    page.line("secret", secret(callback.secret.as_ref()));
    page.section("defaults");
    page.line("provider", optional(defaults.provider.as_ref()));
    page.line("tier", text(defaults.tier.as_str()));
    page.section("limits");
    let most = limits.submits_per_minute;
    page.line("submits_per_minute", most.map_or(text(""), number));
    page.section("budgets");
    page.line("unit", text(&budgets.unit));
    page.line("per_job", sum(budgets.per_job));
    page.line("per_owner_day", sum(budgets.per_owner_day));
    for (name, provider) in providers {
        page.section(&format!("providers.{name}"));
        page.provider(provider);
    }
    page.0
}

/// A store's URL without its user, password and options, any of which may be a secret.
pub(super) fn redact_url(url: &str) -> String {
    if url.starts_with("sqlite:") {
        return url.to_owned();
    }
    let (url, options) = match url.split_once('?') {
        Some((url, _)) => (url, format!("?{SET}")),
        None => (url, String::new()),
    };
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{SET}@{rest}{options}"),
        _ => format!("{url}{options}"),
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn section(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(&format!("[{name}]\n"));
    }

    fn line(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        self.0.push_str(&format!("{key} = {value}\n"));
    }

    fn provider(&mut self, provider: &ProviderConfig) {
        let times = [
            ("poll_after", provider.poll_after),
            ("poll_every", provider.poll_every),
            ("cool_down", provider.cool_down),
            ("deadline", provider.deadline),
        ];
        self.line("spec", text(&provider.spec));
        self.line("base_url", optional(provider.base_url.as_ref()));
        self.line("api_key", secret(provider.api_key.as_ref()));
        self.line("secret_key", secret(provider.secret_key.as_ref()));
        self.line("webhook_secrets", secrets(&provider.webhook_secrets));
        self.line("jwks_url", optional(provider.jwks_url.as_ref()));
        for (key, value) in times {
            self.line(key, value.map_or(text(""), time));
        }
        let most = provider.max_concurrent;
        self.line("max_concurrent", most.map_or(text(""), number));
        self.line("prices", prices(&provider.prices));
        self.line("budget_per_day", sum(provider.budget_per_day));
    }
}

fn text(value: &str) -> Value {
    Value::String(value.to_owned())
}

fn optional<T: Display>(value: Option<&T>) -> Value {
    Value::String(value.map(T::to_string).unwrap_or_default())
}

fn number(value: usize) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn sum(value: Option<f64>) -> Value {
    value.map_or(text(""), Value::Float)
}

fn prices(prices: &BTreeMap<String, Price>) -> Value {
    let shown = prices.iter().map(|(name, price)| {
        let price = match price {
            Price::Fixed(amount) => Value::Float(*amount),
            Price::Expression(expression) => text(expression),
        };
        (name.clone(), price)
    });
    Value::Table(shown.collect())
}

fn time(value: Duration) -> Value {
    Value::String(duration::text(value))
}

fn list(values: &[String]) -> Value {
    values.iter().map(String::as_str).collect::<Vec<_>>().into()
}

fn secret(value: Option<&SecretString>) -> Value {
    text(value.map_or("", |_| SET))
}

fn secrets(values: &[SecretString]) -> Value {
    vec![SET; values.len()].into()
}
