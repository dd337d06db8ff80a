//! Limits per address, per subject and per node. Each test configures a small limit, reaches it, and
//! checks that other clients are not affected.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use progress_hub_simulator::Scenario;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::app::{OpenFiles, TestApp, TestAppBuilder, TestResponse, reserve_port, send};
use crate::client::TestClient;
use crate::raw_websocket::{PING, PONG, RawSocket, frame, text};
use crate::sse_client::SseClient;
use crate::tls::CertificateFiles;
use crate::wait::wait_until;

/// Configures a hub that does not trust loopback as a proxy, so that limits per address apply to it.
fn hub_without_proxies() -> TestAppBuilder {
    hub_with_long_request_timeout().set("server.trusted_proxies", "192.0.2.1")
}

/// Configures a request timeout longer than a test, so that silent connections stay open.
fn hub_with_long_request_timeout() -> TestAppBuilder {
    TestApp::builder().set("server.request_timeout", "5m")
}

/// Sends a request on a connection of its own.
async fn send_alone(request: RequestBuilder) -> TestResponse {
    send(request.header("connection", "close")).await
}

/// Returns the status and body of a resource of the admin listener.
async fn get_admin(admin: SocketAddr, path: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(format!("http://{admin}{path}")).send().await;
    let response = response.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn limit_count(app: &TestApp, limit: &str) -> f64 {
    app.metric(&format!("limits_reached_total{{limit=\"{limit}\"}}"))
        .await
}

fn assert_limited(response: &TestResponse, status: u16, code: &str) {
    assert_eq!(response.status, status, "{}", response.body);
    assert_eq!(response.body["code"], code);
    let retry_after = response.headers["retry-after"].to_str().unwrap();
    assert!(retry_after.parse::<u64>().unwrap() > 0, "{retry_after}");
}

fn long_poll(app: &TestApp, job: &str, sub: &str) -> RequestBuilder {
    app.request(Method::GET, &format!("/v1/jobs/{job}?wait=60&since=1"), sub)
}

fn stream(app: &TestApp, job: &str, sub: &str) -> RequestBuilder {
    app.request(Method::GET, &format!("/v1/events?job={job}"), sub)
}

/// Sends a request on a kept-alive connection, and discards the response.
async fn exchange(raw: &mut RawSocket, app: &TestApp, token: &str) {
    let request = format!(
        "HEAD /v1/jobs/job_none HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n",
        app.address()
    );
    raw.write(request.as_bytes()).await;
    assert!(raw.read_head().await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn address_has_a_maximum_number_of_connections() {
    let app = hub_without_proxies()
        .set("limits.connections_per_address", 3)
        .spawn()
        .await;
    let token = app.token("alice", "jobs:read");
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut raw = RawSocket::connect(&app).await;
        exchange(&mut raw, &app, &token).await;
        open.push(raw);
    }
    let mut rejected = RawSocket::connect(&app).await;
    let head = rejected.read_head().await;
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    assert!(head.contains("retry-after: "), "{head}");
    rejected.wait_until_closed().await;

    open.clear();
    wait_until("a connection is accepted", async || {
        let mut raw = RawSocket::connect(&app).await;
        let request = "GET /v1/health/live HTTP/1.1\r\nHost: hub\r\n\r\n";
        raw.write(request.as_bytes()).await;
        let head = raw.try_read_head().await;
        head.is_some_and(|head| head.starts_with("HTTP/1.1 200 "))
    })
    .await;
    wait_until("the limit is counted", async || {
        limit_count(&app, "address_connections").await >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_connections_have_their_own_limit() {
    let app = hub_without_proxies()
        .set("limits.unauthenticated_per_address", 2)
        .spawn()
        .await;
    let token = app.token("alice", "jobs:read");
    // Authentication over HTTP or a WebSocket frees the slot for the next connection.
    let mut authenticated = Vec::new();
    for _ in 0..3 {
        let mut raw = RawSocket::connect(&app).await;
        exchange(&mut raw, &app, &token).await;
        authenticated.push(raw);
        authenticated.push(RawSocket::connect_upgraded(&app, "alice").await);
    }
    let mut unauthenticated = RawSocket::connect(&app).await;
    let request = "HEAD /v1/health/live HTTP/1.1\r\nHost: hub\r\n\r\n";
    unauthenticated.write(request.as_bytes()).await;
    unauthenticated.read_head().await;
    let mut socket = TestClient::connect_unauthenticated(&app.url).await;
    let mut rejected = RawSocket::connect(&app).await;
    let head = rejected.read_head().await;
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");

    socket.authenticate(&token).await;
    let accepted = TestClient::connect_unauthenticated(&app.url).await;
    drop((unauthenticated, accepted));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_proxy_are_counted_by_their_own_address() {
    let app = TestApp::builder()
        .set("limits.connections_per_address", 2)
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let from = |address: &str| {
        let request = stream(&app, &job, "alice");
        // The client sets the first address, and the proxy appends the second.
        request.header("x-forwarded-for", format!("198.51.100.9, {address}"))
    };
    let _first = SseClient::open_with(from("203.0.113.7")).await;
    let _second = SseClient::open_with(from("203.0.113.7")).await;
    let response = send(from("203.0.113.7")).await;
    assert_limited(&response, 429, "too_many_connections");
    let poll = long_poll(&app, &job, "alice").header("x-forwarded-for", "203.0.113.7");
    assert_limited(&send(poll).await, 429, "too_many_connections");
    let _other = SseClient::open_with(from("203.0.113.8")).await;

    let token = app.token("alice", "jobs:read");
    let upgrade = crate::client::upgrade_request(
        &app.url,
        &[
            ("authorization", &format!("Bearer {token}")),
            ("x-forwarded-for", "203.0.113.7"),
        ],
    );
    let (socket, _) = crate::client::try_upgrade(upgrade).await.unwrap();
    let mut socket = TestClient::new(socket);
    let bye = socket.expect_message("bye").await;
    assert_eq!(bye["reason"], "too_many_connections");
    assert!(bye["retry_after_ms"].as_u64().unwrap() > 0);
    assert_eq!(socket.expect_close().await, Some(4103));
}

#[tokio::test(flavor = "multi_thread")]
async fn transports_share_the_connections_of_a_subject() {
    let app = TestApp::builder()
        .set("limits.connections_per_subject", 2)
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let socket = app.connect("alice").await;
    let _stream = SseClient::open(&app, &format!("job={job}"), "alice").await;
    let limited = "too_many_connections";
    assert_limited(&send(long_poll(&app, &job, "alice")).await, 429, limited);
    assert_limited(&send(stream(&app, &job, "alice")).await, 429, limited);
    let mut excess = TestClient::connect_unauthenticated(&app.url).await;
    let token = app.token("alice", "jobs:read");
    excess
        .send_json(json!({ "type": "auth", "token": token }))
        .await;
    assert_eq!(
        excess.expect_message("bye").await["reason"],
        "too_many_connections"
    );
    assert_eq!(excess.expect_close().await, Some(4103));

    app.connect("bob").await.assert_no_messages().await;
    socket.close().await;
    wait_until("alice may connect again", async || {
        let response = stream(&app, &job, "alice").send().await.unwrap();
        response.status() == 200
    })
    .await;
    assert!(limit_count(&app, "subject_connections").await >= 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_long_polls_count_as_connections_of_the_node() {
    let app = TestApp::builder()
        .set("server.max_connections", 1)
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let stream_of_alice = SseClient::open(&app, &format!("job={job}"), "alice").await;
    let response = send(long_poll(&app, &job, "alice")).await;
    assert_limited(&response, 503, "over_capacity");
    let response = send(stream(&app, &job, "alice")).await;
    assert_limited(&response, 503, "over_capacity");
    let mut socket = TestClient::connect_unauthenticated(&app.url).await;
    assert_eq!(socket.expect_message("bye").await["code"], 4100);
    assert_eq!(app.get_job(&job, "alice").await["version"], 1);
    drop(stream_of_alice);
    app.wait_until_no_connections().await;
    app.connect("alice").await.assert_no_messages().await;
}

/// Repeats a request until its subject has reached a limit. Returns the response.
async fn send_until_limited(app: &TestApp, path: &str, token: &str) -> TestResponse {
    for _ in 0..1000 {
        let response = send(app.request_with_token(Method::GET, path, token)).await;
        if response.status == 429 {
            return response;
        }
    }
    panic!("no request to {path} was limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn excess_of_requests_is_rejected_for_one_subject_only() {
    let app = TestApp::builder()
        .set("limits.requests_per_second", 1)
        .spawn()
        .await;
    let job = app.register_worker_job("alice").await;
    let token = app.token("alice", "jobs:read");
    let paths = [
        format!("/v1/jobs/{job}"),
        format!("/v1/jobs/{job}/cancel"),
        format!("/v1/jobs/{job}/outputs/0"),
        format!("/v1/jobs/{job}/outputs/0?grant=invalid"),
        format!("/v1/events?job={job}&since=1"),
        "/v1/jobs".to_owned(),
        "/v1/providers".to_owned(),
        "/metrics".to_owned(),
    ];
    for path in &paths {
        let response = send_until_limited(&app, path, &token).await;
        assert_limited(&response, 429, "rate_limited");
        let detail = "the subject has reached limits.requests_per_second";
        assert_eq!(response.body["detail"], detail, "{path}");
    }
    assert!(limit_count(&app, "requests").await >= 8.0);
    // More than the burst of four.
    for token in [
        app.token("operator", "admin"),
        app.token("worker", "jobs:publish jobs:read"),
    ] {
        for _ in 0..10 {
            let request = app.request_with_token(Method::GET, "/v1/providers", &token);
            assert_eq!(send(request).await.status, 200);
        }
    }
    let response = send(app.request(Method::GET, "/v1/jobs", "bob")).await;
    assert_eq!(response.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_messages_is_slowed_down_and_answered() {
    let app = TestApp::builder()
        .set("limits.messages_per_second", 40)
        .spawn()
        .await;
    // More than the burst of 160.
    const COUNT: usize = 200;
    let messages: Vec<u8> = (0..COUNT)
        .flat_map(|id| text(&json!({ "type": "ping", "id": id })))
        .collect();
    let pings = frame(PING, b"p").repeat(COUNT);
    for (flood, reply) in [(messages, 0x81), (pings, PONG)] {
        let before = limit_count(&app, "messages").await;
        let mut raw = RawSocket::connect_upgraded(&app, "alice").await;
        assert_eq!(raw.read_frame().await.unwrap().first, 0x81);
        raw.write(&flood).await;
        for _ in 0..COUNT {
            assert_eq!(raw.read_frame().await.unwrap().first, reply);
        }
        assert!(limit_count(&app, "messages").await > before);
        let bob = app.token("bob", "jobs:read");
        TestClient::connect(&app.url, &bob).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn excess_of_ids_closes_the_socket_and_rejects_streams() {
    let app = TestApp::builder()
        .set("limits.ids_per_second", 1)
        .spawn()
        .await;
    let invented: Vec<Value> = (0..100)
        .map(|n| json!({ "job": format!("job_{n}") }))
        .collect();
    let by_ids = json!({ "type": "subscribe", "id": 1, "jobs": invented });
    let by_feed = json!({ "type": "subscribe", "id": 1, "feed": "mine" });
    for (sub, message) in [("alice", by_ids), ("bob", by_feed)] {
        let mut socket = app.connect(sub).await;
        socket.send_json(message).await;
        let bye = socket.expect_message("bye").await;
        assert_eq!(bye["reason"], "rate_limited");
        assert!(bye["retry_after_ms"].as_u64().unwrap() >= 10_000, "{bye}");
        assert_eq!(socket.expect_close().await, Some(4102));
        // The limit applies to the subject, so a new connection is limited too.
        let response = send(stream(&app, "job_1", sub)).await;
        assert_limited(&response, 429, "rate_limited");
    }
    let job = app.register_worker_job("carol").await;
    SseClient::open(&app, &format!("job={job}"), "carol").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrator_has_no_limits_per_subject() {
    let app = TestApp::builder()
        .set("limits.ids_per_second", 1)
        .set("limits.messages_per_second", 1)
        .set("limits.connections_per_subject", 1)
        .spawn()
        .await;
    let token = app.token("operator", "admin");
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = TestClient::connect(&app.url, &token).await;
        socket.subscribe_to_feed().await;
        sockets.push(socket);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenth_invalid_renewal_closes_the_socket() {
    let app = TestApp::spawn().await;
    let mut socket = app.connect("alice").await;
    let other_subject = app.token("bob", "jobs:read");
    for attempt in 1..=10 {
        let token = if attempt % 2 == 0 {
            "no token"
        } else {
            &other_subject
        };
        socket
            .send_json(json!({ "type": "auth", "token": token }))
            .await;
        if attempt < 10 {
            socket.expect_message("error").await;
        }
    }
    assert_eq!(socket.expect_message("bye").await["code"], 4008);
    assert_eq!(socket.expect_close().await, Some(4008));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_share_the_subscriptions_of_a_subject() {
    let app = TestApp::builder()
        .set("limits.subscriptions_per_subject", 3)
        .spawn()
        .await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(app.register_worker_job("alice").await);
    }
    jobs.sort_unstable();
    let known: Vec<(&str, u64)> = jobs.iter().map(|job| (job.as_str(), 1)).collect();
    let mut first = app.connect("alice").await;
    // Jobs that are not found do not count. A repeated subscription counts once.
    for _ in 0..2 {
        let outcome = first
            .subscribe(&[known[0], ("job_none", 0), known[1]])
            .await;
        assert_eq!(outcome[known[0].0], "current");
        assert_eq!(outcome["job_none"], "not_found");
    }
    let mut second = app.connect("alice").await;
    let outcome = second.subscribe(&known[2..]).await;
    assert_eq!(outcome[known[2].0], "current");
    assert_eq!(outcome[known[3].0], "too_many");
    let error = second.expect_message("error").await;
    assert_eq!(error["code"], "too_many_subscriptions");
    let response = send(stream(&app, &jobs[3], "alice")).await;
    assert_eq!(response.body["code"], "too_many_subscriptions");
    assert_eq!(response.status, 429);

    first
        .send_json(json!({ "type": "unsubscribe", "id": 2, "jobs": [jobs[0]] }))
        .await;
    first.expect_message("unsubscribed").await;
    SseClient::open(&app, &format!("job={}", jobs[3]), "alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_node_answers_health_checks_only() {
    const OPEN_FILES: usize = 512;
    const HEALTH_CHECK_CONNECTIONS: usize = 64;
    let (_admin_port, admin) = reserve_port();
    let app = hub_with_long_request_timeout()
        .open_files(OpenFiles::Hard(OPEN_FILES))
        .set("server.admin_bind", admin)
        .spawn_process(&[])
        .await;
    assert!(
        app.log()
            .contains("limit of open files is below server.max_connections")
    );
    // The hub reserves a quarter of the open files for purposes other than client connections.
    let idle = RefCell::new(Vec::new());
    let connect_idle = async || {
        let raw = RawSocket::connect(&app).await;
        idle.borrow_mut().push(raw);
    };
    for _ in 0..OPEN_FILES * 3 / 4 {
        connect_idle().await;
    }
    let token = app.token("alice", "jobs:read");
    wait_until("the node is full", async || {
        let request = app.request_with_token(Method::GET, "/v1/jobs", &token);
        let response = send_alone(request).await;
        if response.status == 200 {
            connect_idle().await;
            return false;
        }
        assert_limited(&response, 503, "over_capacity");
        true
    })
    .await;
    for path in ["/v1/health/live", "/v1/health/ready"] {
        let response = send_alone(app.request_without_token(Method::GET, path)).await;
        assert_eq!(response.status, 200, "{path}");
    }
    let mut socket = TestClient::connect_unauthenticated(&app.url).await;
    assert_eq!(socket.expect_message("bye").await["code"], 4100);

    // Beyond the reserve, only the admin listener accepts connections.
    let silent = RefCell::new(Vec::new());
    wait_until("a connection is rejected unread", async || {
        for _ in 0..HEALTH_CHECK_CONNECTIONS {
            let socket = RawSocket::connect(&app).await;
            silent.borrow_mut().push(socket);
        }
        let mut raw = RawSocket::connect(&app).await;
        let read = raw.stream.readable();
        let is_rejected = tokio::time::timeout(Duration::from_millis(50), read).await;
        if is_rejected.is_ok() {
            let head = raw.read_head().await;
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        }
        is_rejected.is_ok()
    })
    .await;
    assert_eq!(get_admin(admin, "/v1/health/live").await.0, 200);

    // The hub closes silent connections, so it accepts clients again.
    wait_until("health checks are answered", async || {
        let mut raw = RawSocket::connect(&app).await;
        raw.write(b"GET /v1/health/live HTTP/1.1\r\nHost: hub\r\n\r\n")
            .await;
        let head = raw.try_read_head().await.unwrap_or_default();
        let is_answered = head.starts_with("HTTP/1.1 200 ");
        if is_answered {
            raw.wait_until_closed().await;
        }
        is_answered
    })
    .await;

    drop((idle, silent));
    wait_until("the node serves again", async || {
        let response = app.request_with_token(Method::GET, "/v1/jobs", &token);
        response
            .send()
            .await
            .is_ok_and(|response| response.status() == 200)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_limit_of_open_files_is_raised() {
    let app = TestApp::builder()
        .open_files(OpenFiles::Soft(64))
        .spawn_process(&[])
        .await;
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(RawSocket::connect_upgraded(&app, "alice").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_listener_serves_health_checks_and_metrics_only() {
    let (_port, admin) = reserve_port();
    let app = TestApp::builder()
        .set("server.admin_bind", admin)
        .with_simulator(Scenario::Normal)
        .set("providers.simulated.prices", r#"{ "*" = 1 }"#)
        .set("providers.simulated.allowed_input", "scenario")
        .set("budgets.per_job", "10")
        .spawn()
        .await;
    app.submit("alice", Scenario::Normal).await;
    for path in ["/v1/health", "/v1/health/live", "/v1/health/ready"] {
        assert_eq!(get_admin(admin, path).await.0, 200, "{path}");
    }
    let (status, metrics) = get_admin(admin, "/metrics").await;
    assert_eq!(status, 200);
    assert!(
        metrics.contains("progress_hub_tcp_connections "),
        "{metrics}"
    );
    for path in ["/", "/v1/jobs", "/v1/events", "/v1/ws", "/metrics/"] {
        assert_eq!(get_admin(admin, path).await.0, 404, "{path}");
    }
    let (_, metrics) = get_admin(admin, "/metrics").await;
    for metric in [
        "progress_hub_budget_reserved_total{",
        "progress_hub_problems_total{code=\"not_found\"} 5",
    ] {
        assert!(metrics.contains(metric), "{metrics}");
    }
    let public = send(app.request_without_token(Method::GET, "/metrics")).await;
    assert_eq!(public.status, 404);
    let live = send(app.request_without_token(Method::GET, "/v1/health/live")).await;
    assert_eq!(live.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_tls_handshakes_do_not_delay_others() {
    let certificate = CertificateFiles::new();
    let app = certificate
        .configure(hub_with_long_request_timeout())
        .spawn()
        .await;
    // More than actix-tls performs concurrently on two threads by default.
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(RawSocket::connect(&app).await);
    }
    let live = send(app.request_without_token(Method::GET, "/v1/health/live")).await;
    assert_eq!(live.status, 200);
    // All 600 handshakes are still in progress.
    assert!(app.metric("tcp_connections").await > 600.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn address_has_a_rate_of_tls_handshakes() {
    let certificate = CertificateFiles::new();
    let hub = hub_without_proxies().set("limits.handshakes_per_second", 1);
    let app = certificate.configure(hub).spawn().await;
    let live = send(app.request_without_token(Method::GET, "/v1/health/live")).await;
    assert_eq!(live.status, 200);
    let silent = RefCell::new(Vec::new());
    wait_until("a connection is closed before its handshake", async || {
        let mut raw = RawSocket::connect(&app).await;
        let read = raw.stream.readable();
        let is_closed = tokio::time::timeout(Duration::from_millis(20), read).await;
        if is_closed.is_ok() {
            raw.wait_until_closed().await;
        }
        silent.borrow_mut().push(raw);
        is_closed.is_ok()
    })
    .await;
}
