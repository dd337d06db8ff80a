//! Pauses reading from a client that exceeds a rate limit.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::CloseReason;

/// Maximum duration of one pause, and of a series of pauses. A message within the limit ends a
/// series.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The pauses of a client. The connection is not read during a pause, so TCP flow control stops the
/// client.
#[derive(Debug, Default)]
pub(super) struct ReadPause {
    resume_at: Option<Instant>,
    /// Start of the current series of pauses.
    since: Option<Instant>,
}

impl ReadPause {
    /// Pauses for `wait` after a message. Returns whether a series of pauses begins.
    ///
    /// # Errors
    /// [`CloseReason::RateLimited`] if the pause or the series exceeds [`MAX_PAUSE`].
    pub(super) fn pause(&mut self, wait: Duration, now: Instant) -> Result<bool, CloseReason> {
        if wait.is_zero() {
            self.since = None;
            return Ok(false);
        }
        let is_first = self.since.is_none();
        let since = *self.since.get_or_insert(now);
        if wait > MAX_PAUSE || now.duration_since(since) > MAX_PAUSE {
            return Err(CloseReason::RateLimited);
        }
        self.resume_at = Some(now + wait);
        Ok(is_first)
    }

    /// Returns the end of the pause, or `None` if there is none.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        self.resume_at
    }

    /// Ends the pause if its time has passed. Returns whether a pause ended.
    pub(super) fn resume(&mut self, now: Instant) -> bool {
        self.resume_at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn client_is_paused_until_the_wait_is_over() {
        let (mut pause, now) = (ReadPause::default(), Instant::now());
        assert_eq!(pause.pause(Duration::ZERO, now), Ok(false));
        assert_eq!(pause.resume_at(), None);
        assert_eq!(pause.pause(SECOND, now), Ok(true));
        assert_eq!(pause.resume_at(), Some(now + SECOND));
        assert!(!pause.resume(now));
        assert!(pause.resume(now + SECOND));
        assert_eq!(pause.pause(SECOND, now + SECOND), Ok(false));
    }

    #[test]
    fn long_and_lasting_pauses_close_the_connection() {
        let (mut pause, now) = (ReadPause::default(), Instant::now());
        let limited = Err(CloseReason::RateLimited);
        assert_eq!(pause.pause(11 * SECOND, now), limited);

        let mut pause = ReadPause::default();
        for second in 0..=10 {
            assert!(pause.pause(SECOND, now + second * SECOND).is_ok());
        }
        assert_eq!(pause.pause(SECOND, now + 11 * SECOND), limited);

        // A message within the limit ends the series.
        let mut pause = ReadPause::default();
        pause.pause(SECOND, now).unwrap();
        pause.pause(Duration::ZERO, now + 5 * SECOND).unwrap();
        assert_eq!(pause.pause(SECOND, now + 11 * SECOND), Ok(true));
    }
}
