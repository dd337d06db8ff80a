//! How a call of a spec becomes a request, and an answer a value or a refusal.
//!
//! Invariant: every call of a provider's API is made here, from its spec and its job alone, with leave
//! of its gate, which is told how it went.

pub(in crate::provider) mod balance;
pub(in crate::provider) mod base_url;
pub(in crate::provider) mod cancel;
pub(in crate::provider) mod download;
pub(in crate::provider) mod error;
pub(in crate::provider) mod http;
pub(in crate::provider) mod public_ip;
pub(in crate::provider) mod query;
pub(in crate::provider) mod retry_hints;
pub(in crate::provider) mod submission;

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Value;
use serde_json::Value as Json;
use url::Url;

use crate::job::{FailureKind, Job, VideoRequest};
use crate::provider::breaker::{Permit, RequestResult};
use crate::provider::client::http::{Method, Request, Response};
use crate::provider::client::submission::SubmitOutcome;
use crate::provider::spec::expression;
use crate::provider::spec::request_spec::RequestSpec;
use crate::provider::{Provider, Rejection, RequestError};
use crate::time::Time;

/// How long a call may wait for its turn.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// An answer that is missing is a failure like any other.
const UNANSWERED: RequestResult = RequestResult::Failure(FailureKind::Technical, None);

impl Provider {
    /// Sends a job that has not been sent before: a paid request, made at most once.
    pub async fn submit(
        &self,
        leave: Permit,
        job: &Job,
        callback_url: Option<&Url>,
    ) -> SubmitOutcome {
        self.balance_cache.mark_used(Time::now());
        let sent = self.send(job, callback_url).await;
        leave.complete(match &sent {
            SubmitOutcome::Accepted(_) => RequestResult::Success,
            SubmitOutcome::Rejected(refused) => refused.breaker_result(),
            SubmitOutcome::Unknown(_) => UNANSWERED,
        });
        sent
    }

    /// Makes a call that may be repeated, when it is its turn; what its answer says, once the
    /// provider agreed.
    pub(in crate::provider) async fn call(
        &self,
        call: &RequestSpec,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<Value, RequestError> {
        let (_, payload) = self.send_checked(call, otherwise, context).await?;
        Ok(payload)
    }

    /// The same with the HTTP status, for calls whose answers say it by that alone.
    pub(in crate::provider) async fn send_checked(
        &self,
        call: &RequestSpec,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<(u16, Value), RequestError> {
        let leave = self.gate.acquire(PERMIT_TIMEOUT).await?;
        self.balance_cache.mark_used(Time::now());
        let answer = self.execute(call, otherwise, context).await;
        leave.complete(match &answer {
            Ok(_) => RequestResult::Success,
            Err(RequestError::Rejected(refused)) => refused.breaker_result(),
            Err(RequestError::NoResponse(_)) => UNANSWERED,
            Err(RequestError::InvalidSpec(_) | RequestError::CircuitOpen(_)) => {
                RequestResult::NotSent
            }
        });
        answer
    }

    /// The same for a call beside the way: how it ends says nothing of how jobs would fare.
    pub(in crate::provider) async fn send_uncounted(
        &self,
        call: &RequestSpec,
        context: &BTreeMap<String, Json>,
    ) -> Result<Value, RequestError> {
        let leave = self.gate.acquire(PERMIT_TIMEOUT).await?;
        let answer = self.execute(call, Method::Get, context).await;
        drop(leave);
        answer.map(|(_, payload)| payload)
    }

    async fn execute(
        &self,
        call: &RequestSpec,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<(u16, Value), RequestError> {
        let request = self
            .request(call, otherwise, context)
            .map_err(RequestError::InvalidSpec)?;
        let answer = self
            .http
            .send(request)
            .await
            .map_err(|failed| RequestError::NoResponse(failed.to_string()))?;
        let payload = answer.json();
        match self.rejection(&answer, &payload) {
            Some(refused) => Err(RequestError::Rejected(refused)),
            None => Ok((answer.status, payload)),
        }
    }

    /// What a call that is about no job knows.
    pub(in crate::provider) fn base_context(&self) -> BTreeMap<String, Json> {
        BTreeMap::from([
            (
                "now".to_owned(),
                Time::now().millis().div_euclid(1000).into(),
            ),
            ("base_url".to_owned(), self.base_url.as_str().into()),
            ("api_key".to_owned(), self.api_key.as_str().into()),
            ("secret_key".to_owned(), self.secret_key.as_str().into()),
            (
                "webhook_secret".to_owned(),
                self.webhook_secret.as_str().into(),
            ),
        ])
    }

    /// What templates and bodies of calls about this job know.
    pub(in crate::provider) fn context(&self, job: &Job) -> BTreeMap<String, Json> {
        let asked_for = job.internal.request.as_ref();
        let parameters = asked_for
            .map(VideoRequest::template_params)
            .unwrap_or_default();
        let parameters = parameters
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let model = job.model.clone().map_or(Json::Null, Json::from);
        let mut context = self.base_context();
        context.extend([
            ("model".to_owned(), model),
            ("reference".to_owned(), job.id.as_str().into()),
            (
                "task_id".to_owned(),
                job.provider_task_id.clone().map_or(Json::Null, Json::from),
            ),
            ("handle".to_owned(), job.internal.handle.clone()),
        ]);
        context.extend(parameters);
        context
    }

    pub(in crate::provider) fn request(
        &self,
        call: &RequestSpec,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<Request, String> {
        let context = Value::from_serialize(context);
        let url = call
            .url
            .render(&context)
            .map_err(|error| format!("url: {error}"))?;
        let url = self.base_url.resolve(&url).ok_or("url: is none")?;
        if !call.url.names_its_host() && !self.base_url.is_same_origin(&url) {
            return Err("url: is not one of the provider's own".to_owned());
        }
        let mut headers = Vec::new();
        for (name, template) in self.spec.headers.iter().chain(&call.headers) {
            let value = template
                .render(&context)
                .map_err(|error| format!("headers.{name}: {error}"))?;
            headers.push((name.clone(), value));
        }
        let body = match &call.body {
            Some(body) => Some(
                body.json(&context)
                    .map_err(|error| format!("body: {error}"))?,
            ),
            None => None,
        };
        Ok(Request {
            method: call.method.unwrap_or(otherwise),
            url,
            headers,
            body: body.map(expression::without_nulls),
        })
    }

    /// What is wrong with an answer, if anything is.
    pub(in crate::provider) fn rejection(
        &self,
        answer: &Response,
        payload: &Value,
    ) -> Option<Rejection> {
        if self.spec.answer.is_ok(answer, payload) {
            return None;
        }
        Some(
            self.spec
                .read
                .rules
                .refusal(answer, &self.spec.answer, payload),
        )
    }
}
