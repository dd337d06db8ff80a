//! State that the hub keeps beside a job's public document.
//!
//! Invariant: nothing here is serialized into the document.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::{OutputSource, VideoRequest};
use crate::time::Time;

/// The state that the hub needs to submit, poll and settle a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InternalState {
    /// The request to submit, or `None` if another system submitted the job.
    pub request: Option<VideoRequest>,
    /// Opaque value from the submit response that later requests need (URLs, endpoints), or null.
    #[serde(default)]
    pub handle: Value,
    /// For each output, its source if the URL in the document is a link of the hub. Empty if no
    /// output has such a link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_sources: Vec<Option<OutputSource>>,
    /// Time at which the provider first reported a success that a poll has yet to confirm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_reported_at: Option<Time>,
    /// Mail address of the owner, which is shown to nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_email: Option<String>,
    /// The reserved budget, or `None` if the price is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<Reservation>,
    /// Charges to the limits on the owner's jobs that wait for submission. They are released by the
    /// first submission attempt or by a terminal status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue_charges: Vec<QueueCharge>,
    /// URL that the submission named for its own webhooks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<Url>,
}

/// A charge to a limit on jobs that wait for submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCharge {
    /// The window that was charged.
    pub window: BudgetWindow,
    /// Number of jobs or of bytes, depending on the window.
    pub amount: i64,
}

/// Budget reserved for a job at submission and settled when the job finishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Amount in millionths of `unit`.
    pub amount_micros: i64,
    /// Unit of the amount, as in [`Cost::unit`](super::Cost::unit).
    pub unit: String,
    /// The budget windows that were charged.
    pub windows: Vec<BudgetWindow>,
}

impl Reservation {
    /// Converts an amount to millionths, rounded up so that no fraction remains uncounted.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the cast saturates, as intended"
    )]
    pub fn to_micros(amount: f64) -> i64 {
        // The tolerance absorbs binary rounding, as in 0.07 · 5.
        (amount * 1e6 - 1e-3).ceil().max(0.0) as i64
    }
}

/// A fixed-window counter of a budget or of a submission rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetWindow {
    /// Name of the window in the store.
    pub name: String,
    /// End of the window. The next window starts at zero.
    pub expires_at: Time,
}

impl BudgetWindow {
    /// Returns the window of length `span`, aligned to the Unix epoch, that contains `now`.
    #[must_use]
    pub fn containing(kind: &str, subject: &str, now: Time, span: Duration) -> Self {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let start = now.millis().div_euclid(millis).saturating_mul(millis);
        let start = Time::from_millis(start);
        Self {
            name: format!("{kind}/{subject}/{start}"),
            expires_at: start + span,
        }
    }
}
