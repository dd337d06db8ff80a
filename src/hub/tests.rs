//! The hub against a model: whatever the order of what connections do and what comes in.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::{LocalSet, yield_now};

use super::*;
use crate::job::{NewJob, Source, Status, StatusReport};
use crate::time::Time;

const OWNERS: [&str; 2] = ["alice", "bob"];
const JOBS: usize = 4;
const CONNECTIONS: usize = 4;

/// Takes what is offered when it may, and remembers what it was told.
#[derive(Default)]
struct Ear {
    is_deaf: Cell<bool>,
    shown: RefCell<Vec<(JobId, u64)>>,
    conditions: RefCell<Vec<FeedHealth>>,
}

impl Ear {
    fn take(&self, frame: &Frame) {
        let job = frame.job();
        self.shown.borrow_mut().push((job.id.clone(), job.version));
    }
}

impl Sink for Ear {
    fn try_send(&self, frame: &Frame) -> bool {
        if !self.is_deaf.get() {
            self.take(frame);
        }
        !self.is_deaf.get()
    }

    fn notify_pending(&self) {}

    fn health_changed(&self, condition: FeedHealth) {
        self.conditions.borrow_mut().push(condition);
    }
}

fn job(owner: &str) -> Arc<Job> {
    let new = NewJob {
        owner: owner.to_owned(),
        provider: None,
        provider_task_id: None,
        model: None,
        metadata: serde_json::Map::new(),
        request: None,
        deadline: Duration::from_secs(60),
    };
    Arc::new(Job::new(new, Time::now()))
}

fn at_version(job: &Job, version: u64) -> Arc<Job> {
    let mut job = job.clone();
    job.version = version;
    Arc::new(job)
}

/// Lets the shard read its mailbox.
async fn settle() {
    for _ in 0..8 {
        yield_now().await;
    }
}

/// Runs on a thread's own tasks, as a worker does.
fn on_a_worker(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, story);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(usize),
    Drop(usize),
    Hold(usize, usize),
    Release(usize, usize, Known),
    Refuse(usize, usize),
    Forget(usize, usize),
    Follow(usize, usize),
    CatchUp(usize, Known),
    Unfollow(usize),
    Keep(usize, usize),
    /// A change is stored and announced.
    Change(usize),
    /// What was announced comes again, after an older version.
    Echo(usize),
    Settle,
    Deafen(usize, bool),
    Drain(usize),
}

/// Which version a client says it has.
#[derive(Clone, Copy, Debug)]
enum Known {
    Nothing,
    Shown,
    Newest,
    Future,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let c = || 0..CONNECTIONS;
    let j = || 0..JOBS;
    let known = || {
        prop_oneof![
            Just(Known::Nothing),
            Just(Known::Shown),
            Just(Known::Newest),
            Just(Known::Future)
        ]
    };
    let step = prop_oneof![
        3 => c().prop_map(Step::Connect),
        1 => c().prop_map(Step::Drop),
        4 => (c(), j()).prop_map(|(c, j)| Step::Hold(c, j)),
        4 => (c(), j(), known()).prop_map(|(c, j, known)| Step::Release(c, j, known)),
        1 => (c(), j()).prop_map(|(c, j)| Step::Refuse(c, j)),
        1 => (c(), j()).prop_map(|(c, j)| Step::Forget(c, j)),
        2 => (c(), 0..OWNERS.len()).prop_map(|(c, o)| Step::Follow(c, o)),
        3 => (c(), known()).prop_map(|(c, known)| Step::CatchUp(c, known)),
        1 => c().prop_map(Step::Unfollow),
        1 => (c(), 0..OWNERS.len()).prop_map(|(c, o)| Step::Keep(c, o)),
        5 => j().prop_map(Step::Change),
        1 => j().prop_map(Step::Echo),
        4 => Just(Step::Settle),
        1 => (c(), any::<bool>()).prop_map(|(c, is_deaf)| Step::Deafen(c, is_deaf)),
        2 => c().prop_map(Step::Drain),
    ];
    proptest::collection::vec(step, 0..120)
}

/// One connection, and what may and must be shown to it.
struct Client {
    connection: Connection,
    ear: Rc<Ear>,
    follows: Option<usize>,
    /// Whether the followed owner's jobs were not read yet.
    is_behind: bool,
    /// Jobs asked for by id.
    single: BTreeSet<usize>,
    /// Of those, the ones whose newest version was not read yet.
    unread: BTreeSet<usize>,
    /// Of those again, the ones that must not be shown yet, since no feed shows them.
    held: BTreeSet<usize>,
    /// What it has of each job: nothing else may be shown than newer ones.
    has: BTreeMap<usize, u64>,
    /// The highest version ever shown: never is a lower one.
    highest: BTreeMap<usize, u64>,
}

