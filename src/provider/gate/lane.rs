//! One lane to a provider: how many requests may be under way on it, and what a refusal does to it.
//!
//! Invariant: pure data and pure decisions, the moment always passed in. A closed lane lets one
//! request through once its wait is over; only that one's outcome opens it or doubles the wait.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Requests under way at once on a lane that is well.
pub(super) const MAX_IN_FLIGHT: usize = 8;

/// After which the one that was let through is taken for lost: the time a request may take, and some.
const PROBE_LEASE: Duration = Duration::from_secs(60);

/// Why a lane is closed. A later one outranks those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    /// Several failures in a row.
    Technical,
    /// The provider wants to be left alone for a while.
    RateLimit,
    /// There is no credit left.
    Quota,
    /// The key is refused.
    Auth,
}

impl Cause {
    /// How long a lane is closed the `length`th time in a row.
    fn wait(self, length: u32, hint: Option<Duration>) -> Duration {
        let (first, longest) = match self {
            Self::Technical => (5, 60),
            Self::RateLimit => (1, 60),
            Self::Quota | Self::Auth => (60, 15 * 60),
        };
        let doubled = 2u64.saturating_pow(length.saturating_sub(1));
        let ours = Duration::from_secs(doubled.saturating_mul(first).min(longest));
        match (self, hint) {
            (_, None) => ours,
            (Self::RateLimit, Some(hint)) => hint,
            (Self::Technical | Self::Quota | Self::Auth, Some(hint)) => ours.max(hint),
        }
    }
}

/// A lane that is closed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Closed {
    pub(super) cause: Cause,
    pub(super) since: Time,
    /// When one request may go through.
    pub(super) until: Time,
    /// While that one is under way: when it is taken for lost.
    probe: Option<Time>,
}

/// How many closures for one cause there were since the lane was last well.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Streak {
    cause: Cause,
    length: u32,
}

/// One lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Lane {
    /// How many may be under way while it is open.
    width: usize,
    closed: Option<Closed>,
    streak: Option<Streak>,
    /// Raised by one whenever it closes, opens or lets one through, so that a request from before is
    /// known as such, and of two accounts of one lane the later one.
    turn: u64,
}

/// Leave to make a request, as the lane will know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    turn: u64,
    is_probe: bool,
}

/// Whether a request may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Yes.
    Go(Pass),
    /// When another one has ended.
    Full,
    /// Not before this moment.
    Shut(Time),
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            width: MAX_IN_FLIGHT,
            closed: None,
            streak: None,
            turn: 0,
        }
    }
}

impl Lane {
    pub(super) fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// How late this account of the lane is: of two that are as late, the more cautious is greater.
    pub(super) fn age(&self) -> (u64, Option<Time>) {
        (self.turn, self.closed().map(|closed| closed.until))
    }

    /// Whether one more may go, while so many are under way.
    pub(super) fn admit(&mut self, under_way: usize, now: Time) -> Admission {
        let turn = self.turn;
        let pass = |turn, is_probe| Admission::Go(Pass { turn, is_probe });
        match &mut self.closed {
            None if under_way < self.width => pass(turn, false),
            None => Admission::Full,
            Some(closed) if now < closed.until => Admission::Shut(closed.until),
            Some(closed) if closed.probe.is_some_and(|lost| now < lost) => Admission::Full,
            Some(closed) => {
                closed.probe = Some(now + PROBE_LEASE);
                self.turn += 1;
                pass(self.turn, true)
            }
        }
    }

    /// Whether a pass that was given earlier still holds.
    pub(super) fn honours(&self, pass: Pass) -> bool {
        pass.turn == self.turn && (pass.is_probe || self.closed.is_none())
    }

    /// The provider answered as it should. The lane opens if this was the one that was let through,
    /// and an open lane gets wider by one: so what is under way doubles with each round. Says whether
    /// it told anything: a request from before the last closure does not.
    pub(super) fn succeed(&mut self, pass: Pass) -> bool {
        if !self.honours(pass) {
            return false;
        }
        if self.closed.is_some() {
            self.open();
        }
        self.width = MAX_IN_FLIGHT.min(self.width + 1);
        if self.width == MAX_IN_FLIGHT {
            self.streak = None;
        }
        true
    }

