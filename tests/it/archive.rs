//! The archive: copies of outputs, links to them, and sources and buckets that fail.

mod buckets;
mod failures;
mod folder;
mod gcs_adapter;
mod servers;
mod source;

use std::path::{Path, PathBuf};

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TestApp, TestAppBuilder, send};
use crate::wait::wait_for;
use source::Source;

const SPEC: &str = r#"
title = "A provider with files"
requires = ["api_key", "base_url", "webhook_secrets"]
headers = { x-key = "{{ api_key }}" }
poll_after = "100ms"
poll_every = "100ms"

[signature]
scheme = "hmac"
header = "x-vault-signature"
encoding = "hex"
signed = "{body}"

[poll]
url = "{{ base_url }}/tasks/{{ task_id }}"

[read]
task_id = "payload.id"
status = "payload.state"
outputs = "payload.files"
statuses = { working = "running", done = "succeeded" }
"#;

/// Returns a hub whose provider is `source` and whose archive is at `url`. Failed copies are repeated
/// at once. The directory has the provider definition.
fn hub(source: &Source, url: &str) -> (TestAppBuilder, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let spec = directory.path().join("vault.toml");
    std::fs::write(&spec, SPEC).unwrap();
    let hub = TestApp::builder()
        .set("providers.vault.spec", spec.display())
        .set("providers.vault.base_url", format!("{}/api", source.url))
        .set("providers.vault.api_key", "the key")
        .set(
            "providers.vault.webhook_secrets",
            "webhook secret of the vault",
        )
        .set("deliveries.retries", "20ms,20ms,20ms,20ms")
        .set("deliveries.pause", "20ms")
        .set("archive.url", url);
    (hub, directory)
}

/// Returns a hub whose archive is a folder, the path of this folder, and the directories that it uses.
fn folder_hub(source: &Source) -> (TestAppBuilder, PathBuf, [TempDir; 2]) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("outputs");
    let (hub, directory) = hub(source, &format!("file://{}", folder.display()));
    (hub, folder, [parent, directory])
}

/// Registers the task of the provider for `alice`, and returns the document of the finished job.
async fn succeeded_job(app: &TestApp) -> Value {
    let body = json!({ "provider": "vault", "provider_task_id": "t1", "owner": "alice" });
    let worker = app.token("worker", "jobs:publish");
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let response = send(request.json(&body)).await;
    assert_eq!(response.status, 201, "{}", response.body);
    let id = response.body["id"].as_str().unwrap();
    let job = app.wait_until_final(id, "alice").await;
    assert_eq!(job["status"], "succeeded", "{job}");
    job
}

fn id(job: &Value) -> &str {
    job["id"].as_str().unwrap()
}

/// Waits until every output of a job is in the archive. Returns the response.
async fn wait_until_archived(app: &TestApp, job: &Value) -> Value {
    wait_for_outputs(app, job, |output| output["archived"] == true).await
}

/// Waits until `is_done` accepts every output of a job.
async fn wait_for_outputs(app: &TestApp, job: &Value, is_done: impl Fn(&Value) -> bool) -> Value {
    let condition = "every output has the expected state";
    wait_for(condition, async || {
        let job = app.get_job(id(job), "alice").await;
        job["outputs"]
            .as_array()
            .unwrap()
            .iter()
            .all(&is_done)
            .then_some(job)
    })
    .await
}

/// Waits until the copy of output `n` has ended, and returns its delivery.
async fn ended_delivery(app: &TestApp, job: &Value, n: usize) -> Value {
    let path = format!("/v1/deliveries?job={}&destination=archive", id(job));
    wait_for("the delivery has ended", async || {
        let response = send(app.request(Method::GET, &path, "alice")).await;
        assert_eq!(response.status, 200, "{}", response.body);
        let deliveries = response.body["deliveries"].as_array().unwrap().clone();
        let event = format!("output.{n}");
        let delivery = deliveries.into_iter().find(|it| it["event"] == event)?;
        (delivery["state"] != "waiting" && delivery["state"] != "held").then_some(delivery)
    })
    .await
}

/// Returns the number of files below a folder.
fn count_files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => count_files(&path),
            _ => 1,
        })
        .sum()
}

/// Follows no redirects.
async fn get(app: &TestApp, job: &Value, n: usize) -> Response {
    fetch(app, Method::GET, link(app, job, n)).await
}

async fn fetch(_app: &TestApp, method: Method, url: String) -> Response {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    client.request(method, url).send().await.unwrap()
}

/// Returns the link of output `n`, which must be one of the hub.
fn link(app: &TestApp, job: &Value, n: usize) -> String {
    let url = job["outputs"][n]["url"].as_str().unwrap();
    let start = format!("{}/v1/jobs/{}/outputs/{n}?grant=", app.url, id(job));
    assert!(url.starts_with(&start), "not a link of the hub: {url}");
    url.to_owned()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap())
}

/// Returns a document without what HTTP answers add to it.
fn document(mut job: Value) -> Value {
    for output in job["outputs"].as_array_mut().unwrap() {
        let output = output.as_object_mut().unwrap();
        output.remove("archived");
        output.remove("archive_error");
    }
    job
}
