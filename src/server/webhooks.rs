//! `/v1/webhooks`: what providers say of their tasks.
//!
//! Invariant: raw bytes are proven before they are parsed, and the answer is 2xx only once the news
//! is on disk; everything else makes the sender try again or tells it why not to.

use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;

use super::problem::Problem;
use super::request::Raw;
use crate::job::{JobId, Source};
use crate::links::Links;
use crate::provider::{Provider, Providers, Told};
use crate::signature::Refusal;
use crate::telemetry::{Metrics, WebhookOutcome};
use crate::time::Time;
use crate::tracker::{Error, Matched, Recorded, Tracker};

/// `POST /v1/webhooks/{provider}`: finds the job by the task's id.
pub async fn by_task(
    news: News,
    provider: web::Path<String>,
    request: HttpRequest,
    body: Result<Raw, Problem>,
) -> Result<HttpResponse, Problem> {
    news.take(&provider, None, &request, body).await
}

/// `POST /v1/webhooks/{provider}/{callback_token}`: finds the job by its own token.
pub async fn by_token(
    news: News,
    path: web::Path<(String, String)>,
    request: HttpRequest,
    body: Result<Raw, Problem>,
) -> Result<HttpResponse, Problem> {
    let (provider, token) = path.into_inner();
    news.take(&provider, Some(&token), &request, body).await
}

/// What taking news in touches.
pub struct News {
    tracker: web::Data<Tracker>,
    providers: web::Data<Providers>,
    links: web::Data<Links>,
    metrics: web::Data<Metrics>,
}

impl actix_web::FromRequest for News {
    type Error = Problem;
    type Future = std::future::Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut actix_web::dev::Payload) -> Self::Future {
        let news = || {
            Some(Self {
                tracker: request.app_data::<web::Data<Tracker>>()?.clone(),
                providers: request.app_data::<web::Data<Providers>>()?.clone(),
                links: request.app_data::<web::Data<Links>>()?.clone(),
                metrics: request.app_data::<web::Data<Metrics>>()?.clone(),
            })
        };
        std::future::ready(news().ok_or_else(|| Problem::not_found("resource")))
    }
}

impl News {
    async fn take(
        &self,
        provider: &str,
        token: Option<&str>,
        request: &HttpRequest,
        body: Result<Raw, Problem>,
    ) -> Result<HttpResponse, Problem> {
        let begun = Instant::now();
        let taken = self.record(provider, token, request, body).await;
        self.metrics.webhook_took(begun.elapsed());
        match taken {
            Ok(outcome) => {
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

    async fn record(
        &self,
        provider: &str,
        token: Option<&str>,
        request: &HttpRequest,
        body: Result<Raw, Problem>,
    ) -> Result<WebhookOutcome, (WebhookOutcome, Problem)> {
        let provider = self.providers.get(provider);
        let provider =
            provider.ok_or_else(|| (WebhookOutcome::Unknown, Problem::not_found("provider")))?;
        let job = match token {
            None => None,
            Some(token) => {
                let job = self.links.job_of(provider.name(), token);
                Some(job.ok_or_else(|| (WebhookOutcome::Unknown, Problem::not_found("callback")))?)
            }
        };
        let Raw(body) = body.map_err(|problem| match problem.status() {
            StatusCode::PAYLOAD_TOO_LARGE => (WebhookOutcome::TooLarge, problem),
            _ => (WebhookOutcome::Malformed, problem),
        })?;
        let header = |name: &str| {
            request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let proof = provider
            .verify(&header, &body, Time::now())
            .map_err(|refusal| unproven(provider, &refusal))?;
        let told = provider.parse(&proof).map_err(|shape| {
            let problem = Problem::new(
                StatusCode::BAD_REQUEST,
                "invalid_payload",
                shape.to_string(),
            );
            (WebhookOutcome::Malformed, problem)
        })?;
        let recorded = if told.is_trusted {
            self.believe(provider, job, told).await
        } else {
            self.look(provider, job, told).await
        };
        if recorded
            .as_ref()
            .is_ok_and(|outcome| *outcome != WebhookOutcome::Unmatched)
        {
            provider.heard();
        }
        recorded.map_err(|error| (WebhookOutcome::Unavailable, error.into()))
    }

    /// News whose every byte is its sender's: by the token, by our own name for the task, or by the
    /// provider's.
    async fn believe(
        &self,
        provider: &Provider,
        job: Option<JobId>,
        told: Told,
    ) -> Result<WebhookOutcome, Error> {
        let Told {
            task_id,
            reference,
            mut report,
            ..
        } = told;
        let is_by_token = job.is_some();
        let named = job.or_else(|| reference.and_then(|name| JobId::parse(&name).ok()));
        report.task_id.clone_from(&task_id);
        if let Some(id) = named {
            let update = report.clone().from_source(Source::Webhook);
            match self.tracker.record_from(provider.name(), &id, update).await {
                Ok(recorded) => return Ok(applied(&recorded)),
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
            .record_task(
                provider.name(),
                &task_id,
                report.from_source(Source::Webhook),
            )
            .await
        {
            Ok(Matched::Job(recorded)) => Ok(applied(&recorded)),
            Ok(Matched::Parked) | Err(Error::NotFound) => Ok(WebhookOutcome::Unmatched),
            Err(error) => Err(error),
        }
    }

    /// News that anybody could have sent: a reason to ask the provider, and nothing more.
    async fn look(
        &self,
        provider: &Provider,
        job: Option<JobId>,
        told: Told,
    ) -> Result<WebhookOutcome, Error> {
        let id = match (job, told.task_id) {
            (Some(id), _) => Some(id),
            (None, Some(task_id)) => self.tracker.find_task(provider.name(), &task_id).await?,
            (None, None) => None,
        };
        let Some(id) = id else {
            return Ok(WebhookOutcome::Unmatched);
        };
        self.tracker.hasten(&id).await?;
        Ok(WebhookOutcome::Unchanged)
    }
}

fn applied(recorded: &Recorded) -> WebhookOutcome {
    if recorded.applied {
        WebhookOutcome::Applied
    } else {
        WebhookOutcome::Unchanged
    }
}

fn unproven(provider: &Provider, refusal: &Refusal) -> (WebhookOutcome, Problem) {
    tracing::warn!(
        provider.name = provider.name(),
        reason = refusal.code(),
        "refused a webhook"
    );
    (
        WebhookOutcome::Unauthorized,
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "invalid_signature",
            refusal.to_string(),
        ),
    )
}
