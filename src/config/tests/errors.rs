//! Errors are reported together, each with its key.

use insta::assert_snapshot;

use super::*;

/// Returns the errors in a file, one per line.
fn errors_in_file(file: &str) -> String {
    error_lines(load(file, &[], &[]))
}

/// Returns the errors in the environment, one per line.
fn errors_in_environment(env: &[(&str, &str)]) -> String {
    error_lines(load("", env, &[]))
}

#[test]
fn all_config_errors_are_reported_together() {
    assert_snapshot!(errors_in_file(r#"
        [server]
        bind = "localhost:8080"
        public_url = "ftp://hub.example.com"
        allowed_origins = ["https://a.example/path", "", 3, "https://*.example.com"]
        admin_bind = "localhost:9001"
        trusted_proxies = ["10.0.0.0/33"]
        forwarded_header = "x-real-ip"
        max_connections = 0
        max_body_bytes = "big"
        request_timeout = "1ms"
        drain = "11m"
        tls_cert = "no-such.pem"

        [auth]
        hs256_secrets = ["short", " 0123456789abcdef0123456789abcdef"]
        public_keys = "-----BEGIN PUBLIC KEY-----"
        jwks_url = "id.example.com"
        leeway = "6m"

        [store]
        url = "postgres://localhost"
        prefix = "a b"
        retain_final = "0s"
        retain_active = "9000h"

        [socket]
        heartbeat = "999ms"
        auth_timeout = 10
        write_timeout = "-5s"
        max_message_bytes = 1023
        max_subscriptions = 1.5

        [callback]
        secret = "0123456789abcdef0123456789abcde"

        [defaults]
        provider = "klink"
        tier = "prod"

        [providers.kling]
        spec = ""
        base_url = "https://u:p@api.example.com"
        api_key = 123
        secret_key = " x"
        webhook_secrets = [""]
        jwks_url = "https://api.example.com/#keys"
        poll_after = "soon"
        poll_every = "49ms"
        deadline = "25h"
        max_concurrent = 0
        prices = { "*" = -1, "kling" = "" }
        budget_per_day = "much"

        [limits]
        submits_per_minute = 0
        connections_per_address = 0
        messages_per_second = "many"
        unverified_body_bytes = 1023

        [budgets]
        per_job = -0.5
        per_owner_day = nan

        [providers.Kling_2]
        spec = "kling"
    "#), @r#"
    server.bind: must be an IP address and a port, such as 127.0.0.1:8080
    server.public_url: must begin with http:// or https://
    server.allowed_origins: item 1 must be scheme://host[:port] as browsers send it, scheme://host:* or *
    server.allowed_origins: item 2 must not be empty
    server.allowed_origins: item 3 must be text, found a whole number
    server.allowed_origins: item 4 must be scheme://host[:port] as browsers send it, scheme://host:* or *
    server.admin_bind: must be an IP address and a port, such as 127.0.0.1:8080
    server.trusted_proxies: item 1 must be an IP address or a network, such as 10.0.0.0/8
    server.forwarded_header: must be x-forwarded-for or forwarded
    server.max_connections: must be between 1 and 10000000, found 0
    server.max_body_bytes: must be a number of bytes, such as 1048576, "500MiB" or "2GiB"
    server.request_timeout: must be between 100ms and 5m, found 1ms
    server.drain: must be between 0s and 10m, found 11m
    server.tls_cert: no-such.pem is not a file
    auth.hs256_secrets: item 1 must have at least 32 bytes, found 5
    auth.hs256_secrets: item 2 must not begin or end with white space
    auth.public_keys: must be a list, found text
    auth.jwks_url: must be a URL such as https://hub.example.com
    auth.leeway: must be between 0s and 5m, found 6m
    store.url: must be sqlite://path, sqlite::memory:, redis://host, rediss://host, redis-cluster://a,b,c or redis-sentinel://a,b/primary
    store.prefix: must be at most 64 characters of A-Z a-z 0-9 . _ : -
    store.retain_final: must be between 1s and 8760h, found 0s
    store.retain_active: must be between 1s and 8760h, found 9000h
    socket.heartbeat: must be between 1s and 10m, found 999ms
    socket.auth_timeout: must be a duration such as "500ms", "20s" or "1h30m"
    socket.write_timeout: must be a duration such as "500ms", "20s" or "1h30m"
    socket.max_message_bytes: must be between 1024 and 16777216, found 1023
    socket.max_subscriptions: must be a whole number, found a fraction
    callback.secret: must have at least 32 bytes, found 31
    defaults.tier: must be development, staging or production
    limits.connections_per_address: must be between 1 and 10000000, found 0
    limits.messages_per_second: must be a whole number, found text
    limits.unverified_body_bytes: must be between 1024 and 1073741824, found 1023
    limits.submits_per_minute: must be between 1 and 1000000, found 0
    budgets.per_job: must be a number between 0 and 1000000000
    budgets.per_owner_day: must be a number between 0 and 1000000000
    providers.kling.spec: required: a built-in provider, or the path of a provider definition
    providers.kling.base_url: must not contain a user name or password
    providers.kling.api_key: must be text, found a whole number
    providers.kling.secret_key: must not begin or end with white space
    providers.kling.webhook_secrets: item 1 must not be empty
    providers.kling.jwks_url: must not have a #fragment
    providers.kling.poll_after: must be a duration such as "500ms", "20s" or "1h30m"
    providers.kling.poll_every: must be between 50ms and 24h, found 49ms
    providers.kling.max_concurrent: must be between 1 and 100000, found 0
    providers.kling.prices.*: must be a number between 0 and 1000000000, or an expression as text
    providers.kling.prices.kling: must be a number between 0 and 1000000000, or an expression as text
    providers.kling.budget_per_day: must be a number between 0 and 1000000000
    server.tls_key: required because tls_cert is set
    defaults.provider: no such provider; did you mean kling?
    providers.Kling_2: name must be 1 to 32 characters of a-z, 0-9 and -
    providers.kling.deadline: must be at most store.retain_active (24h), found 25h
    "#);
}

#[test]
fn missing_settings_are_reported() {
    assert_snapshot!(errors_in_file(""), @"auth: set one of hs256_secrets, public_keys and jwks_url to verify tokens");
    assert_snapshot!(errors_in_file(r#"
        [server]
        public_url = "https://hub.example.com"
        tls_key = "Cargo.toml"
        [providers.fal]
    "#), @r"
    providers.fal.spec: required: a built-in provider, or the path of a provider definition
    server.tls_cert: required because tls_key is set
    auth: set one of hs256_secrets, public_keys and jwks_url to verify tokens
    callback.secret: required because server.public_url and a provider are set
    ");
}

#[test]
fn unknown_keys_suggest_the_nearest_name() {
    assert_snapshot!(errors_in_file(&with_secret(r#"
        leway = "1s"
        heartbeat = "5s"
        zzz = ""

        [srever]
        bind = "127.0.0.1:1"

        [metrics]

        [server.tls]
        cert = "a.pem"

        [provider.kling]
        spec = "kling"

        [providers]
        fal = "fal"

        [providers.kling]
        spec = "kling"
        pol_every = "1s"
    "#)), @r"
    auth.heartbeat: unknown key; did you mean socket.heartbeat?
    auth.leway: unknown key; did you mean leeway?
    auth.zzz: unknown key
    metrics: unknown section
    provider: unknown section; did you mean providers?
    providers.fal: must be a section, not a value
    providers.kling.pol_every: unknown key; did you mean poll_every?
    server.tls: unknown key
    srever: unknown section; did you mean server?
    ");
    assert_snapshot!(errors_in_file("bind = \"127.0.0.1:1\"\nserver = 8080\nport = 1\n"), @r"
    auth: set one of hs256_secrets, public_keys and jwks_url to verify tokens
    bind: unknown key; did you mean server.bind?
    port: unknown key
    server: must be a section, not a value
    ");
}

#[test]
fn unknown_environment_variables_and_flags_are_reported() {
    let env = [
        ("PROGRESS_HUB__SERVER__BNID", ""),
        ("PROGRESS_HUB__SERVER", "127.0.0.1:1"),
        ("PROGRESS_HUB__SERVER__TLS__CERT", "a.pem"),
        ("PROGRESS_HUB__PROVIDERS__KLING", "kling"),
        ("PROGRESS_HUB__", "1"),
        ("PROGRESS_HUB_BIN", "ignored"),
        ("HOME", "/"),
    ];
    let loaded = load(&with_secret(""), &env, &[("sokcet.heartbeat", "5s")]);
    assert_snapshot!(error_lines(loaded), @r"
    server: must be a section, not a value
    providers.kling: must be a section, not a value
    server.bnid: unknown key; did you mean bind?
    server.tls: unknown section
    sokcet: unknown section; did you mean socket?
    ");
}

#[test]
fn environment_lists_and_numbers_are_validated() {
    assert_snapshot!(errors_in_environment(&[
        ("PROGRESS_HUB__AUTH__HS256_SECRETS", "[0123456789abcdef0123456789abcdef"),
        ("PROGRESS_HUB__AUTH__PUBLIC_KEYS", "-----BEGIN PRIVATE KEY-----,,"),
        ("PROGRESS_HUB__SERVER__MAX_CONNECTIONS", "many"),
        ("PROGRESS_HUB__SERVER__DRAIN", "20"),
        ("PROGRESS_HUB__SOCKET__MAX_SUBSCRIPTIONS", "-1"),
    ]), @r#"
    server.max_connections: must be a whole number, found text
    server.drain: must be a duration such as "500ms", "20s" or "1h30m"
    auth.hs256_secrets: begins with '[' but is not a TOML list
    auth.public_keys: item 2 must not be empty
    auth.public_keys: item 3 must not be empty
    socket.max_subscriptions: must be between 1 and 100000, found -1
    "#);
}

#[test]
fn invalid_store_urls_return_specific_errors() {
    let reported: String = [
        "progress-hub.db",
        "sqlite://",
        "sqlite://hub.db?mode=rwc",
        "redis:localhost",
        "redis://",
        "redis://a,b",
        "redis://a/zero",
        "redis://a/2?protocol=resp3",
        "redis-cluster://a,,b",
        "redis-sentinel://a,b",
        "redis-sentinel://a:70000/master",
    ]
    .map(|url| {
        let loaded = load(&with_secret(""), &[], &[("store.url", url)]);
        format!("{url}\n  {}", error_lines(loaded))
    })
    .concat();
    assert_snapshot!(reported, @r"
    progress-hub.db
      store.url: must be sqlite://path, sqlite::memory:, redis://host, rediss://host, redis-cluster://a,b,c or redis-sentinel://a,b/primary
    sqlite://
      store.url: must name a file, such as sqlite://progress-hub.db
    sqlite://hub.db?mode=rwc
      store.url: must not have ?options after the path of the file
    redis:localhost
      store.url: must be sqlite://path, sqlite::memory:, redis://host, rediss://host, redis-cluster://a,b,c or redis-sentinel://a,b/primary
    redis://
      store.url: must name hosts as host or host:port, separated by commas
    redis://a,b
      store.url: must name one host; for several, use redis-cluster:// or redis-sentinel://
    redis://a/zero
      store.url: must end with a database number or nothing, such as redis://host/0
    redis://a/2?protocol=resp3
      store.url: must not have ?options; in a password, write ? as %3F and # as %23
    redis-cluster://a,,b
      store.url: must name hosts as host or host:port, separated by commas
    redis-sentinel://a,b
      store.url: must end with the name of the primary, such as redis-sentinel://a,b/mymaster
    redis-sentinel://a:70000/master
      store.url: must name hosts as host or host:port, separated by commas
    ");
}

#[test]
fn toml_syntax_errors_report_line_and_column() {
    assert_snapshot!(
        errors_in_file("[server]\nbind = 127.0.0.1:8080\n\n[auth]\nhs256_secrets = [\"a\"\n"),
        @r"
    hub.toml:2:13: invalid float, expected nothing
    hub.toml:5:21: unclosed array, expected `]`
    "
    );
    assert_snapshot!(errors_in_file("[store]\nurl = \"a\"\nurl = \"b\"\n"), @"hub.toml:3:1: duplicate key");
}

#[test]
fn missing_config_file_is_reported() {
    let loaded = Config::load(
        Some(Path::new("no/such.toml")),
        std::iter::empty(),
        Vec::new(),
    );
    assert_snapshot!(error_lines(loaded), @"no/such.toml: failed to read the file: No such file or directory (os error 2)");
}

#[test]
fn keys_are_neither_fetched_nor_sent_unencrypted() {
    let file = with_secret("[providers.a]\nspec = \"fal\"\n");
    for key in [
        "auth.jwks_url",
        "providers.a.jwks_url",
        "providers.a.base_url",
    ] {
        for url in [
            "https://api.example.com/x",
            "http://127.0.0.1:1/x",
            "http://[::1]/x",
            "http://localhost/x",
        ] {
            assert!(load(&file, &[], &[(key, url)]).is_ok(), "{key} {url}");
        }
        for url in [
            "http://api.example.com",
            "http://10.0.0.1",
            "http://localhost.example.com",
        ] {
            let lines = error_lines(load(&file, &[], &[(key, url)]));
            assert_eq!(
                lines,
                format!("{key}: must be https, or http on loopback\n"),
                "{url}"
            );
        }
    }
}

#[test]
fn secrets_that_are_not_random_are_rejected() {
    for secret in ["a".repeat(32), "0123".repeat(16)] {
        let list = format!("[{secret:?}]");
        let settings = [
            ("auth.hs256_secrets", list.as_str(), "item 1 "),
            ("callback.secret", secret.as_str(), ""),
            ("callback.previous_secrets", list.as_str(), "item 1 "),
        ];
        for (key, value, item) in settings {
            let base = [("callback.secret", SECRET), (key, value)];
            let lines = error_lines(load(&with_secret(""), &[], &base));
            let message = "must be random, such as the output of openssl rand -hex 32";
            assert_eq!(lines, format!("{key}: {item}{message}\n"));
        }
    }
}

#[test]
fn previous_secrets_require_a_secret() {
    let previous = [("callback.previous_secrets", SECRET)];
    assert_snapshot!(error_lines(load(&with_secret(""), &[], &previous)), @"callback.secret: required because previous_secrets is set");
}

#[test]
fn key_set_without_audience_is_a_warning() {
    let warnings = |flags: &[(&str, &str)]| {
        let config = load(&with_secret(""), &[], flags).unwrap();
        let warnings = config.warnings().into_iter();
        warnings
            .map(|warning| format!("{warning}\n"))
            .collect::<String>()
    };
    let jwks = ("auth.jwks_url", "https://id.example.com/keys");
    let issuer = ("auth.issuer", "https://id.example.com");
    assert_eq!(warnings(&[]), "");
    assert_eq!(warnings(&[jwks, ("auth.audience", "hub")]), "");
    assert_snapshot!(warnings(&[jwks, issuer]), @"auth.audience: not set: tokens that the issuer signed for other applications are accepted");
    assert_snapshot!(warnings(&[jwks]), @"auth.audience: not set: tokens that any issuer that uses these keys signed for other applications are accepted");
}

#[test]
fn webhook_errors_are_reported_together() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    assert_snapshot!(errors_in_file(&with_secret(&format!(r#"
        [deliveries]
        retries = ["soon"]
        pause = "2h"
        disable_after = "0s"
        recheck_after = 1

        [webhook_defaults]
        hosts = ["https://hooks.example.com", "a.example.com/path", "u@a.example.com", "*.example.com", ""]
        secret = "secret"
        previous_secrets = ["whsec_c2hvcnQ="]
        allow = ["10.0.0.0/33"]
        timeout = "1ms"

        [[webhooks]]
        name = "app"
        url = "ftp://app.example.com"
        secrets = ["whsec_c2hvcnQ=", "{secret}"]
        events = ["job.done"]
        owners = [1]
        headers = {{ "Webhook-Id" = "x", "a b" = "x", "x-a" = 1 }}
        body = 1
        retries = 1

        [[webhooks]]
        name = "app"

        [[webhooks]]
        name = "Slack 1"
        url = "https://user:password@app.example.com"
        secrets = []

        [[webhooks]]
        name = "email"
        url = "https://app.example.com/a#b"
        secrets = ["{secret}"]

        [[webhooks]]
        url = "https://app.example.com"
    "#))), @r#"
    webhooks.app: more than one entry has this name
    webhooks: entry 5 must have a name
    deliveries.retries: item 1 must be a duration such as "500ms", "20s" or "1h30m"
    deliveries.pause: must be between 1ms and 1h, found 2h
    deliveries.disable_after: must be between 1s and 8760h, found 0s
    deliveries.recheck_after: must be a duration such as "500ms", "20s" or "1h30m"
    webhook_defaults.hosts: item 1 must be a host or host:port, such as hooks.example.com
    webhook_defaults.hosts: item 2 must be a host or host:port, such as hooks.example.com
    webhook_defaults.hosts: item 3 must be a host or host:port, such as hooks.example.com
    webhook_defaults.hosts: item 4 must be a host or host:port, such as hooks.example.com
    webhook_defaults.hosts: item 5 must not be empty
    webhook_defaults.secret: must be whsec_ followed by base64
    webhook_defaults.previous_secrets: item 1 must have at least 24 bytes after whsec_ and base64, found 5
    webhook_defaults.allow: item 1 must be an IP address or a network, such as 10.0.0.0/8
    webhook_defaults.timeout: must be between 100ms and 1m, found 1ms
    webhooks.Slack 1.url: must not contain a user name or password
    webhooks.app.url: must begin with http:// or https://
    webhooks.app.secrets: item 1 must have at least 24 bytes after whsec_ and base64, found 5
    webhooks.app.events: item 1 must be job.created, job.updated, job.succeeded, job.failed or job.cancelled
    webhooks.app.owners: item 1 must be text, found a whole number
    webhooks.app.headers.Webhook-Id: is set by the hub
    webhooks.app.headers.a b: is not a valid name of a header
    webhooks.app.headers.x-a: must be text
    webhooks.app.body: must be text, found a whole number
    webhooks.email.url: must not have a #fragment
    webhooks.Slack 1: name must be 1 to 32 characters of a-z, 0-9 and -
    webhooks.Slack 1.secrets: must have at least one secret
    webhooks.email: name is reserved
    webhooks.app.retries: unknown key; did you mean deliveries.retries?
    "#);
    assert_snapshot!(errors_in_file(&with_secret(&format!(r#"
        [webhook_defaults]
        hosts = ["a.example.com"]

        [[webhooks]]
        name = "plain"
        url = "http://app.example.com"
        secrets = ["{secret}"]

        [[webhooks]]
        name = "private"
        url = "https://0x7f.1/hook"
        secrets = ["{secret}"]
    "#))), @r#"
    webhook_defaults.secret: required because hosts is set
    webhooks.plain.url: must be https; see webhook_defaults.allow
    webhooks.private.url: must have a public address; see webhook_defaults.allow
    "#);
    assert_snapshot!(errors_in_file(&with_secret("[webhooks.app]\nurl = \"https://a.example.com\"\n")), @"webhooks: must be written as [[webhooks]]");
    assert_snapshot!(errors_in_environment(&[
        ("PROGRESS_HUB__AUTH__HS256_SECRETS", SECRET),
        ("PROGRESS_HUB__WEBHOOKS__APP__EVENTS", "job.done"),
        ("PROGRESS_HUB__WEBHOOKS__APP", "x"),
        ("PROGRESS_HUB__WEBHOOK_DEFAULTS__PREVIOUS_SECRETS", secret),
    ]), @r#"
    webhooks.app.url: required: the URL of the endpoint
    webhooks.app.secrets: required: at least one secret that signs the webhooks
    webhooks.app.events: item 1 must be job.created, job.updated, job.succeeded, job.failed or job.cancelled
    webhook_defaults.secret: required because previous_secrets is set
    webhooks.app: must be a section, not a value
    "#);
}

#[test]
fn private_endpoints_need_an_allowed_network() {
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    for (allow, url, expected) in [
        ("", "https://app.example.com/hook", true),
        ("", "http://app.example.com/hook", false),
        ("", "https://192.168.1.4/hook", false),
        ("192.168.0.0/16", "https://192.168.1.4/hook", true),
        ("192.168.0.0/16", "http://192.168.1.4/hook", true),
        ("192.168.0.0/16", "http://nas.example.com/hook", true),
        ("192.168.0.0/16", "http://10.0.0.1/hook", false),
    ] {
        let flags = [
            ("webhook_defaults.allow", allow),
            ("webhooks.app.url", url),
            ("webhooks.app.secrets", secret),
        ];
        let loaded = load(&with_secret(""), &[], &flags);
        assert_eq!(loaded.is_ok(), expected, "{allow} {url}");
    }
}

#[test]
fn errors_of_email_are_reported_by_their_key() {
    assert_snapshot!(errors_in_file(&with_secret(r#"
        [email]
        smtp_url = "smtp://hub:hunter2@mail.example.com"
        events = ["job.updated", "job.done"]
        allowed_domains = ["https://example.com", "127.0.0.1", "example.com."]
        per_owner_per_day = 0
        timeout = "1h"
        password = "hunter2"
    "#)), @r#"
    email.smtp_url: would send the password unencrypted: use smtps:// or ?tls=required
    email.events: item 1 must be job.created, job.succeeded, job.failed or job.cancelled
    email.events: item 2 must be job.created, job.succeeded, job.failed or job.cancelled
    email.allowed_domains: item 1 must be a domain, such as example.com
    email.allowed_domains: item 2 must be a domain, such as example.com
    email.allowed_domains: item 3 must be a domain, such as example.com
    email.per_owner_per_day: must be between 1 and 1000000, found 0
    email.timeout: must be between 100ms and 10m, found 1h
    email.from: required because smtp_url is set
    email.password: unknown key; did you mean store.password?
    "#);
    let without_server = with_secret("[email]\nfrom = \"hub@example.com\"\n");
    let expected = "email.smtp_url: required because from is set\n";
    assert_eq!(errors_in_file(&without_server), expected);
}

#[test]
fn archive_errors_name_their_keys() {
    let file =
        |url: &str| format!("[auth]\nhs256_secrets = [{SECRET:?}]\n[archive]\nurl = {url:?}\n");
    for url in [
        "s3://bucket",
        "s3://bucket/prefix/",
        "gs://bucket",
        "az://container/a/b",
        "file:///var/lib/outputs",
    ] {
        assert!(load(&file(url), &[], &[]).is_ok(), "{url}");
    }
    const FORM: &str = "must be s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or \
                        file:///absolute/path";
    for (url, expected) in [
        ("bucket", FORM),
        ("s3://", FORM),
        ("https://bucket.s3.amazonaws.com", FORM),
        ("file://var/lib/outputs", FORM),
        ("file:///", FORM),
        (
            "s3://key:secret@bucket",
            "must not contain credentials; they are read from the environment",
        ),
        (
            "s3://bucket?region=eu",
            "must not have ?options or a #fragment",
        ),
    ] {
        let errors = errors_in_file(&file(url));
        assert_eq!(errors, format!("archive.url: {expected}\n"), "{url}");
    }
    let more = r#"
        link_ttl = "8d"
        max_bytes = "2XB"
        keep = "0d"
        allow = ["10.0.0.0/33"]
        max_concurrent = 65
        endpoint = "minio:9000"
        path_style = "maybe"
    "#;
    let errors = errors_in_file(&format!("{}{more}", file("file:///var/lib/outputs")));
    assert_snapshot!(errors, @r#"
    archive.link_ttl: must be between 1s and 168h, found 192h
    archive.max_bytes: must be a number of bytes, such as 1048576, "500MiB" or "2GiB"
    archive.keep: must be between 1h and 87600h, found 0s
    archive.allow: item 1 must be an IP address or a network, such as 10.0.0.0/8
    archive.max_concurrent: must be between 1 and 64, found 65
    archive.endpoint: must begin with http:// or https://
    archive.path_style: must be true or false, found text
    "#);
    let endpoint = format!(
        "{}endpoint = \"http://minio:9000\"\n",
        file("file:///var/lib/outputs")
    );
    let errors = errors_in_file(&endpoint);
    let expected = "archive.endpoint: must not be set, because archive.url is a folder\n";
    assert_eq!(errors, expected);
}

#[test]
fn sizes_and_days_have_units() {
    let load = |key: &str, value: &str| {
        let flags = [(key, value), ("auth.hs256_secrets", SECRET)];
        super::load("", &[], &flags).unwrap().archive
    };
    for (text, bytes) in [
        ("2048", 2048),
        ("4KiB", 4 << 10),
        ("500 MiB", 500 << 20),
        ("2GiB", 2 << 30),
    ] {
        assert_eq!(load("archive.max_bytes", text).max_bytes, bytes, "{text}");
    }
    for (text, hours) in [("30d", 720), ("1d12h", 36), ("2d 1h", 49), ("90m", 1)] {
        let keep = load("archive.keep", text).keep;
        assert_eq!(keep.as_secs() / 3600, hours, "{text}");
    }
}
