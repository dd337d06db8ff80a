//! One worker thread's share of the hub: its topics, its connections and who watches what.
//!
//! Invariant: a topic exists exactly as long as somebody watches it; a connection is shown a job's
//! versions in rising order only; and a watcher that was not released yet is shown nothing.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{FeedHealth, Hub, ShardMessage};
use crate::job::{JobId, Topic};
use crate::protocol::Frame;

/// A feed lets go of a job this long after its end: by then no older version is on its way.
const FINISHED_TOPIC_TTL: Duration = Duration::from_secs(60);

/// A turn that nobody else on the thread minds: shorter than the timers are fine.
const MAX_BUSY_WITHOUT_SLEEP: Duration = Duration::from_millis(2);

/// How long a version waits at most because the one before it took long to deliver.
const MAX_DELIVERY_PAUSE: Duration = Duration::from_millis(20);

/// Connections that are looked at together before the first of them is shown a frame.
const PREFETCH_BATCH: usize = 16;

/// Where a connection's frames go. Called by the shard; must not call back into it.
pub trait Sink {
    /// Takes the frame if it can be sent at once. Otherwise the sink asks for it with
    /// [`Connection::next`](super::Connection::next) when it can, by which time a newer one may have taken its place.
    fn try_send(&self, frame: &Frame) -> bool;

    /// Whether a frame offered now would likely be taken. Asked of many in a row, so that what each
    /// keeps in memory is on its way together, before the first is written to.
    fn is_ready(&self) -> bool {
        true
    }

    /// Frames wait: ask for them with [`Connection::next`](super::Connection::next).
    fn notify_pending(&self);

    /// The store went away or is back.
    fn health_changed(&self, condition: FeedHealth);
}

/// One thread's topics and connections.
pub struct Shard {
    pub(super) hub: Arc<Hub>,
    pub(super) index: usize,
    pub(super) state: RefCell<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) topics: Slab<TopicState>,
    pub(super) topic_of: HashMap<JobId, usize>,
    pub(super) followers: HashMap<String, Vec<usize>>,
    pub(super) connections: Slab<ConnectionState>,
    /// What the connections of this shard go by: what they were told last.
    pub(super) condition: Option<FeedHealth>,
}

/// One watched job.
pub(super) struct TopicState {
    pub(super) job: JobId,
    pub(super) newest: Option<Arc<Frame>>,
    pub(super) watchers: Vec<SubscriberRef>,
    /// Whether every follower of the job's owner is among the watchers.
    pub(super) includes_followers: bool,
    pub(super) ended_at: Option<Instant>,
}

#[derive(Clone, Copy)]
pub(super) struct SubscriberRef {
    pub(super) connection: usize,
    pub(super) slot: usize,
}

/// One connection: what it watches, and which of that it has yet to be shown.
pub(super) struct ConnectionState {
    pub(super) sink: Rc<dyn Sink>,
    pub(super) watches: Slab<Subscription>,
    pub(super) pending: VecDeque<usize>,
    pub(super) followed_owner: Option<String>,
    pub(super) explicit_count: usize,
}

/// One connection's watch over one topic.
pub(super) struct Subscription {
    pub(super) topic: usize,
    /// Index of the watcher in the topic.
    pub(super) position: usize,
    /// The highest version that was shown.
    pub(super) delivered_version: u64,
    pub(super) is_pending: bool,
    /// Not yet proven to be allowed to see it.
    pub(super) is_paused: bool,
    /// Asked for by id; otherwise it came by the feed.
    pub(super) is_explicit: bool,
}

impl Shard {
    pub(super) fn open(
        hub: Arc<Hub>,
        index: usize,
        mut mailbox: mpsc::Receiver<ShardMessage>,
    ) -> Rc<Self> {
        // Its mailbox is open already: a change of the condition from here on comes by letter.
        let state = State {
            condition: Some(hub.condition()),
            ..State::default()
        };
        let shard = Rc::new(Self {
            hub,
            index,
            state: RefCell::new(state),
        });
        let me = Rc::downgrade(&shard);
        tokio::task::spawn_local(async move {
            let mut letters = Vec::new();
            let mut sweep = tokio::time::interval(FINISHED_TOPIC_TTL / 2);
            loop {
                tokio::select! {
                    received = mailbox.recv_many(&mut letters, super::SHARD_QUEUE_CAPACITY) => {
                        let Some(shard) = me.upgrade().filter(|_| received > 0) else { return };
                        // Each sink writes by itself: more writes than a task's budget has, and those
                        // beyond it would look like sockets that take nothing.
                        let begun = Instant::now();
                        tokio::task::unconstrained(async { shard.process_messages(&mut letters) }).await;
                        drop(shard);
                        yield_after(begun.elapsed()).await;
                    }
                    _ = sweep.tick() => {
                        let Some(shard) = me.upgrade() else { return };
                        shard.drop_finished_topics();
                    }
                }
            }
        });
        shard
    }

