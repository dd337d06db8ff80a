//! `progress-hub load`: it runs against a hub and reports every violation.

use std::process::Output;

use serde_json::Value;

use crate::app::{JWT_SECRET, TestApp};
use crate::command_line::{err, out, run_with};
use crate::tampering_proxy::{Tamper, TamperingProxy};

/// Setting with which `load` mints tokens for the hub of a test.
const HS256_SECRET: (&str, &str) = ("PROGRESS_HUB__AUTH__HS256_SECRETS", JWT_SECRET);

/// Flags of a small run: 40 sockets with 2 of 5 jobs each, for one second.
const SMALL_RUN: [&str; 12] = [
    "load", "-n", "40", "-j", "5", "-s", "2", "-d", "1s", "--ramp", "100ms", "--json",
];

fn load(flags: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut arguments = SMALL_RUN.to_vec();
    arguments.push("-");
    arguments.extend(flags);
    run_with(&arguments, environment)
}

/// Runs `load` against a hub in this process.
async fn load_running_hub(flags: &[&str], environment: &[(&'static str, &str)]) -> Output {
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let environment: Vec<(&str, String)> = environment
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let run = move || {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        load(&flags, &environment)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Returns the results of a run without violations.
fn passed(output: &Output) -> Value {
    let results = results(output);
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    assert_eq!(results["ok"], true);
    assert_eq!(results["checks"]["violations"], 0, "{results}");
    assert_eq!(results["checks"]["subscriptions"], 80);
    assert_eq!(results["updates"]["failed"], 0, "{results}");
    assert!(
        results["updates"]["applied"].as_u64() > Some(0),
        "{results}"
    );
    assert!(
        results["deliveries"]["count"].as_u64() > Some(0),
        "{results}"
    );
    results
}

fn results(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", out(output), err(output)))
}

#[test]
fn run_with_own_hub_reports_all_results_and_removes_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let page = tempfile::tempdir().unwrap();
    let page = page.path().join("load.html");
    let html = ["--html", page.to_str().unwrap()];
    let temporary = [("TMPDIR", folder.path().to_str().unwrap())];
    let results = passed(&load(&html, &temporary));

    let spreads = [
        &results["latency"],
        &results["updates"]["answer"],
        &results["updates"]["delay"],
        &results["sockets"]["handshake"],
        &results["sockets"]["first"],
    ];
    for spread in spreads {
        let times = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];
        let times = times.map(|name| spread[name].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{spread}");
    }
    let due = results["updates"]["due"].as_u64().unwrap();
    let sent = ["applied", "unchanged", "failed", "unsent"];
    let sent = sent.map(|name| results["updates"][name].as_u64().unwrap());
    assert_eq!((due, sent.iter().sum::<u64>()), (100, 100));
    // Every update changes its job, even if two updates of a job arrive in reverse order.
    assert_eq!(results["updates"]["unchanged"], 0);
    assert_eq!(results["latency"]["count"], results["deliveries"]["count"]);
    assert_eq!(results["sockets"]["first"]["count"], 40);
    assert_eq!(results["plan"]["by"], "push");
    assert_eq!(results["storm"], Value::Null);
    assert!(!results["timeline"].as_array().unwrap().is_empty());
    if cfg!(target_os = "linux") {
        assert!(results["server"]["memory_idle_bytes"].as_u64() > Some(0));
        assert!(results["server"]["cpu_percent"].is_number());
    }

    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let page = std::fs::read_to_string(page).unwrap();
    assert_is_self_contained(&page);
    assert_eq!(page.matches("<svg").count(), chart_count());
    assert!(page.contains("all checks passed"));
}

/// Without `/proc` there are no charts of CPU and memory.
fn chart_count() -> usize {
    if cfg!(target_os = "linux") { 5 } else { 3 }
}

fn assert_is_self_contained(page: &str) {
    for text in [
        "<script", "<link", "<img", "@import", "url(", "src=", "https:",
    ] {
        assert!(!page.contains(text), "the page contains {text}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(!page.contains("NaN") && !page.contains("{{"));
}

#[test]
fn webhooks_with_both_signature_schemes_reach_the_sockets() {
    for method in ["webhook", "standard-webhook"] {
        let results = passed(&load(&["--by", method], &[]));
        assert_eq!(results["plan"]["by"], method);
    }
}

#[test]
fn reconnect_storm_slow_clients_and_churn_lose_no_version() {
    let flags = [
        "--reconnect-storm",
        "--slow",
        "25%",
        "--slow-read-pause",
        "150ms",
        "--churn",
        "100%",
    ];
    let results = passed(&load(&flags, &[]));
    assert_eq!(results["storm"]["sockets"], 40);
    assert_eq!(results["storm"]["current"]["count"], 40);
    assert!(
        results["slow_latency"]["count"].as_u64() > Some(0),
        "{results}"
    );
    assert!(
        results["sockets"]["resume"]["count"].as_u64() > Some(0),
        "{results}"
    );
}

#[test]
fn sockets_use_several_source_addresses_and_threads() {
    let results = passed(&load(&["--sources", "3", "--threads", "2"], &[]));
    assert_eq!(results["plan"]["sources"], 3);
}

#[test]
fn padding_increases_document_size() {
    let lengths = [("0", "push"), ("2100", "push"), ("2150", "webhook")];
    let lengths = lengths.map(|(padding, by)| {
        let results = passed(&load(&["--padding", padding, "--by", by], &[]));
        let deliveries = &results["deliveries"];
        deliveries["bytes_per_second"].as_f64().unwrap()
            / deliveries["per_second"].as_f64().unwrap()
    });
    assert!(lengths[1] > lengths[0] + 2000.0, "{lengths:?}");
    assert!(lengths[2] > lengths[0] + 2050.0, "{lengths:?}");
}

#[tokio::test]
async fn running_hub_is_loaded_with_its_secret_or_an_admin_token() {
    let app = TestApp::spawn().await;
    let pid = std::process::id().to_string();
    let with_secret = load_running_hub(&["--url", &app.url, "--pid", &pid], &[HS256_SECRET]).await;
    let results = passed(&with_secret);
    assert_eq!(results["plan"]["own_hub"], false);
    let admin = app.token("root", "admin");
    let with_token =
        load_running_hub(&["--url", &app.url], &[("PROGRESS_HUB_TOKEN", &admin)]).await;
    assert_eq!(passed(&with_token)["server"], Value::Null);
    for output in [with_secret, with_token] {
        let printed = format!("{}{}", out(&output), err(&output));
        assert!(!printed.contains(JWT_SECRET) && !printed.contains(&admin));
    }
}

#[tokio::test]
async fn webhooks_to_a_running_hub_are_signed_with_the_secret_of_its_provider() {
    let app = TestApp::spawn().await;
    let webhooks = [
        "--url",
        &app.url,
        "--by",
        "webhook",
        "--provider",
        "generic",
    ];
    let secret = ("PROGRESS_HUB_WEBHOOK_SECRET", "hub_test_secret");
    passed(&load_running_hub(&webhooks, &[HS256_SECRET, secret]).await);

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("hub.toml");
    let providers =
        "[providers.generic]\nspec = \"generic\"\nwebhook_secrets = [\"hub_test_secret\"]\n";
    let text = format!("[auth]\nhs256_secrets = [\"{JWT_SECRET}\"]\n{providers}");
    std::fs::write(&config, text).unwrap();
    let configured = [&webhooks[..], &["--config", config.to_str().unwrap()]].concat();
    passed(&load_running_hub(&configured, &[]).await);

    let without = load_running_hub(&webhooks, &[HS256_SECRET]).await;
    assert_eq!(without.status.code(), Some(2), "{}", err(&without));
    assert!(err(&without).contains("PROGRESS_HUB_WEBHOOK_SECRET"));

    let wrong = ("PROGRESS_HUB_WEBHOOK_SECRET", "hunter2");
    let flags = [&webhooks[..], &["--timeout", "500ms"]].concat();
    let output = load_running_hub(&flags, &[HS256_SECRET, wrong]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("invalid_signature"),
        "{}",
        err(&output)
    );
    assert!(!err(&output).contains("hunter2"));
}

/// Returns the checks of a run through a proxy that tampers with documents.
async fn violations(tamper: Tamper) -> Value {
    let app = TestApp::spawn().await;
    let proxy = TamperingProxy::start(&app, tamper).await;
    let arguments = ["--url", &proxy.url, "--timeout", "1s"];
    let output = load_running_hub(&arguments, &[HS256_SECRET]).await;
    assert_eq!(
        output.status.code(),
        Some(1),
        "{tamper:?}: {}",
        err(&output)
    );
    let results = results(&output);
    assert_eq!(results["ok"], false);
    assert!(
        results["checks"]["violations"].as_u64() > Some(0),
        "{results}"
    );
    results["checks"].clone()
}

#[tokio::test]
async fn missing_final_version_is_detected_on_every_socket() {
    let checks = violations(Tamper::DropFinal).await;
    assert_eq!(checks["sockets_behind"], 40, "{checks}");
    assert_eq!(checks["behind"], 80, "{checks}");
    assert_eq!(checks["backwards"], 0, "{checks}");
}

#[tokio::test]
async fn repeated_or_decreasing_version_is_detected() {
    for tamper in [Tamper::Duplicate, Tamper::Reorder] {
        let checks = violations(tamper).await;
        assert!(
            checks["backwards"].as_u64() > Some(0),
            "{tamper:?}: {checks}"
        );
    }
}

#[tokio::test]
async fn unexpected_spurious_and_malformed_frames_are_detected() {
    for (tamper, name) in [
        (Tamper::ForeignJob, "strangers"),
        (Tamper::FutureVersion, "ahead"),
        (Tamper::InvalidJson, "malformed"),
    ] {
        let checks = violations(tamper).await;
        assert!(checks[name].as_u64() > Some(0), "{tamper:?}: {checks}");
    }
}

#[test]
fn invalid_flags_are_rejected_with_the_reason() {
    for (flags, expected) in [
        (&["--jobs", "1", "-s", "2"][..], "--subscriptions 2"),
        (&["--padding", "3000"], "--padding 3000"),
        (&["--sockets", "1000000", "--sources", "250"], "open files"),
        (&["--url", "http://192.0.2.1:8080"], "--allow-remote"),
        (&["--url", "https://127.0.0.1:8080"], "without TLS"),
        (&["--config", "hub.toml"], "--url"),
        (&["--slow", "many"], "0% to 100%"),
        (&["--rate", "0"], "0.01"),
        (&["--set", "socket.heartbeat=soon"], "socket.heartbeat"),
    ] {
        let output = run_with(&[&["load"], flags].concat(), &[HS256_SECRET]);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", err(&output));
        assert!(
            err(&output).contains(expected),
            "{flags:?}: {}",
            err(&output)
        );
        assert!(out(&output).is_empty());
    }
}

#[test]
fn unreachable_hub_ends_the_run() {
    let output = load(&["--url", "http://127.0.0.1:9"], &[HS256_SECRET]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("connection failed"),
        "{}",
        err(&output)
    );
}

#[tokio::test]
async fn rejected_token_is_reported_and_not_printed() {
    let app = TestApp::spawn().await;
    let token = app.token("alice", "jobs:read");
    let output = load_running_hub(&["--url", &app.url], &[("PROGRESS_HUB_TOKEN", &token)]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("forbidden"), "{}", err(&output));
    assert!(!err(&output).contains(&token));
}
