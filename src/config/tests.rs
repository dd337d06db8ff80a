//! Precedence of the sources, and reading and printing of every setting.

mod errors;
mod files;
mod secrets;

use std::fs;
use std::time::Duration;

use insta::assert_snapshot;
use proptest::prelude::*;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::layers::FILE_SUFFIX;
use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Every setting, each with a value other than its default.
const ALL_SETTINGS: &str = include_str!("../../tests/fuzz/seeds/configuration/all_settings.toml");

fn load(
    file: &str,
    env: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, Vec<ConfigError>> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("hub.toml");
    fs::write(&path, file).unwrap();
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let env = env.iter().map(owned);
    let flags = flags.iter().map(owned).collect();
    Config::load(Some(&path), env, flags).map_err(|mut errors| {
        let folder = format!("{}/", folder.path().display());
        for error in &mut errors {
            error.key = error.key.replace(&folder, "");
        }
        errors
    })
}

fn error_lines(loaded: Result<Config, Vec<ConfigError>>) -> String {
    let lines = loaded.expect_err("errors").into_iter();
    lines.map(|error| format!("{error}\n")).collect()
}

/// Returns a file that is valid if `more` is.
fn with_secret(more: &str) -> String {
    format!("[auth]\nhs256_secrets = [{SECRET:?}]\n{more}")
}

