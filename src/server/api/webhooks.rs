//! `/v1/webhooks`: webhooks from providers.
//!
//! The provider, the callback token and the headers are checked before the body is read. The signature of
//! the raw body is verified before the body is parsed. The response is 200 only after the update is
//! stored; the sender repeats a webhook that received another response.

use std::future::{Ready, ready};
use std::time::Instant;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use crate::config::ServerConfig;
use crate::job::{JobId, Source, Status, StatusReport};
use crate::links::Links;
use crate::provider::{Provider, Providers, TaskReport, WebhookContent, WebhookVerifyError};
use crate::server::error::{ErrorCode, Problem};
use crate::server::limits::ClientAddress;
use crate::server::limits::ConnectionLimits;
use crate::server::request::UnreadBody;
use crate::server::router::Segment;
use crate::server::security_log::SecurityLog;
use crate::telemetry::{Metrics, WebhookOutcome};
use crate::time::Time;
use crate::tracker::{Error, TaskMatch, Tracker, UpdateOutcome};
use progress_hub_auth::signature::{Headers, Request, Trust};

/// `POST /v1/webhooks/{provider}`: finds the job by the task id in the payload.
pub async fn receive(
    handler: WebhookHandler,
    Segment(provider): Segment<2>,
    request: HttpRequest,
    body: UnreadBody,
) -> Result<HttpResponse, Problem> {
    handler.handle(&provider, None, &request, body).await
}

/// `POST /v1/webhooks/{provider}/{callback_token}`: finds the job by its callback token.
pub async fn receive_with_token(
    handler: WebhookHandler,
    Segment(provider): Segment<2>,
    Segment(token): Segment<3>,
    request: HttpRequest,
    body: UnreadBody,
) -> Result<HttpResponse, Problem> {
    handler
        .handle(&provider, Some(&token), &request, body)
        .await
}

/// The components that process webhooks.
pub struct WebhookHandler {
    tracker: web::Data<Tracker>,
    providers: web::Data<Providers>,
    links: web::Data<Links>,
    server: web::Data<ServerConfig>,
    metrics: web::Data<Metrics>,
    limits: web::Data<ConnectionLimits>,
    security: web::Data<SecurityLog>,
}

impl FromRequest for WebhookHandler {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let handler = || {
            Some(Self {
                tracker: request.app_data::<web::Data<Tracker>>()?.clone(),
                providers: request.app_data::<web::Data<Providers>>()?.clone(),
                links: request.app_data::<web::Data<Links>>()?.clone(),
                server: request.app_data::<web::Data<ServerConfig>>()?.clone(),
                metrics: request.app_data::<web::Data<Metrics>>()?.clone(),
                limits: request.app_data::<web::Data<ConnectionLimits>>()?.clone(),
                security: request.app_data::<web::Data<SecurityLog>>()?.clone(),
            })
        };
        ready(handler().ok_or_else(|| Problem::not_found("resource")))
    }
}

/// The result of a webhook that its sender does not have to repeat.
enum WebhookResult {
    /// Task reports were processed.
    Processed(WebhookOutcome),
    /// The provider checks the endpoint and expects this response.
    Challenge(Value),
}

impl WebhookHandler {
    async fn handle(
        &self,
        provider: &str,
        token: Option<&str>,
        request: &HttpRequest,
        body: UnreadBody,
    ) -> Result<HttpResponse, Problem> {
        let started_at = Instant::now();
        let result = self.process(provider, token, request, body).await;
        self.metrics.observe_webhook_duration(started_at.elapsed());
        let (outcome, response) = match result {
            Ok(WebhookResult::Challenge(reply)) => (WebhookOutcome::Unchanged, Ok(reply)),
            Ok(WebhookResult::Processed(outcome)) => {
                let reply = json!({
                    "matched": outcome != WebhookOutcome::Unmatched,
                    "applied": outcome == WebhookOutcome::Applied,
                });
                (outcome, Ok(reply))
            }
            Err((outcome, problem)) => (outcome, Err(problem)),
        };
        self.metrics.webhook(provider, outcome);
        response.map(|reply| HttpResponse::Ok().json(reply))
    }

