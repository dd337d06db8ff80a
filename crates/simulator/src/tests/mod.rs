//! The simulator with a plain client and a webhook receiver.
//!
//! No test sleeps. Every wait is for an event, with a generous deadline.

mod atlas;
mod clip;
mod dialects;
mod fal;
mod interface;
mod minimax;
mod outbound;
mod receiver;
mod replicate;
mod runway;
mod scenarios;
mod videos;
mod webhooks;

use std::future::Future;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::receiver::Receiver;
use super::{Inspector, Scenario, Settings, Simulator, Task};

const API_KEY: &str = "sim-key";
const SECRET: &str = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI=";

/// A running simulator, a receiver for its webhooks and a client.
struct Stage {
    url: String,
    inspector: Inspector,
    receiver: Receiver,
    client: Client,
    stop: CancellationToken,
    running: JoinHandle<std::io::Result<()>>,
}

impl Stage {
    async fn set() -> Self {
        Self::set_with(Some(SECRET)).await
    }

    async fn set_with(webhook_secret: Option<&str>) -> Self {
        let settings = Settings {
            api_key: API_KEY.to_owned(),
            webhook_secret: webhook_secret.map(str::to_owned),
            pace: Duration::from_millis(2),
            default_scenario: Scenario::Normal,
        };
        let simulator = Simulator::bind("127.0.0.1:0", settings).unwrap();
        let url = simulator.url();
        let inspector = simulator.inspector();
        let stop = CancellationToken::new();
        let receiver = Receiver::start(inspector.clone());
        let simulator = simulator.with_project_webhook(receiver.url()).unwrap();
        let running = tokio::spawn(simulator.run(stop.clone()));
        Self {
            url,
            inspector,
            receiver,
            client: Client::builder().no_proxy().build().unwrap(),
            stop,
            running,
        }
    }

    /// Builds a submit as the hub sends it.
    fn submit_body(&self, scenario: Scenario, external_id: &str) -> Value {
        json!({
            "prompt": "a sunrise over hills",
            "settings": {"duration": 5, "aspect_ratio": "16:9", "resolution": "720p"},
            "options": {"callback_url": self.receiver.url(), "external_task_id": external_id},
            "scenario": scenario,
        })
    }

    async fn try_submit(&self, submit_body: &Value) -> reqwest::Result<Response> {
        let url = format!("{}/text-to-video/kling-2.6", self.url);
        in_time(
            self.client
                .post(url)
                .bearer_auth(API_KEY)
                .json(submit_body)
                .send(),
        )
        .await
    }

    async fn submit(&self, scenario: Scenario, external_id: &str) -> (StatusCode, Value) {
        answer(
            self.try_submit(&self.submit_body(scenario, external_id))
                .await
                .unwrap(),
        )
        .await
    }

    /// Submits a job that is accepted, and waits until it is settled.
    async fn play(&self, scenario: Scenario) -> Task {
        let (status, _) = self.submit(scenario, "job_1").await;
        assert_eq!(status, StatusCode::OK);
        in_time(self.inspector.settled("job_1")).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = self
            .client
            .get(format!("{}{path}", self.url))
            .bearer_auth(API_KEY);
        answer(in_time(request.send()).await.unwrap()).await
    }

    /// Queries the job.
    async fn queried(&self) -> Value {
        let (status, body) = self.get("/tasks?external_task_ids=job_1").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body["data"].as_array().unwrap().len(), 1);
        body["data"][0].clone()
    }
}

async fn answer(response: Response) -> (StatusCode, Value) {
    (response.status(), response.json().await.unwrap())
}

/// Awaits a future with a deadline.
async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("in time")
}

#[tokio::test]
async fn stop_ends_the_run_during_a_task() {
    let stage = Stage::set().await;
    stage.receiver.hold();
    stage.submit(Scenario::Slow, "job_1").await;
    in_time(stage.receiver.received(1)).await;
    stage.stop.cancel();
    in_time(stage.running).await.unwrap().unwrap();
    assert!(!stage.inspector.tasks()[0].is_settled);
    // Another server may use the port by now, so check who answers.
    let asked = stage
        .client
        .get(format!("{}/tasks", stage.url))
        .send()
        .await;
    drop(asked);
    assert_eq!(stage.inspector.calls().queries_received, 0);
}

#[test]
fn malformed_secret_is_rejected_at_bind_and_not_repeated() {
    for secret in ["dGVzdA==", "whsec_", "whsec_not base64"] {
        let settings = Settings {
            api_key: API_KEY.to_owned(),
            webhook_secret: Some(secret.to_owned()),
            pace: Duration::from_millis(1),
            default_scenario: Scenario::Normal,
        };
        let Err(error) = Simulator::bind("127.0.0.1:0", settings) else {
            panic!("{secret} was taken")
        };
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(
            error.to_string(),
            "webhook secret is not whsec_ followed by base64"
        );
    }
}
