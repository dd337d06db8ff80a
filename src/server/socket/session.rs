//! The session of a client: its authentication, its subscriptions, and the replies to its messages.
//!
//! Every message has one reply. An error in one message, or in one job of a message, affects no other.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use super::read_pause::MAX_PAUSE;
use super::transport::Transport;
use super::{SocketClient, SocketContext};
use crate::hub::{Connection, FeedHealth, Sink};
use crate::job::JobId;
use crate::protocol::{
    ClientMessage, CloseReason, FeedName, JobVersion, ServerMessage, SubscribeOutcome,
};
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::{FEED_IDS, SubjectPermit};
use crate::server::subscribe::{can_subscribe_owner, granted_job_ids, subscribe, subscribe_owner};
use crate::telemetry::Limit;
use crate::time::Time;
use progress_hub_auth::jwt::{Principal, TokenError};

/// Number of malformed messages at which the connection is closed.
const MAX_BAD_MESSAGES: u32 = 10;

/// Time between `token_expiring` and the expiry of a token.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30);

/// Maximum number of concurrent cancel requests of a connection.
const MAX_IN_FLIGHT_CANCELS: usize = 8;

/// Authentication of the client.
enum PeerState {
    /// The client has not authenticated. It is closed at `deadline`.
    Unauthenticated { deadline: Instant },
    /// The client has authenticated as `principal`.
    Authenticated {
        principal: Principal,
        /// Counts the connection and its subscriptions for the subject.
        permit: SubjectPermit,
        /// Time of the `token_expiring` message, until it is sent.
        notice_at: Option<Instant>,
        expires_at: Instant,
    },
}

