//! Providers: what differs between them is data (a spec), what they share is here.
//!
//! Invariant: a body is parsed only once it is [`Verified`], a paid request is sent at most once a
//! call, and an answer that may have been an acceptance is never told as a refusal.

mod error;
mod expression;
mod http;
mod reading;
mod spec;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use minijinja::Value;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value as Json;
use url::Url;

use crate::config::{Config, Mistake, ProviderConfig};
use crate::job::{Job, JobId, Report};
use crate::signature::{Headers, Key, Refusal, Scheme, Trust, Verified};
use crate::time::Time;

pub use error::{Ambiguous, AskError, Refused};
use http::{Answer, Failed, Method, Request};
pub use http::{Fetcher, Http, NoClient};
pub use reading::{NotItsShape, Told};
use spec::{Call, Requirement, Spec};

/// How and when a provider is asked.
#[derive(Clone, Copy, Debug)]
pub struct Cadence {
    /// Silence after which a job is asked about; none where the provider can't be asked.
    pub poll_after: Option<Duration>,
    /// How often, from then on.
    pub poll_every: Duration,
    /// How long a job may take in all.
    pub deadline: Duration,
}

/// A configured provider: its spec with the operator's keys and settings.
pub struct Provider {
    name: String,
    spec: Spec,
    http: Http,
    base_url: String,
    api_key: String,
    secret_key: String,
    webhook_keys: Vec<Key>,
    cadence: Cadence,
    max_concurrent: usize,
}

/// How a try at submitting ended.
#[derive(Clone, Debug)]
pub enum Sent {
    /// The provider has the job, under the report's `task_id`.
    Accepted(Report),
    /// It does not have the job, for sure.
    Refused(Refused),
    /// It may or may not have the job.
    Lost(Ambiguous),
}

/// All configured providers.
pub struct Providers {
    by_name: BTreeMap<String, Arc<Provider>>,
}

impl Providers {
    /// Compiles the spec of every configured provider.
    ///
    /// # Errors
    /// All mistakes at once: unknown specs, mistakes keys, and whatever is wrong in a spec file, each
    /// by its key.
    pub fn load(config: &Config, http: &Http) -> Result<Self, Vec<Mistake>> {
        let mut by_name = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, settings) in &config.providers {
            match Provider::new(name, settings, http.clone()) {
                Ok(provider) => {
                    by_name.insert(name.clone(), Arc::new(provider));
                }
                Err(found) => mistakes.extend(found.into_iter().map(|(key, problem)| Mistake {
                    key: format!("providers.{name}.{key}"),
                    problem,
                })),
            }
        }
        if mistakes.is_empty() {
            Ok(Self { by_name })
        } else {
            Err(mistakes)
        }
    }

    /// The provider of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.by_name.get(name)
    }

    /// The one that the hub can submit to, where there is no other.
    #[must_use]
    pub fn only_one(&self) -> Option<&Arc<Provider>> {
        let mut takers = self.iter().filter(|provider| provider.can_submit());
        takers.next().filter(|_| takers.next().is_none())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.by_name.values()
    }
}

