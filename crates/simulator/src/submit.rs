//! The submit of a job, independent of a dialect.

use std::borrow::Cow;

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use aws_lc_rs::digest;
use futures_util::stream;
use reqwest::Url;
use serde_json::{Value, json};

use super::api_error::ApiError;
use super::call::Call;
use super::dialect::{Answer, Dialect, respond};
use super::form;
use super::plan::{Plan, SubmitBehavior};
use super::scenario::Scenario;
use super::task::{Product, Status, Task, now_ms};
use super::worker::Work;

/// Maximum number of progress steps.
const MAX_STEPS: u16 = 10_000;

/// Content of a valid submit, as parsed by a dialect.
#[derive(Default)]
pub(super) struct Submit {
    pub model: String,
    /// The job has a frame in addition to the prompt.
    pub has_frame: bool,
    /// External id, chosen by the client. Unique per account.
    pub external_id: Option<String>,
    pub callback: Option<Url>,
    /// Webhooks are sent to the URL of the account instead.
    pub uses_project_webhook: bool,
    /// Data that the dialect needs for later responses.
    pub notes: Value,
}

/// Options of the simulator, which every dialect accepts at the top of the body or in its `input`.
struct Options {
    scenario: Scenario,
    /// Number of progress steps. Replaces that of the scenario.
    steps: Option<u16>,
}

impl Submit {
    /// Returns the identity of the job: the external id, otherwise the webhook URL, otherwise a digest of the content.
    fn handle(&self, content: &[u8]) -> String {
        let callback = self.callback.as_ref().map(Url::to_string);
        let handle = self.external_id.clone().or(callback);
        handle.unwrap_or_else(|| hex::encode(digest::digest(&digest::SHA256, content)))
    }

    /// Creates the task with this number.
    fn into_task(
        self,
        call: &Call<'_>,
        number: u64,
        scenario: Scenario,
        plan: Plan,
        handle: String,
    ) -> Task {
        let (now, dialect) = (now_ms(), call.dialect);
        Task {
            id: (dialect.id)(number),
            dialect: dialect.name,
            handle,
            external_id: self.external_id,
            product: if self.has_frame {
                Product::ImageToVideo
            } else {
                Product::TextToVideo
            },
            model: self.model,
            scenario,
            status: Status::Submitted,
            progress: None,
            callbacks_sent: 0,
            callbacks_acknowledged: 0,
            is_settled: false,
            number,
            ahead: plan.ahead,
            plan,
            origin: call.origin(),
            clip_origin: call.clip_origin(),
            notes: self.notes,
            step: 0,
            created_ms: now,
            started_ms: None,
            updated_ms: now,
            failure: None,
            cancel_requested: false,
            deleted: false,
            omits_outputs: false,
            has_outputs: false,
        }
    }
}

impl Options {
    fn parse(body: &Value, default_scenario: Scenario) -> Result<Self, ApiError> {
        let option = |key: &str| body.get(key).or_else(|| body.get("input")?.get(key));
        let scenario = option("scenario").map(|name| name.as_str().unwrap_or_default().parse());
        let scenario = scenario.unwrap_or(Ok(default_scenario));
        let steps = option("steps").map(|steps| {
            let steps = steps.as_u64().and_then(|steps| u16::try_from(steps).ok());
            steps.filter(|steps| *steps <= MAX_STEPS).ok_or_else(|| {
                ApiError::Invalid(format!("steps must be an integer of at most {MAX_STEPS}"))
            })
        });
        Ok(Self {
            scenario: scenario.map_err(|unknown| ApiError::Invalid(unknown.to_string()))?,
            steps: steps.transpose()?,
        })
    }

    /// Returns the plan, or why the dialect cannot play the scenario.
    fn plan(&self, dialect: &Dialect) -> Result<Plan, &'static str> {
        let plan = dialect.plan(self.scenario)?;
        Ok(Plan {
            steps: self.steps.unwrap_or(plan.steps),
            ..plan
        })
    }
}

