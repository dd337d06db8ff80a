//! What a node hears of the others: which channels it listens to, and whether it can trust its ears.
//!
//! Invariant: one task owns the list of channels. It adds what is asked for and confirms it with a
//! barrier before anybody reads; it drops what nobody wants any more. After every gap (a connection
//! lost, messages lost, a probe that did not come back) all of it is asked for again, and only then
//! is the node told that it may read everything anew.

mod channels;
mod ears;

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
use self::ears::Ears;
use super::keeping::renew;
use super::link::{Link, away};
use super::place::{PATIENCE, Place};
use crate::store::{Error, StoreEvent, ChangeListener, Topic};

/// Between two probes, and two looks at what came of them.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// After which a probe that did not come back means that nothing else does.
const SILENCE: Duration = Duration::from_millis(2500);

/// Between two looks at what is still wanted. A topic that nobody wants is left after two of them, so
/// that whoever comes right back finds it as it was.
const REVIEW_EVERY: Duration = Duration::from_secs(10);

/// Wishes that wait to be heard; whoever comes then waits to tell his.
const MOST_WISHES: usize = 1024;

/// Somebody wants to hear of these, and waits until it is so.
struct Wish {
    topics: Vec<Topic>,
    /// When that is too late.
    until: Instant,
    done: oneshot::Sender<Result<(), Error>>,
}

/// The way to the task that listens.
pub(super) struct Hearing {
    wishes: mpsc::Sender<Wish>,
    ears: Arc<Ears>,
}

/// The task that listens.
struct Listener {
    link: Arc<Link>,
    node: ChangeListener,
    client: Client,
    channels: Channels,
    ears: Arc<Ears>,
    begun: Instant,
    /// Whether the node was told that its store is away.
    is_away: bool,
    /// Whether all channels have to be asked for again.
    is_deaf: bool,
    /// Those that came while it was deaf.
    wishes: Vec<Wish>,
    lost: Receiver<(RedisError, Option<Server>)>,
    found: Receiver<Server>,
}

impl Wish {
    fn answer(self, outcome: Result<(), Error>) {
        // Whoever has gone away needs no answer.
        drop(self.done.send(outcome));
    }
}

impl Hearing {
    /// Begins to listen; must be called within a runtime.
    pub(super) fn open(place: &Place, link: &Arc<Link>, node: ChangeListener) -> Result<Self, Error> {
        let client = place.listening_client().map_err(|error| away(&error))?;
        let name = uuid::Uuid::now_v7().simple().to_string();
        let ears = Arc::new(Ears::new(&link.keys, &name));
        tokio::spawn(ears::run(
            Arc::clone(&ears),
            client.message_rx(),
            node.clone(),
        ));
        let (wishes, inbox) = mpsc::channel(MOST_WISHES);
        let listener = Listener {
            channels: Channels::new(place.is_clustered(), ears.permanent()),
            link: Arc::clone(link),
            node,
            ears: Arc::clone(&ears),
            begun: Instant::now(),
            is_away: false,
            is_deaf: true,
            wishes: Vec::new(),
            lost: client.error_rx(),
            found: client.reconnect_rx(),
            client,
        };
        tokio::spawn(listener.run(inbox));
        Ok(Self { wishes, ears })
    }

