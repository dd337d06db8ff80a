//! One lane to a provider: how many requests may be under way on it, and what a refusal does to it.
//!
//! Invariant: pure data and pure decisions, the moment always passed in. A closed lane lets one
//! request through once its wait is over; only that one's outcome opens it or doubles the wait.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::{Time, exponential_backoff};

/// Requests under way at once on a lane that is well.
pub(super) const MAX_IN_FLIGHT: usize = 8;

/// After which the one that was let through is taken for lost: the time a request may take, and some.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a lane is closed. A later one outranks those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TripCause {
    /// Several failures in a row.
    Technical,
    /// The provider wants to be left alone for a while.
    RateLimit,
    /// There is no credit left.
    Quota,
    /// The key is refused.
    Auth,
}

impl TripCause {
    /// How long a lane is closed the `length`th time in a row.
    fn open_duration(self, length: u32, hint: Option<Duration>) -> Duration {
        let (first, longest) = match self {
            Self::Technical => (5, 60),
            Self::RateLimit => (1, 60),
            Self::Quota | Self::Auth => (60, 15 * 60),
        };
        let (first, longest) = (Duration::from_secs(first), Duration::from_secs(longest));
        let ours = exponential_backoff(first, longest, length);
        match (self, hint) {
            (_, None) => ours,
            (Self::RateLimit, Some(hint)) => hint,
            (Self::Technical | Self::Quota | Self::Auth, Some(hint)) => ours.max(hint),
        }
    }
}

/// A lane that is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenCircuit {
    pub(super) cause: TripCause,
    pub(super) since: Time,
    /// When one request may go through.
    pub(super) until: Time,
    /// While that one is under way: when it is taken for lost.
    half_open_probe: Option<Time>,
}

/// How many closures for one cause there were since the lane was last well.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct TripStreak {
    cause: TripCause,
    length: u32,
}

/// One lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Circuit {
    /// How many may be under way while it is open.
    max_in_flight: usize,
    open_state: Option<OpenCircuit>,
    streak: Option<TripStreak>,
    /// Raised by one whenever it closes, opens or lets one through, so that a request from before is
    /// known as such, and of two accounts of one lane the later one.
    revision: u64,
}

/// Leave to make a request, as the lane will know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PermitToken {
    turn: u64,
    is_probe: bool,
}

/// Whether a request may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Yes.
    Allowed(PermitToken),
    /// When another one has ended.
    AtCapacity,
    /// Not before this moment.
    Open(Time),
}

impl Default for Circuit {
    fn default() -> Self {
        Self {
            max_in_flight: MAX_IN_FLIGHT,
            open_state: None,
            streak: None,
            revision: 0,
        }
    }
}

impl Circuit {
    pub(super) fn closed(&self) -> Option<&OpenCircuit> {
        self.open_state.as_ref()
    }

    /// How late this account of the lane is: of two that are as late, the more cautious is greater.
    pub(super) fn revision(&self) -> (u64, Option<Time>) {
        (self.revision, self.closed().map(|closed| closed.until))
    }

    /// Whether one more may go, while so many are under way.
    pub(super) fn admit(&mut self, under_way: usize, now: Time) -> Admission {
        let turn = self.revision;
        let pass = |turn, is_probe| Admission::Allowed(PermitToken { turn, is_probe });
        match &mut self.open_state {
            None if under_way < self.max_in_flight => pass(turn, false),
            None => Admission::AtCapacity,
            Some(closed) if now < closed.until => Admission::Open(closed.until),
            Some(closed) if closed.half_open_probe.is_some_and(|lost| now < lost) => {
                Admission::AtCapacity
            }
            Some(closed) => {
                closed.half_open_probe = Some(now + PROBE_TIMEOUT);
                self.revision += 1;
                pass(self.revision, true)
            }
        }
    }

    /// Whether a pass that was given earlier still holds.
    pub(super) fn is_current(&self, pass: PermitToken) -> bool {
        pass.turn == self.revision && (pass.is_probe || self.open_state.is_none())
    }

    /// The provider answered as it should. The lane opens if this was the one that was let through,
    /// and an open lane gets wider by one: so what is under way doubles with each round. Says whether
    /// it told anything: a request from before the last closure does not.
    pub(super) fn succeed(&mut self, pass: PermitToken) -> bool {
        if !self.is_current(pass) {
            return false;
        }
        if self.open_state.is_some() {
            self.reset();
        }
        self.max_in_flight = MAX_IN_FLIGHT.min(self.max_in_flight + 1);
        if self.max_in_flight == MAX_IN_FLIGHT {
            self.streak = None;
        }
        true
    }