struct World {
    hub: Arc<Hub>,
    shard: Rc<Shard>,
    store: Vec<Arc<Job>>,
    clients: Vec<Option<Client>>,
}

impl World {
    fn new() -> Self {
        let hub = Hub::new();
        let store = (0..JOBS).map(|j| job(OWNERS[j % OWNERS.len()])).collect();
        Self {
            shard: hub.shard(),
            hub,
            store,
            clients: (0..CONNECTIONS).map(|_| None).collect(),
        }
    }

    async fn take(&mut self, step: Step) {
        let store = self.store.clone();
        let of_owner = |j: usize, owner: usize| j % OWNERS.len() == owner;
        match step {
            Step::Connect(c) => {
                let ear = Rc::new(Ear::default());
                let client = Client {
                    connection: Connection::open(&self.shard, Rc::clone(&ear) as Rc<dyn Sink>),
                    ear,
                    follows: None,
                    is_behind: false,
                    single: BTreeSet::new(),
                    unread: BTreeSet::new(),
                    held: BTreeSet::new(),
                    has: BTreeMap::new(),
                    highest: BTreeMap::new(),
                };
                self.clients[c].get_or_insert(client);
            }
            Step::Drop(c) => self.clients[c] = None,
            Step::Change(j) => {
                self.store[j] = at_version(&store[j], store[j].version + 1);
                self.hub.deliver(Arc::clone(&self.store[j]));
            }
            Step::Echo(j) => {
                if store[j].version > 1 {
                    self.hub
                        .deliver(at_version(&store[j], store[j].version - 1));
                }
                self.hub.deliver(Arc::clone(&store[j]));
            }
            Step::Settle => settle().await,
            Step::Hold(c, j) => self.with(c, |client| {
                client.connection.subscribe_paused(&store[j].id);
                let is_fed = client.follows.is_some_and(|owner| of_owner(j, owner));
                if client.single.insert(j) {
                    client.unread.insert(j);
                    if !is_fed {
                        client.held.insert(j);
                    }
                }
            }),
            Step::Release(c, j, known) => self.with(c, |client| {
                if !client.single.contains(&j) {
                    return;
                }
                let known = client.known(j, known, &store);
                client.unread.remove(&j);
                client.held.remove(&j);
                client.has.insert(j, known);
                client.connection.activate(Arc::clone(&store[j]), known);
            }),
            Step::Refuse(c, j) => self.with(c, |client| {
                // Only one that is known to be held: of others, the model can't tell whether they end.
                if client.held.contains(&j) {
                    client.connection.reject(&store[j].id);
                    client.leave(j);
                }
            }),
            Step::Forget(c, j) => self.with(c, |client| {
                client.connection.unsubscribe(&store[j].id);
                if client.single.contains(&j) {
                    client.leave(j);
                }
            }),
            Step::Follow(c, owner) => self.with(c, |client| {
                if client.follows != Some(owner) {
                    client.connection.unsubscribe_owner();
                    client.unfollow();
                    client.is_behind = true;
                    client.follows = Some(owner);
                }
                client.connection.subscribe_owner(OWNERS[owner]);
            }),
            Step::CatchUp(c, known) => self.with(c, |client| client.catch_up(known, &store)),
            Step::Unfollow(c) => self.with(c, |client| {
                client.connection.unsubscribe_owner();
                client.unfollow();
            }),
            Step::Keep(c, owner) => self.with(c, |client| {
                // As when a token is renewed: nothing is held then, and foreign feeds have ended.
                if !client.unread.is_empty() {
                    return;
                }
                if client.follows.is_some_and(|follows| follows != owner) {
                    client.connection.unsubscribe_owner();
                    client.unfollow();
                }
                client
                    .connection
                    .retain_visible(|_, of| of == OWNERS[owner]);
                for j in (0..JOBS).filter(|j| !of_owner(*j, owner)) {
                    client.leave(j);
                }
            }),
            Step::Deafen(c, is_deaf) => self.with(c, |client| client.ear.is_deaf.set(is_deaf)),
            Step::Drain(c) => self.with(c, |client| client.drain()),
        }
        for client in self.clients.iter_mut().flatten() {
            client.judge(&self.store);
        }
    }

