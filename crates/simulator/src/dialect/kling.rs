//! Kling's new API (klingai.com/document-api: text-to-video, image-to-video, query task, callbacks, error codes, rate
//! limits, account usage).
//!
//! Field names, statuses and pairs of HTTP status and code are Kling's, with three exceptions: `progress` (a percentage,
//! which Kling does not report), `Retry-After` on the rate limit, and `next_cursor`, whose real name is not documented.

mod submit;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Dialect, uncancellable, without_nulls};
use crate::api_error::ApiError;
use crate::call::{ApiResponse, Call, Listing, Name, RequestHead};
use crate::plan::{Failure, Plan};
use crate::scenario::Scenario;
use crate::signing::SigningKeys;
use crate::submit_request::SubmitRequest;
use crate::task::{Product, Status, Task};
use crate::webhook::Message;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 500;
/// Duration of the clip in seconds. Kling writes it as a string.
const CLIP_DURATION: &str = "5.041";

pub(super) struct Kling;

/// Body of a list request.
#[derive(Default, Deserialize)]
#[serde(default)]
struct List {
    start_time: Option<u64>,
    end_time: Option<u64>,
    cursor: Option<String>,
    limit: Option<usize>,
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(tag = "key", content = "values", rename_all = "snake_case")]
enum Filter {
    Status(Vec<Status>),
    ProductType(Vec<Product>),
}