    /// The provider refused, for a cause that closes the lane.
    pub(super) fn refuse(
        &mut self,
        pass: PermitToken,
        cause: TripCause,
        hint: Option<Duration>,
        now: Time,
    ) {
        let is_late = !self.is_current(pass);
        match &mut self.open_state {
            // Of those that went out before the lane closed, each tells the same once more.
            Some(closed) if is_late && cause == closed.cause => {
                closed.until = closed.until.max(now + hint.unwrap_or_default());
            }
            Some(closed) if is_late && cause < closed.cause => {}
            // A failure says nothing of what it was closed for.
            Some(closed) if cause == TripCause::Technical => {
                let cause = closed.cause;
                self.trip(cause, hint, now);
            }
            Some(_) | None => self.trip(cause, hint, now),
        }
    }

    /// Nothing came of a request: it was not made, or nobody knows.
    pub(super) fn discard_probe(&mut self, pass: PermitToken) {
        if let Some(closed) = &mut self.open_state
            && pass.is_probe
            && pass.turn == self.revision
        {
            closed.half_open_probe = None;
            self.revision += 1;
        }
    }

    /// Closes it, for longer than the last time if that was for the same cause.
    pub(super) fn trip(&mut self, cause: TripCause, hint: Option<Duration>, now: Time) {
        let same = self.streak.filter(|streak| streak.cause == cause);
        let length = same.map_or(1, |streak| streak.length.saturating_add(1));
        let since = self.open_state.as_ref().filter(|it| it.cause == cause);
        self.open_state = Some(OpenCircuit {
            cause,
            since: since.map_or(now, |closed| closed.since),
            until: now + cause.open_duration(length, hint),
            half_open_probe: None,
        });
        self.streak = Some(TripStreak { cause, length });
        self.revision += 1;
        self.max_in_flight = 1;
    }

    /// Opens it, for one at a time to begin with.
    pub(super) fn reset(&mut self) {
        if self.open_state.take().is_some() {
            self.revision += 1;
            self.max_in_flight = 1;
        }
    }

    /// Takes over another node's account of the same lane, if it is a later one. What this node has
    /// under way then counts as from before.
    pub(super) fn adopt(&mut self, other: &Self) {
        if other.revision() > self.revision() {
            self.clone_from(other);
        }
    }

    /// Lets one through now, if it is closed.
    pub(super) fn probe_now(&mut self, now: Time) {
        if let Some(closed) = &mut self.open_state {
            closed.until = closed.until.min(now);
            self.revision += 1;
        }
    }

    /// Forgets how often it was closed.
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

    fn go(lane: &mut Circuit, under_way: usize, now: Time) -> PermitToken {
        match lane.admit(under_way, now) {
            Admission::Allowed(pass) => pass,
            other @ (Admission::AtCapacity | Admission::Open(_)) => panic!("{other:?} at {now}"),
        }
    }

    fn until(lane: &Circuit) -> Time {
        lane.closed().unwrap().until
    }

    #[test]
    fn closed_circuit_allows_eight_requests_in_flight() {
        let mut lane = Circuit::default();
        go(&mut lane, 7, at(0));
        assert_eq!(lane.admit(8, at(0)), Admission::AtCapacity);
    }

    #[test]
    fn retry_after_is_honored_then_one_probe_is_allowed() {
        let mut lane = Circuit::default();
        let pass = go(&mut lane, 0, at(0));
        lane.refuse(
            pass,
            TripCause::RateLimit,
            Some(Duration::from_secs(30)),
            at(0),
        );
        assert_eq!(lane.admit(0, at(29)), Admission::Open(at(30)));
        go(&mut lane, 0, at(30));
        assert_eq!(lane.admit(0, at(31)), Admission::AtCapacity);
        // Whoever went through never came back.
        go(&mut lane, 0, at(90));
    }

    #[test]
    fn concurrency_doubles_per_round_after_recovery() {
        let mut lane = Circuit::default();
        lane.trip(TripCause::RateLimit, None, at(0));
        let mut rounds = vec![];
        let mut passes = vec![go(&mut lane, 0, at(60))];
        while passes.len() < MAX_IN_FLIGHT {
            rounds.push(passes.len());
            for pass in std::mem::take(&mut passes) {
                assert!(lane.succeed(pass));
            }
            while let Admission::Allowed(pass) = lane.admit(passes.len(), at(60)) {
                passes.push(pass);
            }
        }
        assert_eq!(rounds, [1, 2, 4]);
    }

