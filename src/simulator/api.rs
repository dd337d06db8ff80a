//! The provider's HTTP interface: submit, query, list.
//!
//! Invariant: every request is counted, then its key is proven, then its body is read; only an open door
//! creates a task. How the next page of a list is named is not documented in anything we have read:
//! `next_cursor` is ours.

use actix_web::http::header::{AUTHORIZATION, HOST};
use actix_web::web::{self, Bytes, Data, Json, Path, Query, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ledger::Ledger;
use super::order::Order;
use super::refusal::Refusal;
use super::scenario::{Door, Plan, Scenario};
use super::task::{Product, Seed, Status, Task};
use super::witness::{Counts, TaskFacts, Witness};
use super::worker::Workers;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 500;
/// Images may come in the body, as base64.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// What the interface knows besides its state.
pub(super) struct Terms {
    pub api_key: String,
    pub default_scenario: Scenario,
    /// Where clips are found by those who send no `Host`.
    pub origin: String,
}

#[derive(Serialize)]
struct Success<T> {
    code: u16,
    message: &'static str,
    request_id: String,
    data: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Exactly one of the two, each a list with commas.
#[derive(Deserialize)]
struct Wanted {
    task_ids: Option<String>,
    external_task_ids: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Listing {
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

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(MAX_BODY))
        .route(
            "/{product:text-to-video|image-to-video}/{model}",
            web::post().to(submit),
        )
        .route("/tasks", web::get().to(query))
        .route("/tasks", web::post().to(list))
        .route("/simulator/counts", web::get().to(counts))
        .route("/simulator/tasks", web::get().to(facts));
}

/// Whatever else is asked for.
pub(super) async fn unknown() -> Result<HttpResponse, Refusal> {
    Err(Refusal::no_such_method())
}

async fn submit(
    request: HttpRequest,
    path: Path<(Product, String)>,
    body: Bytes,
    terms: Data<Terms>,
    ledger: Data<Ledger>,
    workers: Data<Workers>,
) -> Result<HttpResponse, Refusal> {
    ledger.count_submit();
    terms.prove(&request)?;
    let (product, model) = path.into_inner();
    if !model.starts_with("kling-") {
        return Err(Refusal::no_such_model());
    }
    let order = Order::read(product, &body)?;
    let scenario = order.scenario.unwrap_or(terms.default_scenario);
    let plan = scenario.plan();
    let before = ledger.note_submit(order.external_id.as_deref());
    match &plan.door {
        Door::Refuse(refusal) => return Err(refusal.clone()),
        Door::RefuseFirst(times, refusal) if before < *times => return Err(refusal.clone()),
        Door::Open | Door::RefuseFirst(..) | Door::CloseUnanswered | Door::AnswerAfterWebhook => {}
    }
    let task = ledger.open(Seed {
        external_id: order.external_id,
        product,
        model,
        scenario,
        origin: terms.origin(&request),
        watermark: order.watermark,
    })?;
    tracing::debug!(task.id, task.scenario = %scenario, "task accepted");
    Ok(admit(&task, plan, order.callback, &workers).await)
}

async fn admit(
    task: &Task,
    plan: Plan,
    callback: Option<reqwest::Url>,
    workers: &Workers,
) -> HttpResponse {
    let door = plan.door.clone();
    let first_webhook = workers.start(task.id, plan, callback);
    match door {
        Door::Open | Door::Refuse(_) | Door::RefuseFirst(..) => accepted(task),
        Door::AnswerAfterWebhook => {
            // An error means that there was none to send: then there is nothing to wait for.
            first_webhook.await.ok();
            accepted(task)
        }
        Door::CloseUnanswered => unanswered(),
    }
}

fn accepted(task: &Task) -> HttpResponse {
    HttpResponse::Ok().json(Success::of(task.receipt()))
}

/// A body that breaks before its first byte: the connection closes, with nothing written to it.
fn unanswered() -> HttpResponse {
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    HttpResponse::Ok().streaming(stream::iter([Err::<Bytes, _>(broken)]))
}

async fn query(
    request: HttpRequest,
    wanted: Query<Wanted>,
    terms: Data<Terms>,
    ledger: Data<Ledger>,
) -> Result<HttpResponse, Refusal> {
    ledger.count_query();
    terms.prove(&request)?;
    let given = |ids: &Option<String>| ids.clone().filter(|ids| !ids.is_empty());
    let ids: Vec<u64> = match (given(&wanted.task_ids), given(&wanted.external_task_ids)) {
        (Some(ids), None) => ids
            .split(',')
            .filter_map(|id| id.trim().parse().ok())
            .collect(),
        (None, Some(ids)) => {
            let task_of = |id: &str| ledger.submits(id.trim()).task?.parse().ok();
            ids.split(',')
                .filter(|id| !id.trim().is_empty())
                .filter_map(task_of)
                .collect()
        }
        (None, None) | (Some(_), Some(_)) => {
            return Err(Refusal::invalid(
                "exactly one of task_ids and external_task_ids is required",
            ));
        }
    };
    let tasks: Vec<Task> = ids.into_iter().filter_map(|id| ledger.task(id)).collect();
    let documents: Vec<_> = tasks.iter().map(Task::document).collect();
    Ok(HttpResponse::Ok().json(Success::of(documents)))
}

async fn list(
    request: HttpRequest,
    body: Bytes,
    terms: Data<Terms>,
    ledger: Data<Ledger>,
) -> Result<HttpResponse, Refusal> {
    ledger.count_query();
    terms.prove(&request)?;
    let listing: Listing = serde_json::from_slice(&body).map_err(Refusal::malformed)?;
    let limit = listing.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Refusal::invalid(format!(
            "limit is not from 1 to {MAX_PAGE}"
        )));
    }
    let cursor = listing
        .cursor
        .as_deref()
        .filter(|cursor| !cursor.is_empty());
    let before = cursor.map_or(Ok(u64::MAX), |cursor| {
        cursor
            .parse()
            .map_err(|_| Refusal::invalid("cursor is not one of ours"))
    })?;
    // One more than fits tells whether there is a next page.
    let mut tasks = ledger.tasks_before(before, |task| listing.wants(task), limit + 1);
    let more = tasks.len() > limit;
    tasks.truncate(limit);
    let next_cursor = tasks
        .last()
        .filter(|_| more)
        .map(|task| task.id.to_string());
    let documents: Vec<_> = tasks.iter().map(Task::document).collect();
    Ok(HttpResponse::Ok().json(Success {
        next_cursor,
        ..Success::of(documents)
    }))
}

