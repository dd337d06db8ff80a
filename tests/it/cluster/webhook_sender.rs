//! Providers that send each webhook until it is acknowledged, and a log of the deliveries.
//!
//! The webhooks of a job are sent one at a time, each with a new progress, so the final document has
//! one version for each. Between two webhooks, half of the providers read the job until it contains what
//! was acknowledged. The others keep sending.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{NodeAddresses, random_delay};
use crate::app::TEST_TIMEOUT;
use crate::webhook_signatures;

/// Interval between the webhooks of one job.
const WEBHOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Delay before a rejected or lost request is repeated.
const RETRY_DELAY: std::ops::Range<Duration> =
    Duration::from_millis(50)..Duration::from_millis(250);

/// The results of all webhooks.
#[derive(Clone, Default)]
pub struct DeliveryLog {
    /// Acknowledged webhooks of each job, without repetitions.
    pub acknowledged: BTreeMap<String, u64>,
    /// Reads of a job that did not contain an acknowledged webhook.
    pub stale_reads: usize,
    pub errors: Vec<String>,
}

/// The providers of all jobs.
pub struct WebhookSender {
    log: Arc<watch::Sender<DeliveryLog>>,
    providers: JoinSet<()>,
    finish: CancellationToken,
}

/// The provider of one job.
struct Provider {
    task: String,
    job: String,
    token: String,
    reads_job: bool,
    addresses: NodeAddresses,
    http: reqwest::Client,
    log: Arc<watch::Sender<DeliveryLog>>,
}

/// The response to one webhook.
enum Response {
    Acknowledged,
    /// 503, or no response. The webhook is sent again.
    Failed,
    Invalid(String),
}

impl WebhookSender {
    /// Starts to report the progress of `tasks`, which are pairs of a task and its job. The token
    /// must grant read access to the jobs.
    pub fn start(addresses: &NodeAddresses, tasks: &[(String, String)], token: &str) -> Self {
        let (log, finish) = (Arc::default(), CancellationToken::new());
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(TEST_TIMEOUT)
            .build()
            .unwrap();
        let mut providers = JoinSet::new();
        for (number, (task, job)) in tasks.iter().enumerate() {
            let provider = Provider {
                task: task.clone(),
                job: job.clone(),
                token: token.to_owned(),
                reads_job: number % 2 == 0,
                addresses: addresses.clone(),
                http: http.clone(),
                log: Arc::clone(&log),
            };
            providers.spawn(provider.run(finish.clone()));
        }
        Self {
            log,
            providers,
            finish,
        }
    }

    /// Waits until `count` more webhooks of each job are acknowledged.
    pub async fn wait_for_acknowledged(&self, count: u64) {
        let start = self.log.borrow().acknowledged.clone();
        let jobs = self.providers.len();
        let is_reached = |log: &DeliveryLog| {
            let reached = log.acknowledged.iter().filter(|(job, acknowledged)| {
                **acknowledged >= start.get(*job).copied().unwrap_or(0) + count
            });
            reached.count() == jobs
        };
        let mut log = self.log.subscribe();
        let waited = tokio::time::timeout(TEST_TIMEOUT, log.wait_for(is_reached)).await;
        assert!(
            waited.is_ok(),
            "webhooks are not acknowledged: {:?}",
            self.log.borrow().acknowledged
        );
    }

    /// Reports the success of each task, and waits until that is acknowledged.
    pub async fn finish(mut self) -> DeliveryLog {
        self.finish.cancel();
        while let Some(result) = self.providers.join_next().await {
            result.unwrap();
        }
        self.log.borrow().clone()
    }
}

impl Provider {
    async fn run(self, finish: CancellationToken) {
        let mut interval = interval(WEBHOOK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval.tick().await;
        for step in 1..10_000 {
            let progress = f64::from(step) / 100.0;
            let report = json!({ "task_id": self.task, "status": "running", "progress": progress });
            self.deliver(&report).await;
            let is_finishing = finish.run_until_cancelled(interval.tick()).await.is_none();
            if self.reads_job {
                self.read_until(progress).await;
            }
            if is_finishing {
                break;
            }
        }
        let success = json!({ "task_id": self.task, "status": "succeeded" });
        self.deliver(&success).await;
    }

    /// Reads the job until it has a progress that was acknowledged.
    async fn read_until(&self, progress: f64) {
        let started_at = Instant::now();
        loop {
            let job = self.read().await;
            match &job {
                Some(job) if job["progress"].as_f64() == Some(progress) => return,
                Some(_) => self.log.send_modify(|log| log.stale_reads += 1),
                None => {}
            }
            assert!(
                started_at.elapsed() < TEST_TIMEOUT,
                "progress {progress} was lost: {job:?}"
            );
            random_delay(RETRY_DELAY).await;
        }
    }

    /// Reads the job from a random hub. Returns `None` if that hub is unavailable.
    async fn read(&self) -> Option<Value> {
        let address = self.addresses.any()?;
        let request = self.http.get(format!("{address}/v1/jobs/{}", self.job));
        let response = request.bearer_auth(&self.token).send().await.ok()?;
        if response.status() == 503 {
            return None;
        }
        response.json().await.ok()
    }

    /// Sends a webhook to random hubs until one acknowledges it.
    async fn deliver(&self, report: &Value) {
        let started_at = Instant::now();
        loop {
            match self.try_deliver(report).await {
                Response::Acknowledged => {
                    return self.log.send_modify(|log| {
                        *log.acknowledged.entry(self.job.clone()).or_default() += 1;
                    });
                }
                Response::Failed => {}
                Response::Invalid(error) => self.log.send_modify(|log| log.errors.push(error)),
            }
            assert!(
                started_at.elapsed() < TEST_TIMEOUT,
                "never acknowledged: {report}"
            );
            random_delay(RETRY_DELAY).await;
        }
    }

    async fn try_deliver(&self, report: &Value) -> Response {
        let Some(address) = self.addresses.any() else {
            return Response::Failed;
        };
        let body = report.to_string();
        let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
        let request = self
            .http
            .post(format!("{address}/v1/webhooks/generic"))
            .header("x-ai-signature", signature)
            .body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_timeout() => {
                return Response::Invalid(format!("{}: request timed out", self.task));
            }
            Err(_) => return Response::Failed,
        };
        let status = response.status().as_u16();
        let has_retry_after = response.headers().contains_key("retry-after");
        match (status, response.json::<Value>().await) {
            (_, Err(_)) => Response::Failed,
            (200, Ok(body)) if body["matched"] == true => Response::Acknowledged,
            (503, Ok(_)) if has_retry_after => Response::Failed,
            (_, Ok(body)) => Response::Invalid(format!("{}: {status} {body}", self.task)),
        }
    }
}