/// The session of a client.
pub(super) struct Session<T> {
    context: Arc<SocketContext>,
    id: Uuid,
    transport: Rc<Transport<T>>,
    connection: Connection,
    client: SocketClient,
    peer: PeerState,
    bad_messages: u32,
    cancel_permits: Arc<Semaphore>,
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Session<T> {
    /// Starts the session of an unauthenticated client.
    pub(super) fn new(
        context: &Arc<SocketContext>,
        transport: &Rc<Transport<T>>,
        client: SocketClient,
    ) -> Self {
        let sink = Rc::clone(transport) as Rc<dyn Sink>;
        Self {
            context: Arc::clone(context),
            id: Uuid::now_v7(),
            transport: Rc::clone(transport),
            connection: Connection::open(&context.hub.shard(), sink),
            client,
            peer: PeerState::Unauthenticated {
                deadline: Instant::now() + context.settings.auth_timeout,
            },
            bad_messages: 0,
            cancel_permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT_CANCELS)),
        }
    }

    /// Returns the id of the connection, for logs and `hello`.
    pub(super) fn id(&self) -> uuid::fmt::Simple {
        self.id.simple()
    }

    /// Returns the connection to the hub.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Logs that the connection is closed, if its token is the cause.
    pub(super) fn log_close(&self, reason: CloseReason) {
        let caller = match &self.peer {
            PeerState::Unauthenticated { .. } => None,
            PeerState::Authenticated { principal, .. } => Some(principal),
        };
        let security = &self.context.security;
        security.connection_closed(reason, caller, self.client.address);
    }

    /// Returns the time of the next call of [`Session::on_timer`].
    pub(super) fn next_timer(&self) -> Instant {
        match &self.peer {
            PeerState::Unauthenticated { deadline } => *deadline,
            PeerState::Authenticated {
                notice_at,
                expires_at,
                ..
            } => notice_at.unwrap_or(*expires_at),
        }
    }

    /// Announces the expiry of the token.
    ///
    /// # Errors
    /// The reason to close if the token has expired or did not arrive in time.
    pub(super) fn on_timer(&mut self, now: Instant) -> Result<(), CloseReason> {
        match &mut self.peer {
            PeerState::Unauthenticated { deadline } if *deadline <= now => {
                Err(CloseReason::AuthTimeout)
            }
            PeerState::Unauthenticated { .. } => Ok(()),
            PeerState::Authenticated { expires_at, .. } if *expires_at <= now => {
                Err(CloseReason::TokenExpired)
            }
            PeerState::Authenticated {
                notice_at,
                expires_at,
                ..
            } => {
                if notice_at.take_if(|at| *at <= now).is_some() {
                    let in_ms = as_millis(expires_at.saturating_duration_since(now));
                    self.reply(&ServerMessage::TokenExpiring { in_ms });
                }
                Ok(())
            }
        }
    }

    /// Processes a text message. Returns the time until the client may send the next message, and
    /// the limit that determines this time.
    ///
    /// # Errors
    /// The reason to close the connection.
    pub(super) async fn dispatch(&mut self, text: &[u8]) -> Result<(Limit, Duration), CloseReason> {
        let message = ClientMessage::parse(text);
        let (principal, throttled) = match &self.peer {
            PeerState::Unauthenticated { .. } => (None, (Limit::Messages, Duration::ZERO)),
            PeerState::Authenticated {
                principal, permit, ..
            } => {
                let ids = message.as_ref().map_or(0, requested_ids);
                let throttled = self.context.limits.charge_message(permit, ids);
                if throttled.1 > MAX_PAUSE {
                    self.context.metrics.limit_reached(throttled.0);
                    return Err(CloseReason::RateLimited);
                }
                (Some(principal.clone()), throttled)
            }
        };
        match (message, principal) {
            (Ok(ClientMessage::Auth { token }), _) => self.authenticate(&token).await?,
            (_, None) => return Err(CloseReason::Unauthorized),
            (Err(error), Some(_)) => self.reject_message(text, &error)?,
            (Ok(ClientMessage::Subscribe { id, jobs, feed }), Some(principal)) => {
                self.subscribe(&principal, &id, &jobs, feed).await;
            }
            (Ok(ClientMessage::Unsubscribe { id, jobs, feed }), Some(_)) => {
                self.unsubscribe(&id, &jobs, feed);
            }
            (Ok(ClientMessage::Cancel { id, job }), Some(principal)) => {
                self.cancel(principal, id, job);
            }
            (Ok(ClientMessage::Ping { id }), Some(_)) => {
                self.reply(&ServerMessage::Pong { id: &id });
            }
        }
        self.settle_subscriptions();
        Ok(throttled)
    }

    /// Sets the reserved subscriptions to the number that the connection has.
    fn settle_subscriptions(&mut self) {
        if let PeerState::Authenticated { permit, .. } = &mut self.peer {
            permit.settle_subscriptions(self.connection.explicit_subscriptions());
        }
    }

    fn reply(&self, message: &ServerMessage<'_>) {
        self.transport.queue_reply(message.frame());
    }

    fn reply_error(&self, id: &Value, code: ErrorCode, message: &str) {
        let code = code.as_str();
        self.reply(&ServerMessage::Error { id, code, message });
    }

    /// Replies to a malformed message, and closes the connection at the last one that is tolerated.
    fn reject_message(
        &mut self,
        text: &[u8],
        error: &serde_json::Error,
    ) -> Result<(), CloseReason> {
        self.count_bad_message()?;
        let message: Value = serde_json::from_slice(text).unwrap_or_default();
        let id = message.get("id").unwrap_or(&Value::Null);
        let detail = format!("not a valid client message: {error}");
        self.reply_error(id, ErrorCode::BadMessage, &detail);
        Ok(())
    }

    fn count_bad_message(&mut self) -> Result<(), CloseReason> {
        self.bad_messages += 1;
        if self.bad_messages >= MAX_BAD_MESSAGES {
            return Err(CloseReason::TooManyBadMessages);
        }
        Ok(())
    }

    /// Authenticates the client, or renews its token.
    async fn authenticate(&mut self, token: &str) -> Result<(), CloseReason> {
        let verified = self.context.verifier.verify(token).await;
        if let Err(error) = &verified
            && !matches!(error, TokenError::KeysUnavailable { .. })
        {
            let security = &self.context.security;
            security.token_rejected(error.code(), self.client.address);
        }
        match (verified, &self.peer) {
            (Ok(principal), PeerState::Unauthenticated { .. }) => self.set_principal(principal)?,
            (Ok(renewed), PeerState::Authenticated { principal, .. })
                if renewed.subject() == principal.subject() =>
            {
                if !can_subscribe_owner(&renewed) {
                    self.connection.unsubscribe_owner();
                }
                self.connection
                    .retain_visible(|job, owner| renewed.may_see(job.as_str(), owner));
                self.set_principal(renewed)?;
            }
            (Ok(_), PeerState::Authenticated { .. }) => {
                self.count_bad_message()?;
                let message = "the new token must have the same subject";
                self.reply_error(&Value::Null, ErrorCode::SubjectChanged, message);
            }
            (Err(error @ TokenError::KeysUnavailable { .. }), _) => {
                self.reply_error(&Value::Null, ErrorCode::KeysUnavailable, &error.to_string());
            }
            (Err(_), PeerState::Unauthenticated { .. }) => return Err(CloseReason::Unauthorized),
            (Err(error), PeerState::Authenticated { .. }) => {
                self.count_bad_message()?;
                self.reply_error(&Value::Null, ErrorCode::Unauthorized, &error.to_string());
            }
        }
        Ok(())
    }

    /// Sets the authenticated principal and sends `hello`.
    ///
    /// # Errors
    /// The reason to close if the subject has reached its maximum number of connections.
    pub(super) fn set_principal(&mut self, principal: Principal) -> Result<(), CloseReason> {
        let unauthenticated = PeerState::Unauthenticated {
            deadline: Instant::now(),
        };
        let (permit, is_first) = match std::mem::replace(&mut self.peer, unauthenticated) {
            PeerState::Authenticated { permit, .. }
                if permit.is_unlimited() == principal.is_admin() =>
            {
                (permit, false)
            }
            previous @ (PeerState::Authenticated { .. } | PeerState::Unauthenticated { .. }) => {
                let permit = self.context.limits.acquire_subject(&principal);
                let is_first = matches!(previous, PeerState::Unauthenticated { .. });
                (permit.map_err(|reached| reached.close_reason())?, is_first)
            }
        };
        self.client.set_authenticated();
        let (now, expires_at) = (Time::now(), Time::from(principal.expires_at()));
        let lifetime = expires_at.saturating_duration_since(now);
        let notice = EXPIRY_NOTICE.min(lifetime / 2);
        self.peer = PeerState::Authenticated {
            principal,
            permit,
            notice_at: Some(Instant::now() + lifetime.saturating_sub(notice)),
            expires_at: Instant::now() + lifetime,
        };
        self.settle_subscriptions();
        self.reply(&ServerMessage::Hello {
            protocol: 1,
            connection: self.id().encode_lower(&mut Uuid::encode_buffer()),
            heartbeat_ms: as_millis(self.context.settings.heartbeat),
            expires_at,
            now,
        });
        if is_first && let FeedHealth::Degraded(since) = self.connection.health() {
            self.reply(&ServerMessage::Degraded { since });
        }
        Ok(())
    }

    /// Subscribes to jobs, or to all jobs of the owner; `jobs` are then the versions that the client has.
    async fn subscribe(
        &mut self,
        principal: &Principal,
        id: &Value,
        jobs: &[JobVersion],
        feed: Option<FeedName>,
    ) {
        let known: BTreeMap<&str, u64> = jobs
            .iter()
            .map(|known| (known.job.as_str(), known.version))
            .collect();
        let known_version = |job: &JobId| known.get(job.as_str()).copied().unwrap_or(0);
        let has_owner_feed = feed.is_some() && can_subscribe_owner(principal);
        let mut requested: BTreeSet<JobId> = known
            .keys()
            .filter_map(|job| JobId::parse(job).ok())
            .collect();
        if feed.is_some() && !has_owner_feed {
            requested.extend(granted_job_ids(principal).unwrap_or_default());
        }
        let mut outcomes: BTreeMap<&str, SubscribeOutcome> = known
            .keys()
            .copied()
            .chain(requested.iter().map(JobId::as_str))
            .map(|job| (job, SubscribeOutcome::NotFound))
            .collect();

        let mut selected: Vec<JobId> = requested.iter().cloned().collect();
        if !has_owner_feed {
            self.limit_subscriptions(&mut selected);
        }
        let (connection, store) = (&self.connection, &*self.context.store);
        let result = if has_owner_feed {
            subscribe_owner(connection, store, principal, &selected).await
        } else {
            subscribe(connection, store, principal, &selected).await
        };
        let paused = match result {
            Ok(paused) => paused,
            Err(error) => {
                let problem = Problem::from(error);
                return self.reply_error(id, problem.code(), problem.detail());
            }
        };

        let has_too_many = selected.len() < requested.len();
        for job in &requested {
            if selected.binary_search(job).is_err() {
                outcomes.insert(job.as_str(), SubscribeOutcome::TooMany);
            }
        }
        for job in paused.jobs() {
            let outcome = if known_version(&job.id) >= job.version {
                SubscribeOutcome::Current
            } else {
                SubscribeOutcome::Sent
            };
            outcomes.insert(job.id.as_str(), outcome);
        }
        self.reply(&ServerMessage::Subscribed {
            id,
            feed,
            jobs: outcomes,
        });
        paused.activate(known_version);
        if has_too_many {
            let limit = self.context.settings.max_subscriptions;
            let message = format!(
                "a connection may have at most {limit} subscriptions by id, and a subject at most \
                 limits.subscriptions_per_subject"
            );
            self.reply_error(id, ErrorCode::TooManySubscriptions, &message);
        }
    }

    /// Removes jobs from the end of the list that exceed the limit of the connection or of its
    /// subject. A job that the connection has subscribed to already does not count again.
    fn limit_subscriptions(&mut self, jobs: &mut Vec<JobId>) {
        let connection = &self.connection;
        let max = self.context.settings.max_subscriptions;
        let room = max.saturating_sub(connection.explicit_subscriptions());
        let new = jobs.iter().filter(|job| !connection.is_subscribed(job));
        let wanted = new.count().min(room);
        let mut granted = match &mut self.peer {
            PeerState::Authenticated { permit, .. } => {
                self.context.limits.reserve_subscriptions(permit, wanted)
            }
            PeerState::Unauthenticated { .. } => 0,
        };
        jobs.retain(|job| {
            let is_granted = connection.is_subscribed(job) || granted > 0;
            granted -= usize::from(is_granted && !connection.is_subscribed(job));
            is_granted
        });
    }

    fn unsubscribe(&self, id: &Value, jobs: &[String], feed: Option<FeedName>) {
        for job in jobs {
            if let Ok(job) = JobId::parse(job) {
                self.connection.unsubscribe(&job);
            }
        }
        if feed.is_some() {
            self.connection.unsubscribe_owner();
        }
        self.reply(&ServerMessage::Unsubscribed { id });
    }

    /// Cancels a job in a task of its own, because the provider may respond slowly.
    fn cancel(&self, principal: Principal, id: Value, job: String) {
        let Ok(permit) = Arc::clone(&self.cancel_permits).try_acquire_owned() else {
            let message = "too many cancel requests are in progress; try again";
            return self.reply_error(&id, ErrorCode::TooManyRequests, message);
        };
        let (transport, context) = (Rc::clone(&self.transport), Arc::clone(&self.context));
        tokio::task::spawn_local(async move {
            let result = context.canceller.cancel(&principal, &job).await;
            let problem = result.err().map(Problem::from);
            let message = match &problem {
                None => ServerMessage::Cancelling { id: &id, job: &job },
                Some(problem) => ServerMessage::Error {
                    id: &id,
                    code: problem.code().as_str(),
                    message: problem.detail(),
                },
            };
            transport.queue_reply(message.frame());
            drop(permit);
        });
    }
}

/// Returns the number of ids that the hub looks up for a message.
fn requested_ids(message: &ClientMessage) -> usize {
    match message {
        ClientMessage::Subscribe { jobs, feed, .. } => {
            jobs.len() + if feed.is_some() { FEED_IDS } else { 0 }
        }
        ClientMessage::Cancel { .. } => 1,
        ClientMessage::Auth { .. }
        | ClientMessage::Unsubscribe { .. }
        | ClientMessage::Ping { .. } => 0,
    }
}

/// Returns the duration in whole milliseconds.
pub(super) fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
