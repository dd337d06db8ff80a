//! fal's queue (fal.ai/docs: queue, webhooks, model errors, request errors).
//!
//! A request is addressed under the root of its app, `/{owner}/{alias}/requests/{id}`, not under the model that was
//! called, so only the URLs of the response lead to it. The result needs a second request.

use actix_web::HttpResponse;
use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::dialect::{Answer, Dialect, Message, ok, respond, rfc3339, uuid};
use crate::plan::Failure;
use crate::signing::{Headers, SigningKeys};
use crate::submit::{Submit, callback, text};
use crate::task::{Status, Task};

/// User id in all webhooks.
const USER: &str = "user_simulated";

pub(super) static FAL: Dialect = Dialect {
    name: "fal",
    scheme: "Key ",
    required_header: None,
    has_queue: true,
    accepts_forms: false,
    unplayable: &[],
    challenge_timeout: None,
    id: |_| uuid(),
    error,
    webhooks,
    sign,
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    match call.route() {
        ("GET", [".well-known", "jwks.json"]) => Ok(call.keys()),
        ("GET", [_, _, "requests", id, "status"]) => {
            let with_logs = call.query("logs").as_deref() == Some("1");
            Ok(status(&call.queried(id)?, with_logs))
        }
        ("GET", [_, _, "requests", id]) => result(&call.result_of(id)?),
        ("PUT", [_, _, "requests", id, "cancel"]) => {
            let (status, word) = match call.cancel(id, false) {
                Ok(task) if task.status.is_final() => (400, "ALREADY_COMPLETED"),
                Ok(_) => (202, "CANCELLATION_REQUESTED"),
                Err(ApiError::NoSuchTask) => (404, "NOT_FOUND"),
                Err(error) => return Err(error),
            };
            Ok(respond(status, &[], json!({"status": word})))
        }
        ("POST", [_, _, rest @ ..]) if !rest.contains(&"requests") => {
            call.submit(submit, accepted).await
        }
        _ => Err(ApiError::NoSuchMethod),
    }
}

fn submit(call: &Call, body: &Value) -> Result<Submit, ApiError> {
    text(body, "prompt")?;
    Ok(Submit {
        has_frame: body.get("image_url").is_some(),
        model: call.route().1.join("/"),
        callback: callback(call.query("fal_webhook").as_deref())?,
        ..Submit::default()
    })
}

fn accepted(task: &Task) -> HttpResponse {
    let mut body = addresses(task);
    body["status"] = json!("IN_QUEUE");
    body["queue_position"] = json!(task.ahead);
    ok(body)
}

fn status(task: &Task, with_logs: bool) -> HttpResponse {
    let mut body = addresses(task);
    let (status, word) = match task.status {
        Status::Submitted => (202, "IN_QUEUE"),
        Status::Processing => (202, "IN_PROGRESS"),
        Status::Succeeded | Status::Failed | Status::Cancelled => (200, "COMPLETED"),
    };
    body["status"] = json!(word);
    if task.status == Status::Submitted {
        body["queue_position"] = json!(task.ahead);
    } else if with_logs {
        body["logs"] = logs(task);
    }
    if task.status.is_final() {
        let rendering_ms = task.updated_ms - task.started_ms.unwrap_or(task.updated_ms);
        body["metrics"] = json!({"inference_time": rendering_ms as f64 / 1000.0});
    }
    if let Some(fault) = Fault::of_task(task) {
        body["error"] = json!(fault.message);
        body["error_type"] = json!(fault.kind);
    }
    respond(status, &[], body)
}

fn result(task: &Task) -> Answer {
    if !task.status.is_final() {
        let detail = json!({"detail": "Request is still in progress"});
        return Ok(respond(400, &[], detail));
    }
    match Fault::of_task(task) {
        None if task.has_outputs => Ok(ok(payload(task))),
        None => Err(ApiError::NoSuchTask),
        Some(fault) => Ok(fault.response()),
    }
}