    /// Listens to these from now on; what is committed after the answer is heard.
    pub(super) async fn listen(&self, topics: Vec<Topic>) -> Result<(), Error> {
        let closed = || Error::Unavailable("it is closed".to_owned());
        let (done, answer) = oneshot::channel();
        let wish = Wish {
            topics,
            until: Instant::now() + PATIENCE,
            done,
        };
        self.wishes.send(wish).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Whether what is said reaches this node.
    pub(super) fn is_well(&self) -> bool {
        self.ears.is_well()
    }
}

impl Listener {
    async fn run(mut self, mut inbox: mpsc::Receiver<Wish>) {
        let mut connection = self.client.connect();
        let mut probe = interval(PROBE_EVERY);
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut review = interval(REVIEW_EVERY);
        let over = self.link.over.clone();
        loop {
            tokio::select! {
                () = over.cancelled() => break,
                count = inbox.recv_many(&mut self.wishes, MOST_WISHES) => match count {
                    0 => break,
                    _ => self.grant().await,
                },
                _ = &mut connection => {
                    connection = self.client.connect();
                    self.go_deaf("the connection's task has ended");
                }
                // Either way it may be more than one, and some may be missing.
                why = self.lost.recv() => {
                    let why = why.map(|(error, _)| error.to_string());
                    self.go_deaf(&why.unwrap_or_default());
                }
                _ = self.found.recv() => {
                    self.go_deaf("the connection is new");
                    probe.reset_immediately();
                }
                () = self.ears.gap() => self.go_deaf("messages were lost"),
                _ = probe.tick() => self.look(&mut probe).await,
                _ = review.tick() => self.review().await,
            }
        }
        if let Err(error) = self.client.quit().await {
            tracing::debug!(%error, "the connection was gone already");
        }
    }

    /// Listens to what is wished for and was not listened to. A gap may be over in a moment, so for
    /// that long those who wish wait for its end.
    async fn grant(&mut self) {
        let now = Instant::now();
        if self.is_deaf {
            let is_too_late = |wish: &mut Wish| wish.until <= now;
            for wish in self.wishes.extract_if(.., is_too_late) {
                wish.answer(Err(Error::Unavailable("nothing is heard of changes".to_owned())));
            }
            return;
        }
        let topics = self.wishes.iter().flat_map(|wish| &wish.topics);
        let missing = self.channels.missing(&self.link.keys, topics);
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

    fn go_deaf(&mut self, why: &str) {
        if !self.is_deaf {
            tracing::warn!(why, "changes may have been missed");
        }
        self.is_deaf = true;
        // At the very beginning nobody has heard anything yet.
        if !self.is_away && (self.ears.is_well() || self.begun.elapsed() > SILENCE) {
            self.is_away = true;
            self.ears.set_well(false);
            (self.node.on_event)(StoreEvent::Unavailable);
        }
    }

    /// Probes every way in, and mends what is silent.
    async fn look(&mut self, probe: &mut tokio::time::Interval) {
        if !self.is_deaf {
            let silent = self.ears.silent(SILENCE);
            if !silent.is_empty() {
                tracing::warn!(partitions = ?silent, "a probe did not come back");
                self.go_deaf("a probe did not come back");
            }
        }
        if self.is_deaf {
            self.mend().await;
            self.grant().await;
            probe.reset();
        }
        self.ears.probe(&self.link).await;
    }

    /// Asks for everything again. A connection that does not even answer is given up.
    async fn mend(&mut self) {
        if self.begun.elapsed() > SILENCE {
            self.go_deaf("");
        }
        if !self.client.is_connected() {
            return;
        }
        // What was told of connections until now, this makes good: each server tells for itself.
        while !matches!(
            self.lost.try_recv(),
            Err(TryRecvError::Empty | TryRecvError::Closed)
        ) {}
        while !matches!(
            self.found.try_recv(),
            Err(TryRecvError::Empty | TryRecvError::Closed)
        ) {}
        let mended = async {
            self.channels.renew(&self.client).await?;
            self.ears.hear_all(&self.link).await
        };
        match mended.await {
            Ok(()) => {
                self.is_deaf = false;
                self.ears.set_well(true);
                if self.is_away {
                    self.is_away = false;
                    tracing::info!("changes are heard again");
                    (self.node.on_event)(StoreEvent::Recovered);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "can't listen to changes yet");
                if self.client.is_connected() {
                    renew(&self.client).await;
                }
            }
        }
    }

    async fn review(&mut self) {
        let wanted = Arc::clone(&self.node.is_subscribed);
        let unwanted = self.channels.unwanted(|topic| wanted(topic));
        if self.is_deaf || unwanted.is_empty() {
            return;
        }
        if let Err(error) = self.channels.remove(&self.client, unwanted).await {
            tracing::debug!(%error, "still listening to what nobody wants");
        }
    }
}
