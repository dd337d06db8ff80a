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
pub struct Throttle<K>(Mutex<HashMap<K, LastLine>>);

#[derive(Debug)]
struct LastLine {
    at: Instant,
    suppressed: u64,
}

impl<K> Default for Throttle<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Throttle<K> {
    /// Returns the number of lines with this key that were suppressed since the last admitted one,
    /// or `None` if the caller must suppress this line.
    pub fn admit(&self, key: K, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |line: &LastLine| now.duration_since(line.at) < INTERVAL;
        if let Some(line) = lines.get_mut(&key) {
            if is_recent(line) {
                line.suppressed += 1;
                return None;
            }
            line.at = now;
            return Some(std::mem::take(&mut line.suppressed));
        }
        if lines.len() >= MAX_KEYS {
            lines.retain(|_, line| is_recent(line));
        }
        if lines.len() >= MAX_KEYS {
            return None;
        }
        let line = LastLine {
            at: now,
            suppressed: 0,
        };
        lines.insert(key, line);
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_key_and_minute_is_admitted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let admit = |key, seconds| throttle.admit(key, start + Duration::from_secs(seconds));
        assert_eq!(admit("a", 0), Some(0));
        assert_eq!(admit("a", 1), None);
        assert_eq!(admit("a", 59), None);
        assert_eq!(admit("b", 59), Some(0));
        assert_eq!(admit("a", 60), Some(2));
        assert_eq!(admit("a", 61), None);
    }

    #[test]
    fn number_of_keys_is_bounded() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let admit = |key: usize, seconds| {
            let now = start + Duration::from_secs(seconds);
            throttle.admit(key, now).is_some()
        };
        assert_eq!((0..1000).filter(|key| admit(*key, 0)).count(), MAX_KEYS);
        assert!(!admit(1000, 59));
        assert!(admit(1000, 60), "expired keys are removed");
    }
}