impl Call<'_> {
    /// Submits a job. `parse` reads the body, and `accepted` writes the response for a new task.
    pub async fn submit(
        &self,
        parse: fn(&Self, &Value) -> Result<Submit, ApiError>,
        accepted: fn(&Task) -> HttpResponse,
    ) -> Answer {
        let (state, dialect) = (&self.context.state, self.dialect);
        self.authorize(|counts| counts.submits_received += 1)?;
        let form = if dialect.accepts_forms {
            form::read(self.request, self.body).await?
        } else {
            None
        };
        let (body, identity) = match form {
            // A digest of the body would differ, because each request has another boundary.
            Some(fields) => (fields.clone(), Cow::Owned(fields.to_string().into_bytes())),
            None => (serde_json::from_slice(self.body)?, Cow::Borrowed(self.body)),
        };
        if !body.is_object() {
            let why = "the body is not an object".to_owned();
            return Err(ApiError::Malformed(why));
        }
        let submit = parse(self, &body)?;
        let options = Options::parse(&body, self.context.settings.default_scenario)?;
        let scenario = options.scenario;
        let plan = match options.plan(dialect) {
            Ok(plan) => plan,
            Err(why) => {
                let reason = format!("{scenario} cannot be played in {}: {why}", dialect.name);
                return Ok(respond(400, &[], json!({"simulator": reason})));
            }
        };
        let handle = submit.handle(&identity);
        let earlier = state.record_submit(dialect.name, &handle);
        if let SubmitBehavior::Reject(times, error) = &plan.submit_behavior
            && earlier < *times
        {
            if *error == ApiError::Quota {
                state.exhaust_credit(dialect.name);
            }
            return Err(error.clone());
        }
        let callback = if submit.uses_project_webhook {
            self.context.project.clone()
        } else {
            submit.callback.clone()
        };
        let number = state.next_number();
        let task = submit.into_task(self, number, scenario, plan, handle);
        self.admit(task, callback, accepted).await
    }

    /// Starts the work on a new task and responds as planned.
    async fn admit(
        &self,
        task: Task,
        callback: Option<Url>,
        accepted: fn(&Task) -> HttpResponse,
    ) -> Answer {
        if !self.context.state.open(&task) {
            let taken = "external_task_id already exists".to_owned();
            return Err(ApiError::Invalid(taken));
        }
        tracing::debug!(task.id, task.dialect, task.scenario = %task.scenario, "task accepted");
        let response = accepted(&task);
        let behavior = task.plan.submit_behavior.clone();
        let work = Work {
            context: self.context.clone(),
            dialect: self.dialect,
            task,
            callback,
        };
        let first_webhook = work.start();
        match behavior {
            SubmitBehavior::Accept | SubmitBehavior::Reject(..) => Ok(response),
            SubmitBehavior::AnswerAfterWebhook => {
                // An error means that the task sends no webhook.
                first_webhook.await.ok();
                Ok(response)
            }
            SubmitBehavior::CloseUnanswered => Ok(unanswered()),
        }
    }
}

/// Returns a response whose body fails before its first byte, so that the connection closes without a response.
fn unanswered() -> HttpResponse {
    let broken = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    HttpResponse::Ok().streaming(stream::iter([Err::<Bytes, _>(broken)]))
}

/// Returns a required text of the body.
pub(super) fn text<'a>(body: &'a Value, key: &str) -> Result<&'a str, ApiError> {
    let text = body.get(key).and_then(Value::as_str);
    text.filter(|text| !text.trim().is_empty())
        .ok_or_else(|| ApiError::Invalid(format!("{key} is required")))
}

/// Parses an optional webhook URL.
pub(super) fn callback(url: Option<&str>) -> Result<Option<Url>, ApiError> {
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let invalid = || ApiError::Invalid("the callback is not an http address".to_owned());
    http_url(url).map(Some).ok_or_else(invalid)
}

/// Parses an http or https URL.
pub(super) fn http_url(url: &str) -> Option<Url> {
    let url = Url::parse(url).ok()?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}
