//! What it costs to know: requests to a provider that calls back, against those to one that does not.
//!
//! Invariant: both stories are of the same jobs, the same hub and the same cadence, which is the built-in one
//! (ask after 60 s of silence and then every 15 s) with a second for every 15.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use progress_hub_simulator::{Counts, Scenario, Settings, Simulator};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, WEBHOOK_SECRET, send};
use crate::mock_provider::{MockProvider, MockResponse, RecordedRequest};

const JOBS: usize = 1_000;
/// Every so many jobs lose their webhooks even where there are some.
const LOST: usize = 50;

/// Runs the jobs, each ten seconds long, and tells what was asked of the provider.
async fn run(scenario: Scenario) -> Counts {
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
    let witness = simulator.inspector();
    let app = TestApp::builder()
        .set("providers.kling.spec", "kling")
        .set("providers.kling.base_url", simulator.url())
        .set("providers.kling.api_key", "a key")
        .set("providers.kling.webhook_secrets", WEBHOOK_SECRET)
        .set("providers.kling.poll_after", "4s")
        .set("providers.kling.poll_every", "1s")
        .set("providers.kling.cool_down", "1s")
        .set("providers.kling.max_concurrent", JOBS)
        .spawn()
        .await;
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    tokio::spawn(simulator.run(stop));
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        let scenario = if n % LOST == 0 {
            Scenario::LostWebhooks
        } else {
            scenario
        };
        let order = json!({
            "provider": "kling",
            "model": "kling-v3.0-pro",
            "prompt": "a lighthouse in the rain",
            "input": { "scenario": scenario, "steps": 3 },
        });
        let submit = app.request(Method::POST, "/v1/videos", "alice");
        let answer = send(submit.json(&order)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        jobs.push(answer.body["id"].as_str().unwrap().to_owned());
    }
    for job in &jobs {
        assert_eq!(
            app.wait_until_final(job, "alice").await["status"],
            "succeeded"
        );
    }
    let counts = witness.calls_in("kling");
    assert_eq!(counts.submits_accepted, JOBS as u64);
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_reduce_polling_by_90_percent() {
    let told = run(Scenario::Normal).await;
    let asked = run(Scenario::LostWebhooks).await;
    let ratio = told.queries_received as f64 / asked.queries_received as f64;
    println!(
        "{JOBS} jobs: {} reads ({} tasks) with webhooks, {} reads ({} tasks) by polling alone: {ratio:.3}",
        told.queries_received, told.tasks_queried, asked.queries_received, asked.tasks_queried,
    );
    assert_eq!(asked.callbacks_sent, 0);
    assert!(told.callbacks_acknowledged > 0 && asked.queries_received > 0);
    assert!(ratio < 0.1, "{ratio}");
}

/// A Seedance, which signs nothing: what it was told to call back, and how often and how densely it was asked.
struct Unsigned {
    provider: MockProvider,
    asked: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    /// Whether questions are answered at all.
    is_silent: Arc<AtomicBool>,
}

impl Unsigned {
    async fn start() -> Self {
        let (asked, at_once) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let is_silent = Arc::<AtomicBool>::default();
        let (count, most, hush) = (asked.clone(), at_once.clone(), is_silent.clone());
        let (now, made) = (Arc::<AtomicUsize>::default(), AtomicUsize::new(0));
        let provider = MockProvider::start(move |asked: RecordedRequest| {
            let (count, most, now) = (count.clone(), most.clone(), now.clone());
            let (task, hush) = (made.load(SeqCst), hush.clone());
            if asked.method == "POST" {
                made.fetch_add(1, SeqCst);
            }
            async move {
                if asked.method == "POST" {
                    return MockResponse::json(200, &json!({ "id": format!("cgt-{task}") }));
                }
                count.fetch_add(1, SeqCst);
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                let pause = if hush.load(SeqCst) { 60_000 } else { 20 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
                now.fetch_sub(1, SeqCst);
                let id = asked.path.rsplit('/').next().unwrap().to_owned();
                MockResponse::json(200, &json!({ "id": id, "status": "running" }))
            }
        })
        .await;
        Self {
            provider,
            asked,
            at_once,
            is_silent,
        }
    }

    fn hub(&self, poll_after: &str, cool_down: &str) -> TestAppBuilder {
        let settings = [
            ("spec", "seedance"),
            ("base_url", &self.provider.url),
            ("api_key", "a key"),
            ("poll_after", poll_after),
            ("poll_every", "1h"),
            ("cool_down", cool_down),
            ("max_concurrent", "1000"),
        ];
        let hub = TestApp::builder().set("limits.submits_per_minute", "1000000");
        settings.into_iter().fold(hub, |hub, (key, value)| {
            hub.set(&format!("providers.seedance.{key}"), value)
        })
    }

    /// Has jobs submitted, and waits until the provider has them; the addresses that it may call.
    async fn take(&self, app: &TestApp, jobs: usize) -> Vec<String> {
        let orders = (0..jobs).map(|_| async {
            let order = json!({ "provider": "seedance", "model": "s", "prompt": "a lighthouse" });
            let submit = app.request(Method::POST, "/v1/videos", "alice");
            let answer = send(submit.json(&order)).await;
            assert_eq!(answer.status, 202, "{}", answer.body);
            answer.body["id"].as_str().unwrap().to_owned()
        });
        for id in join_all(orders).await {
            let is_there = |job: &Value| !job["provider_task_id"].is_null();
            app.wait_for_job(&id, "alice", is_there).await;
        }
        let asked = self.provider.requests();
        let urls = asked
            .iter()
            .filter_map(|it| it.body["callback_url"].as_str());
        urls.map(str::to_owned).collect()
    }

    async fn until_asked(&self, questions: usize) {
        let waiting = async {
            while self.asked.load(SeqCst) < questions {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(TEST_TIMEOUT, waiting).await;
        assert!(waited.is_ok(), "{} of {questions}", self.asked.load(SeqCst));
    }
}

/// Tells a hub unsigned news, which it must look up before it believes them.
async fn nudge(http: &reqwest::Client, url: &str) {
    let news = json!({ "id": "whatever", "status": "succeeded" });
    let answer = http.post(url).json(&news).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn untrusted_webhooks_cause_one_poll_per_cool_down() {
    const COOL_DOWN: Duration = Duration::from_millis(500);
    let seedance = Unsigned::start().await;
    let app = seedance.hub("1h", "500ms").spawn().await;
    let urls = seedance.take(&app, 1).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let begun = Instant::now();
    for _ in 0..50 {
        join_all((0..10).map(|_| nudge(&http, &urls[0]))).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seedance.until_asked(2).await;
    let cool_downs = begun.elapsed().as_millis() / COOL_DOWN.as_millis() + 1;
    let asked = seedance.asked.load(SeqCst);
    println!("500 nudges: {asked} questions in {cool_downs} cool-downs begun");
    assert!(asked as u128 <= cool_downs, "{asked} in {cool_downs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_from_untrusted_webhooks_are_jittered() {
    let seedance = Unsigned::start().await;
    let app = seedance.hub("1h", "500ms").spawn().await;
    let urls = seedance.take(&app, 200).await;
    assert_eq!(urls.len(), 200);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    join_all(urls.iter().map(|url| nudge(&http, url))).await;
    seedance.until_asked(200).await;
    let most = seedance.at_once.load(SeqCst);
    println!("200 nudges at once: {most} questions at once");
    assert!((2..=8).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_after_a_crash_are_jittered() {
    let seedance = Unsigned::start().await;
    let app = seedance.hub("1h", "1h").spawn_process(&[]).await;
    seedance.is_silent.store(true, SeqCst);
    let urls = seedance.take(&app, 300).await;
    let folder = app.kill();
    // Nudges are what makes them due: all 300 of them, to a hub whose provider does not answer.
    let app = seedance
        .hub("1h", "100ms")
        .data_dir(folder)
        .spawn_process(&[])
        .await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let tell = urls.iter().map(|url| {
        let path = url.split_once("/v1/").unwrap().1;
        let url = format!("{}/v1/{path}", app.url);
        let http = &http;
        async move { nudge(http, &url).await }
    });
    join_all(tell).await;
    seedance.until_asked(8).await;
    assert_eq!(seedance.at_once.load(SeqCst), 8);
    let folder = app.kill();
    seedance.is_silent.store(false, SeqCst);
    let before = seedance.asked.load(SeqCst);
    let app = seedance
        .hub("1h", "100ms")
        .data_dir(folder)
        .spawn_process(&[])
        .await;
    let again = urls.iter().map(|url| {
        let path = url.split_once("/v1/").unwrap().1;
        let url = format!("{}/v1/{path}", app.url);
        let http = &http;
        async move { nudge(http, &url).await }
    });
    join_all(again).await;
    seedance.until_asked(before + 300).await;
    // The eight of the hub that was killed are still on the provider's books.
    let most = seedance.at_once.load(SeqCst);
    println!("300 jobs after a kill: {most} questions at once, those of the killed hub included");
    assert!((8..=16).contains(&most), "{most}");
    drop(app.kill());
}
