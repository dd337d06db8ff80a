//! Who is let in, how, for how long, and what they may see.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::client::{TestClient, try_upgrade, upgrade_request};
use crate::issuer::{Issuer, Signer};
use crate::sse_client::SseClient;

const PROTOCOLS: &str = "sec-websocket-protocol";

/// The answer to a request for an upgrade that is refused.
async fn refused(app: &TestApp, headers: &[(&str, &str)]) -> TestResponse {
    let mut request = app
        .request_without_token(Method::GET, "/v1/ws")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = send(request).await;
    assert_ne!(answer.status, 101, "let in with {headers:?}");
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_header_is_welcomed() {
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
async fn a_token_in_a_subprotocol_is_welcomed_and_only_the_protocol_echoed() {
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
async fn a_token_in_the_first_frame_is_welcomed() {
    let app = TestApp::spawn().await;
    let mut client = TestClient::connect_unauthenticated(&app.url).await;
    let token = app.token("alice", "jobs:read");
    client
        .send_json(json!({ "type": "auth", "token": token }))
        .await;
    let hello = client.expect_message("hello").await;
    assert_eq!(hello["protocol"], 1);
    let job = app.register_worker_job("alice").await;
    assert_eq!(client.subscribe(&[(&job, 0)]).await[&job], "sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_is_refused_before_the_upgrade() {
    let app = TestApp::spawn().await;
    let good = app.token("alice", "jobs:read");
    let forged = format!("{}A", &good[..good.len() - 4]);
    let bearer = format!("Bearer {forged}");
    let offer = format!("progress-hub.v1, bearer.{forged}");
    for headers in [
        [("authorization", bearer.as_str())],
        [("authorization", "Bearer")],
        [("authorization", "Basic YWxpY2U6c2VjcmV0")],
        [(PROTOCOLS, offer.as_str())],
        [(PROTOCOLS, "progress-hub.v1, bearer.")],
    ] {
        let answer = refused(&app, &headers).await;
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        let problem = answer.body;
        assert_eq!(problem["code"], "unauthorized");
        assert!(
            !problem.to_string().contains(&forged),
            "it repeats the token"
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
    let mut welcomed = app.connect("alice").await;
    let mut stranger = TestClient::connect_unauthenticated(&app.url).await;
    assert_eq!(stranger.expect_close().await, Some(4003));
    welcomed.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_first_frame_closes_with_4001() {
    let app = TestApp::spawn().await;
    let good = app.token("alice", "jobs:read");
    for first in [
        json!({ "type": "auth", "token": "no.such.token" }),
        json!({ "type": "auth", "token": format!("{}A", &good[..good.len() - 4]) }),
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
    let come = |origin: String| {
        let request = upgrade_request(&app.url, &[("authorization", &bearer), ("origin", &origin)]);
        try_upgrade(request)
    };
    assert!(come(app.url.clone()).await.is_ok());
    for foreign in [
        "https://evil.example",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "null",
        "127.0.0.1",
        "",
    ] {
        let headers = [("authorization", bearer.as_str()), ("origin", foreign)];
        let answer = refused(&app, &headers).await;
        assert_eq!(answer.status, 403, "{foreign}");
        assert_eq!(answer.body["code"], "origin_refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_origins_may_open_a_socket_once_some_are_named() {
    let app = TestApp::builder()
        .set(
            "server.allowed_origins",
            "https://a.example, https://b.example:8443",
        )
        .spawn()
        .await;
    let bearer = format!("Bearer {}", app.token("alice", "jobs:read"));
    let come = |origin: &str| {
        let request = upgrade_request(&app.url, &[("authorization", &bearer), ("origin", origin)]);
        try_upgrade(request)
    };
    for allowed in ["https://a.example", "https://b.example:8443"] {
        assert!(come(allowed).await.is_ok(), "{allowed}");
    }
    for foreign in [
        "http://a.example",
        "https://b.example",
        "https://c.example",
        &app.url,
    ] {
        assert_eq!(
            come(foreign).await.expect_err(foreign).status(),
            403,
            "{foreign}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_keeps_the_socket_and_its_subscriptions() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let short = app.token_for("alice", "jobs:read", None, Duration::from_secs(3));
    let mut client = TestClient::connect(&app.url, &short).await;
    client.subscribe(&[(&job, 0)]).await;
    client.next_job().await;

    let token = app.token("alice", "jobs:read");
    client
        .send_json(json!({ "type": "auth", "token": token }))
        .await;
    let hello = client.expect_message("hello").await;
    assert_eq!(hello["connection"], client.hello["connection"]);
    assert!(hello["expires_at"].as_str() > client.hello["expires_at"].as_str());

    // By the first token's end another that began with it is closed, and this one is not.
    let mut other = TestClient::connect(&app.url, &short).await;
    assert_eq!(other.expect_close().await, Some(4002));
    app.push_update(&job, json!({ "progress": 10 })).await;
    assert_eq!(client.next_job().await["progress"], 10.0);
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_not_be_renewed_for_somebody_else_or_with_a_bad_one() {
    let app = TestApp::spawn().await;
    let (hers, his) = (
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
    let outcome = client.subscribe(&[(&hers, 0), (&his, 0)]).await;
    assert_eq!(outcome, json!({ hers: "sent", his: "not_found" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn narrower_token_renewal_drops_subscriptions() {
    let app = TestApp::spawn().await;
    let (kept, lost) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let narrow = app.token_for(
        "alice",
        "jobs:read",
        Some(&[&kept]),
        Duration::from_secs(60),
    );
    let blind = app.token("alice", "jobs:publish");
    for feed in [false, true] {
        let mut client = app.connect("alice").await;
        match feed {
            true => {
                client
                    .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
                    .await;
                client.expect_message("subscribed").await;
            }
            false => drop(client.subscribe(&[(&kept, 0), (&lost, 0)]).await),
        }
        client.next_job().await;
        client.next_job().await;
        client
            .send_json(json!({ "type": "auth", "token": narrow }))
            .await;
        client.expect_message("hello").await;
        app.push_update(&lost, json!({ "stage": format!("unseen {feed}") }))
            .await;
        app.push_update(&kept, json!({ "stage": format!("seen {feed}") }))
            .await;
        // Without the feed there is nothing left that would show jobs that were not asked for.
        if !feed {
            let seen = client.next_job().await;
            assert_eq!(
                (&seen["id"], &seen["stage"]),
                (&json!(kept), &json!("seen false"))
            );
        }
        client.assert_no_messages().await;

        client
            .send_json(json!({ "type": "auth", "token": blind }))
            .await;
        client.expect_message("hello").await;
        app.push_update(&kept, json!({ "stage": format!("unseen too {feed}") }))
            .await;
        app.register_worker_job("alice").await;
        client.assert_no_messages().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_read_scope_ends_the_feed() {
    let app = TestApp::spawn().await;
    let mut client = app.connect("alice").await;
    client
        .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
        .await;
    client.expect_message("subscribed").await;
    let blind = app.token("alice", "jobs:publish");
    client
        .send_json(json!({ "type": "auth", "token": blind }))
        .await;
    client.expect_message("hello").await;
    app.register_worker_job("alice").await;
    client.assert_no_messages().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_ends_is_announced_and_then_ends_the_socket() {
    let app = TestApp::spawn().await;
    let token = app.token_for("alice", "jobs:read", None, Duration::from_secs(3));
    let mut client = TestClient::connect(&app.url, &token).await;
    let notice = client.expect_message("token_expiring").await;
    assert!(
        (1..3000).contains(&notice["in_ms"].as_u64().unwrap()),
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
async fn a_stream_ends_with_its_token() {
    let app = TestApp::spawn().await;
    let token = app.token_for("alice", "jobs:read", None, Duration::from_secs(2));
    let request = app.request_with_token(Method::GET, "/v1/events?feed=mine", &token);
    let mut stream = SseClient::open_with(request).await;
    assert!(
        stream
            .next_event()
            .await
            .is_some_and(|first| first.retry.is_some())
    );
    assert_eq!(stream.next_event().await, None);
}

/// What a token shows of a job by each of the ways to look at it.
async fn sees(app: &TestApp, token: &str, job: &str) -> bool {
    let get = |path: String| send(app.request_with_token(Method::GET, &path, token));
    let shown = get(format!("/v1/jobs/{job}")).await;
    let held = get(format!("/v1/jobs/{job}?wait=0.1&since=1")).await;
    let by_http = match (shown.status.as_u16(), held.status.as_u16()) {
        (200, 304) => true,
        (404, 404) => {
            assert_eq!(shown.body["code"], "not_found");
            false
        }
        other => panic!("by HTTP {other:?}"),
    };

    let mut client = TestClient::connect(&app.url, token).await;
    let outcome = client.subscribe(&[(job, 0)]).await;
    let by_socket = match outcome[job].as_str().unwrap() {
        "sent" => client.next_job().await["id"] == job,
        "not_found" => {
            client.assert_no_messages().await;
            false
        }
        other => panic!("by socket {other}"),
    };
    client.close().await;

    let path = format!("/v1/events?job={job}");
    let request = app.request_with_token(Method::GET, &path, token);
    let by_stream = if by_http {
        SseClient::open_with(request).await.next_job().await["id"] == job
    } else {
        let answer = send(request).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (404, &json!("not_found"))
        );
        false
    };
    assert_eq!(
        [by_http; 2],
        [by_socket, by_stream],
        "(HTTP twice; socket, stream)"
    );
    by_http
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_see_only_permitted_jobs() {
    let app = TestApp::spawn().await;
    let hers = app.register_worker_job("alice").await;
    let his = app.register_worker_job("bob").await;
    let granted = |jobs: &[&str], scope: &str| {
        app.token_for("bob", scope, Some(jobs), Duration::from_secs(60))
    };
    for (token, sees_hers, sees_his) in [
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
        (granted(&[&hers], "jobs:read"), true, false),
        (granted(&[&hers, &his], "jobs:read"), true, true),
        (granted(&[], "jobs:read"), false, false),
        (granted(&[&hers], "admin"), true, false),
        (granted(&[&hers], "jobs:publish"), false, false),
    ] {
        assert_eq!(
            sees(&app, &token, &hers).await,
            sees_hers,
            "alice's with {token}"
        );
        assert_eq!(
            sees(&app, &token, &his).await,
            sees_his,
            "bob's with {token}"
        );
    }
    assert!(!sees(&app, &app.token("alice", "admin"), "job_never_was").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn feeds_and_lists_hold_exactly_the_jobs_that_are_theirs() {
    let app = TestApp::spawn().await;
    let hers = app.register_worker_job("alice").await;
    let his = app.register_worker_job("bob").await;
    let granted = |scope| app.token_for("bob", scope, Some(&[&hers]), Duration::from_secs(60));
    let readers = [
        (app.token("alice", "jobs:read"), vec![&hers]),
        (app.token("bob", "jobs:read"), vec![&his]),
        (app.token("bob", "admin"), vec![&his]),
        (app.token("carol", "jobs:read"), vec![]),
        (app.token("alice", "jobs:publish"), vec![]),
        (granted("jobs:read"), vec![&hers]),
        (granted("jobs:publish"), vec![]),
    ];
    for (round, (token, expected)) in readers.into_iter().enumerate() {
        let answer = send(app.request_with_token(Method::GET, "/v1/jobs", &token)).await;
        let listed: Vec<&Value> = answer.body["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| &job["id"])
            .collect();
        assert_eq!(listed, expected, "listed for {token}");

        let mut client = TestClient::connect(&app.url, &token).await;
        client
            .send_json(json!({ "type": "subscribe", "id": 1, "feed": "mine" }))
            .await;
        let subscribed = client.expect_message("subscribed").await;
        let shown: Vec<&String> = subscribed["jobs"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, outcome)| *outcome == "sent")
            .map(|(id, _)| id)
            .collect();
        assert_eq!(shown, expected, "in the feed for {token}");
        for id in &expected {
            assert_eq!(client.next_job().await["id"], **id);
        }
        let request = app.request_with_token(Method::GET, "/v1/events?feed=mine", &token);
        let mut stream = SseClient::open_with(request).await;
        for id in &expected {
            assert_eq!(stream.next_job().await["id"], **id);
        }
        // News of everybody's: only what is theirs comes.
        for job in [&hers, &his] {
            app.push_update(job, json!({ "stage": format!("told {round} times") }))
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
async fn scopes_say_what_may_be_done() {
    let app = TestApp::spawn().await;
    let hers = app.register_worker_job("alice").await;
    let post = |path: String, token: String, body: Value| {
        let request = app
            .request_with_token(Method::POST, &path, &token)
            .json(&body);
        async move { send(request).await.status.as_u16() }
    };
    let updates = format!("/v1/jobs/{hers}/updates");
    let cancel = format!("/v1/jobs/{hers}/cancel");
    let token = |sub, scope| app.token(sub, scope);
    let granted = |scope| app.token_for("bob", scope, Some(&[&hers]), Duration::from_secs(60));
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
async fn a_socket_cancels_what_its_token_may_cancel() {
    let app = TestApp::spawn().await;
    let (hers, his) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("bob").await,
    );
    let mut reader = TestClient::connect(&app.url, &app.token("alice", "jobs:read")).await;
    for (job, code) in [(&hers, "forbidden"), (&his, "not_found")] {
        reader
            .send_json(json!({ "type": "cancel", "id": job, "job": job }))
            .await;
        let error = reader.expect_message("error").await;
        assert_eq!((&error["id"], &error["code"]), (&json!(job), &json!(code)));
    }
    let mut writer = app.connect("alice").await;
    writer.subscribe(&[(&hers, 0)]).await;
    writer
        .send_json(json!({ "type": "cancel", "id": 7, "job": hers }))
        .await;
    assert_eq!(writer.follow_to_final(&hers).await["status"], "cancelled");
    writer
        .send_json(json!({ "type": "cancel", "id": 8, "job": his }))
        .await;
    let error = writer.expect_message("error").await;
    assert_eq!(
        (&error["id"], &error["code"]),
        (&json!(8), &json!("not_found"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_mints_tokens_for_pages() {
    let app = TestApp::spawn().await;
    let (hers, other) = (
        app.register_worker_job("alice").await,
        app.register_worker_job("alice").await,
    );
    let admin = app.token("shop", "admin");
    let mint = |wish: Value| {
        send(
            app.request_with_token(Method::POST, "/v1/tokens", &admin)
                .json(&wish),
        )
    };
    let minted = mint(json!({ "sub": "alice" })).await;
    assert_eq!(minted.status, 201);
    let token = minted.body["token"].as_str().unwrap();
    assert!(sees(&app, token, &hers).await);
    let client = TestClient::connect(&app.url, token).await;
    assert_eq!(client.hello["expires_at"], minted.body["expires_at"]);

    let minted =
        mint(json!({ "sub": "guest", "jobs": [hers], "scope": "jobs:read", "ttl_seconds": 60 }))
            .await;
    let token = minted.body["token"].as_str().unwrap();
    assert!(sees(&app, token, &hers).await);
    assert!(!sees(&app, token, &other).await);

    for (wish, key) in [
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
        let answer = mint(wish.clone()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (400, &json!("invalid_request")),
            "{wish}"
        );
        assert!(
            answer.body["detail"].as_str().unwrap().contains(key),
            "{}",
            answer.body
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_without_a_good_token_is_answered_401() {
    let app = TestApp::spawn().await;
    let job = app.register_worker_job("alice").await;
    let good = app.token("alice", "jobs:read");
    for path in [
        "/v1/jobs",
        &format!("/v1/jobs/{job}"),
        "/v1/events?feed=mine",
    ] {
        for token in ["", "x", "a.b.c", &good[..good.len() - 4]] {
            let answer = send(app.request_with_token(Method::GET, path, token)).await;
            assert_eq!(answer.status, 401, "{path} {token}");
        }
        let answer =
            send(app.request_without_token(Method::GET, &format!("{path}?token={good}"))).await;
        assert_eq!(answer.status, 401, "a token in the URL of {path}");
    }
}

/// A hub that believes an issuer's key set and no secret.
fn believing(issuer: &Issuer) -> TestAppBuilder {
    TestApp::builder().set("auth.jwks_url", issuer.url())
}

async fn status(app: &TestApp, token: &str) -> u16 {
    send(app.request_with_token(Method::GET, "/v1/jobs", token))
        .await
        .status
        .as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn published_keys_are_believed_and_their_rotation_followed() {
    let (old, new) = (Signer::p256(), Signer::ed25519());
    let issuer = Issuer::start(Some(vec![old.jwk("old")]));
    let app = believing(&issuer).spawn().await;
    let (by_old, by_new) = (
        old.token(Some("old"), "alice"),
        new.token(Some("new"), "alice"),
    );
    assert_eq!(status(&app, &by_old).await, 200);
    TestClient::connect(&app.url, &by_old).await;

    issuer.publish(Some(vec![new.jwk("new")]));
    assert_eq!(
        status(&app, &by_new).await,
        200,
        "an unknown key is looked up"
    );
    assert_eq!(
        status(&app, &by_old).await,
        401,
        "a withdrawn key is not believed"
    );
    let bearer = format!("Bearer {by_old}");
    assert_eq!(
        refused(&app, &[("authorization", &bearer)]).await.status,
        401
    );
    TestClient::connect(&app.url, &by_new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_jwks_works_after_issuer_goes_down() {
    let known = Signer::rsa();
    let issuer = Issuer::start(Some(vec![known.jwk("known")]));
    let app = believing(&issuer).spawn().await;
    let token = known.token(Some("known"), "alice");
    assert_eq!(status(&app, &token).await, 200);
    issuer.publish(None);
    let stranger = Signer::rsa().token(Some("unknown"), "alice");
    assert_eq!(status(&app, &stranger).await, 401);
    assert_eq!(status(&app, &token).await, 200);
    drop(issuer);
    assert_eq!(status(&app, &token).await, 200);
    TestClient::connect(&app.url, &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_jwks_returns_503() {
    let signer = Signer::ed25519();
    let issuer = Issuer::start(None);
    let app = believing(&issuer).spawn().await;
    let token = signer.token(Some("a"), "alice");
    let answer = send(app.request_with_token(Method::GET, "/v1/jobs", &token)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["code"]),
        (503, &json!("keys_unavailable"))
    );
    assert_eq!(answer.body["retryable"], true);
    assert!(answer.headers.contains_key("retry-after"));
    let bearer = format!("Bearer {token}");
    let answer = refused(&app, &[("authorization", &bearer)]).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.body["code"], "keys_unavailable");

    // A stranger on a socket is told, and may try again until its time is over.
    let mut client = TestClient::connect_unauthenticated(&app.url).await;
    client
        .send_json(json!({ "type": "auth", "token": token }))
        .await;
    assert_eq!(
        client.expect_message("error").await["code"],
        "keys_unavailable"
    );
    issuer.publish(Some(vec![signer.jwk("a")]));
    let deadline = tokio::time::Instant::now() + crate::app::TEST_TIMEOUT;
    while status(&app, &token).await == 503 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the keys never came"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client
        .send_json(json!({ "type": "auth", "token": token }))
        .await;
    client.expect_message("hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_public_key_proves_its_tokens() {
    let signers = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let listed: Vec<Value> = signers
        .iter()
        .map(|signer| json!(signer.public_pem))
        .collect();
    let app = TestApp::builder()
        .set("auth.public_keys", Value::from(listed))
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    for signer in &signers {
        assert!(sees(&app, &signer.token(None, "alice"), &job).await);
        assert!(!sees(&app, &signer.token(None, "bob"), &job).await);
    }
    for stranger in [Signer::rsa(), Signer::p256(), Signer::ed25519()] {
        assert_eq!(status(&app, &stranger.token(None, "alice")).await, 401);
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
