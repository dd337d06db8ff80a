//! Usage of each client, by address, subject or output.
//!
//! An entry is retained while a connection holds it or one of its rates is not idle. The table is
//! locked when a connection, a request or a download starts, not for each message.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Minimum number of entries at which unused ones are removed.
const MIN_SWEEP: usize = 1024;

/// Usage of one client.
pub(super) trait Usage: Default {
    /// Returns whether the usage equals a new one, if no connection holds it.
    fn is_idle(&self, now: Instant) -> bool;
}

/// The usage of each client.
#[derive(Debug)]
pub(super) struct UsageTable<K, U>(Mutex<Entries<K, U>>);

#[derive(Debug)]
struct Entries<K, U> {
    by_client: HashMap<K, Arc<U>>,
    /// Number of entries at which unused ones are removed. Twice the number that remained last time, so
    /// that the cost per new entry is constant.
    next_sweep: usize,
}

impl<K, U> Default for UsageTable<K, U> {
    fn default() -> Self {
        Self(Mutex::new(Entries {
            by_client: HashMap::new(),
            next_sweep: MIN_SWEEP,
        }))
    }
}

impl<K: Eq + Hash, U: Usage> UsageTable<K, U> {
    /// Returns the usage of a client.
    pub(super) fn get<Q>(&self, client: &Q, now: Instant) -> Arc<U>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = entries.by_client.get(client) {
            return Arc::clone(usage);
        }
        if entries.by_client.len() >= entries.next_sweep {
            entries
                .by_client
                .retain(|_, usage| Arc::strong_count(usage) > 1 || !usage.is_idle(now));
            entries.next_sweep = MIN_SWEEP.max(entries.by_client.len() * 2);
        }
        let usage = Arc::new(U::default());
        entries
            .by_client
            .insert(client.to_owned(), Arc::clone(&usage));
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Usage for bool {
        fn is_idle(&self, _: Instant) -> bool {
            true
        }
    }

    #[test]
    fn unused_entries_are_removed() {
        let table = UsageTable::<String, bool>::default();
        let now = Instant::now();
        let held = table.get("held", now);
        for client in 0..10_000 {
            table.get(client.to_string().as_str(), now);
        }
        assert!(Arc::ptr_eq(&held, &table.get("held", now)));
        assert!(table.0.lock().unwrap().by_client.len() <= MIN_SWEEP + 1);
    }
}
