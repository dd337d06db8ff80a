//! Model-based test of the hub under random operations, and tests of single behaviors.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use tokio::task::{LocalSet, yield_now};

use super::shard::MAX_DELIVERIES_PER_TURN;
use super::*;
use crate::job::{NewJob, Source, Status, StatusReport};
use crate::time::Time;

const OWNERS: [&str; 2] = ["alice", "bob"];
const JOBS: usize = 4;
const CONNECTIONS: usize = 4;

/// Accepts frames unless it is blocked, and records frames and health changes.
#[derive(Default)]
struct RecordingSink {
    is_blocked: Cell<bool>,
    received: RefCell<Vec<(JobId, u64)>>,
    health_changes: RefCell<Vec<FeedHealth>>,
}

fn frame(job: &Arc<Job>) -> Arc<Frame> {
    Arc::new(Frame::new(Arc::clone(job)))
}

impl RecordingSink {
    fn record(&self, frame: &Frame) {
        let job = frame.job();
        self.received
            .borrow_mut()
            .push((job.id.clone(), job.version));
    }
}

impl Sink for RecordingSink {
    fn try_send(&self, frame: &Frame) -> bool {
        if !self.is_blocked.get() {
            self.record(frame);
        }
        !self.is_blocked.get()
    }

    fn notify_pending(&self) {}

    fn health_changed(&self, health: FeedHealth) {
        self.health_changes.borrow_mut().push(health);
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

/// Lets the shard process its queue and complete its deliveries.
async fn process_queue() {
    for _ in 0..64 {
        yield_now().await;
    }
}

/// Runs a test on a local runtime with paused time, like a worker thread.
fn run_on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(usize),
    Drop(usize),
    SubscribePaused(usize, usize),
    Activate(usize, usize, Known),
    Reject(usize, usize),
    Unsubscribe(usize, usize),
    SubscribeOwner(usize, usize),
    Backfill(usize, Known),
    UnsubscribeOwner(usize),
    RetainVisible(usize, usize),
    /// Stores and delivers a new version.
    Deliver(usize),
    /// Delivers the previous and the current version again.
    Redeliver(usize),
    ProcessQueue,
    SetBlocked(usize, bool),
    Drain(usize),
}

/// The version that a client claims to have.
#[derive(Clone, Copy, Debug)]
enum Known {
    Nothing,
    Received,
    Newest,
    Future,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let c = || 0..CONNECTIONS;
    let j = || 0..JOBS;
    let known = || {
        prop_oneof![
            Just(Known::Nothing),
            Just(Known::Received),
            Just(Known::Newest),
            Just(Known::Future)
        ]
    };
    let step = prop_oneof![
        3 => c().prop_map(Step::Connect),
        1 => c().prop_map(Step::Drop),
        4 => (c(), j()).prop_map(|(c, j)| Step::SubscribePaused(c, j)),
        4 => (c(), j(), known()).prop_map(|(c, j, known)| Step::Activate(c, j, known)),
        1 => (c(), j()).prop_map(|(c, j)| Step::Reject(c, j)),
        1 => (c(), j()).prop_map(|(c, j)| Step::Unsubscribe(c, j)),
        2 => (c(), 0..OWNERS.len()).prop_map(|(c, o)| Step::SubscribeOwner(c, o)),
        3 => (c(), known()).prop_map(|(c, known)| Step::Backfill(c, known)),
        1 => c().prop_map(Step::UnsubscribeOwner),
        1 => (c(), 0..OWNERS.len()).prop_map(|(c, o)| Step::RetainVisible(c, o)),
        5 => j().prop_map(Step::Deliver),
        1 => j().prop_map(Step::Redeliver),
        4 => Just(Step::ProcessQueue),
        1 => (c(), any::<bool>()).prop_map(|(c, is_blocked)| Step::SetBlocked(c, is_blocked)),
        2 => c().prop_map(Step::Drain),
    ];
    proptest::collection::vec(step, 0..120)
}

/// A connection and the frames that it may and must receive.
struct Client {
    connection: Connection,
    sink: Rc<RecordingSink>,
    owner: Option<usize>,
    /// Whether the jobs of the owner were not read since the owner was subscribed.
    needs_backfill: bool,
    /// Explicitly subscribed jobs.
    explicit: BTreeSet<usize>,
    /// Explicit jobs whose newest version was not read yet.
    unread: BTreeSet<usize>,
    /// Unread jobs that must not be delivered yet, because no owner subscription covers them.
    paused: BTreeSet<usize>,
    /// Version of each job that the client has. Only newer versions may be delivered.
    known_versions: BTreeMap<usize, u64>,
    /// Highest version ever received. No lower version may follow.
    highest_received: BTreeMap<usize, u64>,
}

struct Model {
    hub: Arc<Hub>,
    shard: Rc<Shard>,
    store: Vec<Arc<Job>>,
    clients: Vec<Option<Client>>,
}

impl Model {
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

