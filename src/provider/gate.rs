//! The gate that every request to a provider passes: so that a provider that is busy, fails or wants
//! no more is left alone, and everybody can see it.
//!
//! Invariant: a request is made with a [`Leave`] only, and what comes of it is told to the gate or is
//! nothing. The lock is never held across an await; what waits in line is bounded.

mod condition;
mod lane;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use self::condition::{Condition, Errand};
use self::lane::{Admission, Pass};
use crate::telemetry::ProviderState;
use crate::time::Time;

pub(super) use self::condition::Health;
pub use self::condition::Standing;

/// Questions that wait in line at most; a further one is not asked now.
const LONGEST_LINE: usize = 1024;

/// How long news by webhook is expected to go on, once some came.
const HEARD_FOR: Duration = Duration::from_secs(3600);

/// Whether and how fast a provider may be sent requests.
#[derive(Debug)]
pub struct Gate {
    provider: String,
    inner: Mutex<Inner>,
    changed: Notify,
    memo: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Inner {
    condition: Condition,
    submits: usize,
    asks: usize,
    in_line: usize,
    /// How often it came to each state.
    turns: [u64; ProviderState::ALL.len()],
    /// The last webhook that was about a job.
    heard_at: Option<Time>,
}

/// Leave to make one request. Dropped without a word, it told nothing.
#[derive(Debug)]
#[must_use = "a place is taken as long as this lives"]
pub struct Leave {
    gate: Arc<Gate>,
    errand: Errand,
    pass: Pass,
    health: Health,
}

/// The provider is not asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its provider is left alone for now")]
pub struct Held;

impl Gate {
    pub(super) fn new(provider: &str) -> Arc<Self> {
        Arc::new(Self {
            provider: provider.to_owned(),
            inner: Mutex::default(),
            changed: Notify::new(),
            memo: watch::Sender::new(None),
        })
    }

    /// Leaves for as many submissions as may be made now, `most` at most. Whoever has one need not
    /// use it.
    #[must_use]
    pub fn leaves(self: &Arc<Self>, most: usize, now: Time) -> Vec<Leave> {
        let one = || match self.admit(Errand::Submit, now) {
            Admission::Go(pass) => Some(self.leave(Errand::Submit, pass)),
            Admission::Full | Admission::Shut(_) => None,
        };
        std::iter::from_fn(one).take(most).collect()
    }

    /// When submissions may go on, where there is a moment to wait for.
    #[must_use]
    pub fn reopens(&self, now: Time) -> Option<Time> {
        let inner = self.lock();
        let closed = inner.condition.lane(Errand::Submit).closed();
        closed
            .map(|closed| closed.until)
            .filter(|until| now < *until)
    }

    /// Leave for a question, or for whatever else may be repeated, after waiting in line for it.
    ///
    /// # Errors
    /// [`Held`] when there is none within `patience`, or the line is full.
    pub(super) async fn enter(self: &Arc<Self>, patience: Duration) -> Result<Leave, Held> {
        let line = Line::join(self).ok_or(Held)?;
        let leave = self.wait(Errand::Ask, Time::now() + patience).await;
        drop(line);
        leave
    }

    async fn wait(self: &Arc<Self>, errand: Errand, end: Time) -> Result<Leave, Held> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Time::now();
            let again = match self.admit(errand, now) {
                Admission::Go(pass) => return Ok(self.leave(errand, pass)),
                Admission::Full => end,
                Admission::Shut(until) => until,
            };
            if now >= end || again > end {
                return Err(Held);
            }
            // Some moments are over a little before the clock says so.
            let wait = again.saturating_duration_since(now).max(Duration::from_millis(1));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How the provider is.
    #[must_use]
    pub fn standing(&self, now: Time) -> Standing {
        self.lock().condition.standing(now)
    }

    /// How often it came to this state.
    #[must_use]
    pub fn turns(&self, state: ProviderState) -> u64 {
        self.lock().turns[state as usize]
    }

    /// Opens it: whatever it was closed for is mended, as somebody says.
    pub fn resume(&self) {
        self.change(Condition::resume);
    }

    /// Lets one submission through where they are held back for want of credit: there seems to be
    /// some.
    pub(super) fn try_credit(&self, now: Time) {
        self.change(|condition| condition.try_credit(now));
    }

    /// Since when submissions are held back for want of credit.
    pub(super) fn is_without_credit(&self) -> Option<Time> {
        self.lock().condition.is_without_credit()
    }

    /// What other nodes should know of it, for [`Gate::heed`]; none as long as there is nothing.
    #[must_use]
    pub fn memo(&self) -> watch::Receiver<Option<String>> {
        self.memo.subscribe()
    }

