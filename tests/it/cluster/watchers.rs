//! Watchers by the hundred, each with its own socket and its own memory of what it was shown.
//!
//! Invariant: a watcher remembers across its sockets, as a page does; what goes back, comes in two
//! forms or is not asked for is written down as a fault and forgotten by nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use super::Addresses;
use crate::app::TEST_TIMEOUT;
use crate::client::upgrade_request;

/// How long a fleet may take to be whole again after what was done to it.
const RECOVERY: Duration = Duration::from_secs(30);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What one watcher wants to see.
pub enum Wish {
    Jobs(Vec<String>),
    /// All jobs of whoever its token names.
    Mine,
}

/// What one watcher was shown.
pub struct Seen {
    wish: Wish,
    /// The number of its hub.
    pub home: usize,
    /// The newest document of each job.
    pub jobs: BTreeMap<String, Value>,
    /// Each version that it was shown, and how far the job was.
    pub history: Vec<(String, u64, Value)>,
    pub messages: usize,
    /// Documents that it had already.
    pub repeated: usize,
    pub is_subscribed: bool,
    /// How often it was told to subscribe later.
    pub put_off: usize,
    pub is_degraded: bool,
    /// How often it was told so.
    pub degraded: usize,
    pub restored: usize,
    /// When it tried to connect again.
    pub reconnects: Vec<Instant>,
    /// How its sockets ended.
    pub closed: Vec<Option<u16>>,
    pub faults: Vec<String>,
}