    fn with(&mut self, c: usize, act: impl FnOnce(&mut Client)) {
        if let Some(client) = &mut self.clients[c] {
            act(client);
        }
    }

    /// In the end everybody reads what it has begun to read, and shows what waits for it.
    async fn finish(&mut self) {
        settle().await;
        for client in self.clients.iter_mut().flatten() {
            client.judge(&self.store);
            for j in client.single.clone() {
                client.unread.remove(&j);
                client.held.remove(&j);
                let has = client.has.entry(j).or_default();
                client.connection.activate(Arc::clone(&self.store[j]), *has);
            }
            if client.is_behind {
                client.catch_up(Known::Nothing, &self.store);
            }
            client.drain();
            client.judge(&self.store);
            assert!(client.connection.next_frame().is_none());
            for (j, job) in self.store.iter().enumerate() {
                if client.watches(j) {
                    let has = client.has.get(&j).copied().unwrap_or(0);
                    assert!(has >= job.version, "job {j}: {has} of {}", job.version);
                }
            }
            let jobs = client.single.len();
            assert_eq!(client.connection.explicit_subscriptions(), jobs);
        }
    }
}

impl Client {
    fn watches(&self, j: usize) -> bool {
        let is_fed = self.follows.is_some_and(|owner| j % OWNERS.len() == owner);
        (self.single.contains(&j) || is_fed) && !self.held.contains(&j)
    }

    fn known(&self, j: usize, known: Known, store: &[Arc<Job>]) -> u64 {
        match known {
            Known::Nothing => 0,
            Known::Shown => self.highest.get(&j).copied().unwrap_or(0),
            Known::Newest => store[j].version,
            Known::Future => store[j].version + 2,
        }
    }

    fn catch_up(&mut self, known: Known, store: &[Arc<Job>]) {
        let Some(owner) = self.follows else { return };
        // What is asked for beside the feed is read with it, so it comes after that.
        if self.unread.iter().any(|j| j % OWNERS.len() == owner) {
            return;
        }
        self.is_behind = false;
        for j in (0..JOBS).filter(|j| j % OWNERS.len() == owner) {
            if self.single.contains(&j) {
                continue;
            }
            let known = self.known(j, known, store);
            let has = self.has.entry(j).or_default();
            *has = known.max(*has);
            self.connection.backfill(Arc::clone(&store[j]), known);
        }
    }

    /// It is not watched by id any more, and what it has of it may be shown again.
    fn leave(&mut self, j: usize) {
        self.single.remove(&j);
        self.unread.remove(&j);
        self.held.remove(&j);
        if !self.watches(j) {
            self.has.remove(&j);
        }
    }

    fn unfollow(&mut self) {
        self.follows = None;
        let single = &self.single;
        self.has.retain(|j, _| single.contains(j));
    }

    fn drain(&mut self) {
        let mut frames = 0;
        while let Some(frame) = self.connection.next_frame() {
            self.ear.take(&frame);
            frames += 1;
        }
        assert!(frames <= JOBS, "{frames} frames of {JOBS} jobs waited");
    }

    /// Whether what was shown since the last time was right.
    fn judge(&mut self, store: &[Arc<Job>]) {
        for (id, version) in self.ear.shown.take() {
            let j = store.iter().position(|job| job.id == id).unwrap();
            assert!(
                self.watches(j),
                "job {j} was shown to one who does not watch it"
            );
            assert!(version <= store[j].version);
            let has = self.has.entry(j).or_default();
            assert!(version > *has, "job {j}: {version} after {has}");
            *has = version;
            let highest = self.highest.entry(j).or_default();
            assert!(
                version >= *highest,
                "job {j}: back from {highest} to {version}"
            );
            *highest = version;
        }
    }
}

proptest! {
    #[test]
    fn hub_matches_the_model_under_random_operations(steps in steps()) {
        on_a_worker(async {
            let mut world = World::new();
            for step in steps {
                world.take(step).await;
            }
            world.finish().await;
            world.clients.clear();
            assert_eq!(world.hub.subscribed_jobs(), 0);
            assert_eq!(world.hub.topics_of_shard(0), (vec![], vec![]));
            assert!(world.shard.is_empty());
        });
    }
}

