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

/// Period after the end of the open state in which jobs of the owners and models that opened the
/// circuit are not sent as a probe.
const PROBE_GRACE: Duration = Duration::from_secs(5);

/// Maximum number of origins that an open circuit stores. Further ones are dropped.
const MAX_ORIGINS: usize = 16;

/// A rejection or failure that opens a circuit.
#[derive(Clone)]
pub(super) struct Trip {
    pub(super) cause: TripCause,
    /// Delay that the provider requested. It replaces the backoff of a rate limit and can only
    /// extend that of other causes.
    pub(super) hint: Option<Duration>,
    pub(super) at: Time,
    /// Owners and models of the failed requests. Empty if the failure does not depend on the
    /// request.
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
    /// Owners and models of the requests that opened the circuit or failed as a probe.
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

    /// Returns the rank of this snapshot among snapshots of the same circuit. Snapshots are ordered
    /// by revision, then by the end of the open state, then by the timeout of the probe.
    pub(super) fn rank(&self) -> impl Ord + use<> {
        let open = self.open.as_ref();
        let open = open.map(|open| (open.until, open.half_open_probe));
        (self.revision, open)
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

    /// Returns the time before which a job of `origin` must not be sent as a probe, because
    /// requests of `origin` opened the circuit. Returns `None` if it may be sent.
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

    /// Returns whether the backoff has reached its maximum.
    pub(super) fn waits_longest(&self) -> bool {
        self.streak.is_some_and(|TripStreak { cause, length }| {
            cause.open_duration(length, None) == cause.open_duration(u32::MAX, None)
        })
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

    /// Opens the circuit. Each consecutive trip for the same cause extends the open duration,
    /// unless all its origins have already contributed to the open state.
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
mod tests;