impl Seen {
    fn of(wish: Wish, home: usize) -> Self {
        Self {
            wish,
            home,
            jobs: BTreeMap::new(),
            history: Vec::new(),
            messages: 0,
            repeated: 0,
            is_subscribed: false,
            put_off: 0,
            is_degraded: false,
            degraded: 0,
            restored: 0,
            reconnects: Vec::new(),
            closed: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Whether it has the newest version of everything that it wants to see.
    fn is_current(&self, truth: &BTreeMap<String, Value>) -> bool {
        let has = |id: &String| self.jobs.get(id) == truth.get(id);
        match &self.wish {
            Wish::Jobs(jobs) => jobs.iter().all(has),
            Wish::Mine => truth.keys().all(has),
        }
    }

    fn show(&mut self, job: &Value) {
        let id = job["id"].as_str().unwrap();
        if let Wish::Jobs(jobs) = &self.wish
            && !jobs.iter().any(|wanted| wanted == id)
        {
            self.faults.push(format!("{id}: never asked for"));
        }
        let version = |job: &Value| job["version"].as_u64().unwrap();
        match self.jobs.get(id) {
            // Whoever subscribes anew may meet what is on its way to him just then.
            Some(before) if before == job => self.repeated += 1,
            Some(before) if version(job) <= version(before) => {
                self.faults.push(format!("{before}, and then {job}"));
            }
            Some(_) | None => {}
        }
        let point = (id.to_owned(), version(job), job["progress"].clone());
        self.history.push(point);
        self.jobs.insert(id.to_owned(), job.clone());
    }
}

/// All watchers.
pub struct Audience {
    seen: Vec<Arc<Mutex<Seen>>>,
    watching: JoinSet<()>,
    /// Rings whenever anybody has seen anything.
    bell: watch::Receiver<()>,
    leave: CancellationToken,
}

struct Watcher {
    addresses: Addresses,
    home: usize,
    token: String,
    seen: Arc<Mutex<Seen>>,
    ring: watch::Sender<()>,
    leave: CancellationToken,
}

impl Audience {
    /// Seats a watcher per wish, at the node of its number, and waits until all have subscribed.
    pub async fn gather(addresses: &Addresses, token: &str, wishes: Vec<(usize, Wish)>) -> Self {
        let (ring, bell) = watch::channel(());
        let leave = CancellationToken::new();
        let (mut seen, mut watching) = (Vec::new(), JoinSet::new());
        for (home, wish) in wishes {
            let watcher = Watcher {
                addresses: addresses.clone(),
                home,
                token: token.to_owned(),
                seen: Arc::new(Mutex::new(Seen::of(wish, home))),
                ring: ring.clone(),
                leave: leave.clone(),
            };
            seen.push(Arc::clone(&watcher.seen));
            watching.spawn(watcher.watch());
        }
        let audience = Self {
            seen,
            watching,
            bell,
            leave,
        };
        audience
            .until("are subscribed", |seen| seen.is_subscribed)
            .await;
        audience
    }

    pub fn size(&self) -> usize {
        self.seen.len()
    }

    /// Waits until something is so for each of them.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) {
        let mut bell = self.bell.clone();
        let waiting = async {
            loop {
                bell.mark_unchanged();
                if self.all(&is_so) {
                    return;
                }
                bell.changed().await.expect("somebody watches");
            }
        };
        let waited = tokio::time::timeout(RECOVERY, waiting).await;
        if waited.is_err() {
            let others = |seen: &&Arc<Mutex<Seen>>| !is_so(&seen.lock().unwrap());
            let count = self.seen.iter().filter(others).count();
            panic!("{count} of {} watchers never {what}", self.size());
        }
    }

    /// Waits until everybody at a hub has been told that its store is away.
    pub async fn until_degraded_at(&self, node: usize) {
        self.until("are degraded", |seen| seen.home != node || seen.is_degraded)
            .await;
    }

    /// Waits until everybody at a hub is there and has been told that all is current.
    pub async fn until_restored_at(&self, node: usize) {
        let is_whole = |seen: &Seen| seen.is_subscribed && !seen.is_degraded;
        self.until("are restored", |seen| seen.home != node || is_whole(seen))
            .await;
    }

    /// Waits until each has the newest version of all that it wants to see.
    pub async fn until_current(&self, truth: &BTreeMap<String, Value>) {
        self.until("have the newest versions", |seen| seen.is_current(truth))
            .await;
    }

    /// Whether something is so for each of them now.
    pub fn all(&self, is_so: impl Fn(&Seen) -> bool) -> bool {
        self.seen.iter().all(|seen| is_so(&seen.lock().unwrap()))
    }

    /// Adds up what all have seen.
    pub fn sum(&self, count: impl Fn(&Seen) -> usize) -> usize {
        self.seen
            .iter()
            .map(|seen| count(&seen.lock().unwrap()))
            .sum()
    }

    /// What was wrong, of all.
    pub fn faults(&self) -> Vec<String> {
        let faults = |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap().faults.clone();
        self.seen.iter().flat_map(faults).collect()
    }

    /// How far a job was at each version that anybody was shown.
    pub fn history_of(&self, id: &str) -> BTreeSet<(u64, String)> {
        let points = |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap().history.clone();
        let points = self.seen.iter().flat_map(points);
        points
            .filter(|(job, ..)| job == id)
            .map(|(_, version, progress)| (version, progress.to_string()))
            .collect()
    }

    /// How many tried to connect again.
    pub fn reconnects(&self) -> usize {
        self.sum(|seen| seen.reconnects.len())
    }

    /// How many of those in the busiest span of this length.
    pub fn most_reconnects_in(&self, span: Duration) -> usize {
        let tries = |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap().reconnects.clone();
        let mut tries: Vec<Instant> = self.seen.iter().flat_map(tries).collect();
        tries.sort_unstable();
        let in_span = |(n, from): (usize, &Instant)| {
            let rest = tries[n..].iter();
            rest.take_while(|at| at.duration_since(*from) < span)
                .count()
        };
        tries.iter().enumerate().map(in_span).max().unwrap_or(0)
    }

    /// Lets them go.
    pub async fn dismiss(mut self) {
        self.leave.cancel();
        while let Some(left) = self.watching.join_next().await {
            left.unwrap();
        }
    }
}

impl Watcher {
    async fn watch(self) {
        let leave = self.leave.clone();
        tokio::select! {
            () = leave.cancelled() => {}
            () = self.stay() => {}
        }
    }

    /// Watches, on one socket after another.
    async fn stay(&self) {
        loop {
            let Some(mut socket) = self.connect().await else {
                self.note(|seen| seen.reconnects.push(Instant::now()));
                pause(50..300).await;
                continue;
            };
            let bye = self.follow(&mut socket).await;
            self.note(|seen| (seen.is_subscribed, seen.is_degraded) = (false, false));
            match bye {
                Some(wait) => tokio::time::sleep(wait).await,
                None => pause(50..300).await,
            }
            self.note(|seen| seen.reconnects.push(Instant::now()));
        }
    }

    async fn connect(&self) -> Option<Socket> {
        let address = self.addresses.rather(self.home)?;
        let bearer = format!("Bearer {}", self.token);
        let request = upgrade_request(&address, &[("authorization", &bearer)]);
        let connecting = tokio_tungstenite::connect_async(request);
        let (socket, _) = tokio::time::timeout(TEST_TIMEOUT, connecting)
            .await
            .ok()?
            .ok()?;
        Some(socket)
    }

