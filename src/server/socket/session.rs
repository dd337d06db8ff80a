//! What a connection and its client say to each other.
//!
//! Invariant: each message has one answer; what goes wrong with one job or one message harms no
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::{ConnectionTask, PeerState};
use crate::background::change_feed;
use crate::hub::FeedHealth;
use crate::job::{Job, JobId};
use crate::protocol::{
    ClientMessage, CloseReason, FeedName, JobVersion, ServerMessage, SubscribeOutcome,
};
use crate::server::api::jobs::{can_subscribe_owner, granted_job_ids};
use crate::server::error::Problem;
use crate::store;
use crate::time::Time;
use progress_hub_auth::jwt::{Principal, TokenError};

/// Messages that make no sense before the connection ends.
const MAX_BAD_MESSAGES: u32 = 10;

/// How long before its end a token is said to be expiring.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30);

/// How long an answer from the store may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Cancels under way at once for one connection.
const MAX_IN_FLIGHT_CANCELS: usize = 8;

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> ConnectionTask<T> {
    pub(super) async fn dispatch(&mut self, text: &[u8]) -> Result<(), CloseReason> {
        let message = match serde_json::from_slice::<ClientMessage>(text) {
            Ok(message) => message,
            Err(_) if matches!(self.peer, PeerState::Unauthenticated { .. }) => {
                return Err(CloseReason::Unauthorized);
            }
            Err(error) => return self.reject_message(text, &error),
        };
        let known = match &self.peer {
            PeerState::Unauthenticated { .. } => None,
            PeerState::Authenticated { principal, .. } => Some(principal.clone()),
        };
        match (message, known) {
            (ClientMessage::Auth { token }, _) => return self.authenticate(&token).await,
            (_, None) => return Err(CloseReason::Unauthorized),
            (ClientMessage::Subscribe { id, jobs, feed }, Some(principal)) => {
                self.subscribe(&principal, &id, &jobs, feed).await;
            }
            (ClientMessage::Unsubscribe { id, jobs, feed }, Some(_)) => {
                self.unsubscribe(&id, &jobs, feed);
            }
            (ClientMessage::Cancel { id, job }, Some(principal)) => {
                self.cancel(principal, id, &job);
            }
            (ClientMessage::Ping { id }, Some(_)) => {
                self.wire
                    .queue_reply(ServerMessage::Pong { id: &id }.frame());
            }
        }
        Ok(())
    }

    /// Says what is wrong with a message; the tenth time, that was it.
    fn reject_message(
        &mut self,
        text: &[u8],
        error: &serde_json::Error,
    ) -> Result<(), CloseReason> {
        self.bad_messages += 1;
        if self.bad_messages >= MAX_BAD_MESSAGES {
            return Err(CloseReason::TooManyBadMessages);
        }
        let whole: Value = serde_json::from_slice(text).unwrap_or_default();
        let id = whole.get("id").cloned().unwrap_or_default();
        let message = format!("not a message of this protocol: {error}");
        self.wire.queue_reply(
            ServerMessage::Error {
                id: &id,
                code: "bad_message",
                message: &message,
            }
            .frame(),
        );
        Ok(())
    }

    async fn authenticate(&mut self, token: &str) -> Result<(), CloseReason> {
        match (self.sockets.verifier.verify(token).await, &self.peer) {
            (Ok(principal), PeerState::Unauthenticated { .. }) => self.set_principal(principal),
            (Ok(renewed), PeerState::Authenticated { principal, .. })
                if renewed.subject() == principal.subject() =>
            {
                if !can_subscribe_owner(&renewed) {
                    self.connection.unsubscribe_owner();
                }
                self.connection
                    .retain_visible(|job, owner| renewed.may_see(job.as_str(), owner));
                self.set_principal(renewed);
            }
            (Ok(_), PeerState::Authenticated { .. }) => {
                self.error(
                    &Value::Null,
                    "subject_changed",
                    "a token can only be renewed for the same subject",
                );
            }
            (Err(refused @ TokenError::KeysUnavailable { .. }), _) => {
                self.error(&Value::Null, "keys_unavailable", &refused.to_string());
            }
            (Err(_), PeerState::Unauthenticated { .. }) => return Err(CloseReason::Unauthorized),
            (Err(refused), PeerState::Authenticated { .. }) => {
                self.error(&Value::Null, "unauthorized", &refused.to_string());
            }
        }
        Ok(())
    }

    pub(super) fn set_principal(&mut self, principal: Principal) {
        let (now, expires_at) = (Time::now(), Time::from(principal.expires_at()));
        let left = expires_at.saturating_duration_since(now);
        let ends_at = Instant::now() + left;
        let notice_at = Some(Instant::now() + left.saturating_sub(EXPIRY_NOTICE.min(left / 2)));
        let heartbeat = self.sockets.settings.heartbeat.as_millis();
        let is_first = matches!(self.peer, PeerState::Unauthenticated { .. });
        self.peer = PeerState::Authenticated {
            principal,
            notice_at,
            ends_at,
        };
        let heartbeat_ms = u64::try_from(heartbeat).unwrap_or(u64::MAX);
        let mut name = Uuid::encode_buffer();
        let hello = ServerMessage::Hello {
            protocol: 1,
            connection: self.id.simple().encode_lower(&mut name),
            heartbeat_ms,
            expires_at,
            now,
        };
        self.wire.queue_reply(hello.frame());
        if let (true, FeedHealth::Degraded(since)) = (is_first, self.connection.health()) {
            self.wire
                .queue_reply(ServerMessage::Degraded { since }.frame());
        }
    }

    fn error(&self, id: &Value, code: &str, message: &str) {
        self.wire
            .queue_reply(ServerMessage::Error { id, code, message }.frame());
    }

    async fn subscribe(
        &self,
        principal: &Principal,
        id: &Value,
        asked: &[JobVersion],
        feed: Option<FeedName>,
    ) {
        let asked: BTreeMap<&str, u64> = asked
            .iter()
            .map(|known| (known.job.as_str(), known.version))
            .collect();
        let version_of = |job: &JobId| asked.get(job.as_str()).copied().unwrap_or(0);
        let follows = feed.is_some() && can_subscribe_owner(principal);
        let mut wanted: BTreeSet<JobId> = asked
            .keys()
            .filter_map(|name| JobId::parse(name).ok())
            .collect();
        if feed.is_some() && !follows {
            wanted.extend(granted_job_ids(principal).unwrap_or_default());
        }
        let mut outcome: BTreeMap<&str, SubscribeOutcome> = asked
            .keys()
            .copied()
            .chain(wanted.iter().map(JobId::as_str))
            .map(|name| (name, SubscribeOutcome::NotFound))
            .collect();
        let beyond = if follows {
            Vec::new()
        } else {
            self.hold(&wanted)
        };
        let found = match follows {
            true => self.read_owner_feed(principal, &wanted).await,
            false => self.read_subscribed(principal, &wanted).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let problem = Problem::from(error);
                let (code, message) = problem.code_and_detail();
                return self.error(id, code, message);
            }
        };
        for job in &beyond {
            outcome.insert(job.as_str(), SubscribeOutcome::TooMany);
        }
        for job in &found {
            let is_current = version_of(&job.id) >= job.version;
            let told = if is_current {
                SubscribeOutcome::Current
            } else {
                SubscribeOutcome::Sent
            };
            outcome.insert(job.id.as_str(), told);
        }
        let subscribed = ServerMessage::Subscribed {
            id,
            feed,
            jobs: outcome,
        };
        self.wire.queue_reply(subscribed.frame());
        for job in &found {
            let known = version_of(&job.id);
            match follows {
                true => self.connection.backfill(Arc::clone(job), known),
                false => self.connection.activate(Arc::clone(job), known),
            }
        }
        if !beyond.is_empty() {
            let most = self.sockets.settings.max_subscriptions;
            let message = format!("a connection may watch {most} jobs by id");
            self.error(id, "too_many_subscriptions", &message);
        }
    }

    /// Attaches to jobs, as many as the connection may watch; those beyond it are left out.
    fn hold(&self, wanted: &BTreeSet<JobId>) -> Vec<JobId> {
        let most = self.sockets.settings.max_subscriptions;
        let mut beyond = Vec::new();
        for job in wanted {
            if self.connection.is_subscribed(job) || self.connection.explicit_subscriptions() < most
            {
                self.connection.subscribe_paused(job);
            } else {
                beyond.push(job.clone());
            }
        }
        beyond
    }

    /// Reads the jobs that are held, *after* they were attached to: whatever happens in between,
    /// the version tells which is newer. Those the caller may not see are let go.
    async fn read_subscribed(
        &self,
        principal: &Principal,
        wanted: &BTreeSet<JobId>,
    ) -> Result<Vec<Arc<Job>>, store::Error> {
        let held: Vec<JobId> = wanted
            .iter()
            .filter(|job| self.connection.is_subscribed(job))
            .cloned()
            .collect();
        let read =
            with_store_timeout(change_feed::subscribe_and_read(&*self.sockets.store, &held)).await;
        let mut found = read.as_ref().cloned().unwrap_or_default();
        found.retain(|job| principal.may_see(job.id.as_str(), &job.owner));
        let seen: BTreeSet<&JobId> = found.iter().map(|job| &job.id).collect();
        for job in held.iter().filter(|job| !seen.contains(job)) {
            self.connection.reject(job);
        }
        read.map(|_| found)
    }

    /// Follows the caller's jobs, and reads those there are: what the feed shows, and what the
    /// caller has of them besides.
    async fn read_owner_feed(
        &self,
        principal: &Principal,
        known: &BTreeSet<JobId>,
    ) -> Result<Vec<Arc<Job>>, store::Error> {
        self.connection.subscribe_owner(principal.subject());
        let known: Vec<JobId> = known.iter().cloned().collect();
        let read = with_store_timeout(async {
            let store = &*self.sockets.store;
            let mut jobs = store.get_many(&known).await?;
            jobs.retain(|job| job.owner == principal.subject());
            let mine = change_feed::subscribe_and_list(store, principal.subject()).await?;
            jobs.extend(mine.into_iter().filter(|job| !known.contains(&job.id)));
            Ok(jobs)
        })
        .await;
        if read.is_err() {
            self.connection.unsubscribe_owner();
        }
        read
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
        self.wire
            .queue_reply(ServerMessage::Unsubscribed { id }.frame());
    }

    /// Cancels beside the conversation: a provider may take its time.
    fn cancel(&self, principal: Principal, id: Value, job: &str) {
        if Rc::strong_count(&self.in_flight_cancels) > MAX_IN_FLIGHT_CANCELS {
            return self.error(
                &id,
                "too_many_requests",
                "too many cancels are under way; try again",
            );
        }
        let (wire, sockets, under_way) = (
            Rc::clone(&self.wire),
            Arc::clone(&self.sockets),
            Rc::clone(&self.in_flight_cancels),
        );
        let job = job.to_owned();
        tokio::task::spawn_local(async move {
            let cancelled = sockets.canceller.cancel(&principal, &job).await;
            match cancelled.map_err(Problem::from) {
                Ok(_) => wire.queue_reply(ServerMessage::Cancelling { id: &id, job: &job }.frame()),
                Err(problem) => {
                    let (code, message) = problem.code_and_detail();
                    wire.queue_reply(
                        ServerMessage::Error {
                            id: &id,
                            code,
                            message,
                        }
                        .frame(),
                    );
                }
            }
            drop(under_way);
        });
    }
}

/// What the store says, or that it says nothing.
async fn with_store_timeout<R>(
    read: impl Future<Output = Result<R, store::Error>>,
) -> Result<R, store::Error> {
    match tokio::time::timeout(STORE_TIMEOUT, read).await {
        Ok(read) => read,
        Err(_) => Err(store::Error::Overloaded),
    }
}
