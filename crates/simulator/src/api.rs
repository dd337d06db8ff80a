//! The HTTP interface that all dialects share: submit, query, list, result, cancel, content.
//!
//! Each request is counted, then authenticated (except for public keys), then parsed. Dialects parse requests and write
//! responses. An error of the simulator itself is marked as such.

use std::sync::Arc;

use actix_web::http::header::{AUTHORIZATION, HOST};
use actix_web::web::{self, Bytes, Data, Json, Path, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use futures_util::stream;
use reqwest::Url;
use serde_json::json;

use super::api_error::ApiError;
use super::call::{ApiResponse, Call, Listing, Name, RequestHead};
use super::clip;
use super::dialect::Dialect;
use super::inspector::{Counts, Inspector, TaskSnapshot};
use super::plan::{Plan, SubmitBehavior};
use super::scenario::Scenario;
use super::signing::SigningKeys;
use super::state::SimulatorState;
use super::task::{NewTask, Task};
use super::worker::Workers;

/// Maximum size of a body in bytes. Images may be sent as base64.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// Path of clips. All numbers have the same content.
const CLIP_PATH: &str = "/clips/{number:[0-9]+}.mp4";

/// State shared by all dialects.
pub(super) struct ApiState {
    pub state: SimulatorState,
    pub workers: Workers,
    pub keys: Arc<SigningKeys>,
    pub api_key: String,
    pub default_scenario: Scenario,
    /// URL for webhooks of dialects that have one per account.
    pub project: Option<Url>,
    /// Base URL for requests without a `Host` header.
    pub origin: String,
    /// Base URL of clips, if they are not requested from the simulator.
    pub clip_origin: Option<String>,
}

/// A dialect and the path that it is served under.
struct Mount {
    api: Data<ApiState>,
    dialect: &'static dyn Dialect,
    prefix: String,
}

/// Adds the routes of the inspector, for black-box tests.
pub(super) fn inspector_routes(config: &mut ServiceConfig) {
    config
        .route("/simulator/counts", web::get().to(counts))
        .route("/simulator/counts/{dialect}", web::get().to(counts_in))
        .route("/simulator/tasks", web::get().to(snapshot));
}

/// Adds the route of the clips to another server, for [`Simulator::with_clip_origin`](super::Simulator::with_clip_origin).
pub fn clip_route(config: &mut ServiceConfig) {
    let clip = |request: HttpRequest| async move { clip::serve(&request) };
    let clip = web::resource(CLIP_PATH)
        .route(web::get().to(clip))
        .route(web::head().to(clip));
    config.service(clip);
}

/// Adds all routes of a dialect under `prefix`.
pub(super) fn routes(
    api: Data<ApiState>,
    dialect: &'static dyn Dialect,
    prefix: String,
) -> impl FnOnce(&mut ServiceConfig) {
    let mount = Data::new(Mount {
        api,
        dialect,
        prefix,
    });
    move |config| {
        let clip = web::resource(CLIP_PATH)
            .route(web::get().to(clip))
            .route(web::head().to(clip));
        config
            .app_data(web::PayloadConfig::new(MAX_BODY))
            .app_data(mount)
            .service(clip)
            .default_service(web::to(response));
    }
}

async fn response(request: HttpRequest, body: Bytes, mount: Data<Mount>) -> HttpResponse {
    let response = mount.handle(&request, &body).await;
    response.unwrap_or_else(|error| mount.dialect.error_response(&error).into())
}

async fn clip(request: HttpRequest, mount: Data<Mount>) -> HttpResponse {
    mount.api.state.count_clip(mount.dialect.name());
    clip::serve(&request)
}

async fn counts(api: Data<ApiState>) -> Json<Counts> {
    Json(api.inspector().calls())
}

async fn counts_in(api: Data<ApiState>, dialect: Path<String>) -> Json<Counts> {
    Json(api.inspector().calls_in(&dialect))
}

async fn snapshot(api: Data<ApiState>) -> Json<Vec<TaskSnapshot>> {
    Json(api.inspector().tasks())
}

impl ApiState {
    fn inspector(&self) -> Inspector {
        Inspector::of(self.state.clone())
    }
}

impl Mount {
    async fn handle(&self, request: &HttpRequest, body: &[u8]) -> Result<HttpResponse, ApiError> {
        let Self { api, dialect, .. } = self;
        let head = RequestHead::of(request, &self.prefix);
        let call = dialect.call(&head).ok_or(ApiError::NoSuchMethod)?;
        api.state.count(dialect.name(), &call);
        if !matches!(call, Call::Keys) {
            self.authenticate(&head)?;
            dialect.check(&head)?;
        }
        let response = match call {
            Call::Submit => return self.submit(&head, body).await,
            Call::Query(names) => {
                let found = names.iter().filter_map(|name| self.find(name));
                dialect.queried(&head, &found.collect::<Vec<_>>())
            }
            Call::List => self.list(&dialect.listing(body)?),
            Call::Result(name) => dialect.result(&self.named(&name)?),
            Call::Content(name) => {
                let task = self.named(&name)?;
                task.has_outputs.then_some(()).ok_or(ApiError::NoSuchTask)?;
                return Ok(clip::serve(request));
            }
            Call::Cancel(id) => {
                let delete = dialect.deletes_ended();
                dialect.cancelled(&api.state.cancel(dialect.name(), &id, delete))
            }
            Call::Account => dialect.account(&api.keys, api.state.has_credit(dialect.name())),
            Call::Keys => Ok(ApiResponse::ok(api.keys.jwks())),
        };
        Ok(response?.into())
    }

    async fn submit(&self, head: &RequestHead<'_>, body: &[u8]) -> Result<HttpResponse, ApiError> {
        let Self { api, dialect, .. } = self;
        let submit = dialect.submit(head, body)?;
        let scenario = submit.scenario.unwrap_or(api.default_scenario);
        let mut plan = match dialect.plan(scenario) {
            Ok(plan) => plan,
            Err(why) => return Ok(unplayable(scenario, dialect.name(), why)),
        };
        plan.steps = submit.steps.unwrap_or(plan.steps);
        let handle = submit.handle(body);
        let before = api.state.record_submit(dialect.name(), &handle);
        match &plan.submit_behavior {
            SubmitBehavior::Reject(error) => {
                if matches!(error, ApiError::Quota) {
                    api.state.exhaust_credit(dialect.name());
                }
                return Err(error.clone());
            }
            SubmitBehavior::RejectFirst(times, error) if before < *times => {
                return Err(error.clone());
            }
            SubmitBehavior::Accept
            | SubmitBehavior::RejectFirst(..)
            | SubmitBehavior::CloseUnanswered
            | SubmitBehavior::AnswerAfterWebhook => {}
        }
        let callback = dialect.callback(&submit, api.project.as_ref());
        let request = NewTask {
            dialect: dialect.name(),
            handle,
            external_id: submit.external_id,
            product: submit.product,
            model: submit.model,
            scenario,
            ahead: plan.ahead,
            steps: plan.steps,
            clip_origin: api.clip_origin.clone().unwrap_or_else(|| self.origin(head)),
            origin: self.origin(head),
            notes: submit.notes,
        };
        let task = api.state.open(request, |number| dialect.id(number));
        let task = task.ok_or(ApiError::Taken)?;
        tracing::debug!(task.id, task.dialect = dialect.name(), task.scenario = %scenario, "task accepted");
        Ok(self.admit(&task, plan, callback).await)
    }

    async fn admit(&self, task: &Task, plan: Plan, callback: Option<Url>) -> HttpResponse {
        let behavior = plan.submit_behavior.clone();
        let workers = &self.api.workers;
        let first_webhook = workers.start(task.number, self.dialect, plan, callback);
        match behavior {
            SubmitBehavior::Accept
            | SubmitBehavior::Reject(_)
            | SubmitBehavior::RejectFirst(..) => {}
            // An error means that the task sends no webhook.
            SubmitBehavior::AnswerAfterWebhook => {
                first_webhook.await.ok();
            }
            SubmitBehavior::CloseUnanswered => return unanswered(),
        }
        self.dialect.accepted(task).into()
    }

    fn list(&self, listing: &Listing) -> Result<ApiResponse, ApiError> {
        let mut tasks = self.api.state.list(self.dialect.name(), listing);
        let more = tasks.len() > listing.limit;
        tasks.truncate(listing.limit);
        let next = tasks.last().filter(|_| more).map(|task| task.number);
        self.dialect.listed(&tasks, next)
    }

    fn find(&self, name: &Name) -> Option<Task> {
        self.api.state.find(self.dialect.name(), name)
    }

    /// Finds the task that a result or content request names.
    fn named(&self, name: &str) -> Result<Task, ApiError> {
        let id = self.dialect.task_of(name).ok_or(ApiError::NoSuchTask)?;
        self.find(&Name::Task(id)).ok_or(ApiError::NoSuchTask)
    }

    fn authenticate(&self, head: &RequestHead) -> Result<(), ApiError> {
        let authorization = head.headers.get(AUTHORIZATION).ok_or(ApiError::NoKey)?;
        let scheme = self.dialect.scheme().as_bytes();
        let key = authorization.as_bytes().strip_prefix(scheme);
        let key = key.ok_or(ApiError::BadKey)?;
        verify_slices_are_equal(key, self.api.api_key.as_bytes()).map_err(|_| ApiError::BadKey)
    }

    /// Returns the base URL under which the client of this request reaches the simulator.
    fn origin(&self, head: &RequestHead) -> String {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let origin = host.map(|host| format!("http://{host}"));
        let origin = origin.unwrap_or_else(|| self.api.origin.clone());
        format!("{origin}{}", self.prefix)
    }
}

fn unplayable(scenario: Scenario, dialect: &str, why: &str) -> HttpResponse {
    let reason = format!("{scenario} cannot be played in {dialect}: {why}");
    ApiResponse::new(400, json!({"simulator": reason})).into()
}

/// Returns a response whose body fails before its first byte, so that the connection closes without a response.
fn unanswered() -> HttpResponse {
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    HttpResponse::Ok().streaming(stream::iter([Err::<Bytes, _>(broken)]))
}
