//! What one socket has been shown, and whether that may be.
//!
//! The check of the whole run is here: a socket's version of a job rises and never goes back, through
//! reconnects too; and in the end it is the newest there is, and final.
//!
//! Invariant: what is wrong is counted and never forgiven: a later frame does not undo it.

use super::stats::Violations;

/// The jobs that one socket watches, neighbours in the run's list of jobs, and what it has of each.
pub(super) struct SubscriptionState {
    first: u32,
    jobs: u32,
    shown: Box<[Shown]>,
    /// How many of them are not known to be current on this connection.
    pending_jobs: u32,
    /// How many have ended.
    ended: u32,
}

#[derive(Clone, Copy)]
struct Shown {
    version: u32,
    is_final: bool,
    is_behind: bool,
}

impl Shown {
    const NOTHING: Self = Self {
        version: 0,
        is_final: false,
        is_behind: true,
    };
}

/// A frame of a job, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameCheck {
    /// A newer version, which came while the socket was current; so many were skipped before it.
    Live { skipped: u64 },
    /// A newer version, or the same, that made up for the time without a connection.
    CaughtUp,
    /// Not newer than what the socket has.
    Regression,
    /// Of a job that the socket does not watch.
    Unexpected,
}

/// How a job ended, by the hub's own answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FinalState {
    pub version: u32,
    pub is_final: bool,
}

impl SubscriptionState {
    /// A socket that watches `count` of `jobs` jobs, from `first` on and around the end.
    pub fn new(first: u32, count: u32, jobs: u32) -> Self {
        Self {
            first,
            jobs,
            shown: vec![Shown::NOTHING; count as usize].into(),
            pending_jobs: count,
            ended: 0,
        }
    }

    fn place(&self, job: u32) -> Option<usize> {
        let place = (job + self.jobs - self.first) % self.jobs;
        ((place as usize) < self.shown.len()).then_some(place as usize)
    }

    /// The jobs and the versions that it has, 0 for none.
    pub fn known_versions(&self) -> impl Iterator<Item = (u32, u32)> {
        let number = |place: usize| (self.first + place as u32) % self.jobs;
        let shown = self.shown.iter().enumerate();
        shown.map(move |(place, shown)| (number(place), shown.version))
    }

    /// A new connection begins: nothing is known to be current.
    pub fn reconnect(&mut self) {
        for shown in &mut self.shown {
            shown.is_behind = true;
        }
        self.pending_jobs = self.shown.len() as u32;
    }

    /// The hub says that the version known is the newest.
    pub fn current(&mut self, job: u32) {
        if let Some(place) = self.place(job) {
            self.catch_up(place);
        }
    }

    fn catch_up(&mut self, place: usize) -> bool {
        let was_behind = std::mem::take(&mut self.shown[place].is_behind);
        self.pending_jobs -= u32::from(was_behind);
        was_behind
    }

    /// A frame shows a version.
    pub fn see(&mut self, job: u32, version: u64, is_final: bool) -> FrameCheck {
        let Some(place) = self.place(job) else {
            return FrameCheck::Unexpected;
        };
        let known = self.shown[place].version;
        let was_behind = self.catch_up(place);
        let Some(version) = u32::try_from(version).ok().filter(|new| *new > known) else {
            return FrameCheck::Regression;
        };
        let shown = &mut self.shown[place];
        self.ended += u32::from(is_final && !shown.is_final);
        (shown.version, shown.is_final) = (version, is_final);
        match was_behind {
            true => FrameCheck::CaughtUp,
            false => FrameCheck::Live {
                skipped: u64::from(version - known - 1),
            },
        }
    }

    /// Whether every job is known to be current on this connection.
    pub fn is_current(&self) -> bool {
        self.pending_jobs == 0
    }

    /// Whether the end of every job was shown.
    pub fn is_done(&self) -> bool {
        self.ended as usize == self.shown.len()
    }

    /// Compares what the socket has in the end with how the jobs ended.
    pub fn judge(&self, truths: &[FinalState]) -> Violations {
        let mut faults = Violations::default();
        for (job, shown) in self.known_versions().map(|(job, _)| job).zip(&self.shown) {
            let truth = truths[job as usize];
            faults.behind += u64::from(shown.version < truth.version);
            faults.ahead += u64::from(shown.version > truth.version);
            let is_unlike = shown.version == truth.version && shown.is_final != truth.is_final;
            faults.unended += u64::from(is_unlike || (shown.is_final && !truth.is_final));
        }
        faults.sockets_behind = u64::from(faults.behind > 0);
        faults
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn increasing_version_counts_as_live_delivery() {
        let mut memory = SubscriptionState::new(8, 3, 10);
        assert_eq!(
            memory
                .known_versions()
                .map(|known| known.0)
                .collect::<Vec<_>>(),
            [8, 9, 0]
        );
        assert_eq!(memory.see(0, 1, false), FrameCheck::CaughtUp);
        assert_eq!(memory.see(0, 5, false), FrameCheck::Live { skipped: 3 });
        assert_eq!(memory.see(0, 5, false), FrameCheck::Regression);
        assert_eq!(memory.see(0, 4, false), FrameCheck::Regression);
        assert_eq!(memory.see(1, 1, false), FrameCheck::Unexpected);
        memory.current(8);
        assert!(!memory.is_current());
        memory.current(9);
        assert!(memory.is_current() && !memory.is_done());
    }

    #[test]
    fn reconnect_keeps_known_versions() {
        let mut memory = SubscriptionState::new(0, 1, 1);
        memory.see(0, 3, false);
        memory.reconnect();
        assert!(!memory.is_current());
        assert_eq!(memory.see(0, 2, false), FrameCheck::Regression);
        assert_eq!(memory.known_versions().collect::<Vec<_>>(), [(0, 3)]);
    }

    #[test]
    fn missing_and_spurious_final_versions_are_detected() {
        let truth = |version, is_final| [FinalState { version, is_final }];
        let mut memory = SubscriptionState::new(0, 1, 1);
        memory.see(0, 4, true);
        assert_eq!(memory.judge(&truth(4, true)), Violations::default());
        assert_eq!(memory.judge(&truth(5, true)).behind, 1);
        assert_eq!(memory.judge(&truth(3, true)).ahead, 1);
        assert_eq!(memory.judge(&truth(4, false)).unended, 1);
    }

    proptest! {
        #[test]
        fn remembered_version_is_the_maximum_seen(versions in proptest::collection::vec(1..50u64, 1..40)) {
            let mut memory = SubscriptionState::new(0, 1, 1);
            let mut highest = 0;
            for version in versions {
                let is_newer = version > highest;
                let verdict = memory.see(0, version, false);
                prop_assert_eq!(verdict != FrameCheck::Regression, is_newer);
                highest = highest.max(version);
            }
            prop_assert_eq!(memory.known_versions().next(), Some((0, highest as u32)));
        }
    }
}
