//! Limits repeated log lines, so that clients cannot flood the log.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two lines with the same key.
const INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of keys with a line in one interval. Clients control parts of some keys, so their
/// number must be bounded.
const MAX_KEYS: usize = 100;

/// Admits one log line per key and minute, for at most 100 keys per minute.
#[derive(Debug)]
pub struct LineLimit<K>(Mutex<Lines<K>>);

#[derive(Debug)]
struct Lines<K> {
    by_key: HashMap<K, LastLine>,
    /// Number of suppressed lines whose key has no entry.
    suppressed: u64,
}

#[derive(Debug)]
struct LastLine {
    at: Instant,
    suppressed: u64,
}

impl<K> Default for LineLimit<K> {
    fn default() -> Self {
        Self(Mutex::new(Lines {
            by_key: HashMap::new(),
            suppressed: 0,
        }))
    }
}

impl<K: Eq + Hash> LineLimit<K> {
    /// Returns the number of suppressed lines that no earlier call has returned: the lines with
    /// this key, and those with keys that have no entry. Returns `None` if the caller must
    /// suppress this line.
    pub fn admit(&self, key: K, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Lines { by_key, suppressed } = &mut *lines;
        let is_recent = |line: &LastLine| now.duration_since(line.at) < INTERVAL;
        if let Some(line) = by_key.get_mut(&key) {
            if is_recent(line) {
                line.suppressed += 1;
                return None;
            }
            line.at = now;
            *suppressed += std::mem::take(&mut line.suppressed);
            return Some(std::mem::take(suppressed));
        }
        if by_key.len() >= MAX_KEYS {
            by_key.retain(|_, line| {
                let is_recent = is_recent(line);
                if !is_recent {
                    *suppressed += line.suppressed;
                }
                is_recent
            });
        }
        if by_key.len() >= MAX_KEYS {
            *suppressed += 1;
            return None;
        }
        let line = LastLine {
            at: now,
            suppressed: 0,
        };
        by_key.insert(key, line);
        Some(std::mem::take(suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_key_and_minute_is_admitted() {
        let (limit, start) = (LineLimit::default(), Instant::now());
        let admit = |key, seconds| limit.admit(key, start + Duration::from_secs(seconds));
        assert_eq!(admit("a", 0), Some(0));
        assert_eq!(admit("a", 1), None);
        assert_eq!(admit("a", 59), None);
        assert_eq!(admit("b", 59), Some(0));
        assert_eq!(admit("a", 60), Some(2));
        assert_eq!(admit("a", 61), None);
    }

    #[test]
    fn number_of_keys_is_bounded_and_excess_is_counted() {
        let (limit, start) = (LineLimit::default(), Instant::now());
        let admit = |key: usize, seconds| limit.admit(key, start + Duration::from_secs(seconds));
        let admitted = (0..1000).filter_map(|key| admit(key, 0));
        assert_eq!(admitted.collect::<Vec<_>>(), [0; MAX_KEYS]);
        assert_eq!(admit(1000, 59), None);
        assert_eq!(admit(0, 59), None);
        // The expired keys are removed, and key 0 with them.
        assert_eq!(admit(1000, 60), Some(1000 - MAX_KEYS as u64 + 2));
        assert_eq!(admit(1001, 60), Some(0));
    }
}
