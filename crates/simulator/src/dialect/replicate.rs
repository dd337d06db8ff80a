//! Replicate (replicate.com/docs: predictions, webhooks, rate limits, data retention; replicate-python 1.0.7).
//!
//! A webhook contains the whole prediction, as a query returns it. `start` and `completed` are always sent, `output` and
//! `logs` only if requested. Progress appears only in the logs.

use rand::RngExt;
use rand::distr::Alphanumeric;
use serde_json::{Value, json};

use super::{Dialect, rfc3339, single};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Cancelled, Name, RequestHead};
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::SigningKeys;
use crate::submit_request::{SubmitRequest, callback, object, text};
use crate::task::{Status, Task};
use crate::webhook::Message;

const EVENTS: [&str; 4] = ["start", "output", "logs", "completed"];

pub(super) struct Replicate;

impl Dialect for Replicate {
    fn name(&self) -> &'static str {
        "replicate"
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        match (head.method, head.path.as_slice()) {
            ("POST", ["v1", "predictions"] | ["v1", "models", _, _, "predictions"]) => {
                Some(Call::Submit)
            }
            ("GET", ["v1", "predictions", id]) => {
                Some(Call::Query(vec![Name::Task((*id).to_owned())]))
            }
            ("POST", ["v1", "predictions", id, "cancel"]) => Some(Call::Cancel((*id).to_owned())),
            ("GET", ["v1", "webhooks", "default", "secret"]) => Some(Call::Account),
            _ => None,
        }
    }

    fn submit(&self, head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let body = object(body)?;
        let input = &body["input"];
        text(input, "prompt")?;
        let (model, version) = match head.path.as_slice() {
            ["v1", "models", owner, name, _] => (format!("{owner}/{name}"), "hidden"),
            _ => ("simulated/video".to_owned(), text(&body, "version")?),
        };
        let filter = match body
            .get("webhook_events_filter")
            .filter(|given| !given.is_null())
        {
            None => json!(EVENTS),
            Some(given) => {
                let events = given
                    .as_array()
                    .filter(|events| events.iter().all(is_event));
                json!(events.ok_or_else(|| {
                    let known = EVENTS.join(", ");
                    ApiError::Invalid(format!("webhook_events_filter is not of {known}"))
                })?)
            }
        };
        Ok(SubmitRequest {
            callback: callback(body["webhook"].as_str())?,
            notes: json!({"input": input, "version": version, "filter": filter}),
            ..SubmitRequest::new(&model, &body)?
        })
    }

    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        if scenario == Scenario::Safety {
            return Err("it declines no prompt at submit");
        }
        Ok(scenario.plan())
    }

    fn id(&self, _number: u64) -> String {
        let letters = rand::rng().sample_iter(Alphanumeric).take(26);
        letters
            .map(|letter| char::from(letter).to_ascii_lowercase())
            .collect()
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        limited(ApiResponse::new(201, prediction(task)))
    }

    fn queried(&self, _head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        Ok(limited(ApiResponse::ok(prediction(single(tasks)?))))
    }

    fn cancelled(&self, outcome: &Cancelled) -> Result<ApiResponse, ApiError> {
        match outcome {
            Cancelled::Agreed(task) => Ok(limited(ApiResponse::ok(prediction(task)))),
            Cancelled::Ended => Err(ApiError::Invalid("the prediction has ended".to_owned())),
            Cancelled::Unknown => Err(ApiError::NoSuchTask),
        }
    }

    fn account(&self, keys: &SigningKeys, _has_credit: bool) -> Result<ApiResponse, ApiError> {
        let secret = keys.secret().ok_or(ApiError::NoSuchTask)?;
        Ok(ApiResponse::ok(json!({ "key": secret })))
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let message = error.to_string();
        let (status, title) = match error {
            ApiError::NoKey | ApiError::BadKey => (401, "Unauthenticated"),
            ApiError::Quota => (402, "Insufficient credit"),
            ApiError::RateLimit | ApiError::Concurrency => {
                let message = "Request was throttled. Your rate limit resets in ~1s.";
                let response = ApiResponse::new(429, json!({ "detail": message }));
                return response
                    .with("ratelimit-remaining", "0")
                    .with("ratelimit-reset", "1");
            }
            ApiError::Server => (500, "Internal server error"),
            ApiError::Safety | ApiError::Malformed(_) | ApiError::Invalid(_) | ApiError::Taken => {
                (422, "Input validation failed")
            }
            ApiError::NoSuchMethod | ApiError::NoSuchModel | ApiError::NoSuchTask => {
                (404, "Not found")
            }
        };
        ApiResponse::new(
            status,
            json!({"type": "about:blank", "title": title, "status": status, "detail": message}),
        )
    }

    fn webhooks(&self, task: &Task) -> Vec<Value> {
        let mut payload = prediction(task);
        match task.status {
            // `start` is sent once, when the prediction is queued.
            Status::Submitted if task.ahead == task.request.ahead => vec![payload],
            Status::Processing if wants(task, "logs") => vec![payload],
            Status::Submitted | Status::Processing => Vec::new(),
            Status::Failed | Status::Cancelled => vec![payload],
            Status::Succeeded if task.omits_outputs => {
                payload["output"] = Value::Null;
                vec![payload]
            }
            Status::Succeeded if wants(task, "output") => {
                let mut output = payload.clone();
                output["status"] = json!("processing");
                output["completed_at"] = Value::Null;
                vec![output, payload]
            }
            Status::Succeeded => vec![payload],
        }
    }

    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)> {
        keys.standard(&format!("msg_{}", message.id), at, &message.body)
    }
}

