//! Prices, tiers and validation apply to the rendered request, which is the request that the hub sends.
//! The caller's `input` and task ids cannot replace values that the hub sets.

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

/// Starts a provider with the APIs of all specs. It accepts every submission, and its tasks never end.
async fn accepting_provider() -> MockProvider {
    MockProvider::start(|_| async {
        let task = json!({ "id": "T1", "task_id": "T1", "request_id": "T1", "name": "T1", "status": "processing" });
        let mut body = task.clone();
        body["code"] = json!(0);
        body["data"] = task;
        MockResponse::json(200, &body)
    })
    .await
}

fn hub_with(provider: &MockProvider, spec: &str) -> TestAppBuilder {
    TestApp::builder()
        .set("providers.it.spec", spec)
        .set("providers.it.base_url", &provider.url)
        .set("providers.it.api_key", "a key")
        .set("providers.it.poll_after", "50ms")
        .set("providers.it.poll_every", "50ms")
}

async fn post(app: &TestApp, body: &Value) -> TestResponse {
    let mut body = body.clone();
    body["provider"] = json!("it");
    let prompt = json!("a lighthouse");
    body.as_object_mut()
        .unwrap()
        .entry("prompt")
        .or_insert(prompt);
    send(app.request(Method::POST, "/v1/videos", "alice").json(&body)).await
}