    /// Takes over what another node knows better, and tells again what it knows worse.
    ///
    /// # Errors
    /// When it is no memo of a gate.
    pub fn heed(&self, memo: &str) -> serde_json::Result<()> {
        let theirs: Condition = serde_json::from_str(memo)?;
        self.change(|condition| condition.adopt(&theirs));
        let inner = self.lock();
        if !inner.condition.agrees(&theirs) {
            self.write_memo(&inner);
        }
        Ok(())
    }

    fn write_memo(&self, inner: &Inner) {
        match serde_json::to_string(&inner.condition) {
            Ok(memo) => drop(self.memo.send_replace(Some(memo))),
            Err(error) => tracing::error!(%error, "can't write down how a provider is"),
        }
    }

    /// A webhook of the provider's was about one of its jobs.
    pub(super) fn heard(&self, now: Time) {
        self.lock().heard_at = Some(now);
    }

    /// Whether webhooks of the provider's have come of late.
    pub(super) fn is_heard(&self, now: Time) -> bool {
        let heard_at = self.lock().heard_at;
        heard_at.is_some_and(|heard_at| now.saturating_duration_since(heard_at) < HEARD_FOR)
    }

    fn admit(&self, errand: Errand, now: Time) -> Admission {
        let mut inner = self.lock();
        let under_way = *inner.under_way(errand);
        let before = inner.condition.lane(errand).age();
        let admission = inner.condition.admit(errand, under_way, now);
        if inner.condition.lane(errand).age() != before {
            self.write_memo(&inner);
        }
        if let Admission::Go(_) = admission {
            *inner.under_way(errand) += 1;
        }
        admission
    }

    fn leave(self: &Arc<Self>, errand: Errand, pass: Pass) -> Leave {
        Leave {
            gate: Arc::clone(self),
            errand,
            pass,
            health: Health::Unknown,
        }
    }

    /// Changes the condition, and tells of a new state once.
    fn change(&self, change: impl FnOnce(&mut Condition)) {
        let mut inner = self.lock();
        // As of the beginning of time, a pause is one until it is ended.
        let standing = |inner: &Inner| inner.condition.standing(Time::from_millis(0));
        let (before, known) = (standing(&inner), inner.condition.clone());
        change(&mut inner.condition);
        if !inner.condition.agrees(&known) {
            self.write_memo(&inner);
        }
        let after = standing(&inner);
        let has_turned = (before.state, before.reason) != (after.state, after.reason);
        if has_turned {
            inner.turns[after.state as usize] += 1;
        }
        drop(inner);
        if has_turned {
            self.tell(after);
        }
        self.changed.notify_waiters();
    }

    fn tell(&self, standing: Standing) {
        let (name, state) = (&self.provider, standing.state.word());
        let until = standing.until.map(tracing::field::display);
        match standing.state {
            ProviderState::Open => tracing::info!(provider.name = name, state, "sending again"),
            ProviderState::Paused => {
                tracing::info!(provider.name = name, state, until, "left alone for a while");
            }
            ProviderState::Failing => {
                tracing::warn!(
                    provider.name = name,
                    state,
                    until,
                    "left alone until it answers"
                );
            }
            ProviderState::Stopped => {
                tracing::error!(provider.name = name, state, reason = ?standing.reason, until, "nothing is submitted until somebody mends it");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn under_way(&mut self, errand: Errand) -> &mut usize {
        match errand {
            Errand::Submit => &mut self.submits,
            Errand::Ask => &mut self.asks,
        }
    }
}

impl Leave {
    /// The request was answered, and this is what the answer says of the provider.
    pub(super) fn end(mut self, health: Health) {
        self.health = health;
    }

    /// This leave, or one for later if the gate has closed since it was given: none when that is
    /// after `end`.
    pub async fn still(self, end: Time) -> Option<Self> {
        let is_good = |leave: &Self| {
            let inner = leave.gate.lock();
            inner.condition.lane(leave.errand).honours(leave.pass)
        };
        if is_good(&self) {
            return Some(self);
        }
        let (gate, errand) = (Arc::clone(&self.gate), self.errand);
        drop(self);
        gate.wait(errand, end).await.ok()
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        let (errand, pass, health) = (self.errand, self.pass, self.health);
        {
            let mut inner = self.gate.lock();
            let under_way = inner.under_way(errand);
            *under_way = under_way.saturating_sub(1);
        }
        self.gate
            .change(|condition| condition.hear(errand, pass, health, Time::now()));
    }
}

/// A place in the line.
struct Line<'a>(&'a Gate);

impl<'a> Line<'a> {
    fn join(gate: &'a Gate) -> Option<Self> {
        let mut inner = gate.lock();
        if inner.in_line >= LONGEST_LINE {
            return None;
        }
        inner.in_line += 1;
        Some(Self(gate))
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.lock().in_line -= 1;
    }
}
