//! The receiver of a hub's outbound webhooks: verification and faults.

use reqwest::redirect::Policy;
use serde_json::{Value, json};

use super::super::signing::SigningKeys;
use super::super::task::now_ms;
use super::*;

/// A running simulator that verifies webhooks, and a client that signs them.
struct Endpoint {
    url: String,
    client: Client,
    keys: SigningKeys,
    stop: CancellationToken,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Endpoint {
    fn start() -> Self {
        let settings = Settings {
            api_key: API_KEY.to_owned(),
            webhook_secret: None,
            pace: Duration::from_millis(2),
            default_scenario: Scenario::Normal,
        };
        let simulator = Simulator::bind("127.0.0.1:0", settings).unwrap();
        let simulator = simulator.with_receiver_secret(SECRET).unwrap();
        let (url, stop) = (simulator.url(), CancellationToken::new());
        tokio::spawn(simulator.run(stop.clone()));
        let client = Client::builder().no_proxy().redirect(Policy::none());
        Self {
            url,
            client: client.build().unwrap(),
            keys: SigningKeys::new(Some(SECRET)).unwrap(),
            stop,
        }
    }

    async fn send_signed_by(&self, keys: &SigningKeys, path: &str, at_seconds: u64) -> Response {
        let body = br#"{"type":"job.succeeded"}"#;
        let mut request = self.client.post(format!("{}{path}", self.url));
        for (name, value) in keys.standard("job_1.2.job-succeeded.app", at_seconds, body) {
            request = request.header(name, value);
        }
        in_time(request.body(&body[..]).send()).await.unwrap()
    }

    async fn send(&self, path: &str) -> Response {
        self.send_signed_by(&self.keys, path, now_ms() / 1000).await
    }

    async fn received(&self) -> Vec<Value> {
        let url = format!("{}/simulator/received", self.url);
        let response = in_time(self.client.get(url).send()).await.unwrap();
        response.json().await.unwrap()
    }
}

#[tokio::test]
async fn receiver_verifies_signature_and_timestamp() {
    let endpoint = Endpoint::start();
    assert_eq!(endpoint.send("/receiver").await.status(), 200);
    let now = now_ms() / 1000;
    let forged = SigningKeys::forged().unwrap();
    for response in [
        endpoint.send_signed_by(&forged, "/receiver", now).await,
        endpoint
            .send_signed_by(&endpoint.keys, "/receiver", now - 600)
            .await,
        in_time(
            endpoint
                .client
                .post(format!("{}/receiver", endpoint.url))
                .send(),
        )
        .await
        .unwrap(),
    ] {
        assert_eq!(response.status(), 401);
    }
    let received = endpoint.received().await;
    let verified: Vec<&Value> = received
        .iter()
        .map(|webhook| &webhook["verified"])
        .collect();
    assert_eq!(verified, [true, false, false, false]);
    assert_eq!(received[0]["id"], "job_1.2.job-succeeded.app");
    assert_eq!(received[0]["body"], json!({ "type": "job.succeeded" }));
}

#[tokio::test]
async fn receiver_fails_as_the_query_demands() {
    let endpoint = Endpoint::start();
    let limited = endpoint.send("/receiver?status=429&retry_after=7").await;
    assert_eq!(limited.status(), 429);
    assert_eq!(limited.headers()["retry-after"], "7");
    let redirected = endpoint.send("/receiver?redirect=/elsewhere").await;
    assert_eq!(redirected.status(), 307);
    assert_eq!(redirected.headers()["location"], "/elsewhere");
    assert_eq!(endpoint.send("/receiver?delay=0.01").await.status(), 200);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let response = endpoint.send("/receiver/app?status=503&times=2").await;
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [503, 503, 200]);
    // A misspelled parameter is an error of the test that uses it.
    assert_eq!(endpoint.send("/receiver?stats=500").await.status(), 400);
    let received = endpoint.received().await;
    assert_eq!(received.len(), 6);
}
