//! Providers' webhooks, sent until they are acknowledged, and a memory of each that was.
//!
//! Invariant: a job's webhooks are sent one after another, each with news that the one before did
//! not have, so at its end the document has a version for each. Of every other job, the document is
//! read in between: what was acknowledged is in it, whatever happened meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Addresses;
use crate::webhook_signatures;

/// Between two webhooks of one job.
const PACE: Duration = Duration::from_millis(200);

/// How long one webhook may be tried.
const STUBBORN: Duration = Duration::from_secs(30);

/// How long a refusal may take, noise of a busy machine included.
const PROMPT: Duration = Duration::from_secs(5);

/// What was sent and what was answered, of all jobs.
#[derive(Default)]
pub struct Books {
    /// Webhooks of each job that were answered 2xx, each counted once.
    pub acknowledged: BTreeMap<String, u64>,
    /// Answers 503, each with a `Retry-After`.
    pub refused: usize,
    /// Requests whose answer never came.
    pub unanswered: usize,
    /// Acknowledgements that it was known already: a try whose answer was lost had counted.
    pub known: usize,
    /// Readings that did not have what was acknowledged before.
    pub stale: usize,
    pub slowest_refusal: Duration,
    pub faults: Vec<String>,
}

pub struct Sender {
    books: Arc<Mutex<Books>>,
    sending: JoinSet<()>,
    bell: watch::Receiver<()>,
    finish: CancellationToken,
}

/// The task of one job, as the provider sees it.
#[derive(Clone)]
struct Task {
    name: String,
    job: String,
    token: String,
    /// Whether the job is read between two webhooks. The others press on into whatever happens.
    is_looked_after: bool,
    addresses: Addresses,
    http: reqwest::Client,
    books: Arc<Mutex<Books>>,
    ring: watch::Sender<()>,
}

/// What became of one request.
enum Answer {
    Acknowledged { applied: bool },
    Refused,
    None,
    Wrong(String),
}

impl Sender {
    /// Starts to tell the progress of tasks, given with their jobs, which this token may read.
    pub fn start(addresses: &Addresses, tasks: &[(String, String)], token: &str) -> Self {
        let (ring, bell) = watch::channel(());
        let (books, finish) = (Arc::default(), CancellationToken::new());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut sending = JoinSet::new();
        for (n, (name, job)) in tasks.iter().enumerate() {
            let task = Task {
                name: name.clone(),
                job: job.clone(),
                token: token.to_owned(),
                is_looked_after: n % 2 == 0,
                addresses: addresses.clone(),
                http: http.clone(),
                books: Arc::clone(&books),
                ring: ring.clone(),
            };
            sending.spawn(task.run(finish.clone()));
        }
        Self {
            books,
            sending,
            bell,
            finish,
        }
    }

    /// Waits until each job had this many more webhooks acknowledged than now.
    pub async fn flows(&self, more: u64) {
        let now = self.books.lock().unwrap().acknowledged.clone();
        let jobs = self.sending.len();
        self.until("flow", |books| {
            let has_more =
                |(job, count): (&String, &u64)| *count >= now.get(job).copied().unwrap_or(0) + more;
            books.acknowledged.len() == jobs && books.acknowledged.iter().all(has_more)
        })
        .await;
    }

    /// Waits until the books are as wished.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Books) -> bool) {
        let mut bell = self.bell.clone();
        let waiting = async {
            loop {
                bell.mark_unchanged();
                if is_so(&self.books.lock().unwrap()) {
                    return;
                }
                bell.changed().await.expect("somebody sends");
            }
        };
        let waited = tokio::time::timeout(STUBBORN, waiting).await;
        let books = self.books.lock().unwrap();
        assert!(
            waited.is_ok(),
            "webhooks do not {what}: {:?}, {} refused, {} unanswered",
            books.acknowledged,
            books.refused,
            books.unanswered
        );
    }

    /// Tells of each task's success, and waits until that is acknowledged.
    pub async fn finish(mut self) -> Books {
        self.finish.cancel();
        while let Some(sent) = self.sending.join_next().await {
            sent.unwrap();
        }
        std::mem::take(&mut *self.books.lock().unwrap())
    }
}

