//! Authentication and authorization of HTTP requests, WebSockets and SSE streams.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::client::{TestClient, try_upgrade, upgrade_request};
use crate::issuer::{Issuer, Signer};
use crate::sse_client::SseClient;
use crate::wait::wait_until;

const PROTOCOLS: &str = "sec-websocket-protocol";

/// Lifetime of a token that expires during a test. Long enough to connect on a busy machine.
pub const SHORT_TTL: Duration = Duration::from_secs(6);

/// Sends an upgrade request that the hub rejects, and returns the response.
async fn rejected_upgrade(app: &TestApp, headers: &[(&str, &str)]) -> TestResponse {
    let mut request = app
        .request_without_token(Method::GET, "/v1/ws")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = send(request).await;
    assert_ne!(response.status, 101, "upgraded with {headers:?}");
    assert_eq!(response.headers["content-type"], "application/problem+json");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn token_in_authorization_header_is_accepted() {
    let app = TestApp::spawn().await;
    let mut socket = app.connect("alice").await;
    let hello = &socket.hello;
    assert_eq!(hello["protocol"], 1);
    assert_eq!(hello["heartbeat_ms"], 25_000);
    assert!(
        hello["connection"]
            .as_str()
            .is_some_and(|name| !name.is_empty())
    );
    assert!(hello["expires_at"].as_str() > hello["now"].as_str());
    socket.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_in_subprotocol_is_accepted_and_not_echoed() {
    let app = TestApp::spawn().await;
    let offer = format!(
        "progress-hub.v1, bearer.{}",
        app.token("alice", "jobs:read")
    );
    let (socket, response) = try_upgrade(upgrade_request(&app.url, &[(PROTOCOLS, &offer)]))
        .await
        .unwrap();
    assert_eq!(response.headers()[PROTOCOLS], "progress-hub.v1");
    let mut client = TestClient::new(socket);
    client.expect_message("hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_in_first_message_is_accepted() {
    let app = TestApp::spawn().await;
    let mut client = TestClient::connect_unauthenticated(&app.url).await;
    let token = app.token("alice", "jobs:read");
    let hello = client.authenticate(&token).await;
    assert_eq!(hello["protocol"], 1);
    let job = app.register_worker_job("alice").await;
    assert_eq!(client.subscribe(&[(&job, 0)]).await[&job], "sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_token_gets_401_instead_of_an_upgrade() {
    let app = TestApp::spawn().await;
    let valid = app.token("alice", "jobs:read");
    let forged = format!("{}A", &valid[..valid.len() - 4]);
    let bearer = format!("Bearer {forged}");
    let offer = format!("progress-hub.v1, bearer.{forged}");
    for headers in [
        [("authorization", bearer.as_str())],
        [("authorization", "Bearer")],
        [("authorization", "Basic YWxpY2U6c2VjcmV0")],
        [(PROTOCOLS, offer.as_str())],
        [(PROTOCOLS, "progress-hub.v1, bearer.")],
    ] {
        let response = rejected_upgrade(&app, &headers).await;
        assert_eq!(response.status, 401, "{headers:?}");
        assert_eq!(response.headers["www-authenticate"], "Bearer");
        let problem = response.body;
        assert_eq!(problem["code"], "unauthorized");
        assert!(
            !problem.to_string().contains(&forged),
            "the response contains the token"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_socket_is_closed_after_auth_timeout() {
    let app = TestApp::builder()
        .set("socket.auth_timeout", "300ms")
        .spawn()
        .await;
    let mut client = TestClient::connect_unauthenticated(&app.url).await;
    let bye = client.expect_message("bye").await;
    assert_eq!(
        (&bye["code"], &bye["reason"]),
        (&json!(4003), &json!("auth_timeout"))
    );
    assert_eq!(client.expect_close().await, Some(4003));
}

#[tokio::test(flavor = "multi_thread")]
async fn authenticated_socket_is_not_closed_by_auth_timeout() {
    let app = TestApp::builder()
        .set("socket.auth_timeout", "100ms")
        .spawn()
        .await;
    let mut authenticated = app.connect("alice").await;
    let mut unauthenticated = TestClient::connect_unauthenticated(&app.url).await;
    assert_eq!(unauthenticated.expect_close().await, Some(4003));
    authenticated.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_first_frame_closes_with_4001() {
    let app = TestApp::spawn().await;
    let valid = app.token("alice", "jobs:read");
    for first in [
        json!({ "type": "auth", "token": "no.such.token" }),
        json!({ "type": "auth", "token": format!("{}A", &valid[..valid.len() - 4]) }),
        json!({ "type": "auth", "token": "" }),
        json!({ "type": "auth" }),
        json!({ "type": "ping", "id": 1 }),
        json!({ "type": "subscribe", "id": 1, "feed": "mine" }),
        json!("auth"),
    ] {
        let mut client = TestClient::connect_unauthenticated(&app.url).await;
        client.send_json(first.clone()).await;
        assert_eq!(client.expect_close().await, Some(4001), "{first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn same_host_origin_is_allowed_foreign_origin_gets_403() {
    let app = TestApp::spawn().await;
    let bearer = format!("Bearer {}", app.token("alice", "jobs:read"));
    let connect = |origin: String| {
        let request = upgrade_request(&app.url, &[("authorization", &bearer), ("origin", &origin)]);
        try_upgrade(request)
    };
    assert!(connect(app.url.clone()).await.is_ok());
    for foreign in [
        "https://evil.example",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "null",
        "127.0.0.1",
        "",
    ] {
        let headers = [("authorization", bearer.as_str()), ("origin", foreign)];
        let response = rejected_upgrade(&app, &headers).await;
        assert_eq!(response.status, 403, "{foreign}");
        assert_eq!(response.body["code"], "origin_refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_origins_are_allowed_beside_the_own_one() {
    let app = TestApp::builder()
        .set(
            "server.allowed_origins",
            "https://a.example, https://b.example:8443, http://localhost:*",
        )
        .spawn()
        .await;
    let bearer = format!("Bearer {}", app.token("alice", "jobs:read"));
    let connect = |origin: &str| {
        let request = upgrade_request(&app.url, &[("authorization", &bearer), ("origin", origin)]);
        try_upgrade(request)
    };
    for allowed in [
        "https://a.example",
        "https://b.example:8443",
        "http://localhost:5173",
        &app.url,
    ] {
        assert!(connect(allowed).await.is_ok(), "{allowed}");
    }
    for foreign in [
        "http://a.example",
        "https://b.example",
        "https://c.example",
        "https://localhost:5173",
    ] {
        assert_eq!(
            connect(foreign).await.expect_err(foreign).status(),
            403,
            "{foreign}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bearer_subprotocol_without_the_protocol_itself_is_rejected() {
    let app = TestApp::spawn().await;
    let bearer = format!("bearer.{}", app.token("alice", "jobs:read"));
    for offered in [bearer.clone(), format!("graphql-ws, {bearer}")] {
        let response = rejected_upgrade(&app, &[("sec-websocket-protocol", &offered)]).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (400, &json!("invalid_request"))
        );
        let detail = response.body["detail"].as_str().unwrap();
        assert!(detail.contains("progress-hub.v1"), "{detail}");
        assert!(!detail.contains(&bearer), "{detail}");
    }
    let both = format!("{bearer}, progress-hub.v1");
    let request = upgrade_request(&app.url, &[("sec-websocket-protocol", &both)]);
    let (_, response) = try_upgrade(request).await.unwrap();
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "progress-hub.v1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn token_renewal_keeps_the_socket_and_its_subscriptions() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let short = app.token_for("alice", "jobs:read", None, SHORT_TTL);
    let mut client = TestClient::connect(&app.url, &short).await;
    let mut not_renewed = TestClient::connect(&app.url, &short).await;
    client.subscribe(&[(&job, 0)]).await;
    client.next_job().await;

    let hello = client.authenticate(&app.token("alice", "jobs:read")).await;
    assert_eq!(hello["connection"], client.hello["connection"]);
    assert!(hello["expires_at"].as_str() > client.hello["expires_at"].as_str());

    assert_eq!(not_renewed.expect_close().await, Some(4002));
    app.push_update(&job, json!({ "progress": 10 })).await;
    assert_eq!(client.next_job().await["progress"], 10.0);
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_with_invalid_token_or_other_subject_is_rejected() {
    let app = TestApp::spawn().await;
    let (alice_job, bob_job) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("bob").await,
    );
    let mut client = app.connect("alice").await;
    for (token, code) in [
        (app.token("bob", "jobs:read"), "subject_changed"),
        ("no.such.token".to_owned(), "unauthorized"),
    ] {
        client
            .send_json(json!({ "type": "auth", "token": token }))
            .await;
        assert_eq!(client.expect_message("error").await["code"], code);
    }
    let results = client.subscribe(&[(&alice_job, 0), (&bob_job, 0)]).await;
    assert_eq!(results, json!({ alice_job: "sent", bob_job: "not_found" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn narrower_token_renewal_drops_subscriptions() {
    let app = TestApp::spawn().await;
    let (kept, lost) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let only_kept = app.token_for(
        "alice",
        "jobs:read",
        Some(&[&kept]),
        Duration::from_secs(60),
    );
    let without_read = app.token("alice", "jobs:publish");
    for uses_feed in [false, true] {
        let mut client = app.connect("alice").await;
        if uses_feed {
            client.subscribe_to_feed().await;
        } else {
            client.subscribe(&[(&kept, 0), (&lost, 0)]).await;
        }
        client.next_job().await;
        client.next_job().await;
        client.authenticate(&only_kept).await;
        app.push_update(
            &lost,
            json!({ "stage": format!("hidden, feed: {uses_feed}") }),
        )
        .await;
        app.push_update(
            &kept,
            json!({ "stage": format!("visible, feed: {uses_feed}") }),
        )
        .await;
        // A token for single jobs grants no owner feed, so the feed subscription ends.
        if !uses_feed {
            let job = client.next_job().await;
            assert_eq!(
                (&job["id"], &job["stage"]),
                (&json!(kept), &json!("visible, feed: false"))
            );
        }
        client.assert_no_messages().await;

        client.authenticate(&without_read).await;
        app.push_update(
            &kept,
            json!({ "stage": format!("not readable, feed: {uses_feed}") }),
        )
        .await;
        app.register_worker_job("alice").await;
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_read_scope_ends_the_feed() {
    let app = TestApp::spawn().await;
    let mut client = app.connect("alice").await;
    client.subscribe_to_feed().await;
    let without_read = app.token("alice", "jobs:publish");
    client.authenticate(&without_read).await;
    app.register_worker_job("alice").await;
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_expiry_is_announced_and_closes_the_socket() {
    let app = TestApp::spawn().await;
    let token = app.token_for("alice", "jobs:read", None, SHORT_TTL);
    let mut client = TestClient::connect(&app.url, &token).await;
    let notice = client.expect_message("token_expiring").await;
    assert!(
        (1..6000).contains(&notice["in_ms"].as_u64().unwrap()),
        "{notice}"
    );
    let bye = client.expect_message("bye").await;
    assert_eq!(
        (&bye["code"], &bye["reason"]),
        (&json!(4002), &json!("token_expired"))
    );
    assert_eq!(client.expect_close().await, Some(4002));
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_stream_ends_when_the_token_expires() {
    let app = TestApp::spawn().await;
    let token = app.token_for("alice", "jobs:read", None, SHORT_TTL);
    let request = app.request_with_token(Method::GET, "/v1/events?feed=mine", &token);
    let mut stream = SseClient::open_with(request).await;
    assert_eq!(stream.next_line().await.as_deref(), Some("retry: 2000"));
    assert_eq!(stream.next_line().await, None);
}

/// Returns whether a token grants access to a job. Asserts that HTTP, WebSocket and SSE agree.
async fn can_see(app: &TestApp, token: &str, job: &str) -> bool {
    let get = |path: String| send(app.request_with_token(Method::GET, &path, token));
    let read = get(format!("/v1/jobs/{job}")).await;
    let long_poll = get(format!("/v1/jobs/{job}?wait=0.1&since=1")).await;
    let by_http = match (read.status.as_u16(), long_poll.status.as_u16()) {
        (200, 304) => true,
        (404, 404) => {
            assert_eq!(read.body["code"], "not_found");
            false
        }
        other => panic!("unexpected HTTP statuses: {other:?}"),
    };

    let mut client = TestClient::connect(&app.url, token).await;
    let results = client.subscribe(&[(job, 0)]).await;
    let by_websocket = match results[job].as_str().unwrap() {
        "sent" => client.next_job().await["id"] == job,
        "not_found" => {
            client.assert_no_messages().await;
            false
        }
        other => panic!("unexpected subscribe result: {other}"),
    };
    client.close().await;

    let path = format!("/v1/events?job={job}");
    let request = app.request_with_token(Method::GET, &path, token);
    let by_sse = if by_http {
        SseClient::open_with(request).await.next_job().await["id"] == job
    } else {
        let response = send(request).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (404, &json!("not_found"))
        );
        false
    };
    assert_eq!(
        [by_http; 2],
        [by_websocket, by_sse],
        "HTTP differs from [WebSocket, SSE]"
    );
    by_http
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_see_only_permitted_jobs() {
    let app = TestApp::spawn().await;
    let alice_job = app.register_worker_job("alice").await;
    let bob_job = app.register_worker_job("bob").await;
    let granted = |jobs: &[&str], scope: &str| {
        app.token_for("bob", scope, Some(jobs), Duration::from_secs(60))
    };
    for (token, sees_alice_job, sees_bob_job) in [
        (app.token("alice", "jobs:read"), true, false),
        (app.token("alice", "jobs:read jobs:write"), true, false),
        (app.token("bob", "jobs:read"), false, true),
        (
            app.token("carol", "jobs:read jobs:write jobs:publish"),
            false,
            false,
        ),
        (app.token("alice", "jobs:publish"), false, false),
        (app.token("carol", "admin"), true, true),
        (granted(&[&alice_job], "jobs:read"), true, false),
        (granted(&[&alice_job, &bob_job], "jobs:read"), true, true),
        (granted(&[], "jobs:read"), false, false),
        (granted(&[&alice_job], "admin"), true, false),
        (granted(&[&alice_job], "jobs:publish"), false, false),
    ] {
        assert_eq!(
            can_see(&app, &token, &alice_job).await,
            sees_alice_job,
            "job of alice, token {token}"
        );
        assert_eq!(
            can_see(&app, &token, &bob_job).await,
            sees_bob_job,
            "job of bob, token {token}"
        );
    }
    assert!(!can_see(&app, &app.token("alice", "admin"), "job_unknown").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_and_lists_contain_only_permitted_jobs() {
    let app = TestApp::spawn().await;
    let alice_job = app.register_worker_job("alice").await;
    let bob_job = app.register_worker_job("bob").await;
    let granted = |scope| app.token_for("bob", scope, Some(&[&alice_job]), Duration::from_secs(60));
    let readers = [
        (app.token("alice", "jobs:read"), vec![&alice_job]),
        (app.token("bob", "jobs:read"), vec![&bob_job]),
        (app.token("bob", "admin"), vec![&bob_job]),
        (app.token("carol", "jobs:read"), vec![]),
        (app.token("alice", "jobs:publish"), vec![]),
        (granted("jobs:read"), vec![&alice_job]),
        (granted("jobs:publish"), vec![]),
    ];
    for (round, (token, expected)) in readers.into_iter().enumerate() {
        let response = send(app.request_with_token(Method::GET, "/v1/jobs", &token)).await;
        let listed: Vec<&Value> = response.body["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| &job["id"])
            .collect();
        assert_eq!(listed, expected, "list, token {token}");

        let mut client = TestClient::connect(&app.url, &token).await;
        let results = client.subscribe_to_feed().await;
        let sent: Vec<&String> = results
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, result)| *result == "sent")
            .map(|(id, _)| id)
            .collect();
        assert_eq!(sent, expected, "feed, token {token}");
        for id in &expected {
            assert_eq!(client.next_job().await["id"], **id);
        }
        let request = app.request_with_token(Method::GET, "/v1/events?feed=mine", &token);
        let mut stream = SseClient::open_with(request).await;
        for id in &expected {
            assert_eq!(stream.next_job().await["id"], **id);
        }
        // Updates of both jobs: only those of permitted jobs arrive.
        for job in [&alice_job, &bob_job] {
            app.push_update(job, json!({ "stage": format!("stage {round}") }))
                .await;
        }
        for id in &expected {
            assert_eq!(client.next_job().await["id"], **id);
            assert_eq!(stream.next_job().await["id"], **id);
        }
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_and_grants_decide_which_requests_are_allowed() {
    let app = TestApp::spawn().await;
    let alice_job = app.register_worker_job("alice").await;
    let post = |path: String, token: String, body: Value| {
        let request = app
            .request_with_token(Method::POST, &path, &token)
            .json(&body);
        async move { send(request).await.status.as_u16() }
    };
    let updates = format!("/v1/jobs/{alice_job}/updates");
    let cancel = format!("/v1/jobs/{alice_job}/cancel");
    let token = |sub, scope| app.token(sub, scope);
    let granted = |scope| app.token_for("bob", scope, Some(&[&alice_job]), Duration::from_secs(60));
    for (path, token, body, status) in [
        (
            "/v1/jobs",
            token("alice", "jobs:read jobs:write"),
            json!({ "owner": "alice" }),
            403,
        ),
        (
            "/v1/jobs",
            granted("jobs:publish"),
            json!({ "owner": "alice" }),
            403,
        ),
        (
            "/v1/jobs",
            token("worker", "jobs:publish"),
            json!({ "owner": "alice" }),
            201,
        ),
        (
            "/v1/jobs",
            token("boss", "admin"),
            json!({ "owner": "alice" }),
            201,
        ),
        (
            "/v1/videos",
            token("alice", "jobs:read"),
            json!({ "model": "m", "prompt": "p" }),
            403,
        ),
        (
            &updates,
            token("alice", "jobs:read jobs:write"),
            json!({ "progress": 1 }),
            403,
        ),
        (
            &updates,
            granted("jobs:publish"),
            json!({ "progress": 1 }),
            200,
        ),
        (
            &updates,
            token("worker", "jobs:publish"),
            json!({ "progress": 2 }),
            200,
        ),
        (&cancel, token("alice", "jobs:read"), json!({}), 403),
        (
            &cancel,
            token("bob", "jobs:read jobs:write"),
            json!({}),
            404,
        ),
        (&cancel, token("worker", "jobs:publish"), json!({}), 404),
        (&cancel, granted("jobs:read"), json!({}), 403),
        (&cancel, granted("jobs:write"), json!({}), 202),
        (
            "/v1/tokens",
            token("alice", "jobs:read jobs:write jobs:publish"),
            json!({ "sub": "alice" }),
            403,
        ),
        (
            "/v1/tokens",
            granted("admin"),
            json!({ "sub": "alice" }),
            403,
        ),
    ] {
        assert_eq!(
            post(path.to_owned(), token, body.clone()).await,
            status,
            "{path} {body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_message_requires_permission_to_write_the_job() {
    let app = TestApp::spawn().await;
    let (alice_job, bob_job) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("bob").await,
    );
    let mut reader = TestClient::connect(&app.url, &app.token("alice", "jobs:read")).await;
    for (job, code) in [(&alice_job, "forbidden"), (&bob_job, "not_found")] {
        reader
            .send_json(json!({ "type": "cancel", "id": job, "job": job }))
            .await;
        let error = reader.expect_message("error").await;
        assert_eq!((&error["id"], &error["code"]), (&json!(job), &json!(code)));
    }
    let mut writer = app.connect("alice").await;
    writer.subscribe(&[(&alice_job, 0)]).await;
    writer
        .send_json(json!({ "type": "cancel", "id": 7, "job": alice_job }))
        .await;
    assert_eq!(
        writer.follow_to_final(&alice_job).await["status"],
        "cancelled"
    );
    writer
        .send_json(json!({ "type": "cancel", "id": 8, "job": bob_job }))
        .await;
    let error = writer.expect_message("error").await;
    assert_eq!(
        (&error["id"], &error["code"]),
        (&json!(8), &json!("not_found"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_can_mint_tokens_for_clients() {
    let app = TestApp::spawn().await;
    let (alice_job, other) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let admin = app.token("shop", "admin");
    let mint = |body: Value| {
        send(
            app.request_with_token(Method::POST, "/v1/tokens", &admin)
                .json(&body),
        )
    };
    let minted = mint(json!({ "sub": "alice" })).await;
    assert_eq!(minted.status, 201);
    let token = minted.body["token"].as_str().unwrap();
    assert!(can_see(&app, token, &alice_job).await);
    let client = TestClient::connect(&app.url, token).await;
    assert_eq!(client.hello["expires_at"], minted.body["expires_at"]);

    let minted = mint(
        json!({ "sub": "guest", "jobs": [alice_job], "scope": "jobs:read", "ttl_seconds": 60 }),
    )
    .await;
    let token = minted.body["token"].as_str().unwrap();
    assert!(can_see(&app, token, &alice_job).await);
    assert!(!can_see(&app, token, &other).await);

    for (body, field) in [
        (json!({}), "sub"),
        (json!({ "sub": "" }), "sub"),
        (json!({ "sub": "a", "ttl_seconds": 0 }), "ttl_seconds"),
        (
            json!({ "sub": "a", "ttl_seconds": 10_000_000 }),
            "ttl_seconds",
        ),
        (json!({ "sub": "a", "scope": "jobs:everything" }), "scope"),
        (json!({ "sub": "a", "jobs": ["not a job"] }), "jobs[0]"),
        (json!({ "sub": "a", "jbos": [] }), "jbos"),
    ] {
        let response = mint(body.clone()).await;
        assert_eq!(
            (response.status.as_u16(), &response.body["code"]),
            (400, &json!("invalid_request")),
            "{body}"
        );
        assert!(
            response.body["detail"].as_str().unwrap().contains(field),
            "{}",
            response.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_without_valid_token_returns_401() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let valid = app.token("alice", "jobs:read");
    for path in [
        "/v1/jobs",
        &format!("/v1/jobs/{job}"),
        "/v1/events?feed=mine",
    ] {
        for token in ["", "x", "a.b.c", &valid[..valid.len() - 4]] {
            let response = send(app.request_with_token(Method::GET, path, token)).await;
            assert_eq!(response.status, 401, "{path} {token}");
        }
        let response =
            send(app.request_without_token(Method::GET, &format!("{path}?token={valid}"))).await;
        assert_eq!(response.status, 401, "token in the query of {path}");
    }
}

/// Configures a hub that fetches its keys from an issuer.
fn hub_trusting(issuer: &Issuer) -> TestAppBuilder {
    TestApp::builder().set("auth.jwks_url", issuer.url())
}

/// Returns the status of a request with this token.
async fn status_with(app: &TestApp, token: &str) -> u16 {
    let response = send(app.request_with_token(Method::GET, "/v1/jobs", token)).await;
    response.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn jwks_rotation_is_followed() {
    let (old, new) = (Signer::p256(), Signer::ed25519());
    let issuer = Issuer::start(Some(vec![old.jwk("old")]));
    let app = hub_trusting(&issuer).spawn().await;
    let (old_token, new_token) = (
        old.token(Some("old"), "alice"),
        new.token(Some("new"), "alice"),
    );
    assert_eq!(status_with(&app, &old_token).await, 200);
    TestClient::connect(&app.url, &old_token).await;

    issuer.publish(Some(vec![new.jwk("new")]));
    assert_eq!(
        status_with(&app, &new_token).await,
        200,
        "the new key is fetched"
    );
    assert_eq!(
        status_with(&app, &old_token).await,
        401,
        "the removed key is not accepted"
    );
    let bearer = format!("Bearer {old_token}");
    assert_eq!(
        rejected_upgrade(&app, &[("authorization", &bearer)])
            .await
            .status,
        401
    );
    TestClient::connect(&app.url, &new_token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_jwks_works_after_issuer_goes_down() {
    let cached = Signer::rsa();
    let issuer = Issuer::start(Some(vec![cached.jwk("cached")]));
    let app = hub_trusting(&issuer).spawn().await;
    let token = cached.token(Some("cached"), "alice");
    assert_eq!(status_with(&app, &token).await, 200);
    issuer.publish(None);
    let unknown = Signer::rsa().token(Some("unknown"), "alice");
    assert_eq!(status_with(&app, &unknown).await, 401);
    assert_eq!(status_with(&app, &token).await, 200);
    drop(issuer);
    assert_eq!(status_with(&app, &token).await, 200);
    TestClient::connect(&app.url, &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_jwks_returns_503() {
    let signer = Signer::ed25519();
    let issuer = Issuer::start(None);
    let app = hub_trusting(&issuer)
        .set("socket.auth_timeout", "5m")
        .spawn()
        .await;
    let token = signer.token(Some("a"), "alice");
    let response = send(app.request_with_token(Method::GET, "/v1/jobs", &token)).await;
    assert_eq!(
        (response.status.as_u16(), &response.body["code"]),
        (503, &json!("keys_unavailable"))
    );
    assert_eq!(response.body["retryable"], true);
    assert!(response.headers.contains_key("retry-after"));
    let bearer = format!("Bearer {token}");
    let response = rejected_upgrade(&app, &[("authorization", &bearer)]).await;
    assert_eq!(response.status, 503);
    assert_eq!(response.body["code"], "keys_unavailable");

    // On a WebSocket the client receives an error and can retry until the authentication timeout.
    let mut client = TestClient::connect_unauthenticated(&app.url).await;
    client
        .send_json(json!({ "type": "auth", "token": token }))
        .await;
    assert_eq!(
        client.expect_message("error").await["code"],
        "keys_unavailable"
    );
    issuer.publish(Some(vec![signer.jwk("a")]));
    wait_until("the keys are available", async || {
        status_with(&app, &token).await != 503
    })
    .await;
    client.authenticate(&token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_public_keys_verify_only_their_own_tokens() {
    let signers = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let public_keys: Vec<Value> = signers
        .iter()
        .map(|signer| json!(signer.public_pem))
        .collect();
    let app = TestApp::builder()
        .set("auth.public_keys", Value::from(public_keys))
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    for signer in &signers {
        assert!(can_see(&app, &signer.token(None, "alice"), &job).await);
        assert!(!can_see(&app, &signer.token(None, "bob"), &job).await);
    }
    for unknown in [Signer::rsa(), Signer::p256(), Signer::ed25519()] {
        assert_eq!(status_with(&app, &unknown.token(None, "alice")).await, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_token_is_not_echoed() {
    let app = TestApp::spawn().await;
    let mut client = app.connect("alice").await;
    let token = app.token("bob", "jobs:read");
    client
        .send(Message::text(format!(
            "{{\"type\":\"auth\",\"token\":\"{token}\""
        )))
        .await;
    let error = client.expect_message("error").await;
    assert!(!error.to_string().contains(&token), "{error}");
}
