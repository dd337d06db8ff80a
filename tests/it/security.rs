//! Restrictions of unprivileged callers: metrics, tokens, pushed URLs. Events in the security log.

use std::time::Duration;

use jiff::Timestamp;
use progress_hub_auth::signature::CallbackKey;
use progress_hub_simulator::Scenario;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::app::{TestApp, TestResponse, send};
use crate::auth::SHORT_TTL;
use crate::client::TestClient;
use crate::wait::{wait_for, wait_until};
use crate::webhook_signatures;

async fn get(app: &TestApp, path: &str) -> TestResponse {
    send(app.request_without_token(Method::GET, path)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn path_with_a_trailing_slash_is_not_found() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let job = format!("/v1/jobs/{job}");
    for path in [
        "/metrics",
        "/v1/health",
        "/v1/health/live",
        "/progress-hub.js",
        &job,
    ] {
        let request = |path: &str| send(app.request(Method::GET, path, "alice"));
        assert_eq!(request(path).await.status, 200, "{path}");
        for slashes in ["/", "//"] {
            let response = request(&format!("{path}{slashes}")).await;
            assert_eq!(response.status, 404, "{path}{slashes}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn amounts_in_metrics_require_an_admin_token() {
    let app = TestApp::builder()
        .with_simulator(Scenario::Normal)
        .set("providers.simulated.prices", r#"{ "*" = 1 }"#)
        .set("providers.simulated.allowed_input", "scenario")
        .set("budgets.per_job", "10")
        .spawn()
        .await;
    app.submit("alice", Scenario::Normal).await;
    let metrics = |token: Option<String>| {
        let request = app.request_without_token(Method::GET, "/metrics");
        send(match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    };
    let admin = metrics(Some(app.token("root", "admin"))).await;
    assert!(admin.body.as_str().unwrap().contains("budget_reserved"));
    let alice = app.token("alice", "jobs:read jobs:write jobs:publish");
    for token in [None, Some(alice)] {
        let public = metrics(token).await;
        let text = public.body.as_str().unwrap();
        assert!(text.contains("progress_hub_connections"), "{text}");
        assert!(
            !text.contains("budget") && !text.contains("balance"),
            "{text}"
        );
    }
    assert_eq!(metrics(Some("expired".to_owned())).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_forbids_content_sniffing() {
    let app = TestApp::spawn().await;
    for path in ["/metrics", "/v1/health", "/v1/jobs", "/nowhere", "/"] {
        let response = get(&app, path).await;
        assert_eq!(
            response.headers["x-content-type-options"], "nosniff",
            "{path}"
        );
        // The hub sends HSTS only if it terminates TLS itself.
        assert!(!response.headers.contains_key("strict-transport-security"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conflict_has_the_job_only_for_callers_who_may_see_it() {
    let app = TestApp::spawn().await;
    let register = |token: String| {
        let body = json!({ "provider": "generic", "provider_task_id": "t", "owner": "alice" });
        send(
            app.request_with_token(Method::POST, "/v1/jobs", &token)
                .json(&body),
        )
    };
    let worker = || app.token("worker", "jobs:publish");
    let created = register(worker()).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let id = created.body["id"].as_str().unwrap().to_owned();
    let push = |token: String| {
        let path = format!("/v1/jobs/{id}/updates");
        let body = json!({ "status": "failed" });
        send(
            app.request_with_token(Method::POST, &path, &token)
                .json(&body),
        )
    };
    assert_eq!(push(worker()).await.status, 200);
    let owner = || app.token("alice", "jobs:read jobs:publish");
    let reader_of_others = || app.token("bob", "jobs:read jobs:publish");
    for (response, code) in [
        (register(worker()).await, "task_known"),
        (register(reader_of_others()).await, "task_known"),
        (push(worker()).await, "job_final"),
        (push(reader_of_others()).await, "job_final"),
    ] {
        assert_eq!(response.body["code"], code);
        assert_eq!(response.body["job"], Value::Null, "{code}");
    }
    for response in [register(owner()).await, push(owner()).await] {
        assert_eq!(response.status, 409);
        assert_eq!(response.body["job"]["id"], json!(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_poll_ends_when_its_token_expires() {
    let app = TestApp::builder().set("auth.leeway", "0s").spawn().await;
    let job = app.register_worker_job("alice").await;
    let token = app.token_for("alice", "jobs:read", None, SHORT_TTL);
    let path = format!("/v1/jobs/{job}?wait=60&since=1");
    let response = send(app.request_with_token(Method::GET, &path, &token)).await;
    assert_eq!(response.status, 401, "{}", response.body);
    assert_eq!(response.body["detail"], "token has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn minted_admin_token_expires_no_later_than_the_minting_one() {
    let app = TestApp::spawn().await;
    let admin = app.token_for("root", "admin", None, Duration::from_secs(300));
    let own_end = Timestamp::now() + Duration::from_secs(300);
    let mint = |scope: &str| {
        let body = json!({ "sub": "root", "scope": scope, "ttl_seconds": 86_400 });
        send(
            app.request_with_token(Method::POST, "/v1/tokens", &admin)
                .json(&body),
        )
    };
    let expires_at = |minted: &TestResponse| {
        assert_eq!(minted.status, 201, "{}", minted.body);
        minted.body["expires_at"]
            .as_str()
            .unwrap()
            .parse::<Timestamp>()
            .unwrap()
    };
    for scope in ["admin", "jobs:read admin"] {
        let minted = mint(scope).await;
        assert!(expires_at(&minted) <= own_end, "{}", minted.body);
    }
    let minted = mint("jobs:read jobs:write").await;
    assert!(expires_at(&minted) > own_end, "{}", minted.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_urls_must_be_web_urls() {
    let app = TestApp::spawn().await;
    let push = |id: String, output: Value| {
        let app = &app;
        async move {
            let body = json!({ "status": "succeeded", "outputs": [output] });
            app.push_update(&id, body).await
        }
    };
    let job = app.register_worker_job("alice").await;
    let good = "https://cdn.example.com/a.mp4";
    for bad in [
        "",
        "/relative",
        "ftp://cdn.example.com/a",
        "javascript:alert(1)",
        "https://",
        "https://cdn.example.com/a\r\nset-cookie: b=c",
        "https://cdn.example.com/\u{0}",
        "https://cdn.example.com/\u{85}",
    ] {
        for output in [
            json!({ "type": "video", "url": bad }),
            json!({ "type": "video", "url": good, "watermark_url": bad }),
        ] {
            let response = push(job.clone(), output).await;
            assert_eq!(response.status, 400, "{bad:?}: {}", response.body);
            assert_eq!(response.body["code"], "invalid_request");
        }
    }
    let output = json!({ "type": "video", "url": "HTTPS://cdn.example.com/ä b.mp4" });
    let response = push(job.clone(), output).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let request = app.request(Method::GET, &format!("/v1/jobs/{job}/outputs/0"), "alice");
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let redirect = client.execute(request.build().unwrap()).await.unwrap();
    assert_eq!(redirect.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(
        redirect.headers()["location"],
        "https://cdn.example.com/%C3%A4%20b.mp4"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn callback_tokens_of_a_previous_secret_stay_valid() {
    const OLD: &str = "the callback secret of last year, long enough";
    let app = TestApp::builder()
        .set(
            "callback.secret",
            "the callback secret of this year, long enough",
        )
        .set("callback.previous_secrets", format!("[{OLD:?}]"))
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    for (secret, status) in [
        (OLD, 200),
        ("a secret that the hub never had, long enough", 404),
    ] {
        let token = CallbackKey::new(&secret.into())
            .unwrap()
            .callback_token("generic", &job);
        let body = json!({ "task_id": "1", "status": "running" }).to_string();
        let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
        let path = format!("/v1/webhooks/generic/{token}");
        let request = app.request_without_token(Method::POST, &path);
        let response = send(request.header("x-ai-signature", signature).body(body)).await;
        assert_eq!(response.status, status, "{}", response.body);
    }
}

/// Returns the log as soon as it has a line with this message.
async fn log_with(app: &TestApp, message: &str) -> Vec<Value> {
    wait_for(&format!("the log has '{message}'"), async || {
        let log = app.log();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_default());
        let lines: Vec<Value> = lines.collect();
        lines
            .iter()
            .any(|line| line["message"] == message)
            .then_some(lines)
    })
    .await
}

fn lines_with(log: &[Value], message: &str) -> Vec<Value> {
    let lines = log.iter().filter(|line| line["message"] == message);
    lines.cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_rejections_are_counted_and_logged_once() {
    let app = TestApp::builder().spawn_process(&[]).await;
    for _ in 0..20 {
        let request = app.request_without_token(Method::POST, "/v1/webhooks/generic");
        assert_eq!(send(request.body("{}")).await.status, 401);
        let forged = app.request_with_token(Method::GET, "/v1/jobs", "a.forged.token");
        assert_eq!(send(forged).await.status, 401);
        let mut unauthenticated = tokio::net::TcpStream::connect(app.address()).await.unwrap();
        unauthenticated
            .write_all(b"not HTTP at all\r\n\r\n")
            .await
            .unwrap();
        let mut response = Vec::new();
        unauthenticated.read_to_end(&mut response).await.unwrap();
    }
    assert_eq!(
        app.metric("problems_total{code=\"invalid_signature\"}")
            .await,
        20.0
    );
    assert_eq!(
        app.metric("problems_total{code=\"unauthorized\"}").await,
        20.0
    );
    app.wait_for_metric("log_lines_suppressed_total", |lines| lines >= 19.0)
        .await;
    // The last request causes the last line.
    let worker = app.token("worker", "jobs:publish");
    send(
        app.request_with_token(Method::POST, "/v1/tokens", &worker)
            .json(&json!({ "sub": "a" })),
    )
    .await;
    let log = log_with(&app, "request forbidden").await;
    assert_eq!(lines_with(&log, "webhook rejected").len(), 1);
    assert_eq!(lines_with(&log, "token rejected").len(), 1);
    let of_http = |line: &&Value| line["target"].as_str().unwrap().starts_with("actix_http");
    assert_eq!(log.iter().filter(of_http).count(), 1, "{log:?}");
    assert_eq!(app.metric("log_lines_dropped_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn security_events_are_logged_with_caller_and_address() {
    let app = TestApp::builder()
        .set("auth.leeway", "0s")
        .spawn_process(&[])
        .await;
    let admin = app.token("root", "admin");
    let request = app.request_with_token(Method::POST, "/v1/tokens", &admin);
    let minted =
        send(request.json(&json!({ "sub": "guest", "ttl_seconds": SHORT_TTL.as_secs() }))).await;
    assert_eq!(minted.status, 201, "{}", minted.body);
    let token = minted.body["token"].as_str().unwrap();

    let forbidden = app.request_with_token(Method::POST, "/v1/tokens", token);
    assert_eq!(
        send(forbidden.json(&json!({ "sub": "a" }))).await.status,
        403
    );
    let mut socket = TestClient::connect(&app.url, token).await;
    assert_eq!(socket.expect_close().await, Some(4002));
    let expired = app.request_with_token(Method::GET, "/v1/jobs", token);
    assert_eq!(send(expired).await.status, 401);
    let mut unauthenticated = TestClient::connect_unauthenticated(&app.url).await;
    unauthenticated
        .send_json(json!({ "type": "auth", "token": "a.forged.token" }))
        .await;
    assert_eq!(unauthenticated.expect_close().await, Some(4001));

    let log = wait_for("the log has all lines", async || {
        let log = log_with(&app, "token minted").await;
        let closed = lines_with(&log, "websocket closed without valid token");
        (closed.len() == 2 && lines_with(&log, "token rejected").len() == 2).then_some(log)
    })
    .await;
    for line in &log {
        assert!(!line.to_string().contains(token), "{line}");
    }
    let [minted] = &lines_with(&log, "token minted")[..] else {
        panic!("{log:?}")
    };
    let id = &minted["token.jti"];
    assert_eq!(id.as_str().unwrap().len(), 22, "{minted}");
    assert_eq!(
        (&minted["caller.sub"], &minted["token.sub"]),
        (&json!("root"), &json!("guest"))
    );
    assert_eq!(minted["client.address"], "127.0.0.1");
    let [forbidden] = &lines_with(&log, "request forbidden")[..] else {
        panic!("{log:?}")
    };
    assert_eq!(forbidden["caller.sub"], "guest");
    assert_eq!(
        (&forbidden["caller.jti"], &forbidden["http.route"]),
        (id, &json!("/v1/tokens"))
    );
    let closed = lines_with(&log, "websocket closed without valid token");
    assert_eq!(
        (&closed[0]["caller.jti"], &closed[0]["reason"]),
        (id, &json!("token_expired"))
    );
    assert_eq!(closed[1]["close.code"], 4001);
    let reasons: Vec<Value> = lines_with(&log, "token rejected")
        .into_iter()
        .map(|line| line["reason"].clone())
        .collect();
    assert_eq!(reasons, ["token_expired", "token_malformed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn address_in_the_log_is_the_one_that_a_trusted_proxy_names() {
    let app = TestApp::builder()
        .set("server.trusted_proxies", "127.0.0.1")
        .spawn_process(&[])
        .await;
    let forwarded = |method, path| {
        let request = app.request_without_token(method, path);
        request.header("x-forwarded-for", "203.0.113.7")
    };
    let forged = forwarded(Method::GET, "/v1/jobs").bearer_auth("a.forged.token");
    assert_eq!(send(forged).await.status, 401);
    let unsigned = forwarded(Method::POST, "/v1/webhooks/generic");
    assert_eq!(send(unsigned.body("{}")).await.status, 401);

    let log = log_with(&app, "webhook rejected").await;
    for message in ["token rejected", "webhook rejected"] {
        let [line] = &lines_with(&log, message)[..] else {
            panic!("{log:?}")
        };
        assert_eq!(line["client.address"], "203.0.113.7", "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_responds_while_log_output_is_blocked() {
    let app = TestApp::builder()
        .without_log_reader()
        .spawn_process(&["--log-level", "trace"])
        .await;
    wait_until("log lines are dropped", async || {
        for _ in 0..100 {
            let request = app.request_without_token(Method::POST, "/v1/webhooks/generic");
            assert_eq!(send(request.body("{}")).await.status, 401);
        }
        app.metric("log_lines_dropped_total").await > 0.0
    })
    .await;
    assert_eq!(get(&app, "/v1/health/live").await.status, 200);
}
