//! `/v1/webhooks`: what providers say of their tasks.
//!
//! Invariant: raw bytes are proven before they are parsed, and the answer is 2xx only once the news
//! is on disk; everything else makes the sender try again or tells it why not to.

use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};

use super::problem::Problem;
use super::request::RawBody;
use crate::config::ServerConfig;
use crate::job::{JobId, Source};
use crate::links::Links;
use crate::provider::{Provider, Providers, TaskReport, WebhookContent, WebhookVerifyError};
use crate::telemetry::{Metrics, WebhookOutcome};
use crate::time::Time;
use crate::tracker::{Error, TaskMatch, Tracker, UpdateOutcome};
use progress_hub_auth::signature::{Headers, Request};

/// `POST /v1/webhooks/{provider}`: finds the job by the task's id.
pub async fn receive(
    news: WebhookHandler,
    provider: web::Path<String>,
    request: HttpRequest,
    body: Result<RawBody, Problem>,
) -> Result<HttpResponse, Problem> {
    news.handle(&provider, None, &request, body).await
}

/// `POST /v1/webhooks/{provider}/{callback_token}`: finds the job by its own token.
pub async fn receive_with_token(
    news: WebhookHandler,
    path: web::Path<(String, String)>,
    request: HttpRequest,
    body: Result<RawBody, Problem>,
) -> Result<HttpResponse, Problem> {
    let (provider, token) = path.into_inner();
    news.handle(&provider, Some(&token), &request, body).await
}

/// What taking news in touches.
pub struct WebhookHandler {
    tracker: web::Data<Tracker>,
    providers: web::Data<Providers>,
    links: web::Data<Links>,
    server: web::Data<ServerConfig>,
    metrics: web::Data<Metrics>,
}

impl actix_web::FromRequest for WebhookHandler {
    type Error = Problem;
    type Future = std::future::Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut actix_web::dev::Payload) -> Self::Future {
        let news = || {
            Some(Self {
                tracker: request.app_data::<web::Data<Tracker>>()?.clone(),
                providers: request.app_data::<web::Data<Providers>>()?.clone(),
                links: request.app_data::<web::Data<Links>>()?.clone(),
                server: request.app_data::<web::Data<ServerConfig>>()?.clone(),
                metrics: request.app_data::<web::Data<Metrics>>()?.clone(),
            })
        };
        std::future::ready(news().ok_or_else(|| Problem::not_found("resource")))
    }
}

/// What became of a webhook that its sender need not repeat.
enum WebhookResult {
    Told(WebhookOutcome),
    Answered(Value),
}

impl WebhookHandler {
    async fn handle(
        &self,
        provider: &str,
        token: Option<&str>,
        request: &HttpRequest,
        body: Result<RawBody, Problem>,
    ) -> Result<HttpResponse, Problem> {
        let begun = Instant::now();
        let taken = self.process(provider, token, request, body).await;
        self.metrics.observe_webhook_duration(begun.elapsed());
        match taken {
            Ok(WebhookResult::Answered(reply)) => {
                self.metrics.webhook(provider, WebhookOutcome::Unchanged);
                Ok(HttpResponse::Ok().json(reply))
            }
            Ok(WebhookResult::Told(outcome)) => {
                self.metrics.webhook(provider, outcome);
                Ok(HttpResponse::Ok().json(json!({
                    "matched": outcome != WebhookOutcome::Unmatched,
                    "applied": outcome == WebhookOutcome::Applied,
                })))
            }
            Err((outcome, problem)) => {
                self.metrics.webhook(provider, outcome);
                Err(problem)
            }
        }
    }

    async fn process(
        &self,
        provider: &str,
        token: Option<&str>,
        request: &HttpRequest,
        body: Result<RawBody, Problem>,
    ) -> Result<WebhookResult, (WebhookOutcome, Problem)> {
        let provider = self.providers.get(provider);
        let provider =
            provider.ok_or_else(|| (WebhookOutcome::Unknown, Problem::not_found("provider")))?;
        let job = match token {
            None => None,
            Some(token) => {
                let job = self.links.verify_callback_token(provider.name(), token);
                Some(job.ok_or_else(|| (WebhookOutcome::Unknown, Problem::not_found("callback")))?)
            }
        };
        let RawBody(body) = body.map_err(|problem| match problem.status() {
            StatusCode::PAYLOAD_TOO_LARGE => (WebhookOutcome::TooLarge, problem),
            _ => (WebhookOutcome::Malformed, problem),
        })?;
        let headers = &RequestHeaders(request.headers());
        let sent = Request {
            headers,
            body: &body,
            url: &self.url(request),
        };
        let proof = provider
            .verify(&sent, Time::now())
            .await
            .map_err(|unproven| reject(provider, &unproven))?;
        let heard = provider.parse(&proof, headers).map_err(|shape| {
            let problem = Problem::new(
                StatusCode::BAD_REQUEST,
                "invalid_payload",
                shape.to_string(),
            );
            (WebhookOutcome::Malformed, problem)
        })?;
        let news = match heard {
            WebhookContent::Challenge(reply) => return Ok(WebhookResult::Answered(reply)),
            WebhookContent::Tasks(news) => news,
        };
        let recorded = self.apply_all(provider, job, news).await;
        if recorded
            .as_ref()
            .is_ok_and(|outcome| *outcome != WebhookOutcome::Unmatched)
        {
            provider.record_webhook();
        }
        recorded
            .map(WebhookResult::Told)
            .map_err(|error| (WebhookOutcome::Unavailable, error.into()))
    }

