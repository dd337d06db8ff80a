//! Replicate (replicate.com/docs: predictions, webhooks, rate limits, data retention; replicate-python 1.0.7).
//!
//! A webhook contains the whole prediction, as a query returns it. `start` and `completed` are always sent, `output` and
//! `logs` only if requested. Progress appears only in the logs.

use actix_web::HttpResponse;
use rand::RngExt;
use rand::distr::Alphanumeric;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::dialect::{Answer, Dialect, NO_REFUSAL, ok, respond, rfc3339};
use crate::plan::Failure;
use crate::scenario::Scenario;
use crate::submit::{Submit, callback, text};
use crate::task::{Status, Task};

const EVENTS: [&str; 4] = ["start", "output", "logs", "completed"];

pub(super) static REPLICATE: Dialect = Dialect {
    name: "replicate",
    scheme: "Bearer ",
    required_header: None,
    has_queue: false,
    accepts_forms: false,
    unplayable: &[(&[Scenario::Safety], NO_REFUSAL)],
    challenge_timeout: None,
    id,
    error,
    webhooks,
    sign: |keys, message, at| keys.standard(&format!("msg_{}", message.id), at, &message.body),
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    match call.route() {
        ("POST", ["v1", "predictions"] | ["v1", "models", _, _, "predictions"]) => {
            call.submit(submit, |task| response(201, task)).await
        }
        ("GET", ["v1", "predictions", id]) => Ok(response(200, &call.queried(id)?)),
        ("POST", ["v1", "predictions", id, "cancel"]) => {
            let task = call.cancel(id, false)?;
            if task.status.is_final() {
                return Err(ApiError::Invalid("the prediction has ended".to_owned()));
            }
            Ok(response(200, &task))
        }
        ("GET", ["v1", "webhooks", "default", "secret"]) => {
            call.has_credit()?;
            let secret = call.context.keys.secret().ok_or(ApiError::NoSuchTask)?;
            Ok(ok(json!({"key": secret})))
        }
        _ => Err(ApiError::NoSuchMethod),
    }
}

fn submit(call: &Call, body: &Value) -> Result<Submit, ApiError> {
    let input = &body["input"];
    text(input, "prompt")?;
    let (model, version) = match call.route().1 {
        ["v1", "models", owner, name, _] => (format!("{owner}/{name}"), "hidden"),
        _ => ("simulated/video".to_owned(), text(body, "version")?),
    };
    let filter = body.get("webhook_events_filter");
    let filter = filter.filter(|filter| !filter.is_null()).cloned();
    let filter = filter.unwrap_or_else(|| json!(EVENTS));
    let events = filter.as_array();
    if !events.is_some_and(|events| events.iter().all(is_event)) {
        let why = format!("webhook_events_filter is not of {}", EVENTS.join(", "));
        return Err(ApiError::Invalid(why));
    }
    Ok(Submit {
        model,
        callback: callback(body["webhook"].as_str())?,
        notes: json!({"input": input, "version": version, "filter": filter}),
        ..Submit::default()
    })
}

fn id(_: u64) -> String {
    let letters = rand::rng().sample_iter(Alphanumeric).take(26);
    letters
        .map(|letter| char::from(letter).to_ascii_lowercase())
        .collect()
}

/// Returns a prediction with the rate limit headers.
fn response(status: u16, task: &Task) -> HttpResponse {
    let headers = [("ratelimit-remaining", "599"), ("ratelimit-reset", "1")];
    respond(status, &headers, prediction(task))
}

fn error(error: &ApiError) -> HttpResponse {
    let (status, title) = match error {
        ApiError::NoKey | ApiError::BadKey => (401, "Unauthenticated"),
        ApiError::Quota => (402, "Insufficient credit"),
        ApiError::RateLimit | ApiError::Concurrency => {
            let headers = [("ratelimit-remaining", "0"), ("ratelimit-reset", "1")];
            let detail = "Request was throttled. Your rate limit resets in ~1s.";
            return respond(429, &headers, json!({"detail": detail}));
        }
        ApiError::Server => (500, "Internal server error"),
        ApiError::Safety | ApiError::Malformed(_) | ApiError::Invalid(_) => {
            (422, "Input validation failed")
        }
        ApiError::NoSuchMethod | ApiError::NoSuchModel | ApiError::NoSuchTask => (404, "Not found"),
    };
    let detail = error.to_string();
    let body = json!({"type": "about:blank", "title": title, "status": status, "detail": detail});
    respond(status, &[], body)
}

fn webhooks(task: &Task) -> Vec<Value> {
    let is_sent = match task.status {
        // `start` is sent once, when the prediction is queued.
        Status::Submitted => task.ahead == task.plan.ahead,
        Status::Processing => wants(task, "logs"),
        Status::Succeeded | Status::Failed | Status::Cancelled => true,
    };
    if !is_sent {
        return Vec::new();
    }
    let mut payload = prediction(task);
    if task.omits_outputs {
        payload["output"] = Value::Null;
    } else if task.status == Status::Succeeded && wants(task, "output") {
        let mut output = payload.clone();
        output["status"] = json!("processing");
        output["completed_at"] = Value::Null;
        return vec![output, payload];
    }
    vec![payload]
}

fn is_event(event: &Value) -> bool {
    event.as_str().is_some_and(|event| EVENTS.contains(&event))
}

fn wants(task: &Task, event: &str) -> bool {
    let events = task.notes["filter"].as_array();
    events.is_some_and(|events| events.iter().any(|wanted| wanted == event))
}

fn prediction(task: &Task) -> Value {
    let url = format!("{}/v1/predictions/{}", task.origin, task.id);
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
        "model": task.model,
        "version": task.notes["version"],
        "input": if removed { json!({}) } else { task.notes["input"].clone() },
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
