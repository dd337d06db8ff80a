//! State that the hub keeps beside a job's public document.
//!
//! Invariant: nothing here is serialized into the document.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VideoRequest;
use crate::time::Time;

/// What the hub must know to submit a job and to ask about it later.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InternalState {
    /// What to submit; none where somebody else did.
    pub request: Option<VideoRequest>,
    /// What the provider's answer said about asking again (URLs, endpoints); null where nothing.
    #[serde(default)]
    pub handle: Value,
    /// For each output, where it really lies when only the provider's key can read it there; empty
    /// where there is no such output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private_urls: Vec<Option<String>>,
    /// When its provider first told of a success that was yet to be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_reported_at: Option<Time>,
    /// What was set aside for it; none where its price is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<Reservation>,
}

/// What was set aside for a job when it was submitted, to be settled when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Millionths of the unit.
    pub amount_micros: i64,
    /// What is counted, as in a job's `cost`.
    pub unit: String,
    /// The accounts that it is booked in.
    pub windows: Vec<BudgetWindow>,
}

impl Reservation {
    /// A sum in millionths, rounded up, so that no fraction of one is spent unseen.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "saturates, which is what is wanted"
    )]
    pub fn to_micros(sum: f64) -> i64 {
        // What is not exact in binary (0.07 · 5) is within this of what was meant.
        (sum * 1e6 - 1e-3).ceil().max(0.0) as i64
    }
}

/// A sum that is counted for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetWindow {
    /// Its name in the store.
    pub name: String,
    /// When it ends, and another begins from zero.
    pub expires_at: Time,
}