    /// This very webhook's address, as its sender knows it.
    fn url(&self, request: &HttpRequest) -> String {
        let path = request.uri().path_and_query();
        let path = path.map_or("/", |path| path.as_str());
        if let Some(public) = &self.server.public_url {
            return format!("{}{path}", public.as_str().trim_end_matches('/'));
        }
        let seen = request.connection_info();
        format!("{}://{}{path}", seen.scheme(), seen.host())
    }

    /// The furthest that any of the news came.
    async fn apply_all(
        &self,
        provider: &Provider,
        job: Option<JobId>,
        news: Vec<TaskReport>,
    ) -> Result<WebhookOutcome, Error> {
        // A token stands for one job, so among several tasks it names none.
        let job = job.filter(|_| news.len() == 1);
        let (mut applied, mut matched) = (false, false);
        for told in news {
            let outcome = if told.is_trusted {
                self.apply_trusted(provider, job.clone(), told).await?
            } else {
                self.poll_for_untrusted(provider, job.clone(), told).await?
            };
            applied |= outcome == WebhookOutcome::Applied;
            matched |= outcome != WebhookOutcome::Unmatched;
        }
        Ok(match (applied, matched) {
            (true, _) => WebhookOutcome::Applied,
            (false, true) => WebhookOutcome::Unchanged,
            (false, false) => WebhookOutcome::Unmatched,
        })
    }

    /// News whose every byte is its sender's: by the token, by our own name for the task, or by the
    /// provider's.
    async fn apply_trusted(
        &self,
        provider: &Provider,
        job: Option<JobId>,
        told: TaskReport,
    ) -> Result<WebhookOutcome, Error> {
        let TaskReport {
            task_id,
            reference,
            mut report,
            ..
        } = told;
        // A word that nobody knows may mean anything, so it is asked about.
        let is_unclear = report.status.is_none();
        let is_by_token = job.is_some();
        let named = job.or_else(|| reference.and_then(|name| JobId::parse(&name).ok()));
        report.task_id.clone_from(&task_id);
        if let Some(id) = named {
            let update = report.clone().into_update(Source::Webhook);
            match self
                .tracker
                .apply_provider_update(provider.name(), &id, update)
                .await
            {
                Ok(recorded) => return self.outcome(&recorded, is_unclear).await,
                // Forgotten by now; or a name that somebody else gave to a task.
                Err(Error::NotFound) if is_by_token => return Ok(WebhookOutcome::Unmatched),
                Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(task_id) = task_id else {
            return Ok(WebhookOutcome::Unmatched);
        };
        match self
            .tracker
            .apply_task_update(
                provider.name(),
                &task_id,
                report.into_update(Source::Webhook),
            )
            .await
        {
            Ok(TaskMatch::Job(recorded)) => self.outcome(&recorded, is_unclear).await,
            Ok(TaskMatch::Buffered) | Err(Error::NotFound) => Ok(WebhookOutcome::Unmatched),
            Err(error) => Err(error),
        }
    }

    async fn outcome(
        &self,
        recorded: &UpdateOutcome,
        is_unclear: bool,
    ) -> Result<WebhookOutcome, Error> {
        if is_unclear {
            self.tracker.request_poll(&recorded.job.id).await?;
        }
        Ok(match recorded.applied {
            true => WebhookOutcome::Applied,
            false => WebhookOutcome::Unchanged,
        })
    }

    /// News that anybody could have sent: a reason to ask the provider, and nothing more. But the
    /// job's own address is known to its provider alone, so whoever calls there may say which task
    /// came of a submission whose answer was lost.
    async fn poll_for_untrusted(
        &self,
        provider: &Provider,
        job: Option<JobId>,
        told: TaskReport,
    ) -> Result<WebhookOutcome, Error> {
        let id = match (job, told.task_id) {
            (Some(id), Some(task_id)) => {
                self.tracker
                    .bind_task(provider.name(), &id, task_id)
                    .await?;
                Some(id)
            }
            (Some(id), None) => Some(id),
            (None, Some(task_id)) => {
                self.tracker
                    .find_job_by_task(provider.name(), &task_id)
                    .await?
            }
            (None, None) => None,
        };
        let Some(id) = id else {
            return Ok(WebhookOutcome::Unmatched);
        };
        self.tracker.request_poll(&id).await?;
        Ok(WebhookOutcome::Unchanged)
    }
}

fn reject(provider: &Provider, unproven: &WebhookVerifyError) -> (WebhookOutcome, Problem) {
    tracing::warn!(
        provider.name = provider.name(),
        reason = unproven.code(),
        "refused a webhook"
    );
    let detail = unproven.to_string();
    match unproven {
        WebhookVerifyError::Signature(_) | WebhookVerifyError::NotAccepted => (
            WebhookOutcome::Unauthorized,
            Problem::new(StatusCode::UNAUTHORIZED, "invalid_signature", detail),
        ),
        WebhookVerifyError::KeysUnavailable { retry_after } => (
            WebhookOutcome::Unavailable,
            Problem::unavailable("keys_unavailable", detail, *retry_after),
        ),
    }
}

/// The headers of an HTTP request, as the signature schemes read them.
struct RequestHeaders<'r>(&'r HeaderMap);

impl Headers for RequestHeaders<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn pairs(&self) -> Vec<(&str, &str)> {
        self.0
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect()
    }
}
