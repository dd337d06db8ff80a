//! MiniMax's first API (platform.minimax.io/docs: video generation, query, file retrieval, callback).
//!
//! Every response is HTTP 200, and `base_resp.status_code` is the result. Statuses are capitalized in queries and lower
//! case in callbacks. Callbacks are unsigned, and a receiver must echo a challenge first. The URL of a file needs a
//! second request.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Challenge, Dialect, single, uncancellable, without_nulls};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Name, RequestHead};
use crate::clip;
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::SigningKeys;
use crate::submit_request::{SubmitRequest, callback, object, text};
use crate::task::{Product, Status, Task};
use crate::webhook::Message;

/// Time for the receiver to echo the challenge.
const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) struct Minimax;

impl Dialect for Minimax {
    fn name(&self) -> &'static str {
        "minimax"
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        let query_param = |key: &str| head.query(key).unwrap_or_default().to_owned();
        match (head.method, head.path.as_slice()) {
            ("POST", ["v1", "video_generation"]) => Some(Call::Submit),
            ("GET", ["v1", "query", "video_generation"]) => {
                Some(Call::Query(vec![Name::Task(query_param("task_id"))]))
            }
            ("GET", ["v1", "files", "retrieve"]) => Some(Call::Result(query_param("file_id"))),
            _ => None,
        }
    }

    fn submit(&self, _head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let body = object(body)?;
        let model = text(&body, "model")?;
        let product = match body.get("first_frame_image") {
            Some(_) => Product::ImageToVideo,
            None => {
                text(&body, "prompt")?;
                Product::TextToVideo
            }
        };
        Ok(SubmitRequest {
            product,
            callback: callback(body["callback_url"].as_str())?,
            ..SubmitRequest::new(model, &body)?
        })
    }

    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        if scenario == Scenario::Forged {
            return Err("it signs nothing");
        }
        uncancellable(scenario)
    }

    fn id(&self, number: u64) -> String {
        number.to_string()
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        ApiResponse::ok(json!({"task_id": task.id, "base_resp": said(0, "success")}))
    }

    fn queried(&self, _head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        let task = single(tasks)?;
        let succeeded = task.status == Status::Succeeded;
        let status = match task.status {
            Status::Submitted if task.ahead > 0 => "Queueing",
            Status::Submitted => "Preparing",
            Status::Processing => "Processing",
            Status::Succeeded => "Success",
            Status::Failed | Status::Cancelled => "Fail",
        };
        Ok(ApiResponse::ok(without_nulls(json!({
            "task_id": task.id,
            "status": status,
            "file_id": succeeded.then(|| file_id(task)),
            "video_width": succeeded.then_some(480),
            "video_height": succeeded.then_some(270),
            "base_resp": outcome(task),
        }))))
    }

    fn task_of(&self, file_id: &str) -> Option<String> {
        let file: u64 = file_id.parse().ok()?;
        Some(file.checked_sub(1)?.to_string())
    }

    fn result(&self, task: &Task) -> Result<ApiResponse, ApiError> {
        if !task.has_outputs {
            return Err(ApiError::NoSuchTask);
        }
        let file = json!({
            "file_id": file_id(task),
            "bytes": clip::LENGTH,
            "created_at": task.updated_ms / 1000,
            "filename": "output_aigc.mp4",
            "purpose": "video_generation",
            "download_url": task.clip(),
        });
        Ok(ApiResponse::ok(
            json!({"file": file, "base_resp": said(0, "success")}),
        ))
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let message = error.to_string();
        let code = match error {
            ApiError::NoKey | ApiError::BadKey => 1004,
            ApiError::Quota => 1008,
            ApiError::Safety => 1026,
            ApiError::RateLimit => 1002,
            ApiError::Concurrency => 1041,
            ApiError::Server => 1000,
            ApiError::Malformed(_)
            | ApiError::Invalid(_)
            | ApiError::Taken
            | ApiError::NoSuchModel
            | ApiError::NoSuchTask => 2013,
            ApiError::NoSuchMethod => return ApiResponse::empty(404),
        };
        ApiResponse::ok(json!({"task_id": "", "base_resp": said(code, &message)}))
    }

    fn challenge(&self, word: &str) -> Option<Challenge> {
        Some(Challenge {
            body: json!({ "challenge": word }),
            timeout: CHALLENGE_TIMEOUT,
        })
    }

    fn webhooks(&self, task: &Task) -> Vec<Value> {
        let (status, file) = match task.status {
            // Callbacks report changes of the status, not of each step.
            Status::Processing if task.step == 0 => ("processing", None),
            Status::Submitted | Status::Processing => return Vec::new(),
            Status::Succeeded => ("success", (!task.omits_outputs).then(|| file_id(task))),
            Status::Failed | Status::Cancelled => ("failed", None),
        };
        vec![without_nulls(json!({
            "task_id": task.id,
            "status": status,
            "file_id": file,
            "base_resp": outcome(task),
        }))]
    }

    fn sign(&self, _: &SigningKeys, _: &Message, _: u64) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Returns the file id: the number after that of the task.
fn file_id(task: &Task) -> String {
    (task.number + 1).to_string()
}

fn said(code: u16, message: &str) -> Value {
    json!({"status_code": code, "status_msg": message})
}

fn outcome(task: &Task) -> Value {
    match task.failure {
        None => said(0, "success"),
        Some(Failure::Rendering) => said(1000, "internal rendering error"),
        Some(Failure::Safety) => said(1027, "output new_sensitive"),
    }
}
