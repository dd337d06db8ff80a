//! fal's queue (fal.ai/docs: queue, webhooks, model errors, request errors).
//!
//! A request is addressed under the root of its app, `/{owner}/{alias}/requests/{id}`, not under the model that was
//! called, so only the URLs of the response lead to it. The result needs a second request.

use aws_lc_rs::digest;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Dialect, queueing, rfc3339, single, without_nulls};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Cancelled, Name, RequestHead};
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::SigningKeys;
use crate::submit_request::{SubmitRequest, callback, object, text};
use crate::task::{Product, Status, Task};
use crate::webhook::Message;

/// User id in all webhooks.
const USER: &str = "user_simulated";

pub(super) struct Fal;

impl Dialect for Fal {
    fn name(&self) -> &'static str {
        "fal"
    }

    fn scheme(&self) -> &'static str {
        "Key "
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        match (head.method, head.path.as_slice()) {
            ("GET", [".well-known", "jwks.json"]) => Some(Call::Keys),
            ("GET", [_, _, "requests", id, "status"]) => {
                Some(Call::Query(vec![Name::Task((*id).to_owned())]))
            }
            ("GET", [_, _, "requests", id]) => Some(Call::Result((*id).to_owned())),
            ("PUT", [_, _, "requests", id, "cancel"]) => Some(Call::Cancel((*id).to_owned())),
            ("POST", [_, _, rest @ ..]) if !rest.contains(&"requests") => Some(Call::Submit),
            _ => None,
        }
    }

    fn submit(&self, head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let body = object(body)?;
        text(&body, "prompt")?;
        let product = match body.get("image_url") {
            Some(_) => Product::ImageToVideo,
            None => Product::TextToVideo,
        };
        Ok(SubmitRequest {
            product,
            callback: callback(head.query("fal_webhook"))?,
            ..SubmitRequest::new(&head.path.join("/"), &body)?
        })
    }

    /// The queue accepts every request, so a job waits in it if all slots are in use.
    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        Ok(queueing(scenario))
    }

    fn id(&self, _number: u64) -> String {
        Uuid::now_v7().to_string()
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        let mut body = addresses(task);
        body["status"] = json!("IN_QUEUE");
        body["queue_position"] = json!(task.request.ahead);
        ApiResponse::ok(body)
    }

    fn queried(&self, head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        let task = single(tasks)?;
        let mut body = addresses(task);
        let logs = (head.query("logs") == Some("1")).then(|| logs(task));
        let status = match task.status {
            Status::Submitted => {
                body["status"] = json!("IN_QUEUE");
                body["queue_position"] = json!(task.ahead);
                202
            }
            Status::Processing => {
                body["status"] = json!("IN_PROGRESS");
                body["logs"] = json!(logs);
                202
            }
            Status::Succeeded | Status::Failed | Status::Cancelled => {
                let seconds = task.updated_ms - task.started_ms.unwrap_or(task.updated_ms);
                body["status"] = json!("COMPLETED");
                body["logs"] = json!(logs);
                body["metrics"] = json!({"inference_time": seconds as f64 / 1000.0});
                if let Some(fault) = fault(task) {
                    body["error"] = json!(fault.message);
                    body["error_type"] = json!(fault.kind);
                }
                200
            }
        };
        Ok(ApiResponse::new(status, without_nulls(body)))
    }

    fn result(&self, task: &Task) -> Result<ApiResponse, ApiError> {
        if !task.status.is_final() {
            let detail = json!({"detail": "Request is still in progress"});
            return Ok(ApiResponse::new(400, detail));
        }
        match fault(task) {
            None if task.has_outputs => Ok(ApiResponse::ok(payload(task))),
            None => Err(ApiError::NoSuchTask),
            Some(fault) => Ok(fault.response()),
        }
    }

    fn cancelled(&self, outcome: &Cancelled) -> Result<ApiResponse, ApiError> {
        let (status, word) = match outcome {
            Cancelled::Agreed(_) => (202, "CANCELLATION_REQUESTED"),
            Cancelled::Ended => (400, "ALREADY_COMPLETED"),
            Cancelled::Unknown => (404, "NOT_FOUND"),
        };
        Ok(ApiResponse::new(status, json!({"status": word})))
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let plain = |status: u16, detail: &str| ApiResponse::new(status, json!({"detail": detail}));
        match error {
            ApiError::NoKey | ApiError::BadKey => plain(401, "Authentication is required"),
            ApiError::Quota => plain(403, "User is locked. Reason: Exhausted balance."),
            ApiError::RateLimit | ApiError::Concurrency => {
                plain(429, "Too many requests").with("retry-after", "1")
            }
            ApiError::Safety => Fault::of(Failure::Safety).response(),
            ApiError::Malformed(why) | ApiError::Invalid(why) => Fault {
                status: 422,
                kind: "value_error",
                message: why.clone(),
                retryable: false,
            }
            .response(),
            ApiError::Server => request_error(500, "internal_error", "Internal server error"),
            ApiError::NoSuchMethod | ApiError::NoSuchModel => plain(404, "Path not found"),
            ApiError::NoSuchTask | ApiError::Taken => plain(404, "Request not found"),
        }
    }

    fn webhooks(&self, task: &Task) -> Vec<Value> {
        let mut body = json!({"request_id": task.id, "gateway_request_id": task.id});
        match (task.status, fault(task)) {
            (Status::Submitted | Status::Processing, _) => return Vec::new(),
            (_, Some(fault)) => {
                body["status"] = json!("ERROR");
                body["error"] = json!(format!("Invalid status code: {}", fault.status));
                body["payload"] = json!(fault.response().body);
            }
            (_, None) => {
                body["status"] = json!("OK");
                body["payload"] = if task.omits_outputs {
                    body["payload_error"] = json!("The payload is too large for a webhook");
                    Value::Null
                } else {
                    payload(task)
                };
            }
        }
        vec![body]
    }

    /// Signs request id, user id, timestamp and the SHA-256 of the body, separated by newlines.
    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)> {
        let digest = digest::digest(&digest::SHA256, &message.body);
        let digest = hex(digest.as_ref());
        let signed = format!("{}\n{USER}\n{at}\n{digest}", message.task);
        vec![
            ("x-fal-webhook-request-id", message.task.clone()),
            ("x-fal-webhook-user-id", USER.to_owned()),
            ("x-fal-webhook-timestamp", at.to_string()),
            (
                "x-fal-webhook-signature",
                hex(&keys.ed25519(signed.as_bytes())),
            ),
        ]
    }
}