    async fn run(&mut self, step: Step) {
        let store = self.store.clone();
        let is_owned_by = |j: usize, owner: usize| j % OWNERS.len() == owner;
        match step {
            Step::Connect(c) => {
                let sink = Rc::new(RecordingSink::default());
                let client = Client {
                    connection: Connection::open(&self.shard, Rc::clone(&sink) as Rc<dyn Sink>),
                    sink,
                    owner: None,
                    needs_backfill: false,
                    explicit: BTreeSet::new(),
                    unread: BTreeSet::new(),
                    paused: BTreeSet::new(),
                    known_versions: BTreeMap::new(),
                    highest_received: BTreeMap::new(),
                };
                self.clients[c].get_or_insert(client);
            }
            Step::Drop(c) => self.clients[c] = None,
            Step::Deliver(j) => {
                self.store[j] = at_version(&store[j], store[j].version + 1);
                self.hub.deliver(frame(&self.store[j]));
            }
            Step::Redeliver(j) => {
                if store[j].version > 1 {
                    let previous = at_version(&store[j], store[j].version - 1);
                    self.hub.deliver(frame(&previous));
                }
                self.hub.deliver(frame(&store[j]));
            }
            Step::ProcessQueue => process_queue().await,
            Step::SubscribePaused(c, j) => self.with(c, |client| {
                client.connection.subscribe_paused(&store[j].id);
                let is_covered = client.owner.is_some_and(|owner| is_owned_by(j, owner));
                if client.explicit.insert(j) {
                    client.unread.insert(j);
                    if !is_covered {
                        client.paused.insert(j);
                    }
                }
            }),
            Step::Activate(c, j, known) => self.with(c, |client| {
                if !client.explicit.contains(&j) {
                    return;
                }
                let known = client.known(j, known, &store);
                client.unread.remove(&j);
                client.paused.remove(&j);
                client.known_versions.insert(j, known);
                client.connection.activate(Arc::clone(&store[j]), known);
            }),
            Step::Reject(c, j) => self.with(c, |client| {
                // Rejecting any other subscription has no effect that the model can predict.
                if client.paused.contains(&j) {
                    client.connection.reject(&store[j].id);
                    client.unsubscribe(j);
                }
            }),
            Step::Unsubscribe(c, j) => self.with(c, |client| {
                client.connection.unsubscribe(&store[j].id);
                if client.explicit.contains(&j) {
                    client.unsubscribe(j);
                }
            }),
            Step::SubscribeOwner(c, owner) => self.with(c, |client| {
                if client.owner != Some(owner) {
                    client.connection.unsubscribe_owner();
                    client.unsubscribe_owner();
                    client.needs_backfill = true;
                    client.owner = Some(owner);
                }
                client.connection.subscribe_owner(OWNERS[owner]);
            }),
            Step::Backfill(c, known) => self.with(c, |client| client.backfill(known, &store)),
            Step::UnsubscribeOwner(c) => self.with(c, |client| {
                client.connection.unsubscribe_owner();
                client.unsubscribe_owner();
            }),
            Step::RetainVisible(c, owner) => self.with(c, |client| {
                // As after a token renewal: nothing is paused, and other owners are unsubscribed.
                if !client.unread.is_empty() {
                    return;
                }
                if client.owner.is_some_and(|followed| followed != owner) {
                    client.connection.unsubscribe_owner();
                    client.unsubscribe_owner();
                }
                client
                    .connection
                    .retain_visible(|_, of| of == OWNERS[owner]);
                for j in (0..JOBS).filter(|j| !is_owned_by(*j, owner)) {
                    client.unsubscribe(j);
                }
            }),
            Step::SetBlocked(c, is_blocked) => {
                self.with(c, |client| client.sink.is_blocked.set(is_blocked));
            }
            Step::Drain(c) => self.with(c, |client| client.drain()),
        }
        for client in self.clients.iter_mut().flatten() {
            client.check(&self.store);
        }
    }

