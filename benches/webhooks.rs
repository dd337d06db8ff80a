//! Rate at which a hub sends outbound webhooks that are due: 10,000 deliveries to ten endpoints.
//!
//! The endpoints and the hub share the process and its CPUs. The store is SQLite on disk, and each
//! result is durable before the next attempt of its endpoint starts.

#![allow(clippy::unwrap_used, reason = "a failed assumption ends the benchmark")]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use progress_hub::config::Config;
use progress_hub::server::Server;
use progress_hub_auth::jwt::Minter;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const ENDPOINTS: usize = 10;
const DELIVERIES: usize = 10_000;
const RUNS: usize = 3;

const JWT_SECRET: &str = "signs the tokens of a bench and nothing else";
const SECRET: &str = "whsec_c2lnbnMgdGhlIHdlYmhvb2tzIG9mIGEgYmVuY2g=";

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut out = std::io::stdout();
    for _ in 0..RUNS {
        let elapsed = runtime.block_on(run()).as_secs_f64();
        let rate = DELIVERIES as f64 / elapsed;
        let text = format!(
            "{DELIVERIES} deliveries to {ENDPOINTS} endpoints: {elapsed:.2} s, {rate:.0}/s"
        );
        writeln!(out, "{text}").unwrap();
    }
}

/// Returns the time from enabling the endpoints until all deliveries have been recorded.
async fn run() -> Duration {
    let received = Arc::new(AtomicUsize::new(0));
    let folder = tempfile::tempdir().unwrap();
    let mut settings = vec![
        ("server.bind".to_owned(), "127.0.0.1:0".to_owned()),
        ("auth.hs256_secrets".to_owned(), JWT_SECRET.to_owned()),
        (
            "store.url".to_owned(),
            format!("sqlite://{}/hub.db", folder.path().display()),
        ),
        (
            "limits.requests_per_second".to_owned(),
            "1000000".to_owned(),
        ),
        (
            "webhook_defaults.allow".to_owned(),
            "127.0.0.0/8".to_owned(),
        ),
    ];
    for n in 0..ENDPOINTS {
        let url = start_endpoint(Arc::clone(&received)).await;
        settings.push((format!("webhooks.endpoint-{n}.url"), url));
        settings.push((format!("webhooks.endpoint-{n}.secrets"), SECRET.to_owned()));
    }
    let config = Config::load(None, std::iter::empty(), settings).unwrap();
    let minter = Minter::new(&config.auth).unwrap();
    let ttl = Duration::from_secs(3600);
    let token = minter.mint("bench", None, Some("admin"), ttl, jiff::Timestamp::now());
    let server = Server::bind(config, None).ok().unwrap();
    let hub = HubClient {
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
        url: server.url(),
        token: token.unwrap().token,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));

    hub.operate("disable").await;
    let jobs = stream::iter(0..DELIVERIES / ENDPOINTS).map(|_| hub.finish_job());
    jobs.buffer_unordered(32).collect::<Vec<()>>().await;
    assert_eq!(hub.waiting().await, DELIVERIES);
    assert_eq!(received.load(Ordering::Relaxed), 0);

    let started = Instant::now();
    hub.operate("enable").await;
    while received.load(Ordering::Relaxed) < DELIVERIES {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while hub.waiting().await > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = started.elapsed();
    assert_eq!(
        received.load(Ordering::Relaxed),
        DELIVERIES,
        "no repetition"
    );
    stop.cancel();
    running.await.unwrap().unwrap();
    elapsed
}

struct HubClient {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl HubClient {
    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(format!("{}{path}", self.url));
        let response = request.bearer_auth(&self.token).json(&body).send().await;
        let response = response.unwrap().error_for_status().unwrap();
        response.json().await.unwrap()
    }

    async fn finish_job(&self) {
        let job = self.post("/v1/jobs", json!({ "owner": "alice" })).await;
        let path = format!("/v1/jobs/{}/updates", job["id"].as_str().unwrap());
        self.post(&path, json!({ "status": "succeeded" })).await;
    }

    /// Calls `enable` or `disable` of every endpoint.
    async fn operate(&self, operation: &str) {
        for n in 0..ENDPOINTS {
            let path = format!("/v1/destinations/endpoint-{n}/{operation}");
            self.post(&path, json!({})).await;
        }
    }

    async fn waiting(&self) -> usize {
        let request = self.http.get(format!("{}/v1/destinations", self.url));
        let response = request.bearer_auth(&self.token).send().await.unwrap();
        let body: Value = response.json().await.unwrap();
        let all = body["destinations"].as_array().unwrap().iter();
        let waiting: u64 = all.map(|it| it["waiting"].as_u64().unwrap()).sum();
        usize::try_from(waiting).unwrap()
    }
}

/// Starts a minimal HTTP server that counts requests. Returns its URL.
async fn start_endpoint(received: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&received)));
        }
    });
    url
}

async fn serve(mut stream: TcpStream, received: Arc<AtomicUsize>) {
    let mut buffer = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut buffer).await {
        while let Some(length) = request_length(&buffer) {
            buffer.drain(..length);
            received.fetch_add(1, Ordering::Relaxed);
            let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            if stream.write_all(response).await.is_err() {
                return;
            }
        }
    }
}

/// Returns the length of the first request, or `None` if it is incomplete.
fn request_length(buffer: &[u8]) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(buffer).ok()? else {
        return None;
    };
    let body = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| {
            std::str::from_utf8(header.value)
                .ok()?
                .parse::<usize>()
                .ok()
        })
        .unwrap_or(0);
    (buffer.len() >= head + body).then_some(head + body)
}
