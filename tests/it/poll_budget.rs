//! The number of polls: with and without webhooks, after untrusted webhooks, and after a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub_simulator::{Counts, Scenario, Settings, Simulator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

const JOBS: usize = 1_000;

/// One in this number of jobs loses its webhooks in every scenario.
const LOST_WEBHOOKS_INTERVAL: usize = 50;

/// Runs jobs of ten seconds each and returns what the provider received. The poll policy is the
/// default (after 60 s, then every 15 s) with one second in place of 15.
async fn run_jobs(scenario: Scenario) -> Counts {
    let simulator = Simulator::bind(
        "127.0.0.1:0",
        Settings {
            api_key: "a key".to_owned(),
            webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
            pace: Duration::from_secs(2),
            default_scenario: scenario,
        },
    )
    .unwrap();
    let inspector = simulator.inspector();
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", simulator.url())
        .set("providers.kling.api_key", "a key")
        .set("providers.kling.webhook_secrets", WEBHOOK_SECRET)
        .set("providers.kling.poll_after", "4s")
        .set("providers.kling.poll_every", "1s")
        .set("providers.kling.cool_down", "1s")
        .set("providers.kling.max_concurrent", JOBS)
        .set("limits.submits_per_minute", 1_000_000)
        .set("limits.queued_jobs", 1_000_000)
        .spawn()
        .await;
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    tokio::spawn(simulator.run(stop));
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        let scenario = if n % LOST_WEBHOOKS_INTERVAL == 0 {
            Scenario::LostWebhooks
        } else {
            scenario
        };
        let body = json!({
            "provider": "kling",
            "model": "kling-v3.0-pro",
            "prompt": "a lighthouse in the rain",
            "input": { "scenario": scenario, "steps": 3 },
        });
        let request = app.request(Method::POST, "/v1/videos", "alice");
        let response = send(request.json(&body)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        jobs.push(response.body["id"].as_str().unwrap().to_owned());
    }
    for job in &jobs {
        let job = app.wait_until_final(job, "alice").await;
        assert_eq!(job["status"], "succeeded");
    }
    let counts = inspector.calls_in("kling");
    assert_eq!(counts.submits_accepted, JOBS as u64);
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_reduce_polling_by_90_percent() {
    let webhooks = run_jobs(Scenario::Normal).await;
    let polling = run_jobs(Scenario::LostWebhooks).await;
    assert_eq!(polling.callbacks_sent, 0);
    assert!(webhooks.callbacks_acknowledged > 0 && polling.queries_received > 0);
    let ratio = webhooks.queries_received as f64 / polling.queries_received as f64;
    assert!(
        ratio < 0.1,
        "{} polls with webhooks, {} without: {ratio:.3}",
        webhooks.queries_received,
        polling.queries_received
    );
}

/// Number of polls that overlap with one poll: the concurrency limit of the hub minus one.
const OVERLAP: usize = 7;

/// A provider with Seedance's API, which does not sign webhooks. Tasks stay `running`.
struct UnsignedProvider {
    provider: MockProvider,
    polls: watch::Receiver<usize>,
    max_concurrent_polls: Arc<AtomicUsize>,
    /// Whether polls get no response.
    is_silent: Arc<AtomicBool>,
    /// Number of polls that the test expects. Until then, a poll gets its response when the next
    /// [`OVERLAP`] polls have started, so that polls overlap.
    expected_polls: Arc<AtomicUsize>,
}

impl UnsignedProvider {
    async fn start() -> Self {
        let (sender, polls) = watch::channel(0);
        let max_concurrent_polls = Arc::<AtomicUsize>::default();
        let is_silent = Arc::<AtomicBool>::default();
        let expected_polls = Arc::<AtomicUsize>::default();
        let (max, silent) = (max_concurrent_polls.clone(), is_silent.clone());
        let expected_count = expected_polls.clone();
        let (running, tasks) = (Arc::<AtomicUsize>::default(), AtomicUsize::new(0));
        let provider = MockProvider::start(move |request: RecordedRequest| {
            let (max, running, silent) = (max.clone(), running.clone(), silent.clone());
            let (sender, expected) = (sender.clone(), expected_count.clone());
            let is_submission = request.method == "POST";
            let task = tasks.fetch_add(usize::from(is_submission), SeqCst);
            async move {
                if is_submission {
                    return MockResponse::json(200, &json!({ "id": format!("cgt-{task}") }));
                }
                max.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                let mut number = 0;
                sender.send_modify(|polls| {
                    *polls += 1;
                    number = *polls;
                });
                if silent.load(SeqCst) {
                    std::future::pending::<()>().await;
                }
                let next = expected.load(SeqCst).min(number + OVERLAP);
                let mut polls = sender.subscribe();
                drop(polls.wait_for(|polls| *polls >= next).await);
                running.fetch_sub(1, SeqCst);
                let id = request.path.rsplit('/').next().unwrap();
                MockResponse::json(200, &json!({ "id": id, "status": "running" }))
            }
        })
        .await;
        Self {
            provider,
            polls,
            max_concurrent_polls,
            is_silent,
            expected_polls,
        }
    }

    /// Configures a hub that polls only after webhooks.
    fn hub(&self, cool_down: &str) -> TestAppBuilder {
        let settings = [
            ("spec", "seedance"),
            ("base_url", &self.provider.url),
            ("api_key", "a key"),
            ("poll_after", "1h"),
            ("poll_every", "1h"),
            ("cool_down", cool_down),
            ("max_concurrent", "1000"),
        ];
        let hub = TestApp::builder().set("limits.submits_per_minute", "1000000");
        settings.into_iter().fold(hub, |hub, (key, value)| {
            hub.set(&format!("providers.seedance.{key}"), value)
        })
    }

    /// Submits jobs, waits until the provider has accepted them, and returns their callback URLs.
    async fn submit_jobs(&self, app: &TestApp, count: usize) -> Vec<String> {
        let submissions = (0..count).map(|_| async {
            let body = json!({ "provider": "seedance", "model": "s", "prompt": "a lighthouse" });
            let request = app.request(Method::POST, "/v1/videos", "alice");
            let response = send(request.json(&body)).await;
            assert_eq!(response.status, 202, "{}", response.body);
            response.body["id"].as_str().unwrap().to_owned()
        });
        for id in join_all(submissions).await {
            let is_accepted = |job: &Value| !job["provider_task_id"].is_null();
            app.wait_for_job(&id, "alice", is_accepted).await;
        }
        let requests = self.provider.requests();
        let urls = requests
            .iter()
            .filter_map(|request| request.body["callback_url"].as_str());
        urls.map(str::to_owned).collect()
    }

    async fn wait_for_polls(&self, count: usize) {
        let mut polls = self.polls.clone();
        let wait = polls.wait_for(|polls| *polls >= count);
        let is_reached = tokio::time::timeout(TEST_TIMEOUT, wait).await.is_ok();
        assert!(is_reached, "{} of {count} polls", self.poll_count());
    }

    fn poll_count(&self) -> usize {
        *self.polls.borrow()
    }
}

fn http_client() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy();
    builder.build().unwrap()
}

