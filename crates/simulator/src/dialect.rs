//! A dialect: the differences between provider APIs.
//!
//! A dialect parses requests, writes responses and webhooks, and declares which scenarios it cannot play. It has no
//! state. Task progress, webhook retries and counts are the same for all dialects.

mod atlas;
mod fal;
mod kling;
mod minimax;
mod replicate;
mod runway;
mod videos;

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use serde_json::Value;

use super::api_error::ApiError;
use super::call::{ApiResponse, Call, Cancelled, Listing, RequestHead};
use super::plan::{Plan, SubmitBehavior};
use super::scenario::Scenario;
use super::signing::SigningKeys;
use super::submit_request::SubmitRequest;
use super::task::Task;
use super::webhook::Message;

/// All dialects. The first one is also served without a prefix.
pub(super) static DIALECTS: [&dyn Dialect; 7] = [
    &kling::Kling,
    &fal::Fal,
    &atlas::Atlas,
    &videos::Videos,
    &minimax::Minimax,
    &runway::Runway,
    &replicate::Replicate,
];

/// A challenge that a receiver must echo before it is sent webhooks.
pub(super) struct Challenge {
    /// Body of the challenge and of the expected response.
    pub body: Value,
    /// Response timeout.
    pub timeout: Duration,
}

pub(super) trait Dialect: Send + Sync {
    /// Returns the path that the dialect is served under.
    fn name(&self) -> &'static str;

    /// Returns the prefix of the key in `Authorization`.
    fn scheme(&self) -> &'static str {
        "Bearer "
    }

    // Requests.

    /// Maps method, path and query to an operation, or `None` if the API has no such method.
    fn call(&self, head: &RequestHead) -> Option<Call>;

    /// Checks further requirements on the head of an authenticated request.
    fn check(&self, _head: &RequestHead) -> Result<(), ApiError> {
        Ok(())
    }

    /// Parses a submit.
    fn submit(&self, head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError>;

    /// Parses the filter of a list.
    fn listing(&self, _body: &[u8]) -> Result<Listing, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// Returns the plan of a scenario, or why this dialect cannot play it.
    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str>;

    /// Returns the webhook URL of a job. `project` is the URL of the account.
    fn callback(&self, submit: &SubmitRequest, _project: Option<&Url>) -> Option<Url> {
        submit.callback.clone()
    }

    // Responses.

    /// Returns the id of the task with this number.
    fn id(&self, number: u64) -> String;

    /// Returns the response to an accepted submit.
    fn accepted(&self, task: &Task) -> ApiResponse;

    /// Returns the response to a query that found `tasks`.
    fn queried(&self, head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError>;

    /// Returns a page of a list. `next` is the cursor of the next page.
    fn listed(&self, _tasks: &[Task], _next: Option<u64>) -> Result<ApiResponse, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// Returns the result of a task.
    fn result(&self, _task: &Task) -> Result<ApiResponse, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// Returns the task id that a result or content request names.
    fn task_of(&self, name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn cancelled(&self, _outcome: &Cancelled) -> Result<ApiResponse, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// Returns whether cancelling a finished task deletes it.
    fn deletes_ended(&self) -> bool {
        false
    }

    /// Returns the state of the account.
    fn account(&self, _keys: &SigningKeys, _has_credit: bool) -> Result<ApiResponse, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse;

    // Webhooks.

    /// Returns the challenge for a receiver. `word` is random.
    fn challenge(&self, _word: &str) -> Option<Challenge> {
        None
    }

    /// Returns the bodies of the webhooks for the current state of a task.
    fn webhooks(&self, task: &Task) -> Vec<Value>;

    /// Returns the signature headers of a webhook sent at `at`, in Unix seconds.
    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)>;
}

// Shared by several dialects.

/// Removes the keys of an object that are null.
fn without_nulls(mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    object
}

/// Returns the task of a query for one task.
fn single(tasks: &[Task]) -> Result<&Task, ApiError> {
    tasks.first().ok_or(ApiError::NoSuchTask)
}

/// Returns the plan of a scenario in dialects that cannot cancel.
fn uncancellable(scenario: Scenario) -> Result<Plan, &'static str> {
    if scenario == Scenario::CancelledLate {
        return Err("it has no way to cancel");
    }
    Ok(scenario.plan())
}

/// Returns the plan of a scenario in dialects that queue a job if all slots are in use.
fn queueing(scenario: Scenario) -> Plan {
    let plan = scenario.plan();
    if scenario == Scenario::ConcurrencyLimited {
        return Plan {
            submit_behavior: SubmitBehavior::Accept,
            ahead: 3,
            ..plan
        };
    }
    plan
}

/// Formats a time as RFC 3339 with milliseconds.
fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}
