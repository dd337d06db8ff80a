//! URLs that submissions name for their own webhooks.

use progress_hub_simulator::Scenario;

use super::receiver::{Receiver, Reply};
use super::*;

fn hub_for(receiver: &Receiver) -> TestAppBuilder {
    hub()
        .set(
            "webhook_defaults.hosts",
            format!("{},hooks.example.com", receiver.host()),
        )
        .set("webhook_defaults.secret", SECRET)
        .set("webhook_defaults.previous_secrets", OLD_SECRET)
}

async fn register(app: &TestApp, webhook_url: &str) -> TestResponse {
    let body = json!({ "owner": "alice", "webhook_url": webhook_url });
    let worker = app.token("worker", "jobs:publish");
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    send(request.json(&body)).await
}

on_each_engine! {
    webhook_of_a_submission_is_sent_when_its_job_ends(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start().await;
        let hub = hub_for(&receiver).with_simulator(Scenario::Normal);
        let app = server.configure(hub).spawn().await;
        let body = json!({
            "provider": "simulated",
            "model": "kling-v3.0-pro",
            "prompt": "a lighthouse in the rain",
            "webhook_url": format!("{}/jobs/7?key=secret", receiver.url),
        });
        let submit = app.request(Method::POST, "/v1/videos", "alice").json(&body);
        let response = send(submit).await;
        assert_eq!(response.status, 202, "{}", response.body);
        let id = response.body["id"].as_str().unwrap();
        let job = app.wait_until_final(id, "alice").await;
        for hidden in ["webhook_url", receiver.host(), "secret"] {
            assert!(!job.to_string().contains(hidden), "{hidden} in {job}");
        }
        let received = receiver.wait_for_count(1).await;
        assert_eq!(received[0].path, "/jobs/7?key=secret");
        assert_eq!(received[0].body()["data"], job);
        assert!(received[0].is_signed_with(SECRET) && received[0].is_signed_with(OLD_SECRET));
        let name = format!("host:{}", receiver.host());
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        let delivery = wait_for_delivery(&app, id, &name, is_delivered).await;
        assert_eq!(delivery["address"], format!("{}/…", receiver.url));
        assert_eq!(receiver.received().len(), 1, "only the final event is sent");
        assert_eq!(destination(&app, &name).await["kind"], "host");
    }

    webhook_of_a_registered_job_is_sent_when_it_ends(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start().await;
        let app = server.configure(hub_for(&receiver)).spawn().await;
        let response = register(&app, &format!("{}/hook", receiver.url)).await;
        assert_eq!(response.status, 201, "{}", response.body);
        let id = response.body["id"].as_str().unwrap();
        app.push_update(id, json!({ "progress": 10 })).await;
        app.push_update(id, json!({ "status": "failed" })).await;
        let received = receiver.wait_for_count(1).await;
        assert_eq!(received[0].body()["type"], "job.failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn url_of_a_submission_must_be_on_a_configured_host() {
    let receiver = Receiver::start().await;
    let app = hub_for(&receiver).spawn().await;
    for url in [
        "https://other.example.com/",
        "https://hooks.example.com.evil.example/",
        "http://127.0.0.1:9/",
        "ftp://hooks.example.com/",
        "hooks.example.com",
        "https://user:password@hooks.example.com/",
    ] {
        let response = register(&app, url).await;
        assert_eq!(response.status, 400, "{url}");
        assert_eq!(response.body["code"], "invalid_request", "{url}");
        let detail = response.body["detail"].as_str().unwrap();
        assert!(detail.starts_with("webhook_url "), "{detail}");
    }
    let without_hosts = TestApp::spawn().await;
    let response = register(&without_hosts, "https://hooks.example.com/").await;
    assert_eq!(response.status, 400);
}

/// One URL of a host says nothing about its other URLs.
#[tokio::test(flavor = "multi_thread")]
async fn url_that_is_gone_fails_its_delivery_only() {
    let receiver = Receiver::start_with(|webhook, _| async move {
        Reply::from(if webhook.path == "/gone" { 410 } else { 200 })
    })
    .await;
    let app = hub_for(&receiver).spawn().await;
    let name = format!("host:{}", receiver.host());
    for (path, expected) in [("gone", "failed"), ("hook", "delivered")] {
        let response = register(&app, &format!("{}/{path}", receiver.url)).await;
        let id = response.body["id"].as_str().unwrap();
        app.push_update(id, json!({ "status": "succeeded" })).await;
        let is_ended = |delivery: &Value| delivery["ended_at"].is_string();
        let delivery = wait_for_delivery(&app, id, &name, is_ended).await;
        assert_eq!(delivery["state"], expected, "{path}");
    }
    assert_eq!(destination(&app, &name).await["state"], "active");
}