    async fn process(
        &self,
        provider: &str,
        token: Option<&str>,
        request: &HttpRequest,
        body: UnreadBody,
    ) -> Result<WebhookResult, (WebhookOutcome, Problem)> {
        let unknown = |resource| (WebhookOutcome::Unknown, Problem::not_found(resource));
        let provider = self.providers.get(provider);
        let provider = provider.ok_or_else(|| unknown("provider"))?;
        let job = token.map(|token| {
            let job = self.links.verify_callback_token(provider.name(), token);
            job.ok_or_else(|| unknown("callback"))
        });
        let job = job.transpose()?;
        let body = body.limit(provider.max_webhook_bytes());
        let body = body.map_err(|problem| (WebhookOutcome::TooLarge, problem))?;
        let headers = &RequestHeaders(request.headers());
        let url = &self.url(request);
        let unsigned = Request {
            headers,
            body: &[],
            url,
        };
        provider
            .check_headers(&unsigned, Time::now())
            .map_err(|error| self.reject(provider, request, &error))?;
        let body = body.read_unverified().await;
        let (body, permit) = body.map_err(|problem| match problem.status() {
            StatusCode::PAYLOAD_TOO_LARGE => (WebhookOutcome::TooLarge, problem),
            StatusCode::SERVICE_UNAVAILABLE => (WebhookOutcome::Unavailable, problem),
            _ => (WebhookOutcome::Malformed, problem),
        })?;
        let signed = Request {
            headers,
            body: &body,
            url,
        };
        let verified = provider
            .verify(&signed, Time::now())
            .await
            .map_err(|error| self.reject(provider, request, &error))?;
        if verified.trust() != Trust::Unsigned {
            drop(permit);
            if let Some(address) = request.conn_data::<ClientAddress>() {
                address.set_authenticated();
            }
        }
        let content = provider.parse(&verified, headers).map_err(|error| {
            let problem = Problem::new(ErrorCode::InvalidPayload, error.to_string());
            (WebhookOutcome::Malformed, problem)
        })?;
        let reports = match content {
            WebhookContent::Challenge(reply) => return Ok(WebhookResult::Challenge(reply)),
            WebhookContent::Tasks(reports) => reports,
        };
        let outcome = self
            .apply_all(provider, job.as_ref(), reports)
            .await
            .map_err(|error| (WebhookOutcome::Unavailable, error.into()))?;
        if outcome != WebhookOutcome::Unmatched {
            provider.record_webhook();
        }
        Ok(WebhookResult::Processed(outcome))
    }

    /// Logs a webhook that failed verification, and returns its outcome and the response.
    fn reject(
        &self,
        provider: &Provider,
        request: &HttpRequest,
        error: &WebhookVerifyError,
    ) -> (WebhookOutcome, Problem) {
        let limits = &self.limits;
        let address = limits.client_address(request.peer_addr(), request.headers());
        self.security
            .webhook_rejected(provider.name(), error.code(), address);
        rejection(error)
    }

    /// Returns the URL of this webhook as its sender uses it; some signatures cover it.
    fn url(&self, request: &HttpRequest) -> String {
        let path = request.uri().path_and_query();
        let path = path.map_or("/", |path| path.as_str());
        if let Some(public_url) = &self.server.public_url {
            return format!("{}{path}", public_url.as_str().trim_end_matches('/'));
        }
        let connection = request.connection_info();
        format!("{}://{}{path}", connection.scheme(), connection.host())
    }

