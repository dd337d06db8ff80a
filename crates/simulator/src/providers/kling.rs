//! Kling's new API (klingai.com/document-api: text-to-video, image-to-video, query task, callbacks, error codes, rate
//! limits, account usage).
//!
//! Field names, statuses and pairs of HTTP status and code are Kling's, with three exceptions: `progress` (a percentage,
//! which Kling does not report), `Retry-After` on the rate limit, and `next_cursor`, whose real name is not documented.

mod submit;

use actix_web::HttpResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::call::Call;
use crate::dialect::{Answer, Dialect, NO_CANCEL, ok, respond, uuid, without_nulls};
use crate::plan::Failure;
use crate::scenario::Scenario;
use crate::task::{Product, Status, Task};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 500;
/// Duration of the clip in seconds. Kling writes it as a string.
const CLIP_DURATION: &str = "5.041";

pub(super) static KLING: Dialect = Dialect {
    name: "kling",
    scheme: "Bearer ",
    required_header: None,
    has_queue: false,
    accepts_forms: false,
    unplayable: &[(&[Scenario::CancelledLate], NO_CANCEL)],
    challenge_timeout: None,
    id: |number| number.to_string(),
    error,
    webhooks,
    sign: |keys, message, at| keys.standard(&message.id, at, &message.body),
};

pub(super) async fn answer(call: &Call<'_>) -> Answer {
    match call.route() {
        ("POST", ["text-to-video" | "image-to-video", _]) => {
            call.submit(submit::parse, accepted).await
        }
        ("GET", ["tasks"]) => query(call),
        ("POST", ["tasks"]) => list(call),
        ("GET", ["account", "costs"]) => Ok(account(call.has_credit()?)),
        _ => Err(ApiError::NoSuchMethod),
    }
}

/// Returns the tasks with these ids or external ids. Unknown ids are skipped.
fn query(call: &Call) -> Answer {
    let (ids, external_ids) = (call.query("task_ids"), call.query("external_task_ids"));
    let is_ambiguous = ids.is_some() == external_ids.is_some();
    let find = match ids {
        Some(_) => Call::find,
        None => Call::find_external,
    };
    let ids = ids.or(external_ids).unwrap_or_default();
    let ids = ids.split(',').map(str::trim).filter(|id| !id.is_empty());
    call.authorize(|counts| {
        counts.queries_received += 1;
        counts.tasks_queried += ids.clone().count() as u64;
    })?;
    if is_ambiguous {
        let why = "exactly one of task_ids and external_task_ids is required";
        return Err(ApiError::Invalid(why.to_owned()));
    }
    let found = ids.filter_map(|id| find(call, id).ok());
    Ok(success(found.map(|task| document(&task)).collect()))
}

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

impl List {
    fn wants(&self, task: &Task) -> bool {
        self.start_time.is_none_or(|start| task.created_ms >= start)
            && self.end_time.is_none_or(|end| task.created_ms <= end)
            && self.filters.iter().all(|filter| match filter {
                Filter::Status(among) => among.contains(&task.status),
                Filter::ProductType(among) => among.contains(&task.product),
            })
    }
}

/// Returns a page of tasks, newest first. The cursor is the number of the last task of the page before.
fn list(call: &Call) -> Answer {
    call.authorize(|counts| counts.queries_received += 1)?;
    let list: List = serde_json::from_slice(call.body)?;
    let limit = list.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let why = format!("limit must be between 1 and {MAX_PAGE}");
        return Err(ApiError::Invalid(why));
    }
    let before = match list.cursor.as_deref().unwrap_or_default() {
        "" => u64::MAX,
        cursor => cursor
            .parse()
            .map_err(|_| ApiError::Invalid("cursor is invalid".to_owned()))?,
    };
    let mut tasks = call.tasks_before(before, limit + 1, |task| list.wants(task));
    let has_more = tasks.len() > limit;
    tasks.truncate(limit);
    let last = tasks.last().filter(|_| has_more);
    let mut body = envelope(tasks.iter().map(document).collect());
    if let Some(last) = last {
        body["next_cursor"] = json!(last.number.to_string());
    }
    Ok(ok(body))
}

fn account(has_credit: bool) -> HttpResponse {
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
    success(json!({
        "code": 0,
        "msg": "success",
        "resource_pack_subscribe_infos": [pack],
    }))
}

fn accepted(task: &Task) -> HttpResponse {
    success(without_nulls(json!({
        "id": task.id,
        "status": task.status,
        "create_time": task.created_ms,
        "update_time": task.updated_ms,
        "external_id": task.external_id,
    })))
}

fn error(error: &ApiError) -> HttpResponse {
    let (status, code, message) = match error {
        ApiError::NoKey => (401, 1001, "Authorization is empty"),
        ApiError::BadKey => (401, 1002, "Authorization is invalid"),
        ApiError::Quota => (429, 1102, "Resource pack depleted or expired"),
        ApiError::Malformed(why) => (400, 1200, &*format!("Invalid request parameters: {why}")),
        ApiError::Invalid(why) => (400, 1201, &*format!("Invalid parameters: {why}")),
        ApiError::NoSuchMethod | ApiError::NoSuchTask => {
            (404, 1202, "The requested method is invalid")
        }
        ApiError::NoSuchModel => (404, 1203, "The requested model does not exist"),
        ApiError::Safety => (
            400,
            1301,
            "The input content triggered the content safety policy",
        ),
        ApiError::RateLimit => (429, 1302, "API request over rate limit"),
        ApiError::Concurrency => (429, 1303, "parallel task over resource pack limit"),
        ApiError::Server => (500, 5000, "Internal server error"),
    };
    // Allows tests to check that the sender obeys it.
    let headers: &[_] = if *error == ApiError::RateLimit {
        &[("retry-after", "1")]
    } else {
        &[]
    };
    let body = json!({"code": code, "message": message, "request_id": uuid()});
    respond(status, headers, body)
}

fn webhooks(task: &Task) -> Vec<Value> {
    match task.status {
        Status::Submitted | Status::Cancelled => Vec::new(),
        // The format of the published test vector: no outputs, no billing, no external id.
        Status::Succeeded if task.omits_outputs => vec![thin(task)],
        Status::Processing | Status::Succeeded | Status::Failed => vec![document(task)],
    }
}

fn envelope(data: Value) -> Value {
    let mut body = json!({"code": 0, "message": "SUCCEED", "request_id": uuid()});
    body["data"] = data;
    body
}

fn success(data: Value) -> HttpResponse {
    ok(envelope(data))
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
    document["external_id"] = json!(task.external_id);
    document["progress"] = json!(task.progress);
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
    let watermark = task.notes["watermark"] == true;
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