/// Posts a webhook that the hub must confirm by a poll.
async fn post_untrusted_webhook(http: &reqwest::Client, url: &str) {
    let body = json!({ "id": "whatever", "status": "succeeded" });
    let response = http.post(url).json(&body).send().await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
}

/// Posts one untrusted webhook to the path of each callback URL at `app`, all at the same time.
async fn post_untrusted_webhooks(http: &reqwest::Client, app: &TestApp, callback_urls: &[String]) {
    let posts = callback_urls.iter().map(|callback_url| {
        let (_, path) = callback_url.split_once("/v1/").unwrap();
        let url = format!("{}/v1/{path}", app.url);
        async move { post_untrusted_webhook(http, &url).await }
    });
    join_all(posts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_webhooks_cause_one_poll_per_cool_down() {
    const COOL_DOWN: Duration = Duration::from_millis(500);
    let http = http_client();
    let seedance = UnsignedProvider::start().await;
    let app = seedance.hub("500ms").spawn().await;
    let urls = seedance.submit_jobs(&app, 1).await;
    let started_at = Instant::now();
    let mut webhooks = 0;
    while seedance.poll_count() < 2 {
        post_untrusted_webhooks(&http, &app, &vec![urls[0].clone(); 10]).await;
        webhooks += 10;
        assert!(started_at.elapsed() < TEST_TIMEOUT, "no second poll");
    }
    let cool_downs = started_at.elapsed().as_millis() / COOL_DOWN.as_millis() + 1;
    let polls = seedance.poll_count();
    assert!(
        polls as u128 <= cool_downs,
        "{webhooks} webhooks: {polls} polls in {cool_downs} cool-downs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_from_untrusted_webhooks_are_jittered() {
    let http = http_client();
    let seedance = UnsignedProvider::start().await;
    let app = seedance.hub("500ms").spawn().await;
    let urls = seedance.submit_jobs(&app, 200).await;
    assert_eq!(urls.len(), 200);
    seedance.expected_polls.store(200, SeqCst);
    post_untrusted_webhooks(&http, &app, &urls).await;
    seedance.wait_for_polls(200).await;
    let max = seedance.max_concurrent_polls.load(SeqCst);
    assert!((2..=8).contains(&max), "{max} concurrent polls");
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_after_a_crash_are_jittered() {
    let http = http_client();
    let seedance = UnsignedProvider::start().await;
    let app = seedance.hub("1h").spawn_process(&[]).await;
    seedance.is_silent.store(true, SeqCst);
    let urls = seedance.submit_jobs(&app, 300).await;
    let data_dir = app.kill();
    // Webhooks make all 300 polls due at a hub whose provider does not respond.
    let app = seedance
        .hub("100ms")
        .data_dir(data_dir)
        .spawn_process(&[])
        .await;
    post_untrusted_webhooks(&http, &app, &urls).await;
    seedance.wait_for_polls(8).await;
    assert_eq!(seedance.max_concurrent_polls.load(SeqCst), 8);
    let data_dir = app.kill();
    seedance.is_silent.store(false, SeqCst);
    let before = seedance.poll_count();
    seedance.expected_polls.store(before + 300, SeqCst);
    let app = seedance
        .hub("100ms")
        .data_dir(data_dir)
        .spawn_process(&[])
        .await;
    post_untrusted_webhooks(&http, &app, &urls).await;
    seedance.wait_for_polls(before + 300).await;
    // The provider still counts the eight polls of the hub that was killed.
    let max = seedance.max_concurrent_polls.load(SeqCst);
    assert!((8..=16).contains(&max), "{max} concurrent polls");
    drop(app.kill());
}