    /// Processes every report. Returns `Applied` if one changed its job, else `Unchanged` if one has a
    /// job, else `Unmatched`.
    async fn apply_all(
        &self,
        provider: &Provider,
        token_job: Option<&JobId>,
        reports: Vec<TaskReport>,
    ) -> Result<WebhookOutcome, Error> {
        let is_single = reports.len() == 1;
        let mut total = WebhookOutcome::Unmatched;
        for report in reports {
            // A callback token belongs to one job. Of several tasks, it applies only to the one
            // whose reference is this job.
            let refers_to = |id: &&JobId| report.reference.as_deref() == Some(id.as_str());
            let job = token_job.filter(|id| is_single || refers_to(id)).cloned();
            let outcome = match (report.is_trusted, job) {
                (true, Some(job)) => self.apply_with_token(provider, &job, report).await?,
                (true, None) => self.apply_by_task(provider, report).await?,
                (false, job) => self.poll_for_untrusted(provider, job, report).await?,
            };
            if total == WebhookOutcome::Unmatched || outcome == WebhookOutcome::Applied {
                total = outcome;
            }
        }
        Ok(total)
    }

    /// Applies a signed report to the job of the callback token.
    async fn apply_with_token(
        &self,
        provider: &Provider,
        job: &JobId,
        report: TaskReport,
    ) -> Result<WebhookOutcome, Error> {
        let has_unknown_status = report.report.status.is_none();
        let update = with_task_id(report.report, report.task_id.as_deref());
        let update = update.into_update(Source::Webhook);
        let applied = self
            .tracker
            .apply_provider_update(provider.name(), job, update)
            .await;
        match applied {
            Ok(outcome) => self.outcome(&outcome, has_unknown_status).await,
            Err(Error::NotFound) => Ok(WebhookOutcome::Unmatched),
            Err(error) => Err(error),
        }
    }

    /// Applies a signed report to the job of the provider's task. If no job has the task, the
    /// reference in the payload can bind the task to a job.
    ///
    /// Any client of the provider account can choose any reference. A reference therefore binds a
    /// task only to a job that waits for a task, and only if the hub sends the provider no callback
    /// URLs. With callback URLs, the job's own webhook has a callback token, and a reference only
    /// requests a poll.
    async fn apply_by_task(
        &self,
        provider: &Provider,
        report: TaskReport,
    ) -> Result<WebhookOutcome, Error> {
        let name = provider.name();
        let TaskReport {
            task_id,
            reference,
            report,
            ..
        } = report;
        let referred = reference.and_then(|id| JobId::parse(&id).ok());
        let Some(task_id) = task_id else {
            return self.poll_referred(provider, referred.as_ref()).await;
        };
        let has_unknown_status = report.status.is_none();
        let report = with_task_id(report, Some(&task_id));
        if let Some(id) = &referred
            && !self.gives_callback_urls(provider)
            && self
                .tracker
                .find_job_by_task(name, &task_id)
                .await?
                .is_none()
        {
            let is_final = report.status.is_some_and(Status::is_final);
            let needs_poll = is_final && provider.can_poll();
            let bound = if needs_poll {
                with_task_id(StatusReport::with_status(Status::Queued), Some(&task_id))
            } else {
                report.clone()
            };
            let update = bound.into_update(Source::Webhook);
            let bound = self.tracker.apply_to_waiting_job(name, id, update).await?;
            if let Some(outcome) = bound {
                return self
                    .outcome(&outcome, has_unknown_status || needs_poll)
                    .await;
            }
        }
        let update = report.into_update(Source::Webhook);
        let applied = self.tracker.apply_task_update(name, &task_id, update).await;
        match applied {
            Ok(TaskMatch::Job(outcome)) => self.outcome(&outcome, has_unknown_status).await,
            Ok(TaskMatch::Buffered) => self.poll_referred(provider, referred.as_ref()).await,
            Err(Error::NotFound) => Ok(WebhookOutcome::Unmatched),
            Err(error) => Err(error),
        }
    }

    /// Requests a poll of the job that a webhook refers to, if the job belongs to the provider.
    async fn poll_referred(
        &self,
        provider: &Provider,
        referred: Option<&JobId>,
    ) -> Result<WebhookOutcome, Error> {
        match referred {
            Some(id) if self.tracker.request_poll_of(provider.name(), id).await? => {
                Ok(WebhookOutcome::Unchanged)
            }
            Some(_) | None => Ok(WebhookOutcome::Unmatched),
        }
    }

