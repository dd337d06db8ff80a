//! Holds: circuits for the submissions of one owner and model, or of one model for all owners.
//!
//! A hold delays these submissions while those of other owners and models continue. Nodes exchange
//! holds together with the rest of the breaker's state.

use serde::{Deserialize, Serialize};

use super::circuit::{Admission, Circuit, PermitToken, Trip, TripCause};
use super::origin::{FAILURE_THRESHOLD, Origin};
use crate::time::Time;

/// Maximum number of holds. A new one replaces a closed one, or else the one that ends first.
const MAX_HOLDS: usize = 256;

/// Delay before a job is retried while another job of the same hold is in flight as a probe.
const PROBE_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Submissions that a hold applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Scope {
    /// `None` for all owners.
    owner: Option<String>,
    model: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Hold {
    scope: Scope,
    circuit: Circuit,
    /// Consecutive technical failures. Each node counts its own.
    #[serde(skip)]
    failures: u32,
}

/// The holds of a provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Holds(Vec<Hold>);

/// Permits of a submission in the holds that apply to it. Its result is recorded in each of them.
#[derive(Debug, Default)]
pub(super) struct HoldTokens(Vec<(Scope, PermitToken)>);

impl Holds {
    /// Admits a submission.
    ///
    /// # Errors
    /// Returns the time of the next attempt if the submission is held.
    pub(super) fn admit(&mut self, origin: &Origin, now: Time) -> Result<HoldTokens, Time> {
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

    /// Records a success, and removes holds that have fully recovered.
    pub(super) fn on_success(&mut self, origin: &Origin, tokens: &HoldTokens) {
        for (scope, token) in &tokens.0 {
            if let Some(hold) = self.find(scope) {
                hold.circuit.on_success(*token);
            }
        }
        for scope in scopes_of(origin) {
            if let Some(hold) = self.find(&scope) {
                hold.failures = 0;
            }
        }
        self.0
            .retain(|hold| !hold.circuit.has_recovered() || hold.failures > 0);
    }

    /// Records a technical failure. Repeated failures begin a hold of the owner and model.
    pub(super) fn on_failure(&mut self, origin: &Origin, tokens: &HoldTokens, trip: &Trip) {
        for (scope, token) in &tokens.0 {
            if let Some(hold) = self.find(scope)
                && hold.circuit.open_state().is_some()
            {
                hold.circuit.on_rejection(*token, trip.clone());
            }
        }
        let hold = self.find_or_add(scope_of(origin));
        hold.failures += 1;
        if hold.failures >= FAILURE_THRESHOLD && hold.circuit.open_state().is_none() {
            hold.circuit.trip(trip.clone());
        }
        if hold.circuit.open_state().is_some() {
            hold.failures = 0;
        }
    }

    /// Begins or extends the hold of an owner and model after an auth or quota error.
    pub(super) fn on_account_rejection(
        &mut self,
        origin: &Origin,
        tokens: &HoldTokens,
        trip: Trip,
    ) {
        let scope = scope_of(origin);
        let token = tokens.0.iter().find(|(of, _)| *of == scope);
        let token = token.map(|(_, token)| *token);
        let hold = self.find_or_add(scope);
        match token {
            Some(token) => hold.circuit.on_rejection(token, trip),
            // Submissions that were in flight when the hold began do not extend it.
            None if hold.circuit.open_state().is_some() => {}
            None => hold.circuit.trip(trip),
        }
    }

    /// Holds a model for all owners.
    pub(super) fn hold_model(&mut self, model: String, trip: Trip) {
        let hold = self.find_or_add(Scope { owner: None, model });
        if hold.circuit.open_state().is_none() {
            hold.circuit.trip(trip);
        }
    }

    /// Allows an immediate probe in every hold that a quota error caused.
    pub(super) fn probe_after_top_up(&mut self, now: Time) {
        for hold in &mut self.0 {
            let cause = hold.circuit.open_state().map(|open| open.cause);
            if cause == Some(TripCause::Quota) {
                hold.circuit.probe_now(now);
            }
        }
    }

    /// Ends all holds.
    pub(super) fn reset(&mut self) {
        for hold in &mut self.0 {
            hold.failures = 0;
            hold.circuit.reset();
            hold.circuit.clear_streak();
        }
    }

    /// Adopts the holds of another node's snapshot that are newer.
    pub(super) fn merge(&mut self, other: &Self) {
        for theirs in &other.0 {
            self.find_or_add(theirs.scope.clone())
                .circuit
                .merge(&theirs.circuit);
        }
    }

    /// Returns whether neither snapshot has a newer hold. Failure counts are not compared, because
    /// they are not shared.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        let includes = |all: &Self, part: &Self| {
            part.0.iter().all(|hold| {
                let known = all.0.iter().find(|known| known.scope == hold.scope);
                let default = Circuit::default();
                let known = known.map_or(&default, |known| &known.circuit);
                known.rank() == hold.circuit.rank()
            })
        };
        includes(self, other) && includes(other, self)
    }

    fn find(&mut self, scope: &Scope) -> Option<&mut Hold> {
        self.0.iter_mut().find(|hold| hold.scope == *scope)
    }

    fn find_or_add(&mut self, scope: Scope) -> &mut Hold {
        let index = self.0.iter().position(|hold| hold.scope == scope);
        let index = index.unwrap_or_else(|| {
            if self.0.len() >= MAX_HOLDS {
                let until = |hold: &Hold| hold.circuit.open_state().map(|open| open.until);
                let first = self
                    .0
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, hold)| until(hold));
                let first = first.map_or(0, |(index, _)| index);
                self.0.remove(first);
            }
            self.0.push(Hold {
                scope,
                circuit: Circuit::default(),
                failures: 0,
            });
            self.0.len() - 1
        });
        &mut self.0[index]
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
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn origin(owner: &str, model: &str) -> Origin {
        Origin {
            owner: owner.to_owned(),
            model: model.to_owned(),
        }
    }

    fn trip(cause: TripCause, seconds: i64) -> Trip {
        Trip {
            cause,
            hint: None,
            at: at(seconds),
            origins: Vec::new(),
        }
    }

    #[test]
    fn account_rejection_holds_one_owner_and_model() {
        let mut holds = Holds::default();
        let alice = origin("alice", "x");
        let mut now = 0;
        for seconds in [60, 120, 240] {
            let tokens = holds.admit(&alice, at(now)).unwrap();
            holds.on_account_rejection(&alice, &tokens, trip(TripCause::Auth, now));
            now += seconds;
            assert_eq!(holds.admit(&alice, at(now - 1)).unwrap_err(), at(now));
            for other in [origin("bob", "x"), origin("alice", "y")] {
                assert!(holds.admit(&other, at(now - 1)).is_ok(), "{other:?}");
            }
        }
        let probe = holds.admit(&alice, at(now)).unwrap();
        assert!(holds.admit(&alice, at(now)).is_err(), "one probe at a time");
        holds.discard(&probe);
        let probe = holds.admit(&alice, at(now)).unwrap();
        holds.on_success(&alice, &probe);
        assert!(holds.admit(&alice, at(now)).is_ok());
    }

    #[test]
    fn repeated_failures_hold_one_owner_and_model() {
        let mut holds = Holds::default();
        let alice = origin("alice", "x");
        for second in 0..5 {
            let tokens = holds.admit(&alice, at(second)).unwrap();
            holds.on_failure(&alice, &tokens, &trip(TripCause::Technical, second));
        }
        assert_eq!(holds.admit(&alice, at(5)).unwrap_err(), at(9));
        let tokens = holds.admit(&alice, at(9)).unwrap();
        holds.on_failure(&alice, &tokens, &trip(TripCause::Technical, 9));
        assert_eq!(holds.admit(&alice, at(10)).unwrap_err(), at(19));
        assert!(holds.admit(&origin("bob", "x"), at(10)).is_ok());
    }

    #[test]
    fn number_of_holds_is_bounded_and_snapshots_merge() {
        let mut holds = Holds::default();
        for n in 0..2 * i64::try_from(MAX_HOLDS).unwrap() {
            let alice = origin("alice", &n.to_string());
            holds.on_account_rejection(&alice, &HoldTokens::default(), trip(TripCause::Auth, n));
        }
        assert_eq!(holds.0.len(), MAX_HOLDS);
        let mut other = Holds::default();
        assert!(!other.is_equivalent(&holds));
        other.merge(&holds);
        assert!(other.is_equivalent(&holds));
        let last = origin("alice", &(2 * MAX_HOLDS - 1).to_string());
        assert!(other.admit(&last, at(500)).is_err());
        let text = serde_json::to_string(&holds).unwrap();
        assert_eq!(serde_json::from_str::<Holds>(&text).unwrap(), holds);
    }
}
