//! Versions that one socket has received, and their verification.
//!
//! The version of a job must increase on every frame, across reconnects too. At the end it must be the last version
//! of the job. A violation stays counted even if later frames are correct.

use super::stats::Violations;

/// Subscribed jobs of one socket, with the newest version of each. The jobs have consecutive numbers, modulo the
/// number of jobs in the run.
pub(super) struct SubscriptionState {
    first: u32,
    jobs: u32,
    subscriptions: Box<[Subscription]>,
    /// Subscriptions that are not known to be current on this connection.
    pending: u32,
    /// Subscriptions that received a final version.
    finished: u32,
}

#[derive(Clone, Copy)]
struct Subscription {
    version: u32,
    is_final: bool,
    is_pending: bool,
}

/// Result of checking a job frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameCheck {
    /// Newer version, received while the subscription was current. `skipped` versions before it were conflated.
    Live { skipped: u64 },
    /// First version on this connection, newer than the known one.
    CaughtUp,
    /// Version that is not newer than the known one.
    Regression,
    /// Job that is not subscribed.
    Unexpected,
}

/// Last version of a job, as the API of the hub reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub(super) struct FinalState {
    pub version: u32,
    #[serde(rename = "final")]
    pub is_final: bool,
}

impl SubscriptionState {
    /// Creates the state of a socket that subscribes to `count` of `jobs` jobs, starting with number `first`.
    pub fn new(first: u32, count: u32, jobs: u32) -> Self {
        let subscription = Subscription {
            version: 0,
            is_final: false,
            is_pending: true,
        };
        let subscriptions = vec![subscription; count as usize].into();
        Self {
            first,
            jobs,
            subscriptions,
            pending: count,
            finished: 0,
        }
    }

    fn index(&self, job: u32) -> Option<usize> {
        let index = ((job + self.jobs - self.first) % self.jobs) as usize;
        (index < self.subscriptions.len()).then_some(index)
    }

    /// Returns the number and the known version of each job. The version is 0 if none was received.
    pub fn known_versions(&self) -> impl Iterator<Item = (u32, u32)> {
        let number = |index: usize| (self.first + index as u32) % self.jobs;
        let subscriptions = self.subscriptions.iter().enumerate();
        subscriptions.map(move |(index, subscription)| (number(index), subscription.version))
    }

    /// Starts a new connection: no subscription is known to be current.
    pub fn reconnect(&mut self) {
        for subscription in &mut self.subscriptions {
            subscription.is_pending = true;
        }
        self.pending = self.subscriptions.len() as u32;
    }

    /// Records that the hub reported the known version as the newest.
    pub fn confirm_current(&mut self, job: u32) {
        if let Some(index) = self.index(job) {
            self.catch_up(index);
        }
    }

    fn catch_up(&mut self, index: usize) -> bool {
        let was_pending = std::mem::take(&mut self.subscriptions[index].is_pending);
        self.pending -= u32::from(was_pending);
        was_pending
    }

    /// Checks a job frame and records its version.
    pub fn receive(&mut self, job: u32, version: u64, is_final: bool) -> FrameCheck {
        let Some(index) = self.index(job) else {
            return FrameCheck::Unexpected;
        };
        let known = self.subscriptions[index].version;
        let was_pending = self.catch_up(index);
        let Some(version) = u32::try_from(version)
            .ok()
            .filter(|version| *version > known)
        else {
            return FrameCheck::Regression;
        };
        let subscription = &mut self.subscriptions[index];
        self.finished += u32::from(is_final && !subscription.is_final);
        (subscription.version, subscription.is_final) = (version, is_final);
        if was_pending {
            FrameCheck::CaughtUp
        } else {
            FrameCheck::Live {
                skipped: u64::from(version - known - 1),
            }
        }
    }

    /// Returns whether every subscription is known to be current on this connection.
    pub fn is_current(&self) -> bool {
        self.pending == 0
    }

    /// Returns whether every subscription received a final version.
    pub fn is_done(&self) -> bool {
        self.finished as usize == self.subscriptions.len()
    }

    /// Compares the known versions with the final states of all jobs of the run.
    pub fn verify(&self, final_states: &[FinalState]) -> Violations {
        let mut violations = Violations::default();
        for ((job, version), subscription) in self.known_versions().zip(&self.subscriptions) {
            let expected = final_states[job as usize];
            violations.behind += u64::from(version < expected.version);
            violations.ahead += u64::from(version > expected.version);
            // An older version may not be final yet.
            let is_comparable = subscription.is_final || version == expected.version;
            let is_mismatch = subscription.is_final != expected.is_final;
            violations.not_final += u64::from(is_comparable && is_mismatch);
        }
        violations.sockets_behind = u64::from(violations.behind > 0);
        violations
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn increasing_version_counts_as_live_delivery() {
        let mut state = SubscriptionState::new(8, 3, 10);
        assert_eq!(
            state
                .known_versions()
                .map(|known| known.0)
                .collect::<Vec<_>>(),
            [8, 9, 0]
        );
        assert_eq!(state.receive(0, 1, false), FrameCheck::CaughtUp);
        assert_eq!(state.receive(0, 5, false), FrameCheck::Live { skipped: 3 });
        assert_eq!(state.receive(0, 5, false), FrameCheck::Regression);
        assert_eq!(state.receive(0, 4, false), FrameCheck::Regression);
        assert_eq!(state.receive(1, 1, false), FrameCheck::Unexpected);
        state.confirm_current(8);
        assert!(!state.is_current());
        state.confirm_current(9);
        assert!(state.is_current() && !state.is_done());
    }

    #[test]
    fn reconnect_keeps_known_versions() {
        let mut state = SubscriptionState::new(0, 1, 1);
        state.receive(0, 3, false);
        state.reconnect();
        assert!(!state.is_current());
        assert_eq!(state.receive(0, 2, false), FrameCheck::Regression);
        assert_eq!(state.known_versions().collect::<Vec<_>>(), [(0, 3)]);
    }

    #[test]
    fn missing_and_spurious_final_versions_are_detected() {
        let final_state = |version, is_final| [FinalState { version, is_final }];
        let mut state = SubscriptionState::new(0, 1, 1);
        state.receive(0, 4, true);
        assert_eq!(state.verify(&final_state(4, true)), Violations::default());
        assert_eq!(state.verify(&final_state(5, true)).behind, 1);
        assert_eq!(state.verify(&final_state(3, true)).ahead, 1);
        assert_eq!(state.verify(&final_state(4, false)).not_final, 1);
    }

    proptest! {
        #[test]
        fn remembered_version_is_the_maximum_seen(versions in proptest::collection::vec(1..50u64, 1..40)) {
            let mut state = SubscriptionState::new(0, 1, 1);
            let mut highest = 0;
            for version in versions {
                let is_newer = version > highest;
                let check = state.receive(0, version, false);
                prop_assert_eq!(check != FrameCheck::Regression, is_newer);
                highest = highest.max(version);
            }
            prop_assert_eq!(state.known_versions().next(), Some((0, highest as u32)));
        }
    }
}
