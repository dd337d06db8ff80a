//! `progress-hub load`: it drives a hub, and what is wrong with one does not pass it.

use std::process::Output;

use serde_json::Value;

use crate::app::{JWT_SECRET, TestApp};
use crate::command_line::{err, out, run_with};
use crate::tampering_proxy::{Tamper, TamperingProxy};

/// Mints tokens for the hub of a test.
const MINTING: (&str, &str) = ("PROGRESS_HUB__AUTH__HS256_SECRETS", JWT_SECRET);

/// A small run: forty sockets on five jobs, for a second.
const SMALL: [&str; 12] = [
    "load", "-n", "40", "-j", "5", "-s", "2", "-d", "1s", "--ramp", "100ms", "--json",
];

fn load(further: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut arguments = SMALL.to_vec();
    arguments.push("-");
    arguments.extend(further);
    run_with(&arguments, environment)
}

/// Beside a hub that lives in this process.
async fn load_beside(further: &[&str], environment: &[(&'static str, &str)]) -> Output {
    let further: Vec<String> = further.iter().map(|word| (*word).to_owned()).collect();
    let environment: Vec<(&str, String)> = environment
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let run = move || {
        let further: Vec<&str> = further.iter().map(String::as_str).collect();
        let environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        load(&further, &environment)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The figures of a run in which nothing was wrong.
fn good(output: &Output) -> Value {
    let figures = figures(output);
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    assert_eq!(figures["ok"], true);
    assert_eq!(figures["checks"]["violations"], 0, "{figures}");
    assert_eq!(figures["checks"]["subscriptions"], 80);
    assert_eq!(figures["updates"]["failed"], 0, "{figures}");
    assert!(
        figures["updates"]["applied"].as_u64() > Some(0),
        "{figures}"
    );
    assert!(
        figures["deliveries"]["count"].as_u64() > Some(0),
        "{figures}"
    );
    figures
}

fn figures(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", out(output), err(output)))
}

#[test]
fn a_run_at_a_hub_of_its_own_tells_all_of_it_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let page = tempfile::tempdir().unwrap();
    let page = page.path().join("load.html");
    let html = ["--html", page.to_str().unwrap()];
    let temporary = [("TMPDIR", folder.path().to_str().unwrap())];
    let figures = good(&load(&html, &temporary));

    let spreads = [
        &figures["latency"],
        &figures["updates"]["answer"],
        &figures["updates"]["delay"],
        &figures["sockets"]["handshake"],
        &figures["sockets"]["first"],
    ];
    for spread in spreads {
        let times = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];
        let times = times.map(|name| spread[name].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{spread}");
    }
    let due = figures["updates"]["due"].as_u64().unwrap();
    let sent = ["applied", "unchanged", "failed", "unsent"];
    let sent = sent.map(|name| figures["updates"][name].as_u64().unwrap());
    assert_eq!((due, sent.iter().sum::<u64>()), (100, 100));
    // Each is a change, also when two of a job cross.
    assert_eq!(figures["updates"]["unchanged"], 0);
    assert_eq!(figures["latency"]["count"], figures["deliveries"]["count"]);
    assert_eq!(figures["sockets"]["first"]["count"], 40);
    assert_eq!(figures["plan"]["by"], "push");
    assert_eq!(figures["storm"], Value::Null);
    assert!(!figures["timeline"].as_array().unwrap().is_empty());
    if cfg!(target_os = "linux") {
        assert!(figures["server"]["memory_idle_bytes"].as_u64() > Some(0));
        assert!(figures["server"]["cpu_percent"].is_number());
    }

    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let page = std::fs::read_to_string(page).unwrap();
    assert_is_self_contained(&page);
    assert_eq!(page.matches("<svg").count(), figures_on_the_page());
    assert!(page.contains("every check passed"));
}

/// Without `/proc` there are no charts of the hub's process.
fn figures_on_the_page() -> usize {
    if cfg!(target_os = "linux") { 5 } else { 3 }
}

fn assert_is_self_contained(page: &str) {
    for word in [
        "<script", "<link", "<img", "@import", "url(", "src=", "https:",
    ] {
        assert!(!page.contains(word), "the page has {word}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(!page.contains("NaN") && !page.contains("{{"));
}

#[test]
fn webhooks_of_both_signatures_reach_the_sockets() {
    for way in ["webhook", "standard-webhook"] {
        let figures = good(&load(&["--by", way], &[]));
        assert_eq!(figures["plan"]["by"], way);
    }
}

#[test]
fn a_storm_slow_readers_and_comings_and_goings_lose_nothing() {
    let rough = [
        "--storm",
        "--slow",
        "25%",
        "--slow-pause",
        "150ms",
        "--churn",
        "100%",
    ];
    let figures = good(&load(&rough, &[]));
    assert_eq!(figures["storm"]["sockets"], 40);
    assert_eq!(figures["storm"]["current"]["count"], 40);
    assert!(
        figures["slow_latency"]["count"].as_u64() > Some(0),
        "{figures}"
    );
    assert!(
        figures["sockets"]["resume"]["count"].as_u64() > Some(0),
        "{figures}"
    );
}

#[test]
fn sockets_come_from_several_addresses_and_threads() {
    let figures = good(&load(&["--sources", "3", "--threads", "2"], &[]));
    assert_eq!(figures["plan"]["sources"], 3);
}

#[test]
fn documents_are_as_long_as_asked_for() {
    let lengths = [("0", "push"), ("2100", "push"), ("9000", "webhook")];
    let lengths = lengths.map(|(padding, by)| {
        let figures = good(&load(&["--padding", padding, "--by", by], &[]));
        let deliveries = &figures["deliveries"];
        deliveries["bytes_per_second"].as_f64().unwrap()
            / deliveries["per_second"].as_f64().unwrap()
    });
    assert!(lengths[1] > lengths[0] + 2000.0, "{lengths:?}");
    assert!(lengths[2] > lengths[0] + 8900.0, "{lengths:?}");
}

#[tokio::test]
async fn a_running_hub_is_driven_with_its_secret_or_an_admins_token() {
    let app = TestApp::spawn().await;
    let pid = std::process::id().to_string();
    let with_secret = load_beside(&["--url", &app.url, "--pid", &pid], &[MINTING]).await;
    let figures = good(&with_secret);
    assert_eq!(figures["plan"]["own_hub"], false);
    let admin = app.token("root", "admin");
    let with_token = load_beside(&["--url", &app.url], &[("PROGRESS_HUB_TOKEN", &admin)]).await;
    assert_eq!(good(&with_token)["server"], Value::Null);
    for output in [with_secret, with_token] {
        let said = format!("{}{}", out(&output), err(&output));
        assert!(!said.contains(JWT_SECRET) && !said.contains(&admin));
    }
}

#[tokio::test]
async fn a_running_hubs_webhooks_are_signed_with_its_providers_secret() {
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
    good(&load_beside(&webhooks, &[MINTING, secret]).await);

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("hub.toml");
    let providers =
        "[providers.generic]\nspec = \"generic\"\nwebhook_secrets = [\"hub_test_secret\"]\n";
    let text = format!("[auth]\nhs256_secrets = [\"{JWT_SECRET}\"]\n{providers}");
    std::fs::write(&config, text).unwrap();
    let configured = [&webhooks[..], &["--config", config.to_str().unwrap()]].concat();
    good(&load_beside(&configured, &[]).await);

    let without = load_beside(&webhooks, &[MINTING]).await;
    assert_eq!(without.status.code(), Some(2), "{}", err(&without));
    assert!(err(&without).contains("PROGRESS_HUB_WEBHOOK_SECRET"));

    let wrong = ("PROGRESS_HUB_WEBHOOK_SECRET", "hunter2");
    let patience = [&webhooks[..], &["--patience", "500ms"]].concat();
    let refused = load_beside(&patience, &[MINTING, wrong]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        err(&refused).contains("invalid_signature"),
        "{}",
        err(&refused)
    );
    assert!(!err(&refused).contains("hunter2"));
}

/// What a run finds where documents are tampered with on their way.
async fn faults(forgery: Tamper) -> Value {
    let app = TestApp::spawn().await;
    let forger = TamperingProxy::start(&app, forgery).await;
    let arguments = ["--url", &forger.url, "--patience", "1s"];
    let output = load_beside(&arguments, &[MINTING]).await;
    assert_eq!(
        output.status.code(),
        Some(1),
        "{forgery:?}: {}",
        err(&output)
    );
    let figures = figures(&output);
    assert_eq!(figures["ok"], false);
    assert!(
        figures["checks"]["violations"].as_u64() > Some(0),
        "{figures}"
    );
    figures["checks"].clone()
}

#[tokio::test]
async fn an_end_that_never_comes_is_found_at_every_socket() {
    let faults = faults(Tamper::LosesTheEnd).await;
    assert_eq!(faults["sockets_behind"], 40, "{faults}");
    assert_eq!(faults["behind"], 80, "{faults}");
    assert_eq!(faults["backwards"], 0, "{faults}");
}

#[tokio::test]
async fn a_version_that_comes_twice_or_goes_back_is_found() {
    for forgery in [Tamper::Repeats, Tamper::Swaps] {
        let faults = faults(forgery).await;
        assert!(
            faults["backwards"].as_u64() > Some(0),
            "{forgery:?}: {faults}"
        );
    }
}

#[tokio::test]
async fn what_nobody_said_is_found() {
    for (forgery, name) in [
        (Tamper::Renames, "strangers"),
        (Tamper::Invents, "ahead"),
        (Tamper::Garbles, "malformed"),
    ] {
        let faults = faults(forgery).await;
        assert!(faults[name].as_u64() > Some(0), "{forgery:?}: {faults}");
    }
}

#[test]
fn what_can_not_be_is_refused_in_clear_words() {
    for (flags, told) in [
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
        let refused = run_with(&[&["load"], flags].concat(), &[MINTING]);
        assert_eq!(
            refused.status.code(),
            Some(2),
            "{flags:?}: {}",
            err(&refused)
        );
        assert!(err(&refused).contains(told), "{flags:?}: {}", err(&refused));
        assert!(out(&refused).is_empty());
    }
}

#[test]
fn a_hub_that_is_not_there_or_lets_nobody_in_ends_the_run() {
    let nobody = load(&["--url", "http://127.0.0.1:9"], &[MINTING]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(err(&nobody).contains("can't connect"), "{}", err(&nobody));
}

#[tokio::test]
async fn a_token_that_the_hub_does_not_take_is_told_and_not_shown() {
    let app = TestApp::spawn().await;
    let token = app.token("alice", "jobs:read");
    let refused = load_beside(&["--url", &app.url], &[("PROGRESS_HUB_TOKEN", &token)]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(err(&refused).contains("forbidden"), "{}", err(&refused));
    assert!(!err(&refused).contains(&token));
}
