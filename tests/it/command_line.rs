//! Help, exit codes and configuration errors of the commands. Secrets are neither printed nor logged.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::StreamExt;
use progress_hub_simulator::Scenario;
use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{JWT_SECRET, TEST_TIMEOUT, TestApp, WEBHOOK_SECRET, send};
use crate::client::{self, TestClient};
use crate::webhook_signatures;

/// Runs the program until it exits.
pub fn run(arguments: &[&str]) -> Output {
    run_with(arguments, &[])
}

pub fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let child = Command::new(env!("CARGO_BIN_EXE_progress-hub"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(TEST_TIMEOUT) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = Command::new("kill").arg(id.to_string()).status();
            panic!("{arguments:?} does not exit");
        }
    }
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn all_output(output: &Output) -> String {
    out(output) + &err(output)
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn every_command_has_help() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    for command in [
        "serve",
        "demo",
        "token",
        "check",
        "health",
        "deliveries",
        "destinations",
        "load",
    ] {
        assert!(out(&help).contains(command), "{}", out(&help));
        let own = run(&[command, "--help"]);
        assert!(own.status.success());
        let text = out(&own);
        assert!(
            text.contains("Usage: progress-hub") && text.lines().count() > 8,
            "{text}"
        );
    }
    assert!(out(&run(&["serve", "--help"])).contains("--config"));
    assert!(!run(&[]).status.success());
    assert!(!run(&["fly"]).status.success());
}

const INVALID: &str = r#"
[server]
bind = "nowhere"
bnd = "127.0.0.1:80"
[auth]
hs256_secrets = ["too-short-hunter2"]
[store]
url = "mysql://root:hunter3@db/hub"
[providers.kling]
spec = "kling"
poll_after = "soon"
webhook_secrets = ["hunter4!"]
[nothing]
a = 1
"#;

#[test]
fn all_config_errors_are_printed_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let config = file(folder.path(), "hub.toml", INVALID);
    for command in ["serve", "check"] {
        let rejected = run(&[command, "--config", &config]);
        assert_eq!(rejected.status.code(), Some(2), "{command}");
        let output = all_output(&rejected);
        for key in [
            "server.bind",
            "server.bnd",
            "auth.hs256_secrets",
            "store.url",
            "providers.kling.poll_after",
            "nothing",
        ] {
            assert!(output.contains(key), "{key}: {output}");
        }
        let errors = err(&rejected);
        assert!(
            errors.contains("invalid configuration: 8 errors\n"),
            "{errors}"
        );
        assert!(!output.contains("hunter"), "{output}");
    }
}

#[test]
fn bind_time_config_errors_name_their_key() {
    let base = format!("auth.hs256_secrets={JWT_SECRET}");
    for (settings, key) in [
        (
            &["providers.kling.spec=kling"][..],
            "providers.kling.api_key",
        ),
        (
            &[
                "providers.kling.spec=kling",
                "providers.kling.api_key=k",
                "providers.kling.webhook_secrets=hunter!",
            ],
            "providers.kling.webhook_secrets",
        ),
        (&["providers.g.spec=generic"], "providers.g.webhook_secrets"),
        (&["providers.x.spec=klign"], "providers.x.spec"),
        (&["providers.x.spec=/nowhere/x.toml"], "providers.x.spec"),
        (&["auth.public_keys=hunter"], "auth.public_keys"),
    ] {
        for command in ["check", "serve"] {
            let mut arguments = vec![command, "--set", &base];
            for setting in settings {
                arguments.extend(["--set", *setting]);
            }
            let rejected = run(&arguments);
            assert_eq!(rejected.status.code(), Some(2), "{command} {settings:?}");
            let output = all_output(&rejected);
            assert!(output.contains(key), "{key}: {output}");
            assert!(!output.contains("hunter"), "{output}");
        }
    }
}

#[test]
fn missing_or_invalid_config_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let broken = file(folder.path(), "broken.toml", "[server\nbind = 1");
    for path in ["/nowhere/hub.toml", &broken] {
        let rejected = run(&["serve", "--config", path]);
        assert_eq!(rejected.status.code(), Some(2));
        assert!(err(&rejected).contains(path), "{}", err(&rejected));
    }
}