    /// Returns whether the hub sends the provider callback URLs. Webhooks about its jobs then have
    /// a callback token.
    fn gives_callback_urls(&self, provider: &Provider) -> bool {
        self.links.has_callback_urls() && provider.sends_callback_url()
    }

    /// Requests a poll if the provider definition does not know the status.
    async fn outcome(
        &self,
        outcome: &UpdateOutcome,
        has_unknown_status: bool,
    ) -> Result<WebhookOutcome, Error> {
        if has_unknown_status {
            self.tracker.request_poll(&outcome.job.id).await?;
        }
        if outcome.applied {
            Ok(WebhookOutcome::Applied)
        } else {
            Ok(WebhookOutcome::Unchanged)
        }
    }

    /// Requests a poll for a report that no signature covers. With a valid callback token, which
    /// only the provider knows, also binds the task id to a job whose submit response was lost.
    ///
    /// Any client can send a report without a verified sender and without a callback token. The
    /// polls for such reports are rate limited. There are none if the provider receives callback
    /// URLs, because its own webhooks then have a token.
    async fn poll_for_untrusted(
        &self,
        provider: &Provider,
        job: Option<JobId>,
        report: TaskReport,
    ) -> Result<WebhookOutcome, Error> {
        let name = provider.name();
        let id = match (job, report.task_id) {
            (Some(id), task_id) => {
                if let Some(task_id) = task_id {
                    self.tracker.bind_task(name, &id, task_id).await?;
                }
                id
            }
            (None, Some(task_id)) => {
                let is_anonymous = !report.is_sender_verified;
                if is_anonymous && self.gives_callback_urls(provider) {
                    self.metrics.webhook_poll_suppressed(name);
                    return Ok(WebhookOutcome::Unmatched);
                }
                let Some(id) = self.tracker.find_job_by_task(name, &task_id).await? else {
                    return Ok(WebhookOutcome::Unmatched);
                };
                if is_anonymous && !provider.claim_unverified_poll() {
                    self.metrics.webhook_poll_suppressed(name);
                    return Ok(WebhookOutcome::Unchanged);
                }
                id
            }
            (None, None) => return Ok(WebhookOutcome::Unmatched),
        };
        self.tracker.request_poll(&id).await?;
        Ok(WebhookOutcome::Unchanged)
    }
}

fn with_task_id(mut report: StatusReport, task_id: Option<&str>) -> StatusReport {
    report.task_id = task_id.map(str::to_owned);
    report
}

fn rejection(error: &WebhookVerifyError) -> (WebhookOutcome, Problem) {
    let detail = error.to_string();
    match error {
        WebhookVerifyError::Signature(_)
        | WebhookVerifyError::NotAccepted
        | WebhookVerifyError::OtherAccount => (
            WebhookOutcome::Unauthorized,
            Problem::new(ErrorCode::InvalidSignature, detail),
        ),
        WebhookVerifyError::KeysUnavailable { retry_after } => (
            WebhookOutcome::Unavailable,
            Problem::new(ErrorCode::KeysUnavailable, detail).with_retry_after(*retry_after),
        ),
    }
}

/// Returns the name that Svix uses for a header of Standard Webhooks. The signature scheme is the
/// same. The signature covers the id and the timestamp, so a mix of headers from two webhooks is
/// rejected.
fn svix_name(name: &str) -> Option<&'static str> {
    match name {
        "webhook-id" => Some("svix-id"),
        "webhook-timestamp" => Some("svix-timestamp"),
        "webhook-signature" => Some("svix-signature"),
        _ => None,
    }
}

/// The headers of a request, for the signature schemes.
struct RequestHeaders<'r>(&'r HeaderMap);

impl Headers for RequestHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).or_else(|| self.0.get(svix_name(name)?));
        value?.to_str().ok()
    }

    fn pairs(&self) -> Vec<(&str, &str)> {
        self.0
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect()
    }
}