/// Returns why there is no result.
struct Fault {
    status: u16,
    kind: &'static str,
    message: String,
    retryable: bool,
}

impl Fault {
    fn of(failure: Failure) -> Self {
        match failure {
            Failure::Rendering => Self {
                status: 500,
                kind: "internal_server_error",
                message: "Internal server error".to_owned(),
                retryable: true,
            },
            Failure::Safety => Self {
                status: 422,
                kind: "content_policy_violation",
                message: "The content could not be processed because it was flagged by a content checker."
                    .to_owned(),
                retryable: false,
            },
        }
    }

    /// Body of a model error, or of a request error for a cancellation.
    fn response(&self) -> ApiResponse {
        if self.kind == CANCELLED {
            return request_error(self.status, self.kind, &self.message);
        }
        let detail = json!({"loc": ["body", "prompt"], "msg": self.message, "type": self.kind});
        ApiResponse::new(self.status, json!({"detail": [detail]}))
            .with("x-fal-retryable", self.retryable.to_string())
    }
}

const CANCELLED: &str = "client_cancelled";

fn fault(task: &Task) -> Option<Fault> {
    match task.status {
        Status::Submitted | Status::Processing | Status::Succeeded => None,
        Status::Failed => task.failure.map(Fault::of),
        Status::Cancelled => Some(Fault {
            status: 499,
            kind: CANCELLED,
            message: "Request was cancelled by the client".to_owned(),
            retryable: false,
        }),
    }
}

fn request_error(status: u16, kind: &str, message: &str) -> ApiResponse {
    ApiResponse::new(status, json!({"detail": message, "error_type": kind}))
        .with("x-fal-error-type", kind)
}

/// Returns the path of a request: the first two segments of the model.
fn addresses(task: &Task) -> Value {
    let app: Vec<&str> = task.request.model.split('/').take(2).collect();
    let url = format!(
        "{}/{}/requests/{}",
        task.request.origin,
        app.join("/"),
        task.id
    );
    json!({
        "request_id": task.id,
        "status_url": format!("{url}/status"),
        "cancel_url": format!("{url}/cancel"),
        "response_url": url,
    })
}

fn logs(task: &Task) -> Vec<Value> {
    let lines = task.log().into_iter();
    let at = rfc3339(task.updated_ms);
    let line = |line: String| json!({"message": line, "level": "STDERR", "source": "USER", "timestamp": at});
    lines.map(line).collect()
}

fn payload(task: &Task) -> Value {
    json!({"video": {
        "url": task.clip(),
        "content_type": "video/mp4",
        "file_name": "out.mp4",
        "file_size": crate::clip::LENGTH,
    }})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
