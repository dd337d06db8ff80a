//! Checks that concern more than one setting.

use super::reader::{Reader, nearest};
use super::{Config, ConfigError, parse};
use crate::egress::AddressPolicy;

const INVALID_NAME: &str = "name must be 1 to 32 characters of a-z, 0-9 and -";

/// Names of destinations that are not webhooks.
const RESERVED_NAMES: [&str; 2] = ["archive", "email"];

/// Maximum number of webhooks, and of hosts for the webhooks of submissions. The hub checks the
/// outbox of each.
const MAX_ENDPOINTS: usize = 64;

/// Adds errors about settings that do not fit together. Skips a check if one of its settings has an
/// error already.
pub(super) fn check(config: &Config, reader: &mut Reader) {
    check_tls(config, reader);
    check_secrets(config, reader);
    check_store_password(config, reader);
    check_archive(config, reader);
    check_providers(config, reader);
    check_email(config, reader);
    check_webhooks(config, reader);
}

/// Returns a warning for each valid setting that weakens security.
pub(super) fn warnings(config: &Config) -> Vec<ConfigError> {
    let auth = &config.auth;
    if auth.jwks_url.is_none() || auth.audience.is_some() {
        return Vec::new();
    }
    let issuers = match &auth.issuer {
        Some(_) => "the issuer",
        None => "any issuer that uses these keys",
    };
    vec![ConfigError {
        key: "auth.audience".to_owned(),
        message: format!(
            "not set: tokens that {issuers} signed for other applications are accepted"
        ),
    }]
}

fn check_tls(config: &Config, reader: &mut Reader) {
    let server = &config.server;
    let has_cert = server.tls_cert.is_some() || reader.has_error_for("server.tls_cert");
    let has_key = server.tls_key.is_some() || reader.has_error_for("server.tls_key");
    if has_cert && !has_key {
        reader.push_error("server.tls_key", "required because tls_cert is set");
    }
    if has_key && !has_cert {
        reader.push_error("server.tls_cert", "required because tls_key is set");
    }
}

fn check_secrets(config: &Config, reader: &mut Reader) {
    let auth = &config.auth;
    let has_keys = !auth.hs256_secrets.is_empty()
        || !auth.public_keys.is_empty()
        || auth.jwks_url.is_some()
        || ["auth.hs256_secrets", "auth.public_keys", "auth.jwks_url"]
            .iter()
            .any(|key| reader.has_error_for(key));
    if !has_keys {
        let message = "set one of hs256_secrets, public_keys and jwks_url to verify tokens";
        reader.push_error("auth", message);
    }
    let has_callbacks = config.server.public_url.is_some() && !config.providers.is_empty();
    let has_secret = config.callback.secret.is_some() || reader.has_error_for("callback.secret");
    if !has_callbacks && !has_secret && !config.callback.previous_secrets.is_empty() {
        let message = "required because previous_secrets is set";
        reader.push_error("callback.secret", message);
    }
    if has_callbacks && !has_secret {
        let message = "required because server.public_url and a provider are set";
        reader.push_error("callback.secret", message);
    }
}

fn check_store_password(config: &Config, reader: &mut Reader) {
    let store = &config.store;
    if store.password.is_none() || reader.has_error_for("store.url") {
        return;
    }
    let has_password = |url: &str| {
        let (credentials, _) = url.split_once("://")?.1.rsplit_once('@')?;
        Some(credentials.contains(':'))
    };
    if store.url.starts_with("sqlite:") {
        reader.push_error("store.password", "SQLite has no password");
    } else if has_password(&store.url).unwrap_or(false) {
        reader.push_error("store.password", "store.url contains a password too");
    }
}

fn check_archive(config: &Config, reader: &mut Reader) {
    let archive = &config.archive;
    let Some(url) = &archive.url else {
        return;
    };
    if url.scheme() == "file" {
        for (key, endpoint) in [
            ("archive.endpoint", &archive.endpoint),
            ("archive.public_endpoint", &archive.public_endpoint),
        ] {
            if endpoint.is_some() {
                reader.push_error(key, "must not be set, because archive.url is a folder");
            }
        }
    }
}

fn check_providers(config: &Config, reader: &mut Reader) {
    if let Some(name) = &config.defaults.provider
        && !config.providers.contains_key(name)
    {
        let message = match nearest(name, config.providers.keys()) {
            Some(similar) => format!("no such provider; did you mean {similar}?"),
            None => "no such provider".to_owned(),
        };
        reader.push_error("defaults.provider", message);
    }
    let max = config.store.retain_active;
    for (name, provider) in &config.providers {
        if !parse::is_name(name) {
            reader.push_error(format!("providers.{name}"), INVALID_NAME);
        }
        if let Some(deadline) = provider.deadline.filter(|deadline| *deadline > max) {
            let [deadline, max] = [deadline, max].map(parse::print_duration);
            reader.push_error(
                format!("providers.{name}.deadline"),
                format!("must be at most store.retain_active ({max}), found {deadline}"),
            );
        }
    }
}

fn check_email(config: &Config, reader: &mut Reader) {
    let email = &config.email;
    let has_server = email.smtp_url.is_some() || reader.has_error_for("email.smtp_url");
    let has_sender = email.from.is_some() || reader.has_error_for("email.from");
    if has_server && !has_sender {
        reader.push_error("email.from", "required because smtp_url is set");
    }
    if has_sender && !has_server {
        reader.push_error("email.smtp_url", "required because from is set");
    }
}

fn check_webhooks(config: &Config, reader: &mut Reader) {
    let defaults = &config.webhook_defaults;
    if config.webhooks.len() > MAX_ENDPOINTS {
        reader.push_error(
            "webhooks",
            format!("must be at most {MAX_ENDPOINTS} entries"),
        );
    }
    if defaults.hosts.len() > MAX_ENDPOINTS {
        let message = format!("must have at most {MAX_ENDPOINTS} hosts");
        reader.push_error("webhook_defaults.hosts", message);
    }
    let key = "webhook_defaults.secret";
    let uses_secret = !defaults.hosts.is_empty() || !defaults.previous_secrets.is_empty();
    if defaults.secret.is_none() && uses_secret && !reader.has_error_for(key) {
        let setting = if defaults.hosts.is_empty() {
            "previous_secrets"
        } else {
            "hosts"
        };
        reader.push_error(key, format!("required because {setting} is set"));
    }
    let policy = AddressPolicy::new(defaults.allow.clone());
    for (name, webhook) in &config.webhooks {
        let key = |setting: &str| format!("webhooks.{name}.{setting}");
        if !parse::is_name(name) {
            reader.push_error(format!("webhooks.{name}"), INVALID_NAME);
        } else if RESERVED_NAMES.contains(&name.as_str()) {
            reader.push_error(format!("webhooks.{name}"), "name is reserved");
        }
        if let Some(url) = &webhook.url
            && !reader.has_error_for("webhook_defaults.allow")
            && let Err(error) = policy.check(url)
        {
            reader.push_error(key("url"), format!("{error}; see webhook_defaults.allow"));
        }
        if webhook.secrets.is_empty() && !reader.has_error_for(&key("secrets")) {
            reader.push_error(key("secrets"), "must have at least one secret");
        }
    }
}
