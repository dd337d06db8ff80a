//! What a node hears of the others: which channels it listens to, and whether it can trust its ears.
//!
//! Invariant: one task owns the list of channels. It adds what is asked for and confirms it with a
//! barrier before anybody reads; it drops what nobody wants any more. After every gap (a connection
//! lost, messages lost, a probe that did not come back) all of it is asked for again, and only then
//! is the node told that it may read everything anew.

mod channels;
mod receiver;

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::channels::Channels;
use self::receiver::MessageReceiver;
use super::connection::{Connections, to_store_error};
use super::endpoint::{COMMAND_TIMEOUT, Endpoint};
use super::reconnect::force_reconnect;
use crate::job::Topic;
use crate::store::{ChangeListener, Error, StoreEvent};

/// Between two probes, and two looks at what came of them.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// After which a probe that did not come back means that nothing else does.
const PROBE_TIMEOUT: Duration = Duration::from_millis(2500);

/// Between two looks at what is still wanted. A topic that nobody wants is left after two of them, so
/// that whoever comes right back finds it as it was.
const PRUNE_INTERVAL: Duration = Duration::from_secs(10);

/// Wishes that wait to be heard; whoever comes then waits to tell his.
const MAX_PENDING_REQUESTS: usize = 1024;

/// Somebody wants to hear of these, and waits until it is so.
struct SubscribeRequest {
    topics: Vec<Topic>,
    /// When that is too late.
    deadline: Instant,
    done: oneshot::Sender<Result<(), Error>>,
}

/// The way to the task that listens.
pub(super) struct Subscriber {
    requests: mpsc::Sender<SubscribeRequest>,
    ears: Arc<MessageReceiver>,
}

/// The task that listens.
struct SubscriptionManager {
    link: Arc<Connections>,
    node: ChangeListener,
    client: Client,
    channels: Channels,
    ears: Arc<MessageReceiver>,
    begun: Instant,
    /// Whether the node was told that its store is away.
    reported_unavailable: bool,
    /// Whether all channels have to be asked for again.
    needs_resubscribe: bool,
    /// Those that came while it was deaf.
    wishes: Vec<SubscribeRequest>,
    connection_errors: Receiver<(RedisError, Option<Server>)>,
    reconnects: Receiver<Server>,
}

impl SubscribeRequest {
    fn answer(self, outcome: Result<(), Error>) {
        // Whoever has gone away needs no answer.
        drop(self.done.send(outcome));
    }
}

impl Subscriber {
    /// Begins to listen; must be called within a runtime.
    pub(super) fn open(
        place: &Endpoint,
        link: &Arc<Connections>,
        node: ChangeListener,
    ) -> Result<Self, Error> {
        let client = place
            .subscriber_client()
            .map_err(|error| to_store_error(&error))?;
        let name = uuid::Uuid::now_v7().simple().to_string();
        let ears = Arc::new(MessageReceiver::new(&link.keys, &name));
        tokio::spawn(receiver::run(
            Arc::clone(&ears),
            client.message_rx(),
            node.clone(),
        ));
        let (wishes, inbox) = mpsc::channel(MAX_PENDING_REQUESTS);
        let listener = SubscriptionManager {
            channels: Channels::new(place.is_clustered(), ears.system_channels()),
            link: Arc::clone(link),
            node,
            ears: Arc::clone(&ears),
            begun: Instant::now(),
            reported_unavailable: false,
            needs_resubscribe: true,
            wishes: Vec::new(),
            connection_errors: client.error_rx(),
            reconnects: client.reconnect_rx(),
            client,
        };
        tokio::spawn(listener.run(inbox));
        Ok(Self {
            requests: wishes,
            ears,
        })
    }