    /// The provider refused, for a cause that closes the lane.
    pub(super) fn refuse(&mut self, pass: Pass, cause: Cause, hint: Option<Duration>, now: Time) {
        let is_late = !self.honours(pass);
        match &mut self.closed {
            // Of those that went out before the lane closed, each tells the same once more.
            Some(closed) if is_late && cause == closed.cause => {
                closed.until = closed.until.max(now + hint.unwrap_or_default());
            }
            Some(closed) if is_late && cause < closed.cause => {}
            // A failure says nothing of what it was closed for.
            Some(closed) if cause == Cause::Technical => {
                let cause = closed.cause;
                self.close(cause, hint, now);
            }
            Some(_) | None => self.close(cause, hint, now),
        }
    }

    /// Nothing came of a request: it was not made, or nobody knows.
    pub(super) fn forget(&mut self, pass: Pass) {
        if let Some(closed) = &mut self.closed
            && pass.is_probe
            && pass.turn == self.turn
        {
            closed.probe = None;
            self.turn += 1;
        }
    }

    /// Closes it, for longer than the last time if that was for the same cause.
    pub(super) fn close(&mut self, cause: Cause, hint: Option<Duration>, now: Time) {
        let same = self.streak.filter(|streak| streak.cause == cause);
        let length = same.map_or(1, |streak| streak.length.saturating_add(1));
        let since = self.closed.as_ref().filter(|it| it.cause == cause);
        self.closed = Some(Closed {
            cause,
            since: since.map_or(now, |closed| closed.since),
            until: now + cause.wait(length, hint),
            probe: None,
        });
        self.streak = Some(Streak { cause, length });
        self.turn += 1;
        self.width = 1;
    }

    /// Opens it, for one at a time to begin with.
    pub(super) fn open(&mut self) {
        if self.closed.take().is_some() {
            self.turn += 1;
            self.width = 1;
        }
    }

    /// Takes over another node's account of the same lane, if it is a later one. What this node has
    /// under way then counts as from before.
    pub(super) fn adopt(&mut self, other: &Self) {
        if other.age() > self.age() {
            self.clone_from(other);
        }
    }

    /// Lets one through now, if it is closed.
    pub(super) fn hurry(&mut self, now: Time) {
        if let Some(closed) = &mut self.closed {
            closed.until = closed.until.min(now);
            self.turn += 1;
        }
    }

    /// Forgets how often it was closed.
    pub(super) fn pardon(&mut self) {
        self.streak = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_millis(seconds * 1000)
    }

    fn go(lane: &mut Lane, under_way: usize, now: Time) -> Pass {
        match lane.admit(under_way, now) {
            Admission::Go(pass) => pass,
            other @ (Admission::Full | Admission::Shut(_)) => panic!("{other:?} at {now}"),
        }
    }

    fn until(lane: &Lane) -> Time {
        lane.closed().unwrap().until
    }

    #[test]
    fn a_lane_that_is_well_takes_eight_at_once() {
        let mut lane = Lane::default();
        go(&mut lane, 7, at(0));
        assert_eq!(lane.admit(8, at(0)), Admission::Full);
    }

    #[test]
    fn a_hint_is_kept_to_the_moment_and_then_one_goes() {
        let mut lane = Lane::default();
        let pass = go(&mut lane, 0, at(0));
        lane.refuse(pass, Cause::RateLimit, Some(Duration::from_secs(30)), at(0));
        assert_eq!(lane.admit(0, at(29)), Admission::Shut(at(30)));
        go(&mut lane, 0, at(30));
        assert_eq!(lane.admit(0, at(31)), Admission::Full);
        // Whoever went through never came back.
        go(&mut lane, 0, at(90));
    }

    #[test]
    fn after_a_closure_what_is_under_way_doubles_with_each_round() {
        let mut lane = Lane::default();
        lane.close(Cause::RateLimit, None, at(0));
        let mut rounds = vec![];
        let mut passes = vec![go(&mut lane, 0, at(60))];
        while passes.len() < MAX_IN_FLIGHT {
            rounds.push(passes.len());
            for pass in std::mem::take(&mut passes) {
                assert!(lane.succeed(pass));
            }
            while let Admission::Go(pass) = lane.admit(passes.len(), at(60)) {
                passes.push(pass);
            }
        }
        assert_eq!(rounds, [1, 2, 4]);
    }