impl Provider {
    fn new(
        name: &str,
        settings: &ProviderConfig,
        http: Http,
    ) -> Result<Self, Vec<(String, String)>> {
        let spec = Spec::load(&settings.spec)?;
        let text = |secret: &Option<SecretString>| {
            secret
                .as_ref()
                .map(|secret| secret.expose_secret().to_owned())
                .unwrap_or_default()
        };
        let base_url = settings
            .base_url
            .as_ref()
            .map(|url| url.as_str().trim_end_matches('/').to_owned());
        let base_url = base_url.or_else(|| spec.base_url.clone());
        let mut mistakes = Vec::new();
        for requirement in &spec.requires {
            let (key, is_there) = match requirement {
                Requirement::ApiKey => ("api_key", settings.api_key.is_some()),
                Requirement::SecretKey => ("secret_key", settings.secret_key.is_some()),
                Requirement::WebhookSecrets => {
                    ("webhook_secrets", !settings.webhook_secrets.is_empty())
                }
                Requirement::BaseUrl => ("base_url", base_url.is_some()),
            };
            if !is_there {
                mistakes.push((
                    key.to_owned(),
                    format!("is needed by the spec '{}'", settings.spec),
                ));
            }
        }
        let webhook_keys: Vec<Key> = settings
            .webhook_secrets
            .iter()
            .cloned()
            .map(Key::from)
            .collect();
        for (at, key) in webhook_keys.iter().enumerate() {
            if let Some(problem) = spec.signature.problem_with(key) {
                mistakes.push((format!("webhook_secrets[{at}]"), problem.to_owned()));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let cadence = Cadence {
            poll_after: spec
                .poll
                .as_ref()
                .map(|_| settings.poll_after.unwrap_or(spec.poll_after)),
            poll_every: settings.poll_every.unwrap_or(spec.poll_every),
            deadline: settings.deadline.unwrap_or(spec.deadline),
        };
        Ok(Self {
            name: name.to_owned(),
            http,
            base_url: base_url.unwrap_or_default(),
            api_key: text(&settings.api_key),
            secret_key: text(&settings.secret_key),
            webhook_keys,
            cadence,
            max_concurrent: settings.max_concurrent.unwrap_or(spec.max_concurrent),
            spec,
        })
    }

    /// Its name in the configuration, in URLs and in documents.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How and when it is asked.
    #[must_use]
    pub fn cadence(&self) -> Cadence {
        self.cadence
    }

    /// How many jobs it may have at once, from being sent to their end.
    #[must_use]
    pub fn max_concurrent(&self) -> usize {
        self.max_concurrent
    }

    /// Whether the hub can submit to it.
    #[must_use]
    pub fn can_submit(&self) -> bool {
        self.spec.submit.is_some()
    }

    /// Whether a job there can be cancelled.
    #[must_use]
    pub fn can_cancel(&self) -> bool {
        self.spec.cancel.is_some()
    }

    /// Proves who sent a webhook.
    ///
    /// # Errors
    /// Whatever the signature scheme refuses. Where no secret is configured and the provider can be
    /// asked, nothing is refused and nothing is trusted either.
    pub fn verify<'a>(
        &self,
        headers: &Headers<'_>,
        body: &'a [u8],
        now: Time,
    ) -> Result<Verified<'a>, Refusal> {
        let unproven = self.webhook_keys.is_empty() && self.cadence.poll_after.is_some();
        let scheme = if unproven {
            &Scheme::None {}
        } else {
            &self.spec.signature
        };
        scheme.verify(headers, body, &self.webhook_keys, now.timestamp())
    }

    /// Reads a proven webhook: which task it is about, and what it says of it.
    ///
    /// # Errors
    /// [`NotItsShape`] when the body is not what this provider sends.
    pub fn parse(&self, proof: &Verified<'_>) -> Result<Told, NotItsShape> {
        let payload: Json =
            serde_json::from_slice(proof.body()).map_err(|_| NotItsShape::NotJson)?;
        let item = self.spec.webhook.evaluate(&Value::from_serialize(&payload));
        let mut told = self.spec.read.told(&item).ok_or(NotItsShape::NoTask)?;
        if told.report.status.is_none() && !told.has_status_word {
            return Err(NotItsShape::NoStatus);
        }
        told.report.conclusive = self.cadence.poll_after.is_none();
        told.is_trusted = proof.trust() == Trust::Signed;
        Ok(told)
    }