    #[test]
    fn open_duration_doubles_for_the_same_cause() {
        for (cause, waits) in [
            (TripCause::RateLimit, [1, 2, 4, 8, 16, 32, 60, 60]),
            (TripCause::Technical, [5, 10, 20, 40, 60, 60, 60, 60]),
            (TripCause::Quota, [60, 120, 240, 480, 900, 900, 900, 900]),
            (TripCause::Auth, [60, 120, 240, 480, 900, 900, 900, 900]),
        ] {
            let mut lane = Circuit::default();
            lane.trip(cause, None, at(0));
            let mut now = at(0);
            for wait in waits {
                assert_eq!(
                    until(&lane).saturating_duration_since(now).as_secs(),
                    wait,
                    "{cause:?}"
                );
                assert_eq!(lane.closed().unwrap().since, at(0));
                now = until(&lane);
                let probe = go(&mut lane, 0, now);
                lane.refuse(probe, cause, None, now);
            }
        }
    }

    #[test]
    fn full_recovery_resets_the_backoff() {
        let mut lane = Circuit::default();
        lane.trip(TripCause::Quota, None, at(0));
        let probe = go(&mut lane, 0, at(60));
        lane.succeed(probe);
        lane.trip(TripCause::Quota, None, at(100));
        assert_eq!(until(&lane), at(220), "one success is not enough");
        let mut now = until(&lane);
        for _ in 0..MAX_IN_FLIGHT {
            let pass = go(&mut lane, 0, now);
            lane.succeed(pass);
            now = now + Duration::from_secs(1);
        }
        lane.trip(TripCause::Quota, None, at(1000));
        assert_eq!(until(&lane), at(1060));
    }

    #[test]
    fn results_from_before_the_trip_are_ignored() {
        let mut lane = Circuit::default();
        let early: Vec<PermitToken> = (0..4).map(|n| go(&mut lane, n, at(0))).collect();
        lane.refuse(early[0], TripCause::RateLimit, None, at(1));
        lane.refuse(early[1], TripCause::RateLimit, None, at(1));
        assert_eq!(until(&lane), at(2));
        assert!(!lane.succeed(early[2]));
        lane.refuse(early[3], TripCause::Technical, None, at(1));
        assert_eq!(until(&lane), at(2));
        let five = Some(Duration::from_secs(5));
        lane.refuse(early[2], TripCause::RateLimit, five, at(1));
        assert_eq!(until(&lane), at(6), "the longest wait that was asked for");
        lane.refuse(early[3], TripCause::Quota, None, at(1));
        assert_eq!(lane.closed().unwrap().cause, TripCause::Quota);
    }

    #[test]
    fn failed_probe_keeps_the_quota_cause() {
        let mut lane = Circuit::default();
        lane.trip(TripCause::Quota, None, at(0));
        let probe = go(&mut lane, 0, at(60));
        lane.refuse(probe, TripCause::Technical, None, at(60));
        assert_eq!(lane.closed().unwrap().cause, TripCause::Quota);
        assert_eq!(until(&lane), at(180));
    }

    #[test]
    fn unused_probe_is_returned() {
        let mut lane = Circuit::default();
        lane.trip(TripCause::Auth, None, at(0));
        let unused = go(&mut lane, 0, at(60));
        assert_eq!(lane.admit(1, at(60)), Admission::AtCapacity);
        lane.discard_probe(unused);
        go(&mut lane, 0, at(60));
    }

    #[test]
    fn merge_keeps_the_newer_snapshot() {
        let mut ours = Circuit::default();
        let under_way = go(&mut ours, 0, at(0));
        let mut theirs = Circuit::default();
        theirs.trip(TripCause::RateLimit, None, at(1));
        ours.adopt(&theirs);
        assert_eq!(ours, theirs);
        assert!(!ours.succeed(under_way), "it went out before");
        // One of them lets one through: the other waits for what comes of it.
        let probe = go(&mut theirs, 0, at(60));
        ours.adopt(&theirs);
        assert_eq!(ours.admit(0, at(61)), Admission::AtCapacity);
        theirs.succeed(probe);
        ours.adopt(&theirs);
        assert!(ours.closed().is_none());
        ours.adopt(&Circuit::default());
        assert_eq!(ours, theirs, "what is older tells nothing");
        // Both close at once: the longer wait holds for both.
        ours.trip(TripCause::RateLimit, Some(Duration::from_secs(9)), at(70));
        theirs.trip(TripCause::RateLimit, Some(Duration::from_secs(5)), at(70));
        theirs.adopt(&ours);
        assert_eq!(until(&theirs), at(79));
    }

    #[test]
    fn circuit_round_trips_through_json() {
        let mut lane = Circuit::default();
        lane.trip(TripCause::Auth, None, at(0));
        let text = serde_json::to_string(&lane).unwrap();
        assert_eq!(serde_json::from_str::<Circuit>(&text).unwrap(), lane);
    }
}
