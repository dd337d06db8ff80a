//! The API for operators and owners, and what it does not show.

use super::receiver::{Receiver, Reply};
use super::*;
use crate::command_line::{err, out, run};

on_each_engine! {
    disabled_destination_holds_deliveries_until_it_is_enabled(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start().await;
        let app = server.configure(hub().endpoint("app", &receiver.url)).spawn().await;
        let disabled = operate(&app, "app", "disable").await;
        assert_eq!(disabled["state"], "disabled");
        assert_eq!(disabled["disabled"]["reason"], "manual");
        let id = finish_job(&app, "alice").await;
        let held = wait_for_delivery(&app, &id, "app", |it| it["state"] == "held").await;
        assert_eq!(held["attempt_count"], 0);
        let metric = "destination_state{destination=\"app\",state=\"disabled\"}";
        assert_eq!(app.metric(metric).await, 1.0);
        assert_eq!(app.metric("deliveries_waiting{destination=\"app\"}").await, 1.0);
        // A test is sent even then.
        assert_eq!(operate(&app, "app", "test").await["delivered"], true);
        assert_eq!(operate(&app, "app", "enable").await["state"], "active");
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        wait_for_delivery(&app, &id, "app", is_delivered).await;
        let received = receiver.received();
        let types: Vec<Value> = received.iter().map(|it| it.body()["type"].clone()).collect();
        assert_eq!(types, ["webhook.test", "job.succeeded"]);
    }

    delivered_webhook_can_be_sent_again(engine) {
        let server = engine.start().await;
        let receiver = Receiver::start().await;
        let app = server.configure(hub().endpoint("app", &receiver.url)).spawn().await;
        let id = finish_job(&app, "alice").await;
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        let delivery = wait_for_delivery(&app, &id, "app", is_delivered).await;
        let path = format!("/v1/deliveries/{}/redeliver", delivery["id"].as_str().unwrap());
        let response = send(app.request(Method::POST, &path, "alice")).await;
        assert_eq!(response.status, 202, "{}", response.body);
        let received = receiver.wait_for_count(2).await;
        assert_eq!(received[0].id(), received[1].id());
        assert_eq!(received[0].raw, received[1].raw);
        assert!(received[1].is_signed_with(SECRET));
        let is_repeated = |delivery: &Value| {
            delivery["state"] == "delivered" && delivery["attempt_count"] == 2
        };
        wait_for_delivery(&app, &id, "app", is_repeated).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_reports_the_result_and_changes_no_state() {
    let receiver = Receiver::start_with(|_, earlier| async move {
        Reply::from(if earlier == 0 { 200 } else { 503 })
    })
    .await;
    let app = hub()
        .endpoint("app", &receiver.url)
        .set("webhook_defaults.hosts", "hooks.example.com")
        .set("webhook_defaults.secret", SECRET)
        .spawn()
        .await;
    let result = operate(&app, "app", "test").await;
    assert_eq!(
        (&result["delivered"], &result["status"]),
        (&json!(true), &json!(200))
    );
    let webhook = receiver.received().remove(0);
    assert!(webhook.is_signed_with(SECRET));
    assert_eq!(webhook.body()["type"], "webhook.test");
    let result = operate(&app, "app", "test").await;
    assert_eq!(result["delivered"], false);
    assert_eq!(result["error"], "status 503");
    let state = destination(&app, "app").await;
    assert_eq!(
        (&state["state"], &state["consecutive_failures"]),
        (&json!("active"), &json!(0))
    );

    let path = "/v1/destinations/host:hooks.example.com/test";
    let response = as_admin(&app, Method::POST, path).await;
    assert_eq!(
        (response.status.as_u16(), &response.body["code"]),
        (409, &json!("not_testable"))
    );
    let response = as_admin(&app, Method::POST, "/v1/destinations/none/test").await;
    assert_eq!(
        (response.status.as_u16(), &response.body["code"]),
        (404, &json!("not_found"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_see_and_repeat_their_own_deliveries_only() {
    let receiver = Receiver::start().await;
    let app = hub().endpoint("app", &receiver.url).spawn().await;
    let mut ids = Vec::new();
    for owner in ["alice", "alice", "bob"] {
        let job = finish_job(&app, owner).await;
        let is_delivered = |delivery: &Value| delivery["state"] == "delivered";
        let delivery = wait_for_delivery(&app, &job, "app", is_delivered).await;
        ids.push((job, delivery["id"].as_str().unwrap().to_owned()));
    }
    let listed = async |query: &str, token: &str| -> Vec<String> {
        let path = format!("/v1/deliveries?{query}");
        let response = send(app.request_with_token(Method::GET, &path, token)).await;
        assert_eq!(response.status, 200, "{}", response.body);
        let deliveries = response.body["deliveries"].as_array().unwrap();
        let ids = deliveries
            .iter()
            .map(|it| it["id"].as_str().unwrap().to_owned());
        ids.collect()
    };
    let read = |sub: &str| app.token(sub, "jobs:read");
    let id = |n: usize| ids[n].1.clone();
    assert_eq!(listed("", &read("alice")).await, [id(1), id(0)]);
    assert_eq!(listed("", &read("bob")).await, [id(2)]);
    let of_bob = format!("job={}", ids[2].0);
    assert_eq!(listed(&of_bob, &read("alice")).await, [""; 0]);
    let admin = app.token("operator", "admin");
    assert_eq!(listed("", &admin).await, [id(2), id(1), id(0)]);
    assert_eq!(listed("owner=alice", &admin).await, [id(1), id(0)]);
    assert_eq!(listed("state=failed", &admin).await, [""; 0]);
    assert_eq!(listed("destination=other", &admin).await, [""; 0]);
    let ttl = std::time::Duration::from_secs(60);
    let limited = app.token_for(
        "browser",
        "jobs:read",
        Some(&[ids[2].0.as_str(), ids[0].0.as_str()]),
        ttl,
    );
    assert_eq!(listed("", &limited).await, [id(2), id(0)]);

    // Pages.
    let path = "/v1/deliveries?limit=2";
    let first = send(app.request_with_token(Method::GET, path, &admin)).await;
    let cursor = first.body["next_cursor"].as_str().unwrap();
    assert_eq!(
        listed(&format!("limit=2&cursor={cursor}"), &admin).await,
        [id(0)]
    );

    for (sub, scope, target, status, code) in [
        ("bob", "jobs:read jobs:write", &ids[0].1, 404, "not_found"),
        ("alice", "jobs:read", &ids[0].1, 403, "forbidden"),
        (
            "alice",
            "jobs:read jobs:write",
            &"job_none".to_owned(),
            404,
            "not_found",
        ),
    ] {
        let path = format!("/v1/deliveries/{target}/redeliver");
        let token = app.token(sub, scope);
        let response = send(app.request_with_token(Method::POST, &path, &token)).await;
        assert_eq!(response.status, status, "{sub} {scope}");
        assert_eq!(response.body["code"], code, "{sub} {scope}");
    }
    for (method, path) in [
        (Method::GET, "/v1/destinations"),
        (Method::POST, "/v1/destinations/app/test"),
        (Method::POST, "/v1/destinations/app/enable"),
        (Method::POST, "/v1/destinations/app/disable"),
    ] {
        let response = send(app.request(method, path, "alice")).await;
        assert_eq!(response.status, 403, "{path}");
    }
    for query in [
        "state=done",
        "job=x",
        "limit=0",
        "cursor=x",
        "owner=bob",
        "page=2",
    ] {
        let path = format!("/v1/deliveries?{query}");
        let response = send(app.request(Method::GET, &path, "alice")).await;
        assert!(
            response.status.is_client_error(),
            "{query}: {}",
            response.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_destination_keeps_its_deliveries() {
    let receiver = Receiver::start().await;
    let app = hub().endpoint("app", &receiver.url).spawn().await;
    operate(&app, "app", "disable").await;
    let id = finish_job(&app, "alice").await;
    let folder = app.shut_down().await.unwrap();
    let app = hub().data_dir(folder).spawn().await;
    let delivery = wait_for_delivery(&app, &id, "app", |it| it["state"] == "held").await;
    assert_eq!(destination(&app, "app").await["state"], "unconfigured");
    let path = format!(
        "/v1/deliveries/{}/redeliver",
        delivery["id"].as_str().unwrap()
    );
    let response = as_admin(&app, Method::POST, &path).await;
    assert_eq!(response.status, 409);
    assert_eq!(response.body["code"], "destination_not_configured");
}

#[test]
fn check_reports_invalid_endpoints_by_their_keys() {
    let check = run(&[
        "check",
        "--set",
        "auth.hs256_secrets=a test secret that is long enough for HS256",
        "--set",
        "webhooks.app.url=https://app.example.com/secret-path",
        "--set",
        &format!("webhooks.app.secrets={SECRET}"),
        "--set",
        "webhooks.app.body={\"text\": {{ job.stauts }}",
        "--set",
        "webhooks.other.url=https://127.1/secret-path",
        "--set",
        "webhooks.other.secrets=secret-value",
    ]);
    assert_eq!(check.status.code(), Some(2));
    let reported = err(&check);
    for key in [
        "webhooks.app.body: ",
        "webhooks.other.url: ",
        "webhooks.other.secrets: ",
    ] {
        assert!(reported.contains(key), "{key} in {reported}");
    }
    assert!(!reported.contains("secret-"), "{reported}");
}

const PATH: &str = "/services/T0001/B0001/secret-of-the-path";

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_secrets_of_endpoints_are_shown_nowhere() {
    let receiver = Receiver::start_with(|_, _| async { Reply::from(500) }).await;
    let app = hub()
        .endpoint(
            "slack",
            &format!("{}{PATH}?token=secret-of-the-query", receiver.url),
        )
        .set(
            "webhooks.slack.headers",
            r#"{ authorization = "Bearer secret-of-the-header" }"#,
        )
        .endpoint("closed", &format!("http://127.0.0.1:9{PATH}"))
        .spawn_process(&["--log-level", "debug"])
        .await;
    let id = finish_job(&app, "alice").await;
    let webhook = receiver.wait_for_count(1).await.remove(0);
    assert_eq!(
        webhook.header("authorization"),
        "Bearer secret-of-the-header"
    );
    for name in ["slack", "closed"] {
        let has_attempt = |delivery: &Value| delivery["attempts"][0].is_object();
        wait_for_delivery(&app, &id, name, has_attempt).await;
        operate(&app, name, "test").await;
    }
    let shown = [
        format!("{:?}", deliveries(&app, "").await),
        as_admin(&app, Method::GET, "/v1/destinations")
            .await
            .body
            .to_string(),
        as_admin(&app, Method::GET, "/metrics")
            .await
            .body
            .to_string(),
        app.log(),
    ];
    let check = run(&[
        "check",
        "--set",
        "auth.hs256_secrets=a test secret that is long enough for HS256",
        "--set",
        &format!("webhooks.slack.url=https://hooks.slack.com{PATH}?token=secret-of-the-query"),
        "--set",
        &format!("webhooks.slack.secrets={SECRET}"),
        "--set",
        r#"webhooks.slack.headers={ authorization = "Bearer secret-of-the-header" }"#,
    ]);
    assert!(check.status.success());
    assert!(
        out(&check).contains("url = \"https://hooks.slack.com/…\""),
        "{}",
        out(&check)
    );
    for text in shown.into_iter().chain([out(&check)]) {
        for secret in ["secret-of-the", SECRET.trim_start_matches("whsec_")] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    drop(app.kill());
}