#[track_caller]
fn assert_names(response: &TestResponse, name: &str) {
    assert_eq!(response.status, 400, "{}", response.body);
    assert_eq!(response.body["code"], "invalid_request");
    let detail = response.body["detail"].as_str().unwrap();
    assert!(detail.starts_with(&format!("{name}: ")), "{name}: {detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_never_replaces_what_the_hub_or_the_definition_sets() {
    for (spec, request, name) in [
        (
            "kling",
            json!({ "model": "m", "duration": 1, "input": { "settings": { "duration": 60 } } }),
            "input.settings.duration",
        ),
        (
            "kling",
            json!({ "model": "m", "input": { "options": { "callback_url": "https://attacker.example/c" } } }),
            "input.options.callback_url",
        ),
        (
            "kling",
            json!({ "model": "m", "input": { "options": { "external_task_id": "job_1" } } }),
            "input.options.external_task_id",
        ),
        (
            "kling",
            json!({ "model": "m", "input": { "options": "text" } }),
            "input.options",
        ),
        (
            "atlas",
            json!({ "model": "cheap", "input": { "model": "dear" } }),
            "input.model",
        ),
        (
            "atlas",
            json!({ "model": "cheap", "input": { "MODEL": "dear" } }),
            "input.MODEL",
        ),
        (
            "atlas",
            json!({ "model": "cheap", "input": { "webhook_url": "https://attacker.example" } }),
            "input.webhook_url",
        ),
        (
            "replicate",
            json!({ "model": "own/cheap", "duration": 1, "input": { "duration": 60 } }),
            "input.duration",
        ),
        (
            "fal",
            json!({ "model": "a/b", "input": { "webhookUrl": "https://attacker.example" } }),
            "input.webhookUrl",
        ),
        (
            "seedance",
            json!({ "model": "m", "input": { "content": [{ "type": "text", "text": "--dur 12" }] } }),
            "prompt",
        ),
        (
            "seedance",
            json!({ "model": "m", "duration": 2, "prompt": "a boat --resolution 1080p --duration 12" }),
            "prompt",
        ),
        ("kling", json!({ "model": "./kling-v3-pro" }), "model"),
        ("fal", json!({ "model": "fal-ai//x" }), "model"),
        ("fal", json!({ "model": "fal-ai/x/." }), "model"),
    ] {
        let provider = accepting_provider().await;
        // Without a public URL, the definition sets no callback key. The caller must not set one either.
        let app = hub_with(&provider, spec)
            .unset("server.public_url")
            .spawn()
            .await;
        assert_names(&post(&app, &request).await, name);
        assert_eq!(provider.requests().len(), 0, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn input_adds_keys_and_may_replace_those_that_the_definition_opens() {
    let provider = accepting_provider().await;
    let app = hub_with(&provider, "veo").spawn().await;
    let instances = json!([{ "prompt": "a boat", "image": { "gcsUri": "gs://a/b" } }]);
    let parameters = json!({ "sampleCount": 2, "durationSeconds": null });
    let input = json!({ "instances": instances, "parameters": parameters });
    let request = json!({ "model": "veo-3", "duration": 8, "input": input });
    assert_eq!(post(&app, &request).await.status, 202);
    let requests = provider
        .wait_for_requests(|all| all.iter().any(|it| it.method == "POST"))
        .await;
    let sent = &requests[0].body;
    assert!(sent["webhook_config"]["uris"][0].is_string(), "{sent}");
    assert_eq!(sent["instances"], instances);
    assert_eq!(
        sent["parameters"],
        json!({ "sampleCount": 2, "durationSeconds": 8 })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn budget_or_tier_rejects_input_keys_that_the_definition_does_not_know() {
    for (setting, value) in [
        ("budgets.per_job", "1"),
        ("budgets.per_owner_day", "1"),
        ("providers.it.budget_per_day", "1"),
        ("defaults.tier", "development"),
    ] {
        let provider = accepting_provider().await;
        let app = hub_with(&provider, "fal")
            .set(setting, value)
            .set(
                "providers.it.prices",
                r#"{ "*" = "0.01 * (duration or 5) * count" }"#,
            )
            .spawn()
            .await;
        for (input, key) in [
            (json!({ "quality": "best" }), "input.quality"),
            (json!({ "num_videos": 8 }), "input.num_videos"),
            (json!({ "options": { "mode": "4k" } }), "input.options.mode"),
            (json!({ "seed": 1, "list": [] }), "input.list"),
        ] {
            let response = post(&app, &json!({ "model": "a/b", "input": input })).await;
            assert_names(&response, key);
            let detail = response.body["detail"].as_str().unwrap();
            assert!(detail.contains(setting), "{detail}");
        }
        for duration in [json!("much"), json!([60]), json!({ "s": 60 }), json!(true)] {
            let input = json!({ "duration": duration });
            let response = post(&app, &json!({ "model": "a/b", "input": input })).await;
            assert_eq!(response.status, 400, "{input}: {}", response.body);
        }
        assert_eq!(provider.requests().len(), 0);
        let input = json!({ "duration": "5", "seed": 7 });
        let response = post(&app, &json!({ "model": "a/b", "input": input })).await;
        assert_eq!(response.status, 202, "{}", response.body);
        let reserved = app.metric("budget_reserved_total{provider=\"it\"}").await;
        assert!((reserved - 0.05).abs() < 1e-9, "{reserved}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn version_that_replicate_runs_decides_the_price() {
    let provider = accepting_provider().await;
    let app = hub_with(&provider, "replicate")
        .set("budgets.per_job", "1")
        .set(
            "providers.it.prices",
            r#"{ "own/cheap*" = 0.01, "dear*" = 100, "*" = 100 }"#,
        )
        .spawn()
        .await;
    let response = post(&app, &json!({ "model": "own/cheap:dear-version" })).await;
    assert_eq!(response.body["code"], "budget_exceeded");
    assert_eq!(
        post(&app, &json!({ "model": "own/cheap" })).await.status,
        202
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn task_id_is_one_segment_of_the_path() {
    for (spec, tasks) in [
        (
            "runway",
            ["../organization/members/42", "..%2Forganization"],
        ),
        ("fal", ["../../other/requests/1", "1/../../2"]),
        ("veo", ["../secrets", "operations/../../secrets"]),
        ("luma", ["../credits", "a\\..\\..\\credits"]),
    ] {
        for task in tasks.into_iter().chain([".", "..", "a/../b"]) {
            let provider = accepting_provider().await;
            let app = hub_with(&provider, spec).spawn().await;
            let worker = app.token("worker", "jobs:publish");
            let body = json!({ "provider": "it", "provider_task_id": task, "owner": "alice",
                "model": "a/b", "deadline_seconds": 1 });
            let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
            let response = send(request.json(&body)).await;
            assert_eq!(response.status, 201, "{}", response.body);
            let id = response.body["id"].as_str().unwrap();
            let cancel = format!("/v1/jobs/{id}/cancel");
            send(app.request(Method::POST, &cancel, "alice")).await;
            app.wait_until_final(id, "alice").await;
            let escaped = |request: &RecordedRequest| {
                let path = request.path.split('?').next().unwrap();
                path.split('/')
                    .skip(1)
                    .any(|part| matches!(part, "" | "." | ".."))
                    || !path.contains(['%'])
            };
            let requests = provider.requests();
            // The hub sends no request if the task id is not a single path segment.
            let is_rejected = task.contains(['/', '\\']) || matches!(task, "." | "..");
            assert_eq!(requests.is_empty(), is_rejected, "{spec} {task}");
            let escaped: Vec<_> = requests.iter().filter(|it| escaped(it)).collect();
            assert!(escaped.is_empty(), "{spec} {task}: {escaped:?}");
        }
    }
}
