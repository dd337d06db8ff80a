//! MiniMax's first API (platform.minimax.io/docs: video generation, query, file retrieval, callback).
//!
//! Every response is HTTP 200, and `base_resp.status_code` is the result. Statuses are capitalized in queries and lower
//! case in callbacks. Callbacks are unsigned, and a receiver must echo a challenge first. The URL of a file needs a
//! second request.

use std::time::Duration;

use actix_web::HttpResponse;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::clip;
use crate::dialect::{Answer, Dialect, NO_CANCEL, ok, without_nulls};
use crate::plan::Failure;
use crate::scenario::Scenario;
use crate::submit::{Submit, callback, text};
use crate::task::{Status, Task};

pub(super) static MINIMAX: Dialect = Dialect {
    name: "minimax",
    scheme: "Bearer ",
    required_header: None,
    has_queue: false,
    accepts_forms: false,
    unplayable: &[
        (&[Scenario::Forged], "it signs nothing"),
        (&[Scenario::CancelledLate], NO_CANCEL),
    ],
    challenge_timeout: Some(Duration::from_secs(3)),
    id: |number| number.to_string(),
    error,
    webhooks,
    sign: |_, _, _| Vec::new(),
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    match call.route() {
        ("POST", ["v1", "video_generation"]) => call.submit(submit, accepted).await,
        ("GET", ["v1", "query", "video_generation"]) => {
            let id = call.query("task_id").unwrap_or_default();
            Ok(status(&call.queried(&id)?))
        }
        ("GET", ["v1", "files", "retrieve"]) => {
            let file_id = call.query("file_id").and_then(|id| id.parse::<u64>().ok());
            file(&call.result_of(&file_id.unwrap_or_default().saturating_sub(1).to_string())?)
        }
        _ => Err(ApiError::NoSuchMethod),
    }
}

fn submit(_: &Call, body: &Value) -> Result<Submit, ApiError> {
    let model = text(body, "model")?;
    let has_frame = body.get("first_frame_image").is_some();
    if !has_frame {
        text(body, "prompt")?;
    }
    Ok(Submit {
        has_frame,
        model: model.to_owned(),
        callback: callback(body["callback_url"].as_str())?,
        ..Submit::default()
    })
}

fn accepted(task: &Task) -> HttpResponse {
    ok(json!({"task_id": task.id, "base_resp": said(0, "success")}))
}

fn status(task: &Task) -> HttpResponse {
    let succeeded = task.status == Status::Succeeded;
    let status = match task.status {
        Status::Submitted if task.ahead > 0 => "Queueing",
        Status::Submitted => "Preparing",
        Status::Processing => "Processing",
        Status::Succeeded => "Success",
        Status::Failed | Status::Cancelled => "Fail",
    };
    ok(without_nulls(json!({
        "task_id": task.id,
        "status": status,
        "file_id": succeeded.then(|| file_id(task)),
        "video_width": succeeded.then_some(480),
        "video_height": succeeded.then_some(270),
        "base_resp": outcome(task),
    })))
}

fn file(task: &Task) -> Answer {
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
    Ok(ok(json!({"file": file, "base_resp": said(0, "success")})))
}

fn error(error: &ApiError) -> HttpResponse {
    let code = match error {
        ApiError::NoKey | ApiError::BadKey => 1004,
        ApiError::Quota => 1008,
        ApiError::Safety => 1026,
        ApiError::RateLimit => 1002,
        ApiError::Concurrency => 1041,
        ApiError::Server => 1000,
        ApiError::Malformed(_)
        | ApiError::Invalid(_)
        | ApiError::NoSuchModel
        | ApiError::NoSuchTask => 2013,
        ApiError::NoSuchMethod => return HttpResponse::NotFound().finish(),
    };
    ok(json!({"task_id": "", "base_resp": said(code, &error.to_string())}))
}

fn webhooks(task: &Task) -> Vec<Value> {
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
