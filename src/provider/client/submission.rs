//! A rendered submission, and the variables of prices, checks and tiers.
//!
//! Invariant: admission checks the request that is sent. Admission and the client render it with
//! the same function and the same callback URL. The variables are read from the rendered URL and
//! body if the definition has expressions for them.

use minijinja::context;
use serde_json::{Map, Value as Json};
use url::Url;

use super::http::Request;
use super::request::RequestRenderer;
use crate::job::{Job, VideoRequest};
use crate::provider::spec::request_spec::{Method, Parameter, RequestSpec};

/// Placeholder for the callback URL of a job that has none.
const ANY_CALLBACK_URL: &str = "https://callback.invalid/";

/// A rendered submission.
pub struct Submission {
    pub(super) request: Request,
    /// Variables of prices, checks and tiers.
    variables: Map<String, Json>,
    /// Name of the first parameter whose expression failed, with the reason.
    unreadable: Option<String>,
}

impl Submission {
    /// Returns the parameters of the request by name, and the request itself as `body`, `path` and
    /// `query`.
    #[must_use]
    pub fn variables(&self) -> &Map<String, Json> {
        &self.variables
    }

    /// Returns the model that the request names.
    #[must_use]
    pub fn model(&self) -> &str {
        let model = self.variables.get(Parameter::Model.as_str());
        model.and_then(Json::as_str).unwrap_or_default()
    }

    /// Checks that every parameter could be read from the request.
    ///
    /// # Errors
    /// Returns a description that begins with the name of the parameter, for example if the
    /// duration is not a number.
    pub fn check_readable(&self) -> Result<(), &str> {
        self.unreadable.as_deref().map_or(Ok(()), Err)
    }
}

impl RequestRenderer {
    /// Renders the submission of a job. Keys of `input` are checked against the request with a
    /// callback URL, for which a placeholder is used if there is none.
    ///
    /// # Errors
    /// Returns a description that begins with the key in the request or in the definition.
    pub(super) fn submission(
        &self,
        spec: &RequestSpec,
        job: &Job,
        request: &VideoRequest,
        callback_url: Option<&Url>,
    ) -> Result<Submission, String> {
        let render = |callback_url: Option<&str>, with_input: bool| {
            let mut context = self.job_context(job);
            context.insert("callback_url".to_owned(), callback_url.into());
            if !with_input {
                context.insert("input".to_owned(), Json::Object(Map::new()));
            }
            self.render(spec, Method::Post, &context)
        };
        let callback_url = callback_url.map(Url::as_str);
        let with_callback = Some(callback_url.unwrap_or(ANY_CALLBACK_URL));
        if !request.input.is_empty() {
            let own = render(with_callback, false)?.body.unwrap_or_default();
            let merged = render(with_callback, true)?.body.unwrap_or_default();
            spec.input.check_merge(&request.input, &own, &merged)?;
        }
        let rendered = render(callback_url, true)?;
        let (variables, unreadable) = self.read_back(spec, request, &rendered);
        Ok(Submission {
            request: rendered,
            variables,
            unreadable,
        })
    }

    /// Returns the variables of a rendered request, and the first parameter that could not be read
    /// with the reason. Parameters without an expression in the definition have their value in
    /// `request`.
    fn read_back(
        &self,
        spec: &RequestSpec,
        request: &VideoRequest,
        rendered: &Request,
    ) -> (Map<String, Json>, Option<String>) {
        let (path, query) = self.base_url.split(&rendered.url);
        let body = &rendered.body;
        let names = context! { path, query, body };
        let mut variables: Map<String, Json> = request
            .template_params()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let mut unreadable = None;
        for (parameter, expression) in &spec.parameters {
            let name = parameter.as_str();
            match expression.json(&names) {
                Ok(Json::Null) => drop(variables.remove(name)),
                Ok(value) => drop(variables.insert(name.to_owned(), value)),
                Err(error) => {
                    variables.remove(name);
                    unreadable.get_or_insert(format!("{name}: {error}"));
                }
            }
        }
        for (name, value) in [
            ("body", body.clone().unwrap_or_default()),
            ("path", path.into()),
            ("query", query.into()),
        ] {
            variables.insert(name.to_owned(), value);
        }
        (variables, unreadable)
    }
}