    fn with(&mut self, c: usize, act: impl FnOnce(&mut Client)) {
        if let Some(client) = &mut self.clients[c] {
            act(client);
        }
    }

    /// Completes all reads, drains all connections and checks that each has the newest versions.
    async fn finish(&mut self) {
        process_queue().await;
        for client in self.clients.iter_mut().flatten() {
            client.check(&self.store);
            for j in client.explicit.clone() {
                client.unread.remove(&j);
                client.paused.remove(&j);
                let known_version = client.known_versions.entry(j).or_default();
                client
                    .connection
                    .activate(Arc::clone(&self.store[j]), *known_version);
            }
            if client.needs_backfill {
                client.backfill(Known::Nothing, &self.store);
            }
            client.drain();
            client.check(&self.store);
            assert!(client.connection.next_frame().is_none());
            for (j, job) in self.store.iter().enumerate() {
                if client.is_subscribed(j) {
                    let known_version = client.known_versions.get(&j).copied().unwrap_or(0);
                    assert!(
                        known_version >= job.version,
                        "job {j}: {known_version} of {}",
                        job.version
                    );
                }
            }
            let jobs = client.explicit.len();
            assert_eq!(client.connection.explicit_subscriptions(), jobs);
        }
    }
}

impl Client {
    fn is_subscribed(&self, j: usize) -> bool {
        let is_covered = self.owner.is_some_and(|owner| j % OWNERS.len() == owner);
        (self.explicit.contains(&j) || is_covered) && !self.paused.contains(&j)
    }

    fn known(&self, j: usize, known: Known, store: &[Arc<Job>]) -> u64 {
        match known {
            Known::Nothing => 0,
            Known::Received => self.highest_received.get(&j).copied().unwrap_or(0),
            Known::Newest => store[j].version,
            Known::Future => store[j].version + 2,
        }
    }

    fn backfill(&mut self, known: Known, store: &[Arc<Job>]) {
        let Some(owner) = self.owner else { return };
        // Explicit jobs of the owner must be read first.
        if self.unread.iter().any(|j| j % OWNERS.len() == owner) {
            return;
        }
        self.needs_backfill = false;
        for j in (0..JOBS).filter(|j| j % OWNERS.len() == owner) {
            if self.explicit.contains(&j) {
                continue;
            }
            let known = self.known(j, known, store);
            let known_version = self.known_versions.entry(j).or_default();
            *known_version = known.max(*known_version);
            self.connection.backfill(Arc::clone(&store[j]), known);
        }
    }

    /// Ends the explicit subscription. If nothing else covers the job, older versions may follow.
    fn unsubscribe(&mut self, j: usize) {
        self.explicit.remove(&j);
        self.unread.remove(&j);
        self.paused.remove(&j);
        if !self.is_subscribed(j) {
            self.known_versions.remove(&j);
        }
    }

    fn unsubscribe_owner(&mut self) {
        self.owner = None;
        let explicit = &self.explicit;
        self.known_versions.retain(|j, _| explicit.contains(j));
    }

    fn drain(&mut self) {
        let mut frames = 0;
        while let Some(frame) = self.connection.next_frame() {
            self.sink.record(&frame);
            frames += 1;
        }
        assert!(frames <= JOBS, "{frames} pending frames for {JOBS} jobs");
    }