#[test]
fn serve_requires_a_secret() {
    let rejected = run(&["serve"]);
    assert_eq!(rejected.status.code(), Some(2));
    assert!(err(&rejected).contains("auth"), "{}", err(&rejected));
    assert!(err(&rejected).contains("invalid configuration: 1 error\n"));

    // Without a secret, callback URLs would not be signed.
    let rejected = run(&[
        "serve",
        "--set",
        &format!("auth.hs256_secrets={JWT_SECRET}"),
        "--set",
        "server.public_url=https://hub.example.com",
        "--set",
        "providers.kling.spec=kling",
        "--set",
        "providers.kling.api_key=k",
    ]);
    assert_eq!(rejected.status.code(), Some(2));
    assert!(
        err(&rejected).contains("callback.secret"),
        "{}",
        err(&rejected)
    );
}

#[test]
fn check_prints_the_effective_configuration_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let config = file(
        folder.path(),
        "hub.toml",
        r#"
        [server]
        drain = "7s"
        max_body_bytes = 4096
        [auth]
        hs256_secrets = ["hunter one, hunter two, hunter three, hunter four"]
        [providers.kling]
        spec = "kling"
        api_key = "hunter-key"
        webhook_secrets = ["whsec_aHVudGVyaHVudGVyaHVudGVyaHVudGVy"]
        "#,
    );
    let environment = [
        ("PROGRESS_HUB__SERVER__DRAIN", "8s"),
        ("PROGRESS_HUB__SOCKET__HEARTBEAT", "11s"),
    ];
    let arguments = [
        "check",
        "--config",
        &config,
        "--set",
        "socket.heartbeat=12s",
    ];
    let checked = run_with(&arguments, &environment);
    assert!(checked.status.success(), "{}", err(&checked));
    let shown: toml::Table = out(&checked).parse().expect("valid TOML");
    assert_eq!(shown["server"]["drain"].as_str(), Some("8s"));
    assert_eq!(shown["server"]["max_body_bytes"].as_integer(), Some(4096));
    assert_eq!(shown["socket"]["heartbeat"].as_str(), Some("12s"));
    assert_eq!(shown["socket"]["auth_timeout"].as_str(), Some("10s"));
    assert_eq!(shown["providers"]["kling"]["spec"].as_str(), Some("kling"));
    let output = all_output(&checked);
    assert!(
        !output.contains("hunter") && !output.contains("aHVudGVy"),
        "{output}"
    );
}

#[test]
fn spec_file_errors_name_their_line_or_key() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"
title = "Mine"
signature = { scheme = "none" }
[poll]
url = "/{{ task_id }}"
[read]
task_id = "payload.id"
status = "payload.state"
statuses = { done = "succeeded" }
"#;
    for (from, to, clue) in [
        ("payload.id", "payload.", "task_id"),
        ("payload.state", "payload.state |", "status"),
        ("succeeded", "splendid", "splendid"),
        ("title", "titel", "titel"),
        ("none", "handshake", "handshake"),
        (
            "title = \"Mine\"",
            "title = \"Mine\"\nretention = \"1m\"",
            "deadline",
        ),
        (
            "[read]",
            "[submit]\nurl = \"/\"\nitem = \"payload\"\nbdy = \"{}\"\n[read]",
            "bdy",
        ),
        (
            "[read]",
            "[submit]\nurl = \"{{ base_url\"\nitem = \"payload\"\n[read]",
            "url",
        ),
        (
            "[read]",
            "[[errors]]\nwhen = \"code ==\"\nkind = \"safety\"\n[read]",
            "when",
        ),
        ("payload.id", "payload.id|shout", "shout"),
        ("[read]", "[read", "line 6"),
    ] {
        let spec = file(folder.path(), "mine.toml", &good.replace(from, to));
        let rejected = run(&[
            "check",
            "--set",
            &format!("auth.hs256_secrets={JWT_SECRET}"),
            "--set",
            &format!("providers.mine.spec={spec}"),
        ]);
        assert_eq!(rejected.status.code(), Some(2), "{from} -> {to}");
        let output = err(&rejected);
        assert!(output.contains("providers.mine.spec"), "{output}");
        assert!(output.contains(clue), "{from} -> {to}: {output}");
    }
    let spec = file(folder.path(), "mine.toml", good);
    let checked = run(&[
        "check",
        "--set",
        &format!("auth.hs256_secrets={JWT_SECRET}"),
        "--set",
        &format!("providers.mine.spec={spec}"),
    ]);
    assert!(checked.status.success(), "{}", err(&checked));
}