impl Task {
    async fn run(self, finish: CancellationToken) {
        for step in 1..10_000 {
            let percent = f64::from(step) / 100.0;
            let news = json!({ "task_id": self.name, "status": "running", "progress": percent });
            self.deliver(&news).await;
            let ends = finish.run_until_cancelled(tokio::time::sleep(PACE)).await;
            if self.is_looked_after {
                self.look_for(percent).await;
            }
            if ends.is_none() {
                break;
            }
        }
        let success = json!({ "task_id": self.name, "status": "succeeded" });
        self.deliver(&success).await;
    }

    /// Reads the job until what was acknowledged is in it.
    async fn look_for(&self, percent: f64) {
        let begun = Instant::now();
        loop {
            let job = self.read().await;
            let has_it = |job: &Value| job["progress"].as_f64() == Some(percent);
            if job.as_ref().is_some_and(has_it) {
                return;
            }
            self.books.lock().unwrap().stale += usize::from(job.is_some());
            assert!(begun.elapsed() < STUBBORN, "{percent} was lost: {job:?}");
            pause().await;
        }
    }

    /// The job by any hub that answers; none if it refuses, or is gone.
    async fn read(&self) -> Option<Value> {
        let address = self.addresses.any()?;
        let request = self.http.get(format!("{address}/v1/jobs/{}", self.job));
        let answer = request.timeout(PROMPT).bearer_auth(&self.token).send();
        let answer = answer.await.ok()?;
        (answer.status() != 503).then_some(())?;
        answer.json().await.ok()
    }

    /// Sends one webhook, to whichever hub, again and again until it is acknowledged.
    async fn deliver(&self, news: &Value) {
        let begun = Instant::now();
        loop {
            let asked = Instant::now();
            let answer = self.try_once(news).await;
            let is_done = matches!(answer, Answer::Acknowledged { .. });
            {
                let mut books = self.books.lock().unwrap();
                match answer {
                    Answer::Acknowledged { applied } => {
                        *books.acknowledged.entry(self.job.clone()).or_default() += 1;
                        books.known += usize::from(!applied);
                    }
                    Answer::Refused => {
                        books.refused += 1;
                        books.slowest_refusal = books.slowest_refusal.max(asked.elapsed());
                    }
                    Answer::None => books.unanswered += 1,
                    Answer::Wrong(fault) => books.faults.push(fault),
                }
            }
            self.ring.send_replace(());
            if is_done {
                return;
            }
            assert!(begun.elapsed() < STUBBORN, "never acknowledged: {news}");
            pause().await;
        }
    }

    async fn try_once(&self, news: &Value) -> Answer {
        let Some(address) = self.addresses.any() else {
            return Answer::None;
        };
        let body = news.to_string();
        let signature = webhook_signatures::hex("hub_test_secret", body.as_bytes());
        let request = self
            .http
            .post(format!("{address}/v1/webhooks/generic"))
            .timeout(PROMPT)
            .header("x-ai-signature", signature)
            .body(body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => {
                return Answer::Wrong(format!("{}: no answer in time", self.name));
            }
            Err(_) => return Answer::None,
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let Ok(told) = answer.json::<Value>().await else {
            return Answer::None;
        };
        match status.as_u16() {
            200 if told["matched"] == true => Answer::Acknowledged {
                applied: told["applied"] == true,
            },
            503 if headers.contains_key("retry-after") => Answer::Refused,
            _ => Answer::Wrong(format!("{}: {status} {told}", self.name)),
        }
    }
}

/// Between two tries. A provider's patience is minutes; a test's is less.
async fn pause() {
    let wait = Duration::from_millis(rand::rng().random_range(50..250));
    tokio::time::sleep(wait).await;
}