    /// Whether nothing is held for anybody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.borrow();
        state.topics.is_empty()
            && state.topic_of.is_empty()
            && state.followers.is_empty()
            && state.connections.is_empty()
    }

    /// Takes in everything that waits, keeps the newest of each job, then shows it.
    fn process_messages(&self, letters: &mut Vec<ShardMessage>) {
        let mut newest: HashMap<JobId, usize> = HashMap::with_capacity(letters.len());
        let mut frames: Vec<Arc<Frame>> = Vec::with_capacity(letters.len());
        let mut condition = None;
        for letter in letters.drain(..) {
            match letter {
                ShardMessage::JobChanged(frame) => match newest.get(&frame.job().id) {
                    Some(&at) if frames[at].job().version >= frame.job().version => {}
                    Some(&at) => frames[at] = frame,
                    None => {
                        newest.insert(frame.job().id.clone(), frames.len());
                        frames.push(frame);
                    }
                },
                ShardMessage::HealthChanged(latest) => condition = Some(latest),
            }
        }
        let mut state = self.state.borrow_mut();
        for frame in frames {
            state.deliver(self, &frame);
        }
        let known = state.condition.unwrap_or(FeedHealth::Healthy);
        if let Some(condition) = condition.filter(|latest| *latest != known) {
            state.condition = Some(condition);
            for (_, entry) in &state.connections {
                entry.sink.health_changed(condition);
            }
        }
    }

    fn drop_finished_topics(&self) {
        let mut state = self.state.borrow_mut();
        let is_over = |topic: &TopicState| {
            topic
                .ended_at
                .is_some_and(|at| at.elapsed() >= FINISHED_TOPIC_TTL)
        };
        let over: Vec<usize> = state
            .topics
            .iter()
            .filter(|(_, topic)| is_over(topic))
            .map(|(key, _)| key)
            .collect();
        for topic in over {
            let watchers = state.topics[topic].watchers.clone();
            for watcher in watchers {
                let watch = &state.connections[watcher.connection].watches[watcher.slot];
                if !watch.is_explicit && !watch.is_pending {
                    state.detach(self, watcher);
                }
            }
        }
    }
}

/// The others' turn, as long as the shard's own was: a thread that delivers without end would hear
/// of nothing, and what comes meanwhile collapses into the newest version of each job.
async fn yield_after(took: Duration) {
    if took < MAX_BUSY_WITHOUT_SLEEP {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(took.min(MAX_DELIVERY_PAUSE)).await;
    }
}

impl State {
    pub(super) fn deliver(&mut self, shard: &Shard, frame: &Arc<Frame>) {
        let job = frame.job();
        let followers = self.followers.get(&job.owner).cloned();
        let topic = match self.topic_of.get(&job.id) {
            Some(&topic) => topic,
            None if followers.is_none() => return,
            None => self.open_topic(shard, &job.id),
        };
        let mut fed = Vec::new();
        if !self.topics[topic].includes_followers {
            self.topics[topic].includes_followers = true;
            for connection in followers.unwrap_or_default() {
                if self.subscription_slot(connection, topic).is_none() {
                    let slot = self.attach(connection, topic, false, false);
                    fed.push(SubscriberRef { connection, slot });
                }
            }
        }
        let entry = &mut self.topics[topic];
        match &entry.newest {
            Some(newest) if newest.job().version >= job.version => {
                let newest = Arc::clone(newest);
                for watcher in fed {
                    self.connections[watcher.connection].deliver(watcher.slot, &newest);
                }
            }
            Some(_) | None => {
                entry.newest = Some(Arc::clone(frame));
                if job.is_final() {
                    entry.ended_at = Some(Instant::now());
                }
                // A write leaves nothing in the cache of what the next connection is made of. So some
                // are looked at together first: then memory is waited for once and not for each.
                for some in self.topics[topic].watchers.chunks(PREFETCH_BATCH) {
                    let mut free = [false; PREFETCH_BATCH];
                    for (watcher, free) in some.iter().zip(&mut free) {
                        *free = self.connections[watcher.connection].can_write_now(watcher.slot);
                    }
                    for (watcher, free) in some.iter().zip(free) {
                        let entry = &mut self.connections[watcher.connection];
                        match free {
                            true => entry.deliver(watcher.slot, frame),
                            false => entry.enqueue(watcher.slot, frame),
                        }
                    }
                }
            }
        }
    }

