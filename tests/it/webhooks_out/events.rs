//! Which events are sent, and what a webhook contains.

use super::receiver::{Receiver, Reply};
use super::*;

on_each_engine! {
    final_document_is_sent_signed_with_every_secret(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start().await;
        let hub = hub().endpoint("app", &format!("{}/hook?a=b", receiver.url));
        let hub = hub.set("webhooks.app.secrets", format!("{SECRET},{OLD_SECRET}"));
        let app = server.configure(hub).spawn().await;
        let id = finish_job(&app, "alice").await;
        let webhook = receiver.wait_for_count(1).await.remove(0);
        let job = app.get_job(&id, "alice").await;
        assert_eq!(webhook.path, "/hook?a=b");
        assert_eq!(webhook.id(), format!("{id}.2.job-succeeded.app"));
        let body = webhook.body();
        assert_eq!(body["type"], "job.succeeded");
        assert_eq!(body["timestamp"], job["updated_at"]);
        assert_eq!(body["data"], job);
        assert_eq!(webhook.header("content-type"), "application/json");
        assert!(webhook.header("user-agent").starts_with("progress-hub/"));
        assert!(webhook.is_signed_with(SECRET) && webhook.is_signed_with(OLD_SECRET));
        assert!(!webhook.is_signed_with("whsec_YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3Rz"));
        let signatures: Vec<&str> = webhook.header("webhook-signature").split(' ').collect();
        assert_eq!(signatures.len(), 2, "{signatures:?}");

        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        let delivery = wait_for_delivery(&app, &id, "app", is_delivered).await;
        assert_eq!(delivery["id"], webhook.id());
        assert_eq!(delivery["version"], 2);
        assert_eq!(delivery["owner"], "alice");
        assert_eq!(delivery["attempt_count"], 1);
        assert_eq!(delivery["attempts"][0]["status"], 200);
        assert_eq!(delivery["attempts"][0]["error"], Value::Null);
        assert_eq!(delivery["address"], format!("{}/…", receiver.url));
        let attempts = "delivery_attempts_total{kind=\"webhook\",outcome=\"delivered\"}";
        assert_eq!(app.metric(attempts).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_receives_the_selected_events_of_the_selected_owners() {
    let (all, some) = (Receiver::start().await, Receiver::start().await);
    let app = hub()
        .endpoint("all", &all.url)
        .set(
            "webhooks.all.events",
            "job.created,job.updated,job.succeeded,job.failed,job.cancelled",
        )
        .endpoint("some", &some.url)
        .set("webhooks.some.events", "job.failed")
        .set("webhooks.some.owners", "team-*,bob")
        .spawn()
        .await;
    let mut expected = Vec::new();
    for owner in ["team-a", "alice", "bob"] {
        let id = app.register_worker_job(owner).await;
        let wait = |kind: &'static str| {
            let id = id.clone();
            all.wait(move |received| {
                let mut bodies = received.iter().map(receiver::Webhook::body);
                bodies.any(|body| body["type"] == kind && body["data"]["id"] == id)
            })
        };
        wait("job.created").await;
        app.push_update(&id, json!({ "progress": 50 })).await;
        wait("job.updated").await;
        app.push_update(&id, json!({ "status": "failed" })).await;
        wait("job.failed").await;
        expected.push(id);
    }
    let received = some.wait_for_count(2).await;
    let jobs: Vec<String> = received.iter().map(receiver::Webhook::job).collect();
    assert_eq!(jobs, [expected[0].clone(), expected[2].clone()]);
    let types = received
        .iter()
        .map(|webhook| webhook.body()["type"].clone());
    assert!(types.into_iter().all(|kind| kind == "job.failed"));
}

/// Chat services have formats of their own. The signature covers the rendered body.
#[tokio::test(flavor = "multi_thread")]
async fn body_is_rendered_from_the_template_of_the_endpoint() {
    let (slack, ntfy) = (Receiver::start().await, Receiver::start().await);
    let app = hub()
        .endpoint("slack", &slack.url)
        .set(
            "webhooks.slack.body",
            r#"{"text": "{{ job.metadata.title }}: {{ job.status }}"}"#,
        )
        .endpoint("ntfy", &ntfy.url)
        .set(
            "webhooks.ntfy.headers",
            r#"{ content-type = "text/plain", title = "Video" }"#,
        )
        .set("webhooks.ntfy.body", "{{ job.metadata.title }} {{ event }}")
        .spawn()
        .await;
    let title = "\"quoted\"\nand } {{ braces }}";
    let worker = app.token("worker", "jobs:publish");
    let body = json!({ "owner": "alice", "metadata": { "title": title } });
    let register = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    let job = send(register.json(&body)).await.body;
    let id = job["id"].as_str().unwrap();
    app.push_update(id, json!({ "status": "succeeded" })).await;
    let message = slack.wait_for_count(1).await.remove(0);
    assert_eq!(
        message.body(),
        json!({ "text": format!("{title}: succeeded") })
    );
    assert_eq!(message.header("content-type"), "application/json");
    let text = ntfy.wait_for_count(1).await.remove(0);
    assert_eq!(text.raw, format!("{title} job.succeeded"));
    assert_eq!(text.header("content-type"), "text/plain");
    assert_eq!(text.header("title"), "Video");
    assert!(message.is_signed_with(SECRET) && text.is_signed_with(SECRET));
    // The test of a destination renders a sample.
    for (name, receiver) in [("slack", &slack), ("ntfy", &ntfy)] {
        assert_eq!(
            operate(&app, name, "test").await["delivered"],
            true,
            "{name}"
        );
        receiver.wait_for_count(2).await;
    }
}

on_each_engine! {
    only_the_newest_version_of_a_job_waits(engine) {
        let server = engine.start().await;
        let (is_up, up) = tokio::sync::watch::channel(false);
        let receiver = Receiver::start_with(move |_, _| {
            let status = if *up.borrow() { 200 } else { 500 };
            async move { Reply::from(status) }
        })
        .await;
        let hub = hub()
            .endpoint("app", &receiver.url)
            .set("webhooks.app.events", "job.created,job.updated,job.succeeded");
        let app = server.configure(hub).spawn().await;
        let id = app.register_worker_job("alice").await;
        receiver.wait_for_count(1).await;
        for percent in 1..=20 {
            app.push_update(&id, json!({ "progress": percent })).await;
        }
        app.push_update(&id, json!({ "status": "succeeded" })).await;
        let waiting = deliveries(&app, &format!("job={id}&state=waiting")).await;
        assert_eq!(waiting.len(), 1, "{waiting:?}");
        assert_eq!(waiting[0]["event"], "job.succeeded");
        is_up.send(true).unwrap();
        let received = receiver
            .wait(|received| received.iter().any(|it| it.body()["type"] == "job.succeeded"))
            .await;
        let versions: Vec<u64> = received
            .iter()
            .map(|webhook| webhook.body()["data"]["version"].as_u64().unwrap())
            .collect();
        assert!(versions.is_sorted(), "{versions:?}");
        assert_eq!(versions.last(), Some(&22));
    }
}
