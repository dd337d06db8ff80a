//! A circuit: closed while requests pass, open while they are blocked, half-open while one probe
//! decides.
//!
//! No I/O and no clock: callers pass the time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::origin::Origin;
use crate::time::{Time, exponential_backoff};

/// Maximum number of requests in flight on a fully recovered circuit.
pub(super) const MAX_IN_FLIGHT: usize = 8;

/// Time after which a probe without a result is considered lost. Longer than the request timeout.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Reason why a circuit is open, in order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TripCause {
    /// Several requests failed in a row.
    Technical,
    /// The provider limits the rate.
    RateLimit,
    /// The account has no credit.
    Quota,
    /// The provider rejects the API key.
    Auth,
}

/// Time for which a probe is left to the jobs of other owners and models than those whose requests
/// opened the circuit.
const PROBE_GRACE: Duration = Duration::from_secs(5);

/// Maximum number of origins that an open circuit remembers.
const MAX_ORIGINS: usize = 16;

/// A rejection or failure that opens a circuit.
#[derive(Clone)]
pub(super) struct Trip {
    pub(super) cause: TripCause,
    /// Delay that the provider requested. It replaces the backoff of a rate limit and can only
    /// extend that of other causes.
    pub(super) hint: Option<Duration>,
    pub(super) at: Time,
    /// Owners and models of the failed requests. Empty if no request can be the cause.
    pub(super) origins: Vec<Origin>,
}

impl TripCause {
    /// Returns how long the circuit stays open after the `length`-th consecutive trip for this
    /// cause.
    fn open_duration(self, length: u32, hint: Option<Duration>) -> Duration {
        let (initial, max) = match self {
            Self::Technical => (5, 60),
            Self::RateLimit => (1, 60),
            Self::Quota | Self::Auth => (60, 15 * 60),
        };
        let (initial, max) = (Duration::from_secs(initial), Duration::from_secs(max));
        let backoff = exponential_backoff(initial, max, length);
        match (self, hint) {
            (_, None) => backoff,
            (Self::RateLimit, Some(hint)) => hint,
            (Self::Technical | Self::Quota | Self::Auth, Some(hint)) => backoff.max(hint),
        }
    }
}

/// Details of an open or half-open circuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenCircuit {
    pub(super) cause: TripCause,
    pub(super) since: Time,
    /// Time from which one probe is allowed.
    pub(super) until: Time,
    /// Time at which the probe in flight is considered lost. `None` if no probe is in flight.
    half_open_probe: Option<Time>,
    /// Owners and models whose requests opened the circuit or failed as a probe.
    origins: Vec<Origin>,
}

/// Consecutive trips for one cause since the circuit last recovered fully.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct TripStreak {
    cause: TripCause,
    length: u32,
}

/// State of one circuit. Nodes exchange it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Circuit {
    /// Requests allowed in flight while the circuit is closed. After recovery it grows from 1 to
    /// [`MAX_IN_FLIGHT`].
    max_in_flight: usize,
    /// `None` while the circuit is closed.
    open: Option<OpenCircuit>,
    streak: Option<TripStreak>,
    /// Incremented when the circuit opens, closes or admits a probe. Identifies results of requests
    /// that were sent before, and orders snapshots of different nodes.
    revision: u64,
}

/// Ties a request to the revision of the circuit that admitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PermitToken {
    revision: u64,
    is_probe: bool,
}

/// Answer to a request for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Allowed(PermitToken),
    /// Another request must finish first.
    AtCapacity,
    /// The circuit is open until this time.
    Open(Time),
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            max_in_flight: MAX_IN_FLIGHT,
            open: None,
            streak: None,
            revision: 0,
        }
    }
}

impl Circuit {
    /// Returns the details of an open or half-open circuit, or `None` if it is closed.
    pub(super) fn open_state(&self) -> Option<&OpenCircuit> {
        self.open.as_ref()
    }

    /// Returns the rank of this snapshot among snapshots of the same circuit. Of two with the same
    /// revision, the one that stays open longer ranks higher.
    pub(super) fn rank(&self) -> (u64, Option<Time>) {
        (self.revision, self.open.as_ref().map(|open| open.until))
    }

    /// Admits one more request while `in_flight` requests are running.
    pub(super) fn admit(&mut self, in_flight: usize, now: Time) -> Admission {
        let revision = self.revision;
        match &mut self.open {
            None if in_flight < self.max_in_flight => Admission::Allowed(PermitToken {
                revision,
                is_probe: false,
            }),
            None => Admission::AtCapacity,
            Some(open) if now < open.until => Admission::Open(open.until),
            Some(open) if open.half_open_probe.is_some_and(|lost_at| now < lost_at) => {
                Admission::AtCapacity
            }
            Some(open) => {
                open.half_open_probe = Some(now + PROBE_TIMEOUT);
                self.revision += 1;
                Admission::Allowed(PermitToken {
                    revision: self.revision,
                    is_probe: true,
                })
            }
        }
    }