/// A connection that watches one job by id.
fn watch(hub: &Arc<Hub>, job: &Arc<Job>) -> (Connection, Rc<Ear>) {
    let ear = Rc::new(Ear::default());
    let connection = Connection::open(&hub.shard(), Rc::clone(&ear) as Rc<dyn Sink>);
    connection.subscribe_paused(&job.id);
    connection.activate(Arc::clone(job), job.version);
    (connection, ear)
}

#[test]
fn burst_is_conflated_to_the_newest_version() {
    on_a_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, ear) = watch(&hub, &first);
        for version in 2..100 {
            hub.deliver(at_version(&first, version));
        }
        settle().await;
        assert_eq!(*ear.shown.borrow(), [(first.id.clone(), 99)]);
    });
}

#[test]
fn full_shard_queue_marks_the_shard_lagging_until_resync() {
    on_a_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, ear) = watch(&hub, &first);
        let last = SHARD_QUEUE_CAPACITY as u64 + 100;
        for version in 2..=last {
            hub.deliver(at_version(&first, version));
        }
        assert_eq!(hub.lagging().await, [0]);
        settle().await;
        let shown = ear.shown.borrow().last().map(|(_, version)| *version);
        assert_eq!(
            shown,
            Some(SHARD_QUEUE_CAPACITY as u64 + 1),
            "what fitted in"
        );
        assert_eq!(hub.topics_of_shard(0).0, std::slice::from_ref(&first.id));
        hub.redeliver(0, vec![at_version(&first, last)]).await;
        settle().await;
        let shown = ear.shown.borrow().last().map(|(_, version)| *version);
        assert_eq!(shown, Some(last));
        assert_eq!(*ear.conditions.borrow(), [], "the store was never away");
    });
}

#[test]
fn degraded_and_restored_are_sent_once_each() {
    on_a_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, ear) = watch(&hub, &first);
        let away = FeedHealth::Degraded(Time::from_millis(1));
        hub.set_health(away);
        settle().await;
        hub.set_health(FeedHealth::Degraded(Time::from_millis(2)));
        hub.redeliver(0, vec![]).await;
        settle().await;
        hub.set_health(FeedHealth::Healthy);
        settle().await;
        hub.set_health(FeedHealth::Healthy);
        hub.redeliver(0, vec![]).await;
        settle().await;
        assert_eq!(*ear.conditions.borrow(), [away, FeedHealth::Healthy]);
    });
}

#[test]
fn shard_opened_during_outage_sends_restored() {
    on_a_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let away = FeedHealth::Degraded(Time::from_millis(1));
        hub.set_health(away);
        let (connection, ear) = watch(&hub, &first);
        assert_eq!(connection.health(), away);
        hub.redeliver(0, vec![]).await;
        settle().await;
        assert_eq!(*ear.conditions.borrow(), [], "it knows that already");
        hub.set_health(FeedHealth::Healthy);
        settle().await;
        assert_eq!(connection.health(), FeedHealth::Healthy);
        assert_eq!(*ear.conditions.borrow(), [FeedHealth::Healthy]);
    });
}

#[test]
fn owner_subscription_drops_finished_jobs_explicit_subscription_keeps_them() {
    on_a_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (by_id, _) = watch(&hub, &first);
        let follower = Connection::open(&hub.shard(), Rc::<Ear>::default() as Rc<dyn Sink>);
        follower.subscribe_owner("alice");
        let ended = StatusReport::with_status(Status::Succeeded);
        let ended = StatusReport {
            is_authoritative: true,
            ..ended
        };
        let ended = first.apply(ended.into_update(Source::Push), Time::now());
        hub.deliver(Arc::new(ended.unwrap()));
        settle().await;
        drop(by_id);
        assert_eq!(hub.subscribed_jobs(), 1);
        tokio::time::sleep(Duration::from_secs(120)).await;
        settle().await;
        assert_eq!(hub.subscribed_jobs(), 0);
        let (_by_id, _) = watch(&hub, &first);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(hub.subscribed_jobs(), 1);
    });
}

#[test]
fn owner_subscriber_receives_updates_after_failed_read() {
    on_a_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_other, _) = watch(&hub, &first);
        let ear = Rc::new(Ear::default());
        let follower = Connection::open(&hub.shard(), Rc::clone(&ear) as Rc<dyn Sink>);
        follower.subscribe_owner("alice");
        follower.subscribe_paused(&first.id);
        hub.deliver(at_version(&first, 2));
        settle().await;
        follower.reject(&first.id);
        hub.deliver(at_version(&first, 3));
        settle().await;
        assert_eq!(*ear.shown.borrow(), [(first.id.clone(), 3)]);
    });
}