fn error(error: &ApiError) -> HttpResponse {
    let (status, headers, detail): (_, &[_], _) = match error {
        ApiError::NoKey | ApiError::BadKey => (401, &[], "Authentication is required"),
        ApiError::Quota => (403, &[], "User is locked. Reason: Exhausted balance."),
        ApiError::RateLimit | ApiError::Concurrency => {
            (429, &[("retry-after", "1")], "Too many requests")
        }
        ApiError::Safety => return Fault::of(Failure::Safety).response(),
        ApiError::Malformed(why) | ApiError::Invalid(why) => {
            return Fault::new(422, "value_error", why, Some("false")).response();
        }
        ApiError::Server => {
            return Fault::new(500, "internal_error", "Internal server error", None).response();
        }
        ApiError::NoSuchMethod | ApiError::NoSuchModel => (404, &[], "Path not found"),
        ApiError::NoSuchTask => (404, &[], "Request not found"),
    };
    respond(status, headers, json!({"detail": detail}))
}

fn webhooks(task: &Task) -> Vec<Value> {
    if !task.status.is_final() {
        return Vec::new();
    }
    let mut body = json!({"request_id": task.id, "gateway_request_id": task.id});
    if let Some(fault) = Fault::of_task(task) {
        body["status"] = json!("ERROR");
        body["error"] = json!(format!("Invalid status code: {}", fault.status));
        body["payload"] = fault.body();
    } else {
        body["status"] = json!("OK");
        body["payload"] = payload(task);
        if task.omits_outputs {
            body["payload"] = Value::Null;
            body["payload_error"] = json!("The payload is too large for a webhook");
        }
    }
    vec![body]
}

/// Signs request id, user id, timestamp and the SHA-256 of the body, separated by newlines.
fn sign(keys: &SigningKeys, message: &Message, at: u64) -> Headers {
    let digest = hex::encode(digest::digest(&digest::SHA256, &message.body));
    let signed = format!("{}\n{USER}\n{at}\n{digest}", message.task);
    let signature = hex::encode(keys.ed25519(signed.as_bytes()));
    vec![
        ("x-fal-webhook-request-id", message.task.clone()),
        ("x-fal-webhook-user-id", USER.to_owned()),
        ("x-fal-webhook-timestamp", at.to_string()),
        ("x-fal-webhook-signature", signature),
    ]
}

/// Reason for a missing result.
struct Fault<'a> {
    status: u16,
    kind: &'static str,
    message: &'a str,
    /// Value of `x-fal-retryable` for an error of the model. `None`: an error of the request.
    retryable: Option<&'static str>,
}

impl<'a> Fault<'a> {
    fn new(
        status: u16,
        kind: &'static str,
        message: &'a str,
        retryable: Option<&'static str>,
    ) -> Self {
        Self {
            status,
            kind,
            message,
            retryable,
        }
    }

    fn of(failure: Failure) -> Self {
        match failure {
            Failure::Rendering => {
                let message = "Internal server error";
                Self::new(500, "internal_server_error", message, Some("true"))
            }
            Failure::Safety => {
                let message = "The content could not be processed because it was flagged by a content checker.";
                Self::new(422, "content_policy_violation", message, Some("false"))
            }
        }
    }

    fn of_task(task: &Task) -> Option<Self> {
        if task.status == Status::Cancelled {
            let message = "Request was cancelled by the client";
            return Some(Self::new(499, "client_cancelled", message, None));
        }
        task.failure.map(Self::of)
    }

    fn body(&self) -> Value {
        if self.retryable.is_none() {
            return json!({"detail": self.message, "error_type": self.kind});
        }
        let detail = json!({"loc": ["body", "prompt"], "msg": self.message, "type": self.kind});
        json!({"detail": [detail]})
    }

    fn response(&self) -> HttpResponse {
        let header = match self.retryable {
            Some(retryable) => ("x-fal-retryable", retryable),
            None => ("x-fal-error-type", self.kind),
        };
        respond(self.status, &[header], self.body())
    }
}

/// Returns the id and the URLs of a request, below the first two segments of the model.
fn addresses(task: &Task) -> Value {
    let app: Vec<&str> = task.model.split('/').take(2).collect();
    let url = format!("{}/{}/requests/{}", task.origin, app.join("/"), task.id);
    json!({
        "request_id": task.id,
        "status_url": format!("{url}/status"),
        "cancel_url": format!("{url}/cancel"),
        "response_url": url,
    })
}

fn logs(task: &Task) -> Value {
    let at = rfc3339(task.updated_ms);
    let line = |line: String| json!({"message": line, "level": "STDERR", "source": "USER", "timestamp": at});
    task.log().into_iter().map(line).collect()
}

fn payload(task: &Task) -> Value {
    json!({"video": {
        "url": task.clip(),
        "content_type": "video/mp4",
        "file_name": "out.mp4",
        "file_size": crate::clip::LENGTH,
    }})
}