    /// Subscribes and takes in what comes until the socket ends; how long the hub said to stay away.
    async fn follow(&self, socket: &mut Socket) -> Option<Duration> {
        let (mut wait, mut is_asked) = (None, false);
        loop {
            if !is_asked {
                let subscribe = Message::text(self.subscription().to_string());
                socket.send(subscribe).await.ok()?;
                is_asked = true;
            }
            let message: Value = match socket.next().await {
                Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Close(frame))) => {
                    let code = frame.map(|frame| frame.code.into());
                    self.note(|seen| seen.closed.push(code));
                    return wait;
                }
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return wait,
            };
            wait = wait.or(self.take(&message));
            if message["code"] == "store_unavailable" {
                pause(100..500).await;
                is_asked = false;
            }
        }
    }

    fn subscription(&self) -> Value {
        let seen = self.seen.lock().unwrap();
        let known = |id: &String| {
            let version = seen
                .jobs
                .get(id)
                .map_or(json!(0), |job| job["version"].clone());
            json!({ "job": id, "version": version })
        };
        match &seen.wish {
            Wish::Jobs(jobs) => {
                let jobs: Vec<Value> = jobs.iter().map(known).collect();
                json!({ "type": "subscribe", "id": 1, "jobs": jobs })
            }
            Wish::Mine => {
                let jobs: Vec<Value> = seen.jobs.keys().map(known).collect();
                json!({ "type": "subscribe", "id": 1, "feed": "mine", "jobs": jobs })
            }
        }
    }

    /// Takes a message in; how long to stay away, where it says so.
    fn take(&self, message: &Value) -> Option<Duration> {
        let mut wait = None;
        self.note(|seen| {
            seen.messages += 1;
            match message["type"].as_str().unwrap() {
                "subscribed" => {
                    seen.is_subscribed = true;
                    let answers = message["jobs"].as_object().into_iter().flatten();
                    for (job, answer) in answers.filter(|(_, answer)| *answer == "not_found") {
                        seen.faults.push(format!("{job}: {answer}"));
                    }
                }
                "job" => seen.show(&message["job"]),
                "degraded" => {
                    seen.degraded += 1;
                    if std::mem::replace(&mut seen.is_degraded, true) {
                        seen.faults.push("degraded twice".to_owned());
                    }
                }
                "restored" => {
                    seen.restored += 1;
                    if !std::mem::replace(&mut seen.is_degraded, false) {
                        seen.faults.push("restored without a need".to_owned());
                    }
                }
                "bye" => wait = message["retry_after_ms"].as_u64(),
                "error" if message["code"] == "store_unavailable" => seen.put_off += 1,
                "error" => seen.faults.push(message.to_string()),
                _ => {}
            }
        });
        wait.map(Duration::from_millis)
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap());
        self.ring.send_replace(());
    }
}

/// What a client waits before it tries again, where nobody told it how long.
async fn pause(milliseconds: std::ops::Range<u64>) {
    let wait = rand::rng().random_range(milliseconds);
    tokio::time::sleep(Duration::from_millis(wait)).await;
}

#[test]
fn test_watcher_detects_regressions_duplicates_and_foreign_jobs() {
    let document = |id: &str, version: u64, progress: u64| json!({ "id": id, "version": version, "progress": progress });
    let mut seen = Seen::of(Wish::Jobs(vec!["a".to_owned()]), 0);
    for (version, progress) in [(1, 1), (3, 3), (3, 3), (4, 4)] {
        seen.show(&document("a", version, progress));
    }
    assert_eq!((seen.repeated, seen.faults.len()), (1, 0));
    for (faults, fault) in [
        document("a", 3, 3),
        document("a", 3, 4),
        document("b", 1, 1),
    ]
    .iter()
    .enumerate()
    {
        seen.show(fault);
        assert_eq!(seen.faults.len(), faults + 1, "{fault}");
    }
    for (version, is_current) in [(3, true), (4, false)] {
        let truth = BTreeMap::from([("a".to_owned(), document("a", version, 4))]);
        assert_eq!(seen.is_current(&truth), is_current);
    }
    seen = Seen::of(Wish::Mine, 0);
    let truth = BTreeMap::from([("a".to_owned(), document("a", 1, 1))]);
    assert!(!seen.is_current(&truth), "it was never shown the job");
}