#[test]
fn check_warns_about_settings_that_accept_too_much() {
    let secret = format!("auth.hs256_secrets={JWT_SECRET}");
    let base = ["check", "--set", &secret, "--set", "providers.fal.spec=fal"];
    let base = [&base[..], &["--set", "providers.fal.api_key=k"]].concat();
    let jwks = ["--set", "auth.jwks_url=https://id.example.com/keys"];
    let warned = run(&[&base[..], &jwks].concat());
    assert!(warned.status.success(), "{}", err(&warned));
    for key in ["auth.audience", "providers.fal.account"] {
        assert!(
            err(&warned).contains(&format!("warning: {key}: not set")),
            "{}",
            err(&warned)
        );
    }
    let account = ["--set", "providers.fal.account=user-7"];
    let checked = run(&[&base[..], &account].concat());
    assert_eq!(
        (checked.status.success(), err(&checked).as_str()),
        (true, "")
    );

    let other = [
        "--set",
        "providers.kling.spec=kling",
        "--set",
        "providers.kling.api_key=k",
    ];
    let other = [
        &base[..],
        &account,
        &other,
        &["--set", "providers.kling.account=a"],
    ]
    .concat();
    let rejected = run(&other);
    assert_eq!(rejected.status.code(), Some(2));
    assert!(
        err(&rejected).contains("providers.kling.account"),
        "{}",
        err(&rejected)
    );
}

