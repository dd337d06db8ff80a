//! A dialect: what differs between providers, and nothing else.
//!
//! A dialect reads requests, writes answers and webhooks, and says what it can't play. When a task changes, how
//! often a webhook is tried and what is counted is the same in all of them and known to none.
//!
//! Invariant: a dialect has no state and does nothing by itself: each function is from what there is to what is
//! said of it.

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
use super::call::{Answer, Call, Cancelled, Listing, RequestHead};
use super::plan::{Plan, SubmitBehavior};
use super::scenario::Scenario;
use super::signing::SigningKeys;
use super::submit_request::SubmitRequest;
use super::task::Task;
use super::webhook::Message;

/// All dialects. The first is spoken without a prefix too.
pub(super) static DIALECTS: [&dyn Dialect; 7] = [
    &kling::Kling,
    &fal::Fal,
    &atlas::Atlas,
    &videos::Videos,
    &minimax::Minimax,
    &runway::Runway,
    &replicate::Replicate,
];

/// A test of a receiver before any webhook goes to it.
pub(super) struct Challenge {
    /// What is sent, and must come back.
    pub body: Value,
    /// How long the receiver may take.
    pub timeout: Duration,
}

pub(super) trait Dialect: Send + Sync {
    /// The path under which it is spoken.
    fn name(&self) -> &'static str;

    /// What stands before the key in `Authorization`.
    fn scheme(&self) -> &'static str {
        "Bearer "
    }

    // What comes in.

    /// What a request wants, by method, path and query; `None`: there is no such method.
    fn call(&self, ask: &RequestHead) -> Option<Call>;

    /// What else is requested_range of the head of a request, once its key is proven.
    fn check(&self, _ask: &RequestHead) -> Result<(), ApiError> {
        Ok(())
    }

    /// Reads a submit.
    fn submit(&self, ask: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError>;

    /// Reads what a list is of.
    fn listing(&self, _body: &[u8]) -> Result<Listing, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// How a scenario is played here, or why it can't be.
    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str>;

    /// Where the webhooks of a job go; `project` is the one address of the account.
    fn callback(&self, submit: &SubmitRequest, _project: Option<&Url>) -> Option<Url> {
        submit.callback.clone()
    }

    // What goes out.

    /// A new id, for the task of this number.
    fn id(&self, number: u64) -> String;

    /// The answer to a submit that is let in.
    fn accepted(&self, task: &Task) -> Answer;

    /// The answer to a query that found these.
    fn queried(&self, ask: &RequestHead, tasks: &[Task]) -> Result<Answer, ApiError>;

    /// A page of a list; `next` is the number below which the next one begins.
    fn listed(&self, _tasks: &[Task], _next: Option<u64>) -> Result<Answer, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// What a task has made.
    fn result(&self, _task: &Task) -> Result<Answer, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// The task that a request for a result or for content names.
    fn task_of(&self, name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn cancelled(&self, _outcome: &Cancelled) -> Result<Answer, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    /// Whether to cancel a task that has ended is to delete it.
    fn deletes_ended(&self) -> bool {
        false
    }

    /// How the account stands, or what else is told of it.
    fn account(&self, _keys: &SigningKeys, _has_credit: bool) -> Result<Answer, ApiError> {
        Err(ApiError::NoSuchMethod)
    }

    fn error_response(&self, error: &ApiError) -> Answer;

    // Webhooks.

    /// What must come back from a receiver before it gets any webhook; `word` is new each time.
    fn challenge(&self, _word: &str) -> Option<Challenge> {
        None
    }

    /// The bodies of the webhooks that tell of a task as it now is, one change after the other.
    fn webhooks(&self, task: &Task) -> Vec<Value>;

    /// The headers that sign a webhook at a time, in seconds.
    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)>;
}

// What several dialects say alike.

/// The object without its keys that are null.
fn without_nulls(mut object: Value) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    object
}

/// The one task of a query by id.
fn single(tasks: &[Task]) -> Result<&Task, ApiError> {
    tasks.first().ok_or(ApiError::NoSuchTask)
}

/// The plan of a scenario where nothing can be cancelled.
fn uncancellable(scenario: Scenario) -> Result<Plan, &'static str> {
    if scenario == Scenario::CancelledLate {
        return Err("it has no way to cancel");
    }
    Ok(scenario.plan())
}

/// The plan of a scenario where a job that finds all slots taken is let in and waits in the queue.
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

/// A time as RFC 3339 has it, to the millisecond.
fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
    format!("{time:.3}")
}
