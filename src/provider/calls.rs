//! How a call of a spec becomes a request, and an answer a value or a refusal.
//!
//! Invariant: every request to a provider is made here, from its spec and its job alone.

use std::collections::BTreeMap;

use minijinja::Value;
use serde_json::Value as Json;
use url::Url;

use super::expression;
use super::http::{Answer, Method, Request};
use super::spec::Call;
use super::{AskError, Provider, Refused};
use crate::job::{Job, VideoRequest};
use crate::time::Time;

impl Provider {
    /// Makes a call that may be repeated; what its answer says, once the provider agreed.
    pub(super) async fn call(
        &self,
        call: &Call,
        otherwise: Method,
        context: &BTreeMap<String, Json>,
    ) -> Result<Value, AskError> {
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
            None => Ok(payload),
        }
    }

    /// What templates and bodies of calls about this job know.
    pub(super) fn context(&self, job: &Job) -> BTreeMap<String, Json> {
        let asked_for = job.ticket.request.as_ref();
        let parameters = asked_for.map(VideoRequest::parameters).unwrap_or_default();
        let parameters = parameters
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let model = job.model.clone().map_or(Json::Null, Json::from);
        let mut context = BTreeMap::from([
            ("model".to_owned(), model),
            (
                "now".to_owned(),
                Time::now().millis().div_euclid(1000).into(),
            ),
            ("base_url".to_owned(), self.base_url.as_str().into()),
            ("api_key".to_owned(), self.api_key.as_str().into()),
            ("secret_key".to_owned(), self.secret_key.as_str().into()),
            ("reference".to_owned(), job.id.as_str().into()),
            (
                "task_id".to_owned(),
                job.provider_task_id.clone().map_or(Json::Null, Json::from),
            ),
            ("handle".to_owned(), job.ticket.handle.clone()),
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
        let url = Url::parse(&url).map_err(|error| format!("url: {error}"))?;
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
        let is_ok = answer.is_success() && self.spec.answer.is_ok(payload);
        if is_ok {
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