impl Dialect for Kling {
    fn name(&self) -> &'static str {
        "kling"
    }

    fn call(&self, head: &RequestHead) -> Option<Call> {
        match (head.method, head.path.as_slice()) {
            ("POST", ["text-to-video" | "image-to-video", _]) => Some(Call::Submit),
            ("GET", ["tasks"]) => {
                let ids = head.query("task_ids").map(|ids| names(ids, Name::Task));
                let external = head.query("external_task_ids");
                let external = external.map(|ids| names(ids, Name::External));
                Some(Call::Query(ids.or(external).unwrap_or_default()))
            }
            ("POST", ["tasks"]) => Some(Call::List),
            ("GET", ["account", "costs"]) => Some(Call::Account),
            _ => None,
        }
    }

    fn check(&self, head: &RequestHead) -> Result<(), ApiError> {
        let given = ["task_ids", "external_task_ids"].map(|key| head.query(key).is_some());
        match (head.method, head.path.as_slice(), given) {
            ("GET", ["tasks"], [true, true] | [false, false]) => Err(ApiError::Invalid(
                "exactly one of task_ids and external_task_ids is required".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn submit(&self, head: &RequestHead, body: &[u8]) -> Result<SubmitRequest, ApiError> {
        let (product, model) = match head.path.as_slice() {
            ["image-to-video", model] => (Product::ImageToVideo, *model),
            [_, model] => (Product::TextToVideo, *model),
            _ => return Err(ApiError::NoSuchMethod),
        };
        if !model.starts_with("kling-") {
            return Err(ApiError::NoSuchModel);
        }
        submit::read(product, model, body)
    }

    fn listing(&self, body: &[u8]) -> Result<Listing, ApiError> {
        let list: List =
            serde_json::from_slice(body).map_err(|error| ApiError::Malformed(error.to_string()))?;
        let limit = list.limit.unwrap_or(DEFAULT_PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            let why = format!("limit must be between 1 and {MAX_PAGE}");
            return Err(ApiError::Invalid(why));
        }
        let cursor = list.cursor.filter(|cursor| !cursor.is_empty());
        let before = cursor.map_or(Ok(u64::MAX), |cursor| {
            let unknown = |_| ApiError::Invalid("cursor is invalid".to_owned());
            cursor.parse().map_err(unknown)
        })?;
        let (mut statuses, mut products) = (Vec::new(), Vec::new());
        for filter in list.filters {
            match filter {
                Filter::Status(among) => statuses.push(among),
                Filter::ProductType(among) => products.push(among),
            }
        }
        Ok(Listing {
            start_ms: list.start_time,
            end_ms: list.end_time,
            cursor: before,
            limit,
            statuses,
            products,
        })
    }

    fn plan(&self, scenario: Scenario) -> Result<Plan, &'static str> {
        uncancellable(scenario)
    }

    fn id(&self, number: u64) -> String {
        number.to_string()
    }

    fn accepted(&self, task: &Task) -> ApiResponse {
        success(&without_nulls(json!({
            "id": task.id,
            "status": task.status,
            "create_time": task.created_ms,
            "update_time": task.updated_ms,
            "external_id": task.request.external_id,
        })))
    }

    fn queried(&self, _head: &RequestHead, tasks: &[Task]) -> Result<ApiResponse, ApiError> {
        Ok(success(&tasks.iter().map(document).collect()))
    }

    fn listed(&self, tasks: &[Task], next: Option<u64>) -> Result<ApiResponse, ApiError> {
        let mut response = success(&tasks.iter().map(document).collect());
        if let (Some(next), Some(body)) = (next, &mut response.body) {
            body["next_cursor"] = json!(next.to_string());
        }
        Ok(response)
    }

    fn account(&self, _keys: &SigningKeys, has_credit: bool) -> Result<ApiResponse, ApiError> {
        let pack = json!({
            "resource_pack_name": "Simulated videos",
            "resource_pack_id": "509f3fd3d4ab4a3f9eec5db27aa44f27",
            "resource_pack_type": "decreasing_total",
            "total_quantity": 200.0,
            "remaining_quantity": if has_credit { 118.0 } else { 0.0 },
            "purchase_time": 1_726_124_664_368_u64,
            "effective_time": 1_726_124_664_368_u64,
            "invalid_time": 4_102_444_800_000_u64,
            "status": "online",
        });
        Ok(success(&json!({
            "code": 0,
            "msg": "success",
            "resource_pack_subscribe_infos": [pack],
        })))
    }

    fn error_response(&self, error: &ApiError) -> ApiResponse {
        let (status, code, message) = match error {
            ApiError::NoKey => (401, 1001, "Authorization is empty".to_owned()),
            ApiError::BadKey => (401, 1002, "Authorization is invalid".to_owned()),
            ApiError::Quota => (429, 1102, "Resource pack depleted or expired".to_owned()),
            ApiError::Malformed(why) => (400, 1200, format!("Invalid request parameters: {why}")),
            ApiError::Invalid(why) => (400, 1201, format!("Invalid parameters: {why}")),
            ApiError::Taken => (400, 1201, "external_task_id already exists".to_owned()),
            ApiError::NoSuchMethod | ApiError::NoSuchTask => {
                (404, 1202, "The requested method is invalid".to_owned())
            }
            ApiError::NoSuchModel => (404, 1203, "The requested model does not exist".to_owned()),
            ApiError::Safety => {
                let message = "The input content triggered the content safety policy";
                (400, 1301, message.to_owned())
            }
            ApiError::RateLimit => (429, 1302, "API request over rate limit".to_owned()),
            ApiError::Concurrency => {
                let message = "parallel task over resource pack limit";
                (429, 1303, message.to_owned())
            }
            ApiError::Server => (500, 5000, "Internal server error".to_owned()),
        };
        let response = ApiResponse::new(
            status,
            json!({"code": code, "message": message, "request_id": request_id()}),
        );
        // Allows tests to check that the sender obeys it.
        if matches!(error, ApiError::RateLimit) {
            return response.with("retry-after", "1");
        }
        response
    }

    fn webhooks(&self, task: &Task) -> Vec<Value> {
        match task.status {
            Status::Submitted | Status::Cancelled => Vec::new(),
            // The format of the published test vector: no outputs, no billing, no external id.
            Status::Succeeded if task.omits_outputs => vec![thin(task)],
            Status::Processing | Status::Succeeded | Status::Failed => vec![document(task)],
        }
    }

    fn sign(&self, keys: &SigningKeys, message: &Message, at: u64) -> Vec<(&'static str, String)> {
        keys.standard(&message.id, at, &message.body)
    }
}

fn names(ids: &str, name: fn(String) -> Name) -> Vec<Name> {
    let ids = ids.split(',').map(str::trim).filter(|id| !id.is_empty());
    ids.map(|id| name(id.to_owned())).collect()
}

fn request_id() -> String {
    Uuid::now_v7().to_string()
}

fn success(data: &Value) -> ApiResponse {
    ApiResponse::ok(json!({
        "code": 0,
        "message": "SUCCEED",
        "request_id": request_id(),
        "data": data,
    }))
}

fn thin(task: &Task) -> Value {
    json!({
        "id": task.id,
        "status": task.status,
        "message": task.failure.map_or("", message),
        "create_time": task.created_ms,
        "update_time": task.updated_ms,
    })
}

/// Returns a task as in queries and callbacks.
fn document(task: &Task) -> Value {
    let mut document = thin(task);
    document["external_id"] = json!(task.request.external_id);
    document["progress"] = json!(task.progress());
    document["outputs"] = outputs(task);
    document["billing"] = match task.status {
        Status::Submitted | Status::Processing | Status::Failed | Status::Cancelled => json!([]),
        Status::Succeeded => {
            json!([{"charge_type": "unit", "amount": "2.5", "package_type": "video"}])
        }
    };
    without_nulls(document)
}

fn outputs(task: &Task) -> Value {
    if !task.has_outputs {
        return json!([]);
    }
    let url = task.clip();
    let watermark = task.request.notes["watermark"] == true;
    json!([without_nulls(json!({
        "type": "video",
        "id": (task.number + 1).to_string(),
        "watermark_url": watermark.then(|| format!("{url}?watermark=1")),
        "url": url,
        "duration": CLIP_DURATION,
    }))])
}

fn message(failure: Failure) -> &'static str {
    match failure {
        Failure::Rendering => "Generation failed: internal rendering error",
        Failure::Safety => "The generated content triggered the content safety policy",
    }
}