    /// Returns whether a permit that was given earlier is still valid.
    pub(super) fn is_current(&self, token: PermitToken) -> bool {
        token.revision == self.revision && (token.is_probe || self.open.is_none())
    }

    /// Returns until when a probe is left to others than `origin`, whose requests opened the circuit.
    pub(super) fn defers_probe(
        &self,
        token: PermitToken,
        origin: &Origin,
        now: Time,
    ) -> Option<Time> {
        let open = self.open.as_ref()?;
        let grace = open.until + PROBE_GRACE;
        let is_deferred = token.is_probe && now < grace && open.origins.contains(origin);
        is_deferred.then_some(grace)
    }

    /// Returns whether the circuit is as if it had never opened.
    pub(super) fn has_recovered(&self) -> bool {
        self.open.is_none() && self.streak.is_none()
    }

    /// Records a success and returns whether it counted. Results from before the last trip do not.
    ///
    /// A successful probe closes the circuit. Each success on a closed circuit allows one more
    /// request in flight, so the number doubles with each round of requests.
    pub(super) fn on_success(&mut self, token: PermitToken) -> bool {
        if !self.is_current(token) {
            return false;
        }
        self.reset();
        self.max_in_flight = MAX_IN_FLIGHT.min(self.max_in_flight + 1);
        if self.max_in_flight == MAX_IN_FLIGHT {
            self.streak = None;
        }
        true
    }

    /// Records a rejection that opens the circuit.
    pub(super) fn on_rejection(&mut self, token: PermitToken, trip: Trip) {
        let is_late = !self.is_current(token);
        match &mut self.open {
            // Requests that were in flight at the trip are rejected for the same cause. They do not
            // count as further trips.
            Some(open) if is_late && trip.cause == open.cause => {
                open.until = open.until.max(trip.at + trip.hint.unwrap_or_default());
            }
            Some(open) if is_late && trip.cause < open.cause => {}
            // A failed probe does not show that the original cause is gone.
            Some(open) if trip.cause == TripCause::Technical => {
                let cause = open.cause;
                self.trip(Trip { cause, ..trip });
            }
            Some(_) | None => self.trip(trip),
        }
    }

    /// Releases a probe that was not sent or whose outcome is unknown, so that another can be sent.
    pub(super) fn discard_probe(&mut self, token: PermitToken) {
        if let Some(open) = &mut self.open
            && token.is_probe
            && token.revision == self.revision
        {
            open.half_open_probe = None;
            self.revision += 1;
        }
    }

    /// Opens the circuit. Consecutive trips for the same cause keep it open longer each time, unless
    /// they come from the same owners and models as before.
    pub(super) fn trip(&mut self, trip: Trip) {
        let Trip {
            cause,
            hint,
            at,
            origins: new,
        } = trip;
        let previous = self.open.take().filter(|open| open.cause == cause);
        let mut origins = previous
            .as_ref()
            .map_or_else(Vec::new, |open| open.origins.clone());
        let is_repetition = !new.is_empty() && new.iter().all(|origin| origins.contains(origin));
        let streak = self.streak.filter(|streak| streak.cause == cause);
        let length = match streak {
            None => 1,
            Some(streak) if is_repetition => streak.length,
            Some(streak) => streak.length.saturating_add(1),
        };
        let added = new.into_iter().filter(|origin| !origins.contains(origin));
        let added: Vec<Origin> = added.collect();
        origins.extend(added);
        origins.truncate(MAX_ORIGINS);
        self.open = Some(OpenCircuit {
            cause,
            since: previous.map_or(at, |open| open.since),
            until: at + cause.open_duration(length, hint),
            half_open_probe: None,
            origins,
        });
        self.streak = Some(TripStreak { cause, length });
        self.revision += 1;
        self.max_in_flight = 1;
    }

    /// Closes the circuit if it is open, and allows one request in flight to begin with.
    pub(super) fn reset(&mut self) {
        if self.open.take().is_some() {
            self.revision += 1;
            self.max_in_flight = 1;
        }
    }

