//! Outbound webhooks: a job's end reaches the endpoints of the application.

mod attempts;
mod crash;
mod events;
mod foreign_libraries;
mod isolation;
mod operation;
mod receiver;
mod submitted_urls;

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::redis::RedisServer;
use crate::wait::wait_for;

/// Secret of the endpoints, and an older one.
pub const SECRET: &str = "whsec_b3V0Ym91bmQgc2VjcmV0IG9mIHRoZSB0ZXN0cw==";
pub const OLD_SECRET: &str = "whsec_b2xkZXIgb3V0Ym91bmQgc2VjcmV0IG9mIHRlc3Rz";

/// A schedule for tests.
const RETRIES: &str = r#"["20ms", "20ms", "20ms", "20ms", "20ms", "20ms"]"#;

/// Returns a hub that may send webhooks to loopback and repeats failed attempts soon.
pub fn hub() -> TestAppBuilder {
    TestApp::builder()
        .set("webhook_defaults.allow", "127.0.0.0/8")
        .set("deliveries.retries", RETRIES)
        .set("deliveries.pause", "50ms")
}

/// Adds an endpoint to a hub.
trait WithEndpoint {
    fn endpoint(self, name: &str, url: &str) -> Self;
}

impl WithEndpoint for TestAppBuilder {
    fn endpoint(self, name: &str, url: &str) -> Self {
        self.set(&format!("webhooks.{name}.url"), url)
            .set(&format!("webhooks.{name}.secrets"), SECRET)
    }
}

/// A store engine that a test runs on.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    Sqlite,
    Redis,
}

/// Runs a test on each engine.
macro_rules! on_each_engine {
    ($($(#[$meta:meta])* $test:ident($engine:ident) $body:block)+) => {$(
        mod $test {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() {
                test(Engine::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_redis() {
                test(Engine::Redis).await;
            }

            $(#[$meta])*
            async fn test($engine: Engine) $body
        }
    )+};
}
pub use foreign_libraries::skip;
pub(crate) use on_each_engine;

/// The server of an engine that needs one.
pub struct EngineServer(Option<RedisServer>);

impl Engine {
    pub async fn start(self) -> EngineServer {
        EngineServer(match self {
            Self::Sqlite => None,
            Self::Redis => Some(RedisServer::start().await),
        })
    }
}

impl EngineServer {
    /// Lets a hub use the engine.
    pub fn configure(&self, hub: TestAppBuilder) -> TestAppBuilder {
        match &self.0 {
            Some(redis) => hub.set("store.url", redis.url()),
            None => hub,
        }
    }
}

/// Registers a worker's job and ends it. Returns its id.
pub async fn finish_job(app: &TestApp, owner: &str) -> String {
    let id = app.register_worker_job(owner).await;
    let pushed = app.push_update(&id, json!({ "status": "succeeded" })).await;
    assert_eq!(pushed.body["applied"], true, "{}", pushed.body);
    id
}

pub async fn as_admin(app: &TestApp, method: Method, path: &str) -> TestResponse {
    let token = app.token("operator", "admin");
    send(app.request_with_token(method, path, &token)).await
}

/// Returns the deliveries that match a query, newest first.
pub async fn deliveries(app: &TestApp, query: &str) -> Vec<Value> {
    let path = format!("/v1/deliveries?limit=200&{query}");
    let response = as_admin(app, Method::GET, &path).await;
    assert_eq!(response.status, 200, "{}", response.body);
    response.body["deliveries"].as_array().unwrap().clone()
}

/// Waits until the only delivery of a job to a destination satisfies a condition, and returns it.
pub async fn wait_for_delivery(
    app: &TestApp,
    job: &str,
    destination: &str,
    is_done: impl Fn(&Value) -> bool,
) -> Value {
    let query = format!("job={job}&destination={destination}");
    wait_for("the delivery has the expected state", async || {
        let found = deliveries(app, &query).await;
        assert!(found.len() <= 1, "{found:?}");
        found
            .into_iter()
            .next()
            .filter(|delivery| is_done(delivery))
    })
    .await
}

pub async fn destination(app: &TestApp, name: &str) -> Value {
    let response = as_admin(app, Method::GET, "/v1/destinations").await;
    assert_eq!(response.status, 200, "{}", response.body);
    let all = response.body["destinations"].as_array().unwrap();
    let found = all.iter().find(|destination| destination["name"] == name);
    found.expect("the destination is listed").clone()
}

pub async fn wait_for_destination(
    app: &TestApp,
    name: &str,
    is_done: impl Fn(&Value) -> bool,
) -> Value {
    wait_for("the destination has the expected state", async || {
        Some(destination(app, name).await).filter(|it| is_done(it))
    })
    .await
}

/// Calls `test`, `enable` or `disable` of a destination.
pub async fn operate(app: &TestApp, name: &str, operation: &str) -> Value {
    let path = format!("/v1/destinations/{name}/{operation}");
    let response = as_admin(app, Method::POST, &path).await;
    assert_eq!(response.status, 200, "{}", response.body);
    response.body
}