    #[test]
    fn each_closure_for_the_same_cause_lasts_twice_as_long() {
        for (cause, waits) in [
            (Cause::RateLimit, [1, 2, 4, 8, 16, 32, 60, 60]),
            (Cause::Technical, [5, 10, 20, 40, 60, 60, 60, 60]),
            (Cause::Quota, [60, 120, 240, 480, 900, 900, 900, 900]),
            (Cause::Auth, [60, 120, 240, 480, 900, 900, 900, 900]),
        ] {
            let mut lane = Lane::default();
            lane.close(cause, None, at(0));
            let mut now = at(0);
            for wait in waits {
                assert_eq!(until(&lane).saturating_duration_since(now).as_secs(), wait, "{cause:?}");
                assert_eq!(lane.closed().unwrap().since, at(0));
                now = until(&lane);
                let probe = go(&mut lane, 0, now);
                lane.refuse(probe, cause, None, now);
            }
        }
    }

    #[test]
    fn a_lane_that_came_to_be_well_begins_anew() {
        let mut lane = Lane::default();
        lane.close(Cause::Quota, None, at(0));
        let probe = go(&mut lane, 0, at(60));
        lane.succeed(probe);
        lane.close(Cause::Quota, None, at(100));
        assert_eq!(until(&lane), at(220), "one success is not enough");
        let mut now = until(&lane);
        for _ in 0..MAX_IN_FLIGHT {
            let pass = go(&mut lane, 0, now);
            lane.succeed(pass);
            now = now + Duration::from_secs(1);
        }
        lane.close(Cause::Quota, None, at(1000));
        assert_eq!(until(&lane), at(1060));
    }

    #[test]
    fn those_from_before_a_closure_neither_open_the_lane_nor_double_its_wait() {
        let mut lane = Lane::default();
        let early: Vec<Pass> = (0..4).map(|n| go(&mut lane, n, at(0))).collect();
        lane.refuse(early[0], Cause::RateLimit, None, at(1));
        lane.refuse(early[1], Cause::RateLimit, None, at(1));
        assert_eq!(until(&lane), at(2));
        assert!(!lane.succeed(early[2]));
        lane.refuse(early[3], Cause::Technical, None, at(1));
        assert_eq!(until(&lane), at(2));
        let five = Some(Duration::from_secs(5));
        lane.refuse(early[2], Cause::RateLimit, five, at(1));
        assert_eq!(until(&lane), at(6), "the longest wait that was asked for");
        lane.refuse(early[3], Cause::Quota, None, at(1));
        assert_eq!(lane.closed().unwrap().cause, Cause::Quota);
    }

    #[test]
    fn a_probe_that_fails_says_nothing_of_the_credit() {
        let mut lane = Lane::default();
        lane.close(Cause::Quota, None, at(0));
        let probe = go(&mut lane, 0, at(60));
        lane.refuse(probe, Cause::Technical, None, at(60));
        assert_eq!(lane.closed().unwrap().cause, Cause::Quota);
        assert_eq!(until(&lane), at(180));
    }

    #[test]
    fn a_probe_that_was_not_needed_leaves_its_turn_to_the_next() {
        let mut lane = Lane::default();
        lane.close(Cause::Auth, None, at(0));
        let unused = go(&mut lane, 0, at(60));
        assert_eq!(lane.admit(1, at(60)), Admission::Full);
        lane.forget(unused);
        go(&mut lane, 0, at(60));
    }

    #[test]
    fn of_two_accounts_of_a_lane_the_later_is_kept() {
        let mut ours = Lane::default();
        let under_way = go(&mut ours, 0, at(0));
        let mut theirs = Lane::default();
        theirs.close(Cause::RateLimit, None, at(1));
        ours.adopt(&theirs);
        assert_eq!(ours, theirs);
        assert!(!ours.succeed(under_way), "it went out before");
        // One of them lets one through: the other waits for what comes of it.
        let probe = go(&mut theirs, 0, at(60));
        ours.adopt(&theirs);
        assert_eq!(ours.admit(0, at(61)), Admission::Full);
        theirs.succeed(probe);
        ours.adopt(&theirs);
        assert!(ours.closed().is_none());
        ours.adopt(&Lane::default());
        assert_eq!(ours, theirs, "what is older tells nothing");
        // Both close at once: the longer wait holds for both.
        ours.close(Cause::RateLimit, Some(Duration::from_secs(9)), at(70));
        theirs.close(Cause::RateLimit, Some(Duration::from_secs(5)), at(70));
        theirs.adopt(&ours);
        assert_eq!(until(&theirs), at(79));
    }

    #[test]
    fn a_lane_survives_being_written_down() {
        let mut lane = Lane::default();
        lane.close(Cause::Auth, None, at(0));
        let text = serde_json::to_string(&lane).unwrap();
        assert_eq!(serde_json::from_str::<Lane>(&text).unwrap(), lane);
    }
}