#[test]
fn every_setting_is_printed_without_secrets() {
    let config = load(ALL_SETTINGS, &[], &[]).unwrap();
    assert_snapshot!(config.to_redacted_toml(), @r#"
    [server]
    bind = "0.0.0.0:9000"
    public_url = "https://hub.example.com/progress"
    allowed_origins = ["https://app.example.com", "http://localhost:3000", "*"]
    admin_bind = "127.0.0.1:9001"
    trusted_proxies = ["10.1.0.0/16", "192.0.2.7/32"]
    forwarded_header = "forwarded"
    max_connections = 500
    max_body_bytes = 2048
    request_timeout = "3s"
    drain = "0s"
    tls_cert = "Cargo.toml"
    tls_key = "Cargo.lock"

    [auth]
    hs256_secrets = ["(set)", "(set)"]
    public_keys = ["""
    -----BEGIN PUBLIC KEY-----
    MCow
    -----END PUBLIC KEY-----
    """]
    jwks_url = "https://id.example.com/keys?v=2"
    issuer = "https://id.example.com"
    audience = "hub"
    leeway = "1m"

    [store]
    url = "redis://(set)@redis.example.com:6379/1"
    password = "(set)"
    prefix = "videos"
    replicas = 2
    retain_final = "1h30m"
    retain_active = "48h"

    [socket]
    heartbeat = "5s"
    auth_timeout = "500ms"
    write_timeout = "3s"
    max_message_bytes = 4096
    max_subscriptions = 16

    [callback]
    secret = "(set)"
    previous_secrets = ["(set)"]

    [defaults]
    provider = "kling-legacy"
    tier = "staging"

    [limits]
    connections_per_address = 10
    unauthenticated_per_address = 5
    handshakes_per_second = 6
    connections_per_subject = 7
    subscriptions_per_subject = 100
    requests_per_second = 10
    messages_per_second = 8
    ids_per_second = 9
    downloads_per_owner = 3
    downloads_per_link = 2
    unverified_body_bytes = 65536
    submits_per_minute = 30
    queued_jobs = 40
    queued_bytes = 131072

    [budgets]
    unit = "credits"
    per_job = 2.0
    per_owner_day = 12.5

    [email]
    smtp_url = "smtp://(set)@mail.example.com:587?tls=required"
    from = "Hub <hub@example.com>"
    to = "{{ job.metadata.email }}"
    subject = "Video {{ job.id }}"
    text = "{{ event }}"
    html = "<p>{{ event }}</p>"
    events = ["job.created", "job.cancelled"]
    allowed_domains = ["example.com", "xn--bcher-kva.example"]
    per_owner_per_day = 10
    timeout = "30s"
    unsubscribe_url = "https://example.com/stop/{{ job.id }}"

    [archive]
    url = "s3://outputs/videos"
    key = "{{ job.id }}/{{ n }}.{{ ext }}"
    public_url = "https://cdn.example.com/outputs"
    link_ttl = "5m"
    max_bytes = 524288000
    keep = "168h"
    allow = ["10.0.0.0/8"]
    max_concurrent = 2
    endpoint = "http://minio:9000/"
    public_endpoint = "https://files.example.com/"
    path_style = false
    region = "eu-central-1"

    [deliveries]
    retries = ["1s", "1m"]
    pause = "30s"
    disable_after = "24h"
    recheck_after = "10m"

    [webhook_defaults]
    hosts = ["hooks.example.com", "hooks.example.com:8443"]
    secret = "(set)"
    previous_secrets = ["(set)"]
    allow = ["10.0.0.0/8"]
    timeout = "5s"

    [[webhooks]]
    name = "app"
    url = "https://app.example.com/…"
    secrets = ["(set)", "(set)"]
    events = ["job.created", "job.failed"]
    owners = ["team-*"]
    headers = { authorization = "(set)" }
    body = '{ "text": {{ job.status }} }'

    [providers.kling-legacy]
    spec = "specs/mine.toml"
    base_url = "http://127.0.0.1:4000/api"
    api_key = "(set)"
    secret_key = "(set)"
    webhook_secrets = ["(set)", "(set)"]
    jwks_url = "https://kling.example.com/jwks.json"
    account = "user-7"
    poll_after = "50ms"
    poll_every = "2s"
    cool_down = "1s"
    unverified_polls_per_minute = 20
    deadline = "36h"
    max_concurrent = 5
    prices = { "*" = "0.07 * duration", "kling-v3*" = 0.35 }
    allowed_input = ["settings.audio", "seed"]
    budget_per_day = 100.0
    "#);
}

#[test]
fn defaults_are_printed() {
    assert_snapshot!(Config::defaults().to_redacted_toml(), @r#"
    [server]
    bind = "127.0.0.1:8080"
    public_url = ""
    allowed_origins = []
    admin_bind = ""
    trusted_proxies = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "::1/128", "fc00::/7", "fe80::/10"]
    forwarded_header = "x-forwarded-for"
    max_connections = 100000
    max_body_bytes = 1048576
    request_timeout = "10s"
    drain = "20s"
    tls_cert = ""
    tls_key = ""

    [auth]
    hs256_secrets = []
    public_keys = []
    jwks_url = ""
    issuer = ""
    audience = ""
    leeway = "5s"

    [store]
    url = "sqlite://progress-hub.db"
    password = ""
    prefix = "ph"
    replicas = 0
    retain_final = "24h"
    retain_active = "24h"

    [socket]
    heartbeat = "25s"
    auth_timeout = "10s"
    write_timeout = "10s"
    max_message_bytes = 16384
    max_subscriptions = 256

    [callback]
    secret = ""
    previous_secrets = []

    [defaults]
    provider = ""
    tier = "production"

    [limits]
    connections_per_address = 1000
    unauthenticated_per_address = 256
    handshakes_per_second = 100
    connections_per_subject = 1000
    subscriptions_per_subject = 20000
    requests_per_second = 1000
    messages_per_second = 100
    ids_per_second = 2000
    downloads_per_owner = 16
    downloads_per_link = 8
    unverified_body_bytes = 67108864
    submits_per_minute = 600
    queued_jobs = 1000
    queued_bytes = 16777216

    [budgets]
    unit = "usd"
    per_job = ""
    per_owner_day = ""

    [email]
    smtp_url = ""
    from = ""
    to = "{{ job.owner_email }}"
    subject = "Your video: {{ job.status }}"
    text = "Job {{ job.id }}: {{ job.status }}. {{ job.error.message }}{% for output in job.outputs %}{{ output.url }} {% endfor %}"
    html = ""
    events = ["job.succeeded", "job.failed"]
    allowed_domains = []
    per_owner_per_day = 50
    timeout = "1m"
    unsubscribe_url = ""

    [archive]
    url = ""
    key = "{{ job.owner }}/{{ job.id }}/{{ n }}.{{ ext }}"
    public_url = ""
    link_ttl = "15m"
    max_bytes = 2147483648
    keep = "720h"
    allow = []
    max_concurrent = 4
    endpoint = ""
    public_endpoint = ""
    path_style = true
    region = ""

    [deliveries]
    retries = ["5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"]
    pause = "1m"
    disable_after = "120h"
    recheck_after = "1h"

    [webhook_defaults]
    hosts = []
    secret = ""
    previous_secrets = []
    allow = []
    timeout = "15s"
    "#);
}

#[test]
fn secrets_are_read_unchanged() {
    let config = load(ALL_SETTINGS, &[], &[]).unwrap();
    let kling = &config.providers["kling-legacy"];
    let all = config.auth.hs256_secrets.iter().chain([
        config.callback.secret.as_ref().unwrap(),
        &config.callback.previous_secrets[0],
        kling.api_key.as_ref().unwrap(),
        kling.secret_key.as_ref().unwrap(),
    ]);
    let all: Vec<&str> = all
        .chain(&kling.webhook_secrets)
        .map(ExposeSecret::expose_secret)
        .collect();
    assert_eq!(
        all,
        [
            SECRET,
            "fedcba9876543210fedcba9876543210",
            "00112233445566778899aabbccddeeff",
            "ffeeddccbbaa99887766554433221100",
            "access-key-of-kling",
            "secret-key-of-kling",
            "old-webhook-secret",
            "new-webhook-secret",
        ]
    );
    let app = &config.webhooks["app"];
    assert_eq!(
        app.url.as_ref().unwrap().as_str(),
        "https://app.example.com/hooks/path-of-the-app?token=query-of-the-app"
    );
    assert_eq!(
        app.headers["authorization"].expose_secret(),
        "Bearer header-of-the-app"
    );
}

#[test]
fn every_setting_can_be_set_by_environment_and_flags() {
    let table: toml::Table = ALL_SETTINGS.parse().unwrap();
    let mut dotted = Vec::new();
    for (section, keys) in &table {
        let (section, keys) = match section.as_str() {
            "providers" => ("providers.kling-legacy".to_owned(), &keys["kling-legacy"]),
            "webhooks" => ("webhooks.app".to_owned(), &keys[0]),
            _ => (section.clone(), keys),
        };
        let mut keys = keys.as_table().unwrap().clone();
        if section == "webhooks.app" {
            keys.remove("name");
        }
        for (key, value) in keys {
            let text = value.as_str();
            let text = text.map_or_else(|| value.to_string(), str::to_owned);
            dotted.push((format!("{section}.{key}"), text));
        }
    }
    let env = dotted.iter().map(|(key, value)| {
        let name = key.to_uppercase().replace('.', "__").replace('-', "_");
        (format!("PROGRESS_HUB__{name}"), value.clone())
    });
    let by_env = Config::load(None, env, Vec::new()).unwrap();
    let by_flags = Config::load(None, std::iter::empty(), dotted.clone()).unwrap();
    let by_file = load(ALL_SETTINGS, &[], &[]).unwrap();
    assert_eq!(by_env.to_redacted_toml(), by_file.to_redacted_toml());
    assert_eq!(by_flags.to_redacted_toml(), by_file.to_redacted_toml());
    assert_eq!(by_env.store.url, by_file.store.url);
    assert_eq!(by_env.auth.public_keys, by_file.auth.public_keys);
}

#[test]
fn later_sources_override_earlier_ones() {
    let file = with_secret("[server]\nbind = \"127.0.0.1:2\"\n");
    let env = [("PROGRESS_HUB__SERVER__BIND", "127.0.0.1:3")];
    let flags = [("server.bind", "127.0.0.1:4")];
    let port = |loaded: Result<Config, Vec<ConfigError>>| loaded.unwrap().server.bind.port();
    assert_eq!(port(load(&with_secret(""), &[], &[])), 8080);
    assert_eq!(port(load(&file, &[], &[])), 2);
    assert_eq!(port(load(&file, &env, &[])), 3);
    assert_eq!(port(load(&file, &env, &flags)), 4);
}

#[test]
fn empty_value_counts_as_unset() {
    let file = with_secret("[server]\nbind = \"127.0.0.1:2\"\ndrain = \"\"\n");
    let env = [("PROGRESS_HUB__SERVER__BIND", "")];
    let flags = [("socket.max_subscriptions", ""), ("auth.public_keys", "")];
    let config = load(&file, &env, &flags).unwrap();
    assert_eq!(config.server.bind.port(), 2);
    assert_eq!(config.server.drain, Duration::from_secs(20));
    assert_eq!(config.socket.max_subscriptions, 256);
    assert!(config.auth.public_keys.is_empty());
}

#[test]
fn empty_list_replaces_a_longer_one() {
    let file = with_secret("[server]\nallowed_origins = [\"https://a.example\"]\n");
    let env = [("PROGRESS_HUB__SERVER__ALLOWED_ORIGINS", "[]")];
    assert_eq!(
        load(&file, &[], &[]).unwrap().server.allowed_origins.len(),
        1
    );
    assert!(
        load(&file, &env, &[])
            .unwrap()
            .server
            .allowed_origins
            .is_empty()
    );
}

#[test]
fn environment_lists_accept_toml_and_commas() {
    let origins = |list: &str| {
        let env = [("PROGRESS_HUB__SERVER__ALLOWED_ORIGINS", list)];
        load(&with_secret(""), &env, &[])
            .unwrap()
            .server
            .allowed_origins
    };
    let expected = ["https://a.example", "https://b.example:81"];
    assert_eq!(origins("https://a.example, https://b.example:81"), expected);
    assert_eq!(
        origins(r#"["https://a.example", "https://b.example:81"]"#),
        expected
    );
}

#[test]
fn environment_maps_underscore_to_dash_in_provider_names() {
    let file = with_secret("[providers.kling-legacy]\nspec = \"kling-legacy\"\n");
    let env = [("PROGRESS_HUB__PROVIDERS__KLING_LEGACY__MAX_CONCURRENT", "7")];
    let config = load(&file, &env, &[]).unwrap();
    assert_eq!(config.providers.len(), 1);
    assert_eq!(config.providers["kling-legacy"].max_concurrent, Some(7));
}

#[test]
fn origins_are_normalized_to_the_browser_form() {
    let file = with_secret(
        r#"
        [server]
        allowed_origins = ["HTTPS://App.Example.com:443/", "http://[::1]:3000", "tauri://localhost"]
        "#,
    );
    assert_eq!(
        load(&file, &[], &[]).unwrap().server.allowed_origins,
        [
            "https://app.example.com",
            "http://[::1]:3000",
            "tauri://localhost"
        ]
    );
}

#[test]
fn every_store_url_form_is_accepted() {
    for url in [
        "sqlite://progress-hub.db",
        "sqlite:///var/lib/hub.db",
        "sqlite::memory:",
        "redis://localhost",
        "redis://localhost:6379/2",
        "redis://user:pass@localhost:6379",
        "rediss://:pass%3F@[::1]:6380/0",
        "redis-cluster://a:1,b:2,c",
        "rediss-cluster://a:1,b:2,c",
        "redis-sentinel://user:p@a,b:26379/master",
        "rediss-sentinel://user:p@a,b:26379/master",
    ] {
        let flags = [("store.url", url)];
        let config = load(&with_secret(""), &[], &flags).unwrap();
        assert_eq!(config.store.url, url);
    }
}

proptest! {
    #[test]
    fn printed_configuration_round_trips(
        port in any::<u16>(),
        issuer in "[ -~é\n]{0,20}",
        connections in 1_usize..10_000_000,
        drain in 0_u64..600_000,
        deadline in proptest::option::of(1_000_u64..86_400_000),
        origins in proptest::collection::vec("https://[a-z]{1,9}(:8[1-9])?", 0..3),
    ) {
        let mut config = load(
            &with_secret("[providers.a-1]\nspec = \"fal\"\n"),
            &[],
            &[("auth.jwks_url", "https://id.example.com/keys")],
        ).unwrap();
        config.auth.hs256_secrets.clear();
        config.server.bind.set_port(port);
        config.server.max_connections = connections;
        config.server.drain = Duration::from_millis(drain);
        config.server.allowed_origins = origins;
        config.auth.issuer = Some(issuer).filter(|text| !text.is_empty());
        config.providers.get_mut("a-1").unwrap().deadline = deadline.map(Duration::from_millis);
        let again = load(&config.to_redacted_toml(), &[], &[]).unwrap();
        prop_assert_eq!(format!("{again:?}"), format!("{config:?}"));
        prop_assert_eq!(again.to_redacted_toml(), config.to_redacted_toml());
    }
}

#[test]
fn errors_are_about_a_key_a_section_or_a_file() {
    let error = |key: &str| ConfigError {
        key: key.to_owned(),
        message: String::new(),
    };
    for (key, name) in [
        ("providers.a.spec", "providers.a"),
        ("auth", "auth"),
        ("auth.public_keys[0]", "auth.public_keys"),
    ] {
        assert!(error(key).is_about(name), "{key}");
    }
    for (key, name) in [
        ("providers.ab.spec", "providers.a"),
        ("server.tls_key", "serv"),
    ] {
        assert!(!error(key).is_about(name), "{key}");
    }
    assert!(error("hub.toml").is_about_file("hub.toml"));
    assert!(error("hub.toml:3:7").is_about_file("hub.toml"));
    for key in ["budgets.per_job", "hub.toml.old:3:7"] {
        for file in ["b", "budgets", "hub.toml"] {
            assert!(!error(key).is_about_file(file), "{file}: {key}");
        }
    }
}

/// An environment variable with this suffix names a file with the value of another key.
#[test]
fn no_key_ends_with_the_suffix_of_files() {
    let keys = Config::reference().into_iter().map(|setting| setting.key);
    let ambiguous = keys.filter(|key| key.ends_with(FILE_SUFFIX));
    assert_eq!(ambiguous.collect::<Vec<_>>(), [""; 0]);
}