async fn counts(ledger: Data<Ledger>) -> Json<Counts> {
    Json(Witness::of(Ledger::clone(&ledger)).calls())
}

async fn facts(ledger: Data<Ledger>) -> Json<Vec<TaskFacts>> {
    Json(Witness::of(Ledger::clone(&ledger)).tasks())
}

impl Terms {
    fn prove(&self, request: &HttpRequest) -> Result<(), Refusal> {
        let authorization = request
            .headers()
            .get(AUTHORIZATION)
            .ok_or_else(Refusal::no_key)?;
        let key = authorization
            .as_bytes()
            .strip_prefix(b"Bearer ")
            .ok_or_else(Refusal::bad_key)?;
        verify_slices_are_equal(key, self.api_key.as_bytes()).map_err(|_| Refusal::bad_key())
    }

    /// The address under which the sender of this request knows us.
    fn origin(&self, request: &HttpRequest) -> String {
        let host = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok());
        host.map_or_else(|| self.origin.clone(), |host| format!("http://{host}"))
    }
}

impl<T> Success<T> {
    fn of(data: T) -> Self {
        Self {
            code: 0,
            message: "SUCCEED",
            request_id: Uuid::now_v7().to_string(),
            data,
            next_cursor: None,
        }
    }
}

impl Listing {
    fn wants(&self, task: &Task) -> bool {
        self.start_time.is_none_or(|start| task.created_ms >= start)
            && self.end_time.is_none_or(|end| task.created_ms <= end)
            && self.filters.iter().all(|filter| match filter {
                Filter::Status(statuses) => statuses.contains(&task.status),
                Filter::ProductType(products) => products.contains(&task.product),
            })
    }
}
