//! Renders the requests of a spec from a job and the configured credentials.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::Value;
use reqwest::header::HeaderMap;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value as Json;

use super::base_url::BaseUrl;
use super::http::{Request, header_map};
use crate::config::ProviderConfig;
use crate::job::{Job, VideoRequest};
use crate::provider::spec::Spec;
use crate::provider::spec::expression::Template;
use crate::provider::spec::request_spec::{Method, RequestSpec};
use crate::provider::spec::value::without_nulls;
use crate::time::Time;

/// Values that templates and expressions can use, by name.
pub(super) type Context = BTreeMap<String, Json>;

/// Renders requests to one provider.
pub(super) struct RequestRenderer {
    spec: Arc<Spec>,
    pub(super) base_url: BaseUrl,
    api_key: String,
    secret_key: String,
    webhook_secret: String,
}

impl RequestRenderer {
    pub(super) fn new(spec: Arc<Spec>, base_url: BaseUrl, settings: &ProviderConfig) -> Self {
        let expose = |secret: Option<&SecretString>| {
            secret.map_or_else(String::new, |secret| secret.expose_secret().to_owned())
        };
        Self {
            spec,
            base_url,
            api_key: expose(settings.api_key.as_ref()),
            secret_key: expose(settings.secret_key.as_ref()),
            webhook_secret: expose(settings.webhook_secrets.first()),
        }
    }

    /// Returns the values for a request that concerns no job.
    pub(super) fn base_context(&self) -> Context {
        let now = Time::now().millis().div_euclid(1000);
        [
            ("now", now.into()),
            ("base_url", self.base_url.as_str().into()),
            ("api_key", self.api_key.as_str().into()),
            ("secret_key", self.secret_key.as_str().into()),
            ("webhook_secret", self.webhook_secret.as_str().into()),
        ]
        .map(|(name, value): (&str, Json)| (name.to_owned(), value))
        .into()
    }

    /// Returns the values for a request that concerns a job.
    pub(super) fn job_context(&self, job: &Job) -> Context {
        let request = job.internal.request.as_ref();
        let parameters = request
            .map(VideoRequest::template_params)
            .unwrap_or_default();
        let mut context = self.base_context();
        context.extend(
            [
                ("model", job.model.clone().into()),
                ("reference", job.id.as_str().into()),
                ("task_id", job.provider_task_id.clone().into()),
                ("handle", job.internal.handle.clone()),
            ]
            .into_iter()
            .chain(parameters)
            .map(|(name, value)| (name.to_owned(), value)),
        );
        context
    }

    /// Renders a request.
    ///
    /// # Errors
    /// Returns a description that begins with the key in the spec. A URL of another origin is an
    /// error unless the spec names its host literally, because the request contains the API key.
    pub(super) fn render(
        &self,
        spec: &RequestSpec,
        default_method: Method,
        context: &Context,
    ) -> Result<Request, String> {
        let context = Value::from_serialize(context);
        let url = spec.url.render(&context);
        let url = url.map_err(|error| format!("url: {error}"))?;
        let url = self.base_url.resolve(url.trim());
        let url = url.ok_or("url: invalid, or its path contains '.', '..' or empty segments")?;
        if !spec.url.has_literal_host() && !self.base_url.is_same_origin(&url) {
            return Err("url: not of the provider's origin".to_owned());
        }
        let mut headers = render_headers(&self.spec.headers, &context)?;
        headers.extend(render_headers(&spec.headers, &context)?);
        let body = spec.body.as_ref().map(|body| body.json(&context));
        let body = body.transpose().map_err(|error| format!("body: {error}"))?;
        Ok(Request {
            method: spec.method.unwrap_or(default_method),
            url,
            headers,
            body: body.map(without_nulls),
        })
    }

    /// Renders the headers that every request to the provider has. They contain the API key.
    pub(super) fn auth_headers(&self, job: &Job) -> Result<HeaderMap, String> {
        let context = Value::from_serialize(self.job_context(job));
        header_map(render_headers(&self.spec.headers, &context)?)
    }
}

fn render_headers(
    headers: &BTreeMap<String, Template>,
    context: &Value,
) -> Result<Vec<(String, String)>, String> {
    let headers = headers.iter();
    headers
        .map(|(name, template)| match template.render(context) {
            Ok(value) => Ok((name.clone(), value)),
            Err(error) => Err(format!("headers.{name}: {error}")),
        })
        .collect()
}
