//! A dialect: the differences between provider APIs.
//!
//! A dialect is a table of constants and functions without state, which write responses and webhooks. Task progress,
//! webhook retries and counts are the same for all dialects.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::api_error::ApiError;
use super::plan::{Plan, SubmitBehavior};
use super::scenario::Scenario;
use super::signing::{Headers, SigningKeys};
use super::task::Task;

/// Response to a call, or the reason for an error response.
pub(super) type Answer = Result<HttpResponse, ApiError>;

/// A provider API.
pub(super) struct Dialect {
    /// Path that the dialect is served under.
    pub name: &'static str,
    /// Prefix of the key in `Authorization`.
    pub scheme: &'static str,
    /// Header that every authenticated request must have, and its value.
    pub required_header: Option<(&'static str, &'static str)>,
    /// Whether a job waits in a queue if all slots are in use. Otherwise its submit is rejected.
    pub has_queue: bool,
    /// Whether a submit may be `multipart/form-data` instead of JSON.
    pub accepts_forms: bool,
    /// Scenarios that the dialect does not support, with the reason.
    pub unplayable: &'static [(&'static [Scenario], &'static str)],
    /// Time for a receiver to echo the challenge that precedes webhooks. `None`: there is no challenge.
    pub challenge_timeout: Option<Duration>,
    /// Returns the id of the task with this number.
    pub id: fn(u64) -> String,
    /// Returns the response for an error.
    pub error: fn(&ApiError) -> HttpResponse,
    /// Returns the bodies of the webhooks for the current state of a task.
    pub webhooks: fn(&Task) -> Vec<Value>,
    /// Returns the signature headers of a webhook sent at a time in Unix seconds.
    pub sign: fn(&SigningKeys, &Message, u64) -> Headers,
}

/// A webhook: a body with an id.
pub(super) struct Message {
    /// Numeric id.
    pub id: String,
    /// The provider's id of the task.
    pub task: String,
    pub body: Vec<u8>,
    /// Earliest time of delivery.
    pub due: Instant,
}

impl Dialect {
    /// Returns the plan of a scenario, or why this dialect cannot play it.
    pub fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        let is_meant = |(scenarios, _): &&(&[Scenario], _)| scenarios.contains(&scenario);
        if let Some((_, why)) = self.unplayable.iter().find(is_meant) {
            return Err(why);
        }
        let plan = scenario.plan();
        if scenario == Scenario::ConcurrencyLimited && self.has_queue {
            return Ok(Plan {
                submit_behavior: SubmitBehavior::Accept,
                ahead: 3,
                ..plan
            });
        }
        Ok(plan)
    }
}

// Shared by several dialects.

pub(super) const NO_CANCEL: &str = "it has no way to cancel";
pub(super) const NO_REFUSAL: &str = "it declines no prompt at submit";

/// Creates a JSON response.
pub(super) fn respond(status: u16, headers: &[(&str, &str)], body: Value) -> HttpResponse {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    for header in headers {
        response.insert_header(*header);
    }
    response.json(body)
}

pub(super) fn ok(body: Value) -> HttpResponse {
    respond(200, &[], body)
}

pub(super) fn uuid() -> String {
    Uuid::now_v7().to_string()
}

/// Removes the keys of an object that are null.
pub(super) fn without_nulls(mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    object
}

/// Formats a time as RFC 3339 with milliseconds.
pub(super) fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}
