//! Fair order of submissions: the owners of due jobs take turns.
//!
//! An owner with many jobs therefore does not delay the single job of another owner. Each node keeps
//! its own turns.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Maximum number of due jobs, the earliest, among which owners take turns.
pub(super) const MAX_DUE_JOBS: usize = 10_000;

/// The turns of the owners at each provider.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<BTreeMap<String, OwnerTurns>>);

/// The last turn of each owner that had a due job at the last claim.
#[derive(Debug, Default)]
struct OwnerTurns {
    /// Number of the latest turn. Turns have even numbers, so that a new owner fits between two.
    latest: u64,
    last: HashMap<String, u64>,
}

impl Turns {
    /// Returns up to `limit` of the due jobs in the order of their claims: one job of each owner in
    /// turn, starting with the owner whose last turn is the longest ago. `due` contains each job with
    /// its owner, earliest first.
    pub(super) fn order<J>(&self, provider: &str, due: Vec<(J, String)>, limit: usize) -> Vec<J> {
        let mut state = self.lock();
        let turns = state.entry(provider.to_owned()).or_default();
        let mut by_owner: HashMap<String, VecDeque<(usize, J)>> = HashMap::new();
        for (position, (job, owner)) in due.into_iter().enumerate() {
            by_owner
                .entry(owner)
                .or_default()
                .push_back((position, job));
        }
        turns.last.retain(|owner, _| by_owner.contains_key(owner));
        // A new owner precedes the owner of the latest turn only. Otherwise, owners that alternate in
        // being due could delay the others without limit.
        let joined = turns.latest.saturating_sub(1);
        let mut owners = Vec::with_capacity(by_owner.len());
        for (owner, jobs) in by_owner {
            let last = *turns.last.entry(owner).or_insert(joined);
            owners.push((last, jobs.front().map(|(at, _)| *at), jobs));
        }
        owners.sort_by_key(|(last, first, _)| (*last, *first));
        let mut ordered = Vec::new();
        while ordered.len() < limit && !owners.is_empty() {
            owners.retain_mut(|(_, _, jobs)| {
                if ordered.len() < limit
                    && let Some((_, job)) = jobs.pop_front()
                {
                    ordered.push(job);
                }
                !jobs.is_empty()
            });
        }
        ordered
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OwnerTurns>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a job of an owner was claimed.
    pub(super) fn record(&self, provider: &str, owner: &str) {
        let mut state = self.lock();
        let turns = state.entry(provider.to_owned()).or_default();
        turns.latest += 2;
        turns.last.insert(owner.to_owned(), turns.latest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the order of jobs written as `owner` and a digit, such as `a1`.
    fn order(turns: &Turns, due: &str, limit: usize) -> String {
        let due = due.split(' ').map(|job| (job, job[..1].to_owned()));
        turns.order("p", due.collect(), limit).join(" ")
    }

    #[test]
    fn owners_take_turns() {
        let turns = Turns::default();
        assert_eq!(order(&turns, "a1 a2 a3 b1 c1 c2", 9), "a1 b1 c1 a2 c2 a3");
        assert_eq!(order(&turns, "a1 a2 a3 b1", 2), "a1 b1");
        turns.record("p", "a");
        assert_eq!(order(&turns, "a2 a3 b1 c1", 1), "b1");
        turns.record("p", "b");
        assert_eq!(order(&turns, "a2 a3 b2 c1", 3), "c1 a2 b2");
        let none: Vec<(u8, String)> = Vec::new();
        assert!(turns.order("other", none, 3).is_empty());
    }

    #[test]
    fn owners_that_alternate_do_not_delay_a_waiting_owner() {
        let turns = Turns::default();
        turns.record("p", "b");
        let mut claimed = Vec::new();
        for due in ["a1 b2", "b2 c1", "a1 b2", "b2 c1"] {
            claimed.push(order(&turns, due, 1));
            turns.record("p", &claimed.last().unwrap()[..1]);
        }
        assert!(claimed.contains(&"b2".to_owned()), "{claimed:?}");
    }

    #[test]
    fn turns_of_owners_without_due_jobs_are_forgotten() {
        let turns = Turns::default();
        for n in 0..100 {
            turns.record("p", &n.to_string());
        }
        order(&turns, "a1", 1);
        assert_eq!(turns.lock()["p"].last.len(), 1);
    }
}
