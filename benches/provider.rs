//! Cost of parsing a verified webhook, by provider: from the raw body to the task reports.
//!
//! The bodies are fixtures of the integration tests. Verification is not measured.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up must fail"
)]

use std::fs;

use criterion::{BenchmarkId, Criterion, Throughput};
use progress_hub::config::Config;
use progress_hub::provider::{HttpClient, Providers, WebhookContent};
use progress_hub::time::Time;
use progress_hub_auth::signature::{Key, Request, Scheme};
use secrecy::SecretString;

/// Built-in specs, each with the fixture of a webhook. Runway sends no webhooks.
const WEBHOOKS: [(&str, &str); 12] = [
    ("kling", "kling-new-callback-succeeded"),
    ("kling-legacy", "kling-legacy-callback-succeed"),
    ("atlas", "atlas-webhook-completed"),
    ("fal", "fal-webhook-ok-video"),
    ("replicate", "replicate-webhook-succeeded"),
    ("veo", "gemini-webhook-video-generated"),
    ("minimax", "minimax-callback-success"),
    ("videos", "openai-webhook-video-completed"),
    ("luma", "luma-callback-completed"),
    ("wavespeed", "wavespeed-webhook-completed"),
    ("seedance", "seedance-task-succeeded"),
    ("generic", "generic-webhook-completed"),
];

fn providers() -> Providers {
    let secret = "a secret of at least thirty-two bytes";
    let mut settings = vec![("auth.hs256_secrets".to_owned(), secret.to_owned())];
    for (name, _) in WEBHOOKS {
        let key = |key: &str| format!("providers.{name}.{key}");
        settings.push((key("spec"), name.to_owned()));
        settings.push((key("api_key"), "key-1".to_owned()));
    }
    settings.push((
        "providers.kling-legacy.secret_key".to_owned(),
        secret.to_owned(),
    ));
    settings.push((
        "providers.generic.webhook_secrets".to_owned(),
        secret.to_owned(),
    ));
    let config = Config::load(None, std::iter::empty(), settings).unwrap();
    Providers::load(&config, &HttpClient::new().unwrap()).unwrap()
}

fn main() {
    let providers = providers();
    let now = Time::now().timestamp();
    let scheme: Scheme = toml::from_str("scheme = 'standard_webhooks'").unwrap();
    let keys = [Key::from(SecretString::from(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ))];
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("parse");
    for (name, file) in WEBHOOKS {
        let path = format!("{}/tests/fixtures/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let body = fs::read(path).unwrap();
        let headers = scheme.sign(&keys[0], "msg_1", &body, now).unwrap();
        let request = Request {
            headers: &headers,
            body: &body,
            url: "",
        };
        let verified = scheme.verify(&request, &keys, now).unwrap();
        let provider = providers.get(name).unwrap();
        let content = provider.parse(&verified, &headers).unwrap();
        assert!(
            matches!(content, WebhookContent::Tasks(_)),
            "{name}: no tasks"
        );
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| provider.parse(&verified, &headers).unwrap());
        });
    }
    group.finish();
    criterion.final_summary();
}