#[test]
fn definition_with_an_unencrypted_url_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    for (base_url, jwks_url, key) in [
        (
            "http://api.example.com",
            "https://api.example.com/keys",
            Some("base_url"),
        ),
        (
            "https://api.example.com",
            "http://api.example.com/keys",
            Some("jwks_url"),
        ),
        (
            "https://api.example.com",
            "https://api.example.com/keys",
            None,
        ),
    ] {
        let spec = format!(
            r#"
title = "Mine"
base_url = "{base_url}"
[signature]
scheme = "ed25519"
header = "x-signature"
encoding = "hex"
jwks_url = "{jwks_url}"
[poll]
url = "/{{{{ task_id }}}}"
[read]
task_id = "payload.id"
status = "payload.state"
statuses = {{ done = "succeeded" }}
"#
        );
        let spec = file(folder.path(), "mine.toml", &spec);
        let secret = format!("auth.hs256_secrets={JWT_SECRET}");
        let spec = format!("providers.mine.spec={spec}");
        let checked = run(&["check", "--set", &secret, "--set", &spec]);
        let output = err(&checked);
        match key {
            None => assert!(checked.status.success(), "{output}"),
            Some(key) => {
                let message = format!("providers.mine.{key}: must be https, or http on loopback");
                assert!(output.contains(&message), "{output}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_command_mints_a_working_token() {
    let app = TestApp::spawn().await;
    let id = app.register_worker_job("alice").await;
    let secret = format!("auth.hs256_secrets={JWT_SECRET}");
    let mint = |arguments: &[&str]| {
        let all = [&["token", "--set", &secret], arguments].concat();
        let minted = run(&all);
        assert!(minted.status.success(), "{}", err(&minted));
        out(&minted).trim().to_owned()
    };
    let path = format!("/v1/jobs/{id}");
    let read = |token: String| send(app.request_with_token(Method::GET, &path, &token));
    assert_eq!(read(mint(&["--sub", "alice"])).await.status, 200);
    assert_eq!(read(mint(&["--sub", "bob"])).await.status, 404);
    assert_eq!(
        read(mint(&["--sub", "bob", "--job", &id])).await.status,
        200
    );
    let admin = mint(&["--sub", "root", "--scope", "admin", "--ttl", "1h"]);
    assert_eq!(read(admin).await.status, 200);

    for invalid in [
        &["token", "--sub", "a"][..],
        &["token", "--set", &secret],
        &["token", "--set", &secret, "--sub", "a", "--ttl", "soon"],
        &[
            "token", "--set", &secret, "--sub", "a", "--scope", "jobs:fly",
        ],
    ] {
        let rejected = run(invalid);
        assert!(!rejected.status.success(), "{invalid:?}");
        assert_eq!(out(&rejected), "");
    }
}

/// Returns an expired token with a valid signature.
fn expired_token() -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = encode(r#"{"sub":"alice","exp":1700000000}"#);
    let content = format!("{header}.{claims}");
    let signature = webhook_signatures::base64(JWT_SECRET, content.as_bytes());
    let signature = signature
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_");
    format!("{content}.{signature}")
}

/// Uses every kind of secret and token at a hub, and returns all of them.
async fn busy_run(app: &TestApp) -> Vec<String> {
    let mut secrets: Vec<String> = [
        JWT_SECRET,
        "a callback secret that is long enough too",
        "hub_test_secret",
        "a key",
        WEBHOOK_SECRET.strip_prefix("whsec_").unwrap(),
    ]
    .map(str::to_owned)
    .to_vec();
    let token = app.token("alice", "jobs:read jobs:write");
    let worker = app.token("worker", "jobs:publish");
    let expired = expired_token();
    let forged = format!("{token}forged");

    let job = app.submit("alice", Scenario::Normal).await;
    let id = job["id"].as_str().unwrap().to_owned();
    for scenario in [Scenario::Forged, Scenario::LostAnswer, Scenario::BadKey] {
        app.submit("alice", scenario).await;
    }
    let mut socket = TestClient::connect(&app.url, &token).await;
    socket.subscribe(&[(&id, 0)]).await;
    socket.follow_to_final(&id).await;
    socket
        .send_json(json!({ "type": "auth", "token": expired }))
        .await;
    let mut unauthenticated = TestClient::connect_unauthenticated(&app.url).await;
    unauthenticated
        .send_json(json!({ "type": "auth", "token": forged }))
        .await;
    assert_eq!(unauthenticated.expect_close().await, Some(4001));
    let offered = format!("progress-hub.v1, bearer.{expired}");
    let rejected = client::try_upgrade(client::upgrade_request(
        &app.url,
        &[("sec-websocket-protocol", &offered)],
    ));
    assert_eq!(rejected.await.err().unwrap().status(), 401);
    let offered = format!("progress-hub.v1, bearer.{token}");
    let request = client::upgrade_request(&app.url, &[("sec-websocket-protocol", &offered)]);
    let (mut opened, _) = client::try_upgrade(request).await.unwrap();
    opened.next().await.unwrap().unwrap();
    opened.close(None).await.unwrap();

    for token in [&token, &worker, &expired, &forged] {
        send(app.request_with_token(Method::GET, &format!("/v1/jobs/{id}"), token)).await;
    }
    let minted = send(
        app.request_with_token(Method::POST, "/v1/tokens", &app.token("root", "admin"))
            .json(&json!({ "sub": "alice" })),
    )
    .await;
    let minted = minted.body["token"].as_str().unwrap().to_owned();
    let update = json!({ "task_id": "1", "status": "running" }).to_string();
    let signature = webhook_signatures::hex("hub_test_secret", update.as_bytes());
    for signature in [signature.as_str(), "00"] {
        let request = app.request_without_token(Method::POST, "/v1/webhooks/generic");
        let request = request.header("x-ai-signature", signature);
        send(request.body(update.clone())).await;
    }
    let forged_callback = format!("{id}.bm9ib2R5IHNob3VsZCBldmVyIHNlZSB0aGlz");
    let path = format!("/v1/webhooks/simulated/{forged_callback}");
    assert_eq!(
        send(app.request_without_token(Method::POST, &path))
            .await
            .status,
        404
    );

    secrets.extend([token, worker, expired, forged, minted, signature]);
    secrets.push(forged_callback);
    secrets
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_contain_no_secret_and_no_token() {
    for format in ["pretty", "json"] {
        let app = TestApp::builder()
            .with_simulator(Scenario::Normal)
            .spawn_process(&["--log", format, "--log-level", "debug"])
            .await;
        let secrets = busy_run(&app).await;
        let log = app.log();
        assert!(
            log.lines().count() > 5,
            "the debug log is almost empty: {log}"
        );
        for secret in &secrets {
            // The signature of a token must not appear alone either.
            let tail = secret.rsplit('.').next().unwrap();
            assert!(!log.contains(tail), "{secret} in {format}:\n{log}");
        }
        if format == "json" {
            let is_object = |line: &str| serde_json::from_str::<Value>(line).is_ok();
            assert!(log.lines().all(is_object), "{log}");
        }
    }
}