    /// Checks the frames that were received since the last check.
    fn check(&mut self, store: &[Arc<Job>]) {
        for (id, version) in self.sink.received.take() {
            let j = store.iter().position(|job| job.id == id).unwrap();
            assert!(
                self.is_subscribed(j),
                "job {j} was delivered without a subscription"
            );
            assert!(version <= store[j].version);
            let known_version = self.known_versions.entry(j).or_default();
            assert!(
                version > *known_version,
                "job {j}: {version} after {known_version}"
            );
            *known_version = version;
            let highest_received = self.highest_received.entry(j).or_default();
            assert!(
                version >= *highest_received,
                "job {j}: back from {highest_received} to {version}"
            );
            *highest_received = version;
        }
    }
}

proptest! {
    #[test]
    fn hub_matches_the_model_under_random_operations(steps in steps()) {
        run_on_worker(async {
            let mut model = Model::new();
            for step in steps {
                model.run(step).await;
            }
            model.finish().await;
            model.clients.clear();
            assert_eq!(model.hub.subscribed_jobs(), 0);
            assert_eq!(model.hub.topics_of_shard(0), (vec![], vec![]));
            assert!(model.shard.is_empty());
        });
    }
}

/// Opens a connection that subscribes to one job.
fn subscribe(hub: &Arc<Hub>, job: &Arc<Job>) -> (Connection, Rc<RecordingSink>) {
    let sink = Rc::new(RecordingSink::default());
    let connection = Connection::open(&hub.shard(), Rc::clone(&sink) as Rc<dyn Sink>);
    connection.subscribe_paused(&job.id);
    connection.activate(Arc::clone(job), job.version);
    (connection, sink)
}

#[test]
fn burst_is_conflated_to_the_newest_version() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, sink) = subscribe(&hub, &first);
        for version in 2..100 {
            hub.deliver(frame(&at_version(&first, version)));
        }
        process_queue().await;
        assert_eq!(*sink.received.borrow(), [(first.id.clone(), 99)]);
    });
}

/// Lets the shard run one turn.
async fn run_turn() {
    // The shard yields after its turn.
    for _ in 0..2 {
        yield_now().await;
    }
}

#[test]
fn delivery_to_many_subscribers_does_not_delay_other_jobs() {
    run_on_worker(async {
        let (hub, watched, other) = (Hub::new(), job("alice"), job("bob"));
        let watchers: Vec<_> = (0..10 * MAX_DELIVERIES_PER_TURN)
            .map(|_| subscribe(&hub, &watched))
            .collect();
        let (_connection, sink) = subscribe(&hub, &other);
        let has = |(_, sink): &(Connection, Rc<RecordingSink>), version| {
            sink.received.borrow().last().map(|(_, version)| *version) == Some(version)
        };
        let count = |version| watchers.iter().filter(|it| has(it, version)).count();

        hub.deliver(frame(&at_version(&watched, 2)));
        run_turn().await;
        let served = count(2);
        assert!(
            (1..watchers.len()).contains(&served),
            "{served} served in a turn"
        );
        hub.deliver(frame(&at_version(&other, 2)));
        run_turn().await;
        run_turn().await;
        assert_eq!(*sink.received.borrow(), [(other.id.clone(), 2)]);
        assert!(
            count(2) < watchers.len(),
            "the delivery is still in progress"
        );

        hub.deliver(frame(&at_version(&watched, 3)));
        process_queue().await;
        assert_eq!(count(3), watchers.len());
    });
}

#[test]
fn subscriber_that_leaves_during_a_delivery_hides_no_version_from_others() {
    run_on_worker(async {
        let (hub, watched) = (Hub::new(), job("alice"));
        let mut watchers: Vec<_> = (0..6 * MAX_DELIVERIES_PER_TURN)
            .map(|_| subscribe(&hub, &watched))
            .collect();
        for version in 2..30 {
            hub.deliver(frame(&at_version(&watched, version)));
            run_turn().await;
            let leaving = usize::try_from(version).unwrap() * 7 % watchers.len();
            watchers.swap_remove(leaving);
            watchers.push(subscribe(&hub, &at_version(&watched, version)));
            process_queue().await;
            let (newcomer, others) = watchers.split_last().unwrap();
            assert_eq!(*newcomer.1.received.borrow(), []);
            for (_, sink) in others {
                let received = sink.received.borrow().last().map(|(_, version)| *version);
                assert_eq!(received, Some(version));
            }
        }
    });
}

