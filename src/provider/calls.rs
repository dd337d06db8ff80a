//! How a call of a spec becomes a request, and an answer a value or a refusal.
//!
//! Invariant: every call of a provider's API is made here, from its spec and its job alone, with leave
//! of its gate, which is told how it went.

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Value;
use serde_json::Value as Json;
use url::Url;

use super::call::Call;
use super::expression;
use super::gate::{Health, Leave};
use super::http::{Answer, Method, Request};
use super::submission::Sent;
use super::{AskError, Provider, Refused};
use crate::job::{FailureKind, Job, VideoRequest};
use crate::time::Time;

/// How long a call may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer that is missing is a failure like any other.
const UNANSWERED: Health = Health::Unwell(FailureKind::Technical, None);

impl Provider {
    /// Sends a job that has not been sent before: a paid request, made at most once.
    pub async fn submit(&self, leave: Leave, job: &Job, callback_url: Option<&Url>) -> Sent {
        self.account.used(Time::now());
        let sent = self.send(job, callback_url).await;
        leave.end(match &sent {
            Sent::Accepted(_) => Health::Well,
            Sent::Refused(refused) => refused.health(),
            Sent::Lost(_) => UNANSWERED,
        });
        sent
    }

    /// Makes a call that may be repeated, when it is its turn; what its answer says, once the
    /// provider agreed.
    pub(super) async fn call(
        &self,
        call: &Call,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<Value, AskError> {
        let (_, payload) = self.agreed(call, otherwise, context).await?;
        Ok(payload)
    }

    /// The same with the HTTP status, for calls whose answers say it by that alone.
    pub(super) async fn agreed(
        &self,
        call: &Call,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<(u16, Value), AskError> {
        let leave = self.gate.enter(PATIENCE).await?;
        self.account.used(Time::now());
        let answer = self.exchange(call, otherwise, context).await;
        leave.end(match &answer {
            Ok(_) => Health::Well,
            Err(AskError::Refused(refused)) => refused.health(),
            Err(AskError::Unanswered(_)) => UNANSWERED,
            Err(AskError::Spec(_) | AskError::Held(_)) => Health::Unknown,
        });
        answer
    }

    /// The same for a call beside the way: how it ends says nothing of how jobs would fare.
    pub(super) async fn peek(
        &self,
        call: &Call,
        context: &BTreeMap<String, Json>,
    ) -> Result<Value, AskError> {
        let leave = self.gate.enter(PATIENCE).await?;
        let answer = self.exchange(call, Method::Get, context).await;
        drop(leave);
        answer.map(|(_, payload)| payload)
    }

    async fn exchange(
        &self,
        call: &Call,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<(u16, Value), AskError> {
        let request = self
            .request(call, otherwise, context)
            .map_err(AskError::Spec)?;
        let answer = self
            .http
            .send(request)
            .await
            .map_err(|failed| AskError::Unanswered(failed.to_string()))?;
        let payload = answer.json();
        match self.refusal(&answer, &payload) {
            Some(refused) => Err(AskError::Refused(refused)),
            None => Ok((answer.status, payload)),
        }
    }

    /// What a call that is about no job knows.
    pub(super) fn account_context(&self) -> BTreeMap<String, Json> {
        BTreeMap::from([
            (
                "now".to_owned(),
                Time::now().millis().div_euclid(1000).into(),
            ),
            ("base_url".to_owned(), self.home.as_str().into()),
            ("api_key".to_owned(), self.api_key.as_str().into()),
            ("secret_key".to_owned(), self.secret_key.as_str().into()),
            (
                "webhook_secret".to_owned(),
                self.webhook_secret.as_str().into(),
            ),
        ])
    }

    /// What templates and bodies of calls about this job know.
    pub(super) fn context(&self, job: &Job) -> BTreeMap<String, Json> {
        let asked_for = job.internal.request.as_ref();
        let parameters = asked_for.map(VideoRequest::template_params).unwrap_or_default();
        let parameters = parameters
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let model = job.model.clone().map_or(Json::Null, Json::from);
        let mut context = self.account_context();
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

    pub(super) fn request(
        &self,
        call: &Call,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<Request, String> {
        let context = Value::from_serialize(context);
        let url = call
            .url
            .render(&context)
            .map_err(|error| format!("url: {error}"))?;
        let url = self.home.resolve(&url).ok_or("url: is none")?;
        if !call.url.names_its_host() && !self.home.is_own(&url) {
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
            body: body.map(expression::lean),
        })
    }

    /// What is wrong with an answer, if anything is.
    pub(super) fn refusal(&self, answer: &Answer, payload: &Value) -> Option<Refused> {
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