    pub(super) fn open_topic(&mut self, shard: &Shard, job: &JobId) -> usize {
        shard.hub.interest.add(Topic::Job(job.clone()), shard.index);
        let topic = self.topics.insert(TopicState {
            job: job.clone(),
            newest: None,
            watchers: Vec::new(),
            includes_followers: false,
            ended_at: None,
        });
        self.topic_of.insert(job.clone(), topic);
        topic
    }

    pub(super) fn subscription_slot(&self, connection: usize, topic: usize) -> Option<usize> {
        let watches = &self.connections[connection].watches;
        watches
            .iter()
            .find(|(_, watch)| watch.topic == topic)
            .map(|(slot, _)| slot)
    }

    pub(super) fn slot_of(&self, connection: usize, job: &JobId) -> Option<usize> {
        self.subscription_slot(connection, *self.topic_of.get(job)?)
    }

    /// Whether the followed owner's feed would show the job as well.
    pub(super) fn is_covered_by_owner_subscription(&self, connection: usize, slot: usize) -> bool {
        let entry = &self.connections[connection];
        let watch = &entry.watches[slot];
        let newest = self.topics[watch.topic].newest.as_ref();
        let owner = newest.map(|frame| &frame.job().owner);
        !watch.is_paused && owner.is_some() && owner == entry.followed_owner.as_ref()
    }

    pub(super) fn attach(
        &mut self,
        connection: usize,
        topic: usize,
        is_held: bool,
        is_single: bool,
    ) -> usize {
        let watchers = &mut self.topics[topic].watchers;
        let entry = &mut self.connections[connection];
        let slot = entry.watches.insert(Subscription {
            topic,
            position: watchers.len(),
            delivered_version: 0,
            is_pending: false,
            is_paused: is_held,
            is_explicit: is_single,
        });
        entry.explicit_count += usize::from(is_single);
        watchers.push(SubscriberRef { connection, slot });
        slot
    }

    pub(super) fn detach(&mut self, shard: &Shard, watcher: SubscriberRef) {
        let entry = &mut self.connections[watcher.connection];
        let watch = entry.watches.remove(watcher.slot);
        entry.explicit_count -= usize::from(watch.is_explicit);
        if watch.is_pending {
            entry.pending.retain(|slot| *slot != watcher.slot);
        }
        let topic = &mut self.topics[watch.topic];
        topic.watchers.swap_remove(watch.position);
        if let Some(moved) = topic.watchers.get(watch.position) {
            self.connections[moved.connection].watches[moved.slot].position = watch.position;
        } else if topic.watchers.is_empty() {
            let topic = self.topics.remove(watch.topic);
            self.topic_of.remove(&topic.job);
            shard
                .hub
                .interest
                .remove(&Topic::Job(topic.job), shard.index);
        }
    }

    pub(super) fn unfollow(&mut self, shard: &Shard, connection: usize) {
        let Some(owner) = self.connections[connection].followed_owner.take() else {
            return;
        };
        if let Some(followers) = self.followers.get_mut(&owner) {
            followers.retain(|follower| *follower != connection);
            if followers.is_empty() {
                self.followers.remove(&owner);
                shard.hub.interest.remove(&Topic::Owner(owner), shard.index);
            }
        }
    }
}

impl ConnectionState {
    pub(super) fn make_implicit(&mut self, slot: usize) {
        let watch = &mut self.watches[slot];
        self.explicit_count -= usize::from(watch.is_explicit);
        watch.is_explicit = false;
    }

    fn can_write_now(&self, slot: usize) -> bool {
        let watch = &self.watches[slot];
        !watch.is_paused && !watch.is_pending && self.pending.is_empty() && self.sink.is_ready()
    }

    /// Shows it now, where it is news and the sink takes it; otherwise in its turn.
    pub(super) fn deliver(&mut self, slot: usize, frame: &Arc<Frame>) {
        let watch = &mut self.watches[slot];
        let is_first = self.pending.is_empty() && !watch.is_paused;
        if is_first && watch.delivered_version < frame.job().version && self.sink.try_send(frame) {
            watch.delivered_version = frame.job().version;
        } else {
            self.enqueue(slot, frame);
        }
    }

    /// Shows it in its turn, where it is news.
    fn enqueue(&mut self, slot: usize, frame: &Arc<Frame>) {
        let watch = &mut self.watches[slot];
        if watch.is_paused || watch.is_pending || watch.delivered_version >= frame.job().version {
            return;
        }
        watch.is_pending = true;
        self.pending.push_back(slot);
        self.sink.notify_pending();
    }
}