#[test]
fn full_shard_queue_marks_the_shard_lagging_until_resync() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, sink) = subscribe(&hub, &first);
        let last = SHARD_QUEUE_CAPACITY as u64 + 100;
        for version in 2..=last {
            hub.deliver(frame(&at_version(&first, version)));
        }
        assert_eq!(hub.lagging().await, [0]);
        process_queue().await;
        let received = sink.received.borrow().last().map(|(_, version)| *version);
        assert_eq!(
            received,
            Some(SHARD_QUEUE_CAPACITY as u64 + 1),
            "the versions that fit into the queue"
        );
        assert_eq!(hub.topics_of_shard(0).0, std::slice::from_ref(&first.id));
        hub.redeliver(0, vec![at_version(&first, last)]).await;
        process_queue().await;
        let received = sink.received.borrow().last().map(|(_, version)| *version);
        assert_eq!(received, Some(last));
        assert_eq!(
            *sink.health_changes.borrow(),
            [],
            "the store was never unavailable"
        );
    });
}

#[test]
fn degraded_and_restored_are_sent_once_each() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, sink) = subscribe(&hub, &first);
        let degraded = FeedHealth::Degraded(Time::from_millis(1));
        hub.set_health(degraded);
        process_queue().await;
        hub.set_health(FeedHealth::Degraded(Time::from_millis(2)));
        hub.redeliver(0, vec![]).await;
        process_queue().await;
        hub.set_health(FeedHealth::Healthy);
        process_queue().await;
        hub.set_health(FeedHealth::Healthy);
        hub.redeliver(0, vec![]).await;
        process_queue().await;
        assert_eq!(
            *sink.health_changes.borrow(),
            [degraded, FeedHealth::Healthy]
        );
    });
}

#[test]
fn recovery_that_ends_before_it_is_sent_is_not_sent() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_connection, sink) = subscribe(&hub, &first);
        let degraded = FeedHealth::Degraded(Time::from_millis(1));
        hub.set_health(degraded);
        process_queue().await;
        hub.set_health(FeedHealth::Healthy);
        hub.set_health(FeedHealth::Degraded(Time::from_millis(2)));
        process_queue().await;
        assert_eq!(*sink.health_changes.borrow(), [degraded]);
    });
}

#[test]
fn shard_opened_during_outage_sends_restored() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let degraded = FeedHealth::Degraded(Time::from_millis(1));
        hub.set_health(degraded);
        let (connection, sink) = subscribe(&hub, &first);
        assert_eq!(connection.health(), degraded);
        hub.redeliver(0, vec![]).await;
        process_queue().await;
        assert_eq!(
            *sink.health_changes.borrow(),
            [],
            "the connection already has this state"
        );
        hub.set_health(FeedHealth::Healthy);
        process_queue().await;
        assert_eq!(connection.health(), FeedHealth::Healthy);
        assert_eq!(*sink.health_changes.borrow(), [FeedHealth::Healthy]);
    });
}

#[test]
fn owner_subscription_drops_finished_jobs_explicit_subscription_keeps_them() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (explicit, _) = subscribe(&hub, &first);
        let follower =
            Connection::open(&hub.shard(), Rc::<RecordingSink>::default() as Rc<dyn Sink>);
        follower.subscribe_owner("alice");
        let finished = StatusReport::with_status(Status::Succeeded);
        let finished = StatusReport {
            is_authoritative: true,
            ..finished
        };
        let finished = first.apply(finished.into_update(Source::Push), Time::now());
        hub.deliver(frame(&Arc::new(finished.unwrap())));
        process_queue().await;
        drop(explicit);
        assert_eq!(hub.subscribed_jobs(), 1);
        tokio::time::sleep(Duration::from_secs(120)).await;
        process_queue().await;
        assert_eq!(hub.subscribed_jobs(), 0);
        let (_explicit, _) = subscribe(&hub, &first);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(hub.subscribed_jobs(), 1);
    });
}

#[test]
fn owner_subscriber_receives_updates_after_failed_read() {
    run_on_worker(async {
        let (hub, first) = (Hub::new(), job("alice"));
        let (_other, _) = subscribe(&hub, &first);
        let sink = Rc::new(RecordingSink::default());
        let follower = Connection::open(&hub.shard(), Rc::clone(&sink) as Rc<dyn Sink>);
        follower.subscribe_owner("alice");
        follower.subscribe_paused(&first.id);
        hub.deliver(frame(&at_version(&first, 2)));
        process_queue().await;
        follower.reject(&first.id);
        hub.deliver(frame(&at_version(&first, 3)));
        process_queue().await;
        assert_eq!(*sink.received.borrow(), [(first.id.clone(), 3)]);
    });
}