fn is_event(event: &Value) -> bool {
    event.as_str().is_some_and(|event| EVENTS.contains(&event))
}

fn wants(task: &Task, event: &str) -> bool {
    let events = task.request.notes["filter"].as_array();
    events.is_some_and(|events| events.iter().any(|wanted| wanted == event))
}

/// Adds the rate limit headers.
fn limited(response: ApiResponse) -> ApiResponse {
    response
        .with("ratelimit-remaining", "599")
        .with("ratelimit-reset", "1")
}

fn prediction(task: &Task) -> Value {
    let url = format!("{}/v1/predictions/{}", task.request.origin, task.id);
    let status = match task.status {
        Status::Submitted => "starting",
        Status::Processing => "processing",
        Status::Succeeded => "succeeded",
        Status::Failed => "failed",
        Status::Cancelled => "canceled",
    };
    // Input, output and logs are deleted together.
    let removed = task.status == Status::Succeeded && !task.has_outputs;
    let seconds = |from: u64| task.ended_ms().map(|end| (end - from) as f64 / 1000.0);
    json!({
        "id": task.id,
        "model": task.request.model,
        "version": task.request.notes["version"],
        "input": if removed { json!({}) } else { task.request.notes["input"].clone() },
        "output": task.has_outputs.then(|| task.clip()),
        "logs": (!removed).then(|| task.log().join("\n")),
        "error": task.failure.map(message),
        "status": status,
        "metrics": match (task.started_ms.and_then(seconds), seconds(task.created_ms)) {
            (Some(predict), Some(total)) => json!({"predict_time": predict, "total_time": total}),
            (None, _) | (_, None) => json!({}),
        },
        "created_at": rfc3339(task.created_ms),
        "started_at": task.started_ms.map(rfc3339),
        "completed_at": task.ended_ms().map(rfc3339),
        "data_removed": removed,
        "urls": {"get": url, "cancel": format!("{url}/cancel")},
    })
}

fn message(failure: Failure) -> &'static str {
    match failure {
        Failure::Rendering => "Prediction failed: internal rendering error",
        Failure::Safety => "NSFW content detected. Try a different prompt.",
    }
}