    /// Adopts another node's snapshot if it ranks higher. Results of requests that are in flight
    /// here then count as results from before the change.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.rank() > self.rank() {
            self.clone_from(other);
        }
    }

    /// Allows a probe at once if the circuit is open.
    pub(super) fn probe_now(&mut self, now: Time) {
        if let Some(open) = &mut self.open {
            open.until = open.until.min(now);
            self.revision += 1;
        }
    }

    /// Resets the backoff.
    pub(super) fn clear_streak(&mut self) {
        self.streak = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn admit(circuit: &mut Circuit, in_flight: usize, now: Time) -> PermitToken {
        match circuit.admit(in_flight, now) {
            Admission::Allowed(token) => token,
            other @ (Admission::AtCapacity | Admission::Open(_)) => panic!("{other:?} at {now}"),
        }
    }

    fn trip(cause: TripCause, seconds: i64) -> Trip {
        trip_with_hint(cause, None, seconds)
    }

    fn trip_with_hint(cause: TripCause, hint: Option<u64>, seconds: i64) -> Trip {
        Trip {
            cause,
            hint: hint.map(Duration::from_secs),
            at: at(seconds),
            origins: Vec::new(),
        }
    }

    fn until(circuit: &Circuit) -> Time {
        circuit.open_state().unwrap().until
    }

    #[test]
    fn closed_circuit_allows_eight_requests_in_flight() {
        let mut circuit = Circuit::default();
        admit(&mut circuit, 7, at(0));
        assert_eq!(circuit.admit(8, at(0)), Admission::AtCapacity);
    }

    #[test]
    fn retry_after_is_honored_then_one_probe_is_allowed() {
        let mut circuit = Circuit::default();
        let token = admit(&mut circuit, 0, at(0));
        circuit.on_rejection(token, trip_with_hint(TripCause::RateLimit, Some(30), 0));
        assert_eq!(circuit.admit(0, at(29)), Admission::Open(at(30)));
        admit(&mut circuit, 0, at(30));
        assert_eq!(circuit.admit(0, at(31)), Admission::AtCapacity);
        // The probe had no result within the timeout.
        admit(&mut circuit, 0, at(90));
    }

    #[test]
    fn concurrency_doubles_per_round_after_recovery() {
        let mut circuit = Circuit::default();
        circuit.trip(trip(TripCause::RateLimit, 0));
        let mut rounds = vec![];
        let mut tokens = vec![admit(&mut circuit, 0, at(60))];
        while tokens.len() < MAX_IN_FLIGHT {
            rounds.push(tokens.len());
            for token in std::mem::take(&mut tokens) {
                assert!(circuit.on_success(token));
            }
            while let Admission::Allowed(token) = circuit.admit(tokens.len(), at(60)) {
                tokens.push(token);
            }
        }
        assert_eq!(rounds, [1, 2, 4]);
    }

    #[test]
    fn open_duration_doubles_for_the_same_cause() {
        for (cause, durations) in [
            (TripCause::RateLimit, [1, 2, 4, 8, 16, 32, 60, 60]),
            (TripCause::Technical, [5, 10, 20, 40, 60, 60, 60, 60]),
            (TripCause::Quota, [60, 120, 240, 480, 900, 900, 900, 900]),
            (TripCause::Auth, [60, 120, 240, 480, 900, 900, 900, 900]),
        ] {
            let mut circuit = Circuit::default();
            circuit.trip(trip(cause, 0));
            let mut now = 0;
            for seconds in durations {
                now += seconds;
                assert_eq!(until(&circuit), at(now), "{cause:?}");
                assert_eq!(circuit.open_state().unwrap().since, at(0));
                let probe = admit(&mut circuit, 0, at(now));
                circuit.on_rejection(probe, trip(cause, now));
            }
        }
    }

    #[test]
    fn repetition_by_the_same_origin_does_not_extend_the_wait() {
        let origin = |owner: &str| Origin {
            owner: owner.to_owned(),
            model: "x".to_owned(),
        };
        let trip_by = |owner: &str, seconds| Trip {
            origins: vec![origin(owner)],
            ..trip(TripCause::Technical, seconds)
        };
        let mut circuit = Circuit::default();
        circuit.trip(trip_by("alice", 0));
        let mut now = 5;
        for (owner, seconds) in [
            ("alice", 5),
            ("alice", 5),
            ("bob", 10),
            ("alice", 10),
            ("bob", 10),
        ] {
            assert_eq!(until(&circuit), at(now), "{owner}");
            let probe = admit(&mut circuit, 0, at(now));
            circuit.on_rejection(probe, trip_by(owner, now));
            now += seconds;
        }
        assert_eq!(until(&circuit), at(now));
    }

    #[test]
    fn probe_is_left_to_others_for_a_grace_period() {
        let alice = Origin {
            owner: "alice".to_owned(),
            model: "x".to_owned(),
        };
        let bob = Origin {
            owner: "bob".to_owned(),
            ..alice.clone()
        };
        let mut circuit = Circuit::default();
        circuit.trip(Trip {
            origins: vec![alice.clone()],
            ..trip(TripCause::Technical, 0)
        });
        let probe = admit(&mut circuit, 0, at(5));
        assert_eq!(circuit.defers_probe(probe, &alice, at(9)), Some(at(10)));
        assert_eq!(circuit.defers_probe(probe, &bob, at(5)), None);
        assert_eq!(circuit.defers_probe(probe, &alice, at(10)), None);
    }

    #[test]
    fn full_recovery_resets_the_backoff() {
        let mut circuit = Circuit::default();
        circuit.trip(trip(TripCause::Quota, 0));
        let probe = admit(&mut circuit, 0, at(60));
        circuit.on_success(probe);
        circuit.trip(trip(TripCause::Quota, 100));
        assert_eq!(until(&circuit), at(220), "one success is not enough");
        let mut now = until(&circuit);
        for _ in 0..MAX_IN_FLIGHT {
            let token = admit(&mut circuit, 0, now);
            circuit.on_success(token);
            now = now + Duration::from_secs(1);
        }
        circuit.trip(trip(TripCause::Quota, 1000));
        assert_eq!(until(&circuit), at(1060));
    }

    #[test]
    fn results_from_before_the_trip_are_ignored() {
        let mut circuit = Circuit::default();
        let early: Vec<PermitToken> = (0..4).map(|n| admit(&mut circuit, n, at(0))).collect();
        circuit.on_rejection(early[0], trip(TripCause::RateLimit, 1));
        circuit.on_rejection(early[1], trip(TripCause::RateLimit, 1));
        assert_eq!(until(&circuit), at(2));
        assert!(!circuit.on_success(early[2]));
        circuit.on_rejection(early[3], trip(TripCause::Technical, 1));
        assert_eq!(until(&circuit), at(2));
        let hint = trip_with_hint(TripCause::RateLimit, Some(5), 1);
        circuit.on_rejection(early[2], hint);
        assert_eq!(
            until(&circuit),
            at(6),
            "the longest requested delay applies"
        );
        circuit.on_rejection(early[3], trip(TripCause::Quota, 1));
        assert_eq!(circuit.open_state().unwrap().cause, TripCause::Quota);
    }

    #[test]
    fn failed_probe_keeps_the_quota_cause() {
        let mut circuit = Circuit::default();
        circuit.trip(trip(TripCause::Quota, 0));
        let probe = admit(&mut circuit, 0, at(60));
        circuit.on_rejection(probe, trip(TripCause::Technical, 60));
        assert_eq!(circuit.open_state().unwrap().cause, TripCause::Quota);
        assert_eq!(until(&circuit), at(180));
    }

    #[test]
    fn unused_probe_is_returned() {
        let mut circuit = Circuit::default();
        circuit.trip(trip(TripCause::Auth, 0));
        let unused = admit(&mut circuit, 0, at(60));
        assert_eq!(circuit.admit(1, at(60)), Admission::AtCapacity);
        circuit.discard_probe(unused);
        admit(&mut circuit, 0, at(60));
    }

    #[test]
    fn merge_keeps_the_newer_snapshot() {
        let mut ours = Circuit::default();
        let in_flight = admit(&mut ours, 0, at(0));
        let mut theirs = Circuit::default();
        theirs.trip(trip(TripCause::RateLimit, 1));
        ours.merge(&theirs);
        assert_eq!(ours, theirs);
        assert!(!ours.on_success(in_flight), "sent before the merge");
        // One node sends a probe. The other waits for its result.
        let probe = admit(&mut theirs, 0, at(60));
        ours.merge(&theirs);
        assert_eq!(ours.admit(0, at(61)), Admission::AtCapacity);
        theirs.on_success(probe);
        ours.merge(&theirs);
        assert!(ours.open_state().is_none());
        ours.merge(&Circuit::default());
        assert_eq!(ours, theirs, "an older snapshot is ignored");
        // Both open at the same time: the longer duration applies to both.
        ours.trip(trip_with_hint(TripCause::RateLimit, Some(9), 70));
        theirs.trip(trip_with_hint(TripCause::RateLimit, Some(5), 70));
        theirs.merge(&ours);
        assert_eq!(until(&theirs), at(79));
    }

    #[test]
    fn circuit_round_trips_through_json() {
        let mut circuit = Circuit::default();
        circuit.trip(trip(TripCause::Auth, 0));
        let text = serde_json::to_string(&circuit).unwrap();
        assert_eq!(serde_json::from_str::<Circuit>(&text).unwrap(), circuit);
    }
}
