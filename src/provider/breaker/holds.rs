//! Holds: circuits for the submissions of one owner and model, or of one model for all owners.
//!
//! A hold delays these submissions while those of other owners and models continue. Nodes exchange
//! holds together with the rest of the breaker's state.
//!
//! Invariants: the order in which snapshots are merged does not matter, and merging an old snapshot
//! changes nothing. Of two copies of a hold, a merge keeps the copy whose circuit ranks higher. A
//! hold that has ended stays in the state with a closed circuit, which replaces older copies on
//! other nodes. A newer copy never expires before an older copy. When the newest copy of a hold
//! expires, all others have expired.

use std::cmp::Reverse;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::circuit::{Admission, Circuit, PermitToken, Trip, TripCause};
use super::origin::{FAILURE_THRESHOLD, Origin};
use crate::time::Time;

/// Maximum number of holds, and of pairs of owner and model whose failures are counted. Beyond it,
/// the holds that expire first are dropped.
const MAX_HOLDS: usize = 256;

/// Time that a hold is kept after it allows a probe. Until then it keeps its backoff, and other
/// nodes can learn that it has ended.
const HOLD_RETENTION: Duration = Duration::from_secs(15 * 60);

/// Delay before a job is retried while another job of the same hold is in flight as a probe.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// Submissions that a hold applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Scope {
    /// `None` for all owners.
    owner: Option<String>,
    model: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Hold {
    scope: Scope,
    circuit: Circuit,
    /// Time at which the hold is dropped. Never decreases.
    expires_at: Time,
}

/// The holds of a provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Holds {
    holds: Vec<Hold>,
    /// Consecutive technical failures of owners and models without an open hold. Each node counts
    /// its own.
    #[serde(skip)]
    failures: Vec<(Scope, u32)>,
}

/// Permits of a submission, one for each hold that applies to it. The result of the submission is
/// recorded in each of these holds.
#[derive(Debug, Default)]
pub(super) struct HoldTokens(Vec<(Scope, PermitToken)>);

impl Hold {
    /// Returns whether the hold blocks submissions, except for a probe.
    fn is_open(&self) -> bool {
        self.circuit.open_state().is_some()
    }

    /// Changes the circuit, and keeps the hold for [`HOLD_RETENTION`] after its end.
    fn update(&mut self, change: impl FnOnce(&mut Circuit)) {
        change(&mut self.circuit);
        if let Some(open) = self.circuit.open_state() {
            self.expires_at = self.expires_at.max(open.until + HOLD_RETENTION);
        }
    }
}

impl Holds {
    /// Admits a submission.
    ///
    /// # Errors
    /// Returns the time of the next attempt if the submission is held.
    pub(super) fn admit(&mut self, origin: &Origin, now: Time) -> Result<HoldTokens, Time> {
        self.drop_expired(now);
        let mut tokens = HoldTokens::default();
        for scope in scopes_of(origin) {
            let Some(hold) = self.find(&scope) else {
                continue;
            };
            let held_until = match hold.circuit.admit(0, now) {
                Admission::Allowed(token) => {
                    tokens.0.push((scope, token));
                    continue;
                }
                Admission::AtCapacity => now + PROBE_WAIT,
                Admission::Open(until) => until,
            };
            self.discard(&tokens);
            return Err(held_until);
        }
        Ok(tokens)
    }

    /// Releases the probes of a submission that was not sent.
    pub(super) fn discard(&mut self, tokens: &HoldTokens) {
        for (scope, token) in &tokens.0 {
            if let Some(hold) = self.find(scope) {
                hold.circuit.discard_probe(*token);
            }
        }
    }

    /// Records a success. A successful probe ends its hold.
    pub(super) fn on_success(&mut self, origin: &Origin, tokens: &HoldTokens) {
        for (scope, token) in &tokens.0 {
            if let Some(hold) = self.find(scope) {
                hold.circuit.on_success(*token);
            }
        }
        let scope = scope_of(origin);
        self.failures.retain(|(failed, _)| *failed != scope);
    }

    /// Records a technical failure. Repeated failures begin a hold of the owner and model.
    pub(super) fn on_failure(&mut self, origin: &Origin, tokens: &HoldTokens, trip: &Trip) {
        self.drop_expired(trip.at);
        for (scope, token) in &tokens.0 {
            if let Some(hold) = self.find(scope)
                && hold.is_open()
            {
                hold.update(|circuit| circuit.on_rejection(*token, trip.clone()));
            }
        }
        let scope = scope_of(origin);
        if !self.is_held(&scope) && self.count_failure(&scope) >= FAILURE_THRESHOLD {
            self.hold(&scope, trip);
        }
        if self.is_held(&scope) {
            self.failures.retain(|(failed, _)| *failed != scope);
        }
    }