    /// Listens to these from now on; what is committed after the answer is heard.
    pub(super) async fn listen(&self, topics: Vec<Topic>) -> Result<(), Error> {
        let closed = || Error::Unavailable("it is closed".to_owned());
        let (done, answer) = oneshot::channel();
        let wish = SubscribeRequest {
            topics,
            deadline: Instant::now() + COMMAND_TIMEOUT,
            done,
        };
        self.requests.send(wish).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Whether what is said reaches this node.
    pub(super) fn is_healthy(&self) -> bool {
        self.ears.is_well()
    }
}

impl SubscriptionManager {
    async fn run(mut self, mut inbox: mpsc::Receiver<SubscribeRequest>) {
        let mut connection = self.client.connect();
        let mut probe = interval(PROBE_INTERVAL);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut review = interval(PRUNE_INTERVAL);
        let over = self.link.shutdown.clone();
        loop {
            tokio::select! {
                () = over.cancelled() => break,
                count = inbox.recv_many(&mut self.wishes, MAX_PENDING_REQUESTS) => match count {
                    0 => break,
                    _ => self.process_requests().await,
                },
                _ = &mut connection => {
                    connection = self.client.connect();
                    self.mark_stale("the connection's task has ended");
                }
                // Either way it may be more than one, and some may be missing.
                why = self.connection_errors.recv() => {
                    let why = why.map(|(error, _)| error.to_string());
                    self.mark_stale(&why.unwrap_or_default());
                }
                _ = self.reconnects.recv() => {
                    self.mark_stale("the connection is new");
                    probe.reset_immediately();
                }
                () = self.ears.gap() => self.mark_stale("messages were lost"),
                _ = probe.tick() => self.check_probes(&mut probe).await,
                _ = review.tick() => self.prune_channels().await,
            }
        }
        if let Err(error) = self.client.quit().await {
            tracing::debug!(%error, "the connection was gone already");
        }
    }

    /// Listens to what is wished for and was not listened to. A gap may be over in a moment, so for
    /// that long those who wish wait for its end.
    async fn process_requests(&mut self) {
        let now = Instant::now();
        if self.needs_resubscribe {
            let is_too_late = |wish: &mut SubscribeRequest| wish.deadline <= now;
            for wish in self.wishes.extract_if(.., is_too_late) {
                wish.answer(Err(Error::Unavailable(
                    "nothing is heard of changes".to_owned(),
                )));
            }
            return;
        }
        let topics = self.wishes.iter().flat_map(|wish| &wish.topics);
        let missing = self.channels.not_subscribed(&self.link.keys, topics);
        let granted = match missing.is_empty() {
            true => Ok(()),
            false => self.channels.add(&self.client, missing).await,
        };
        if let Err(error) = &granted {
            tracing::debug!(%error, "can't listen");
        }
        for wish in self.wishes.drain(..) {
            wish.answer(granted.clone());
        }
    }

    fn mark_stale(&mut self, why: &str) {
        if !self.needs_resubscribe {
            tracing::warn!(why, "changes may have been missed");
        }
        self.needs_resubscribe = true;
        // At the very beginning nobody has heard anything yet.
        if !self.reported_unavailable
            && (self.ears.is_well() || self.begun.elapsed() > PROBE_TIMEOUT)
        {
            self.reported_unavailable = true;
            self.ears.set_healthy(false);
            (self.node.on_event)(StoreEvent::Unavailable);
        }
    }

    /// Probes every way in, and mends what is silent.
    async fn check_probes(&mut self, probe: &mut tokio::time::Interval) {
        if !self.needs_resubscribe {
            let silent = self.ears.stale_partitions(PROBE_TIMEOUT);
            if !silent.is_empty() {
                tracing::warn!(partitions = ?silent, "a probe did not come back");
                self.mark_stale("a probe did not come back");
            }
        }
        if self.needs_resubscribe {
            self.resubscribe().await;
            self.process_requests().await;
            probe.reset();
        }
        self.ears.probe(&self.link).await;
    }

    /// Asks for everything again. A connection that does not even answer is given up.
    async fn resubscribe(&mut self) {
        if self.begun.elapsed() > PROBE_TIMEOUT {
            self.mark_stale("");
        }
        if !self.client.is_connected() {
            return;
        }
        // What was told of connections until now, this makes good: each server tells for itself.
        while !matches!(
            self.connection_errors.try_recv(),
            Err(TryRecvError::Empty | TryRecvError::Closed)
        ) {}
        while !matches!(
            self.reconnects.try_recv(),
            Err(TryRecvError::Empty | TryRecvError::Closed)
        ) {}
        let mended = async {
            self.channels.resubscribe_all(&self.client).await?;
            self.ears.await_probes(&self.link).await
        };
        match mended.await {
            Ok(()) => {
                self.needs_resubscribe = false;
                self.ears.set_healthy(true);
                if self.reported_unavailable {
                    self.reported_unavailable = false;
                    tracing::info!("changes are heard again");
                    (self.node.on_event)(StoreEvent::Recovered);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "can't listen to changes yet");
                if self.client.is_connected() {
                    force_reconnect(&self.client).await;
                }
            }
        }
    }

    async fn prune_channels(&mut self) {
        let wanted = Arc::clone(&self.node.is_subscribed);
        let unwanted = self.channels.idle(|topic| wanted(topic));
        if self.needs_resubscribe || unwanted.is_empty() {
            return;
        }
        if let Err(error) = self.channels.remove(&self.client, unwanted).await {
            tracing::debug!(%error, "still listening to what nobody wants");
        }
    }
}