    /// Sends a job that has not been sent before.
    pub async fn submit(&self, job: &Job, callback_url: Option<&Url>) -> Sent {
        let (Some(call), Some(request)) = (&self.spec.submit, &job.ticket.request) else {
            return Sent::Refused(Refused::unsupported(
                "this provider takes no submissions from the hub",
            ));
        };
        let mut context = self.context(job);
        context.extend(
            request
                .parameters()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        context.insert(
            "callback_url".to_owned(),
            callback_url.map_or(Json::Null, |url| url.as_str().into()),
        );
        let request = match self.request(call, Method::Post, &context) {
            Ok(request) => request,
            Err(problem) => return Sent::Refused(Refused::unsupported(problem)),
        };
        let answer = match self.http.send_once(request).await {
            Ok(answer) => answer,
            Err(Failed::NotSent(why)) => return Sent::Refused(Refused::technical(why)),
            Err(Failed::Lost(why)) => return Sent::Lost(Ambiguous(why)),
        };
        let payload = answer.json();
        if let Some(refused) = self.refusal(&answer, &payload) {
            return match refused.is_certain {
                true => Sent::Refused(refused),
                false => Sent::Lost(Ambiguous(refused.failure.message)),
            };
        }
        let item = call.items.evaluate(&payload);
        match self.spec.read.told(&item) {
            Some(Told {
                mut report,
                task_id: Some(task_id),
                ..
            }) => {
                report.task_id = Some(task_id);
                report.status = report.status.filter(|status| !status.is_final());
                report.status.get_or_insert(crate::job::Status::Queued);
                let handle = call.handle.as_ref().map(|it| it.evaluate(&payload));
                report.handle = handle
                    .and_then(|handle| serde_json::to_value(handle).ok())
                    .unwrap_or_default();
                Sent::Accepted(report)
            }
            Some(_) | None => Sent::Lost(Ambiguous(
                "the answer to the submission names no task".to_owned(),
            )),
        }
    }

    /// How many jobs one [`Provider::ask`] may be about.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.spec.poll.as_ref().map_or(1, |poll| poll.batch.get())
    }

    /// Whether this job can be asked about: by the provider's id, or where there is none yet, by ours.
    #[must_use]
    pub fn can_ask(&self, job: &Job) -> bool {
        self.spec
            .poll
            .as_ref()
            .is_some_and(|poll| job.provider_task_id.is_some() || poll.by_reference)
    }

    /// Asks about jobs, at most [`Provider::batch`] of them, either all with the provider's id or all
    /// without. A job the provider does not know has no report.
    ///
    /// # Errors
    /// [`AskError`] when there was no usable answer.
    pub async fn ask(&self, jobs: &[Arc<Job>]) -> Result<Vec<(JobId, Report)>, AskError> {
        let (Some(poll), Some(first)) = (&self.spec.poll, jobs.first()) else {
            return Ok(Vec::new());
        };
        let tasks: Vec<Json> = jobs
            .iter()
            .filter_map(|job| job.provider_task_id.clone())
            .map(Json::from)
            .collect();
        let references: Vec<Json> = jobs.iter().map(|job| job.id.as_str().into()).collect();
        let mut context = self.context(first);
        context.insert("tasks".to_owned(), tasks.into());
        context.insert("references".to_owned(), references.into());
        let payload = self.call(poll, Method::Get, &context).await?;
        let mut reports = Vec::new();
        for item in expression::items(&poll.items.evaluate(&payload)) {
            let Some(mut told) = self.spec.read.told(&item) else {
                continue;
            };
            let is_its = |job: &&Arc<Job>| match (&job.provider_task_id, &told.task_id) {
                (Some(ours), Some(theirs)) => ours == theirs,
                (None, _) | (_, None) => told.reference.as_deref() == Some(job.id.as_str()),
            };
            let Some(job) = jobs.iter().find(is_its) else {
                continue;
            };
            told.report.task_id = told.task_id.take();
            told.report.conclusive = true;
            reports.push((job.id.clone(), told.report));
        }
        Ok(reports)
    }

    /// Asks the provider to cancel a job.
    ///
    /// # Errors
    /// [`AskError`] when it did not agree.
    pub async fn cancel(&self, job: &Job) -> Result<(), AskError> {
        let Some(call) = &self.spec.cancel else {
            return Err(AskError::Refused(Refused::unsupported(
                "this provider can't cancel",
            )));
        };
        let context = self.context(job);
        self.call(call, Method::Post, &context).await.map(|_| ())
    }

    /// Makes a call that may be repeated; what its answer says, once the provider agreed.
    async fn call(
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

    fn context(&self, job: &Job) -> BTreeMap<String, Json> {
        BTreeMap::from([
            ("base_url".to_owned(), self.base_url.as_str().into()),
            ("api_key".to_owned(), self.api_key.as_str().into()),
            ("secret_key".to_owned(), self.secret_key.as_str().into()),
            ("reference".to_owned(), job.id.as_str().into()),
            (
                "task_id".to_owned(),
                job.provider_task_id.clone().map_or(Json::Null, Json::from),
            ),
            ("handle".to_owned(), job.ticket.handle.clone()),
        ])
    }

    fn request(
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
    fn refusal(&self, answer: &Answer, payload: &Value) -> Option<Refused> {
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