    /// Begins or extends the hold of an owner and model after an auth or quota error.
    pub(super) fn on_account_rejection(
        &mut self,
        origin: &Origin,
        tokens: &HoldTokens,
        trip: &Trip,
    ) {
        self.drop_expired(trip.at);
        let scope = scope_of(origin);
        let token = tokens.0.iter().find(|(of, _)| *of == scope);
        if let Some((_, token)) = token
            && let Some(hold) = self.find(&scope)
        {
            hold.update(|circuit| circuit.on_rejection(*token, trip.clone()));
        }
        // Requests that were in flight when the hold began do not extend it.
        if !self.is_held(&scope) {
            self.hold(&scope, trip);
        }
    }

    /// Holds a model for all owners.
    pub(super) fn hold_model(&mut self, model: String, trip: &Trip) {
        let scope = Scope { owner: None, model };
        self.drop_expired(trip.at);
        if !self.is_held(&scope) {
            self.hold(&scope, trip);
        }
    }

    /// Allows an immediate probe in every hold that a quota error caused.
    pub(super) fn probe_after_top_up(&mut self, now: Time) {
        for hold in &mut self.holds {
            let cause = hold.circuit.open_state().map(|open| open.cause);
            if cause == Some(TripCause::Quota) {
                hold.circuit.probe_now(now);
            }
        }
    }

    /// Ends all holds.
    pub(super) fn reset(&mut self) {
        self.failures.clear();
        for hold in &mut self.holds {
            hold.circuit.reset();
            hold.circuit.clear_streak();
        }
    }

    /// Returns the number of owners and models, and of models of all owners, that are held.
    pub(super) fn held(&self, now: Time) -> usize {
        let held = self.holds.iter();
        held.filter(|hold| hold.is_open() && now < hold.expires_at)
            .count()
    }

    /// Adopts the holds of another node's snapshot that are newer. Expired ones are ignored.
    pub(super) fn merge(&mut self, other: &Self, now: Time) {
        self.drop_expired(now);
        for theirs in other.holds.iter().filter(|hold| now < hold.expires_at) {
            match self.find(&theirs.scope) {
                Some(ours) => {
                    ours.circuit.merge(&theirs.circuit);
                    ours.expires_at = ours.expires_at.max(theirs.expires_at);
                }
                None => self.holds.push(theirs.clone()),
            }
        }
        self.drop_excess();
    }

    /// Returns whether a node with the snapshot `other` would change by merging this one. Failure
    /// counts are not compared, because they are not shared.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.holds.iter().any(|ours| {
            let theirs = other.holds.iter().find(|hold| hold.scope == ours.scope);
            theirs.is_none_or(|theirs| {
                ours.circuit.rank() > theirs.circuit.rank() || ours.expires_at > theirs.expires_at
            })
        })
    }

    fn find(&mut self, scope: &Scope) -> Option<&mut Hold> {
        self.holds.iter_mut().find(|hold| hold.scope == *scope)
    }

    fn is_held(&self, scope: &Scope) -> bool {
        let mut holds = self.holds.iter();
        holds.any(|hold| hold.scope == *scope && hold.is_open())
    }

    /// Begins a hold.
    fn hold(&mut self, scope: &Scope, trip: &Trip) {
        if self.find(scope).is_none() {
            self.holds.push(Hold {
                scope: scope.clone(),
                circuit: Circuit::default(),
                expires_at: trip.at,
            });
        }
        if let Some(hold) = self.find(scope) {
            hold.update(|circuit| circuit.trip(trip.clone()));
        }
        self.drop_excess();
    }

    /// Counts a technical failure and returns the number of consecutive ones.
    fn count_failure(&mut self, scope: &Scope) -> u32 {
        if let Some((_, count)) = self.failures.iter_mut().find(|(of, _)| of == scope) {
            *count += 1;
            return *count;
        }
        if self.failures.len() >= MAX_HOLDS {
            self.failures.remove(0);
        }
        self.failures.push((scope.clone(), 1));
        1
    }

    fn drop_expired(&mut self, now: Time) {
        self.holds.retain(|hold| now < hold.expires_at);
    }

    /// Drops the holds that expire first if there are more than [`MAX_HOLDS`]. The choice depends
    /// only on the holds, so all nodes drop the same ones. A dropped hold expires before all that
    /// remain, so a merge does not restore it.
    fn drop_excess(&mut self) {
        if self.holds.len() > MAX_HOLDS {
            let expiry = |hold: &Hold| Reverse((hold.expires_at, hold.scope.clone()));
            self.holds.sort_by_cached_key(expiry);
            self.holds.truncate(MAX_HOLDS);
        }
    }
}

fn scope_of(origin: &Origin) -> Scope {
    Scope {
        owner: Some(origin.owner.clone()),
        model: origin.model.clone(),
    }
}

/// Returns the scopes of the holds that apply to a submission.
fn scopes_of(origin: &Origin) -> [Scope; 2] {
    let model = origin.model.clone();
    [scope_of(origin), Scope { owner: None, model }]
}

#[cfg(test)]
mod tests;
