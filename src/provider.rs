//! Providers: a provider definition ("spec") combined with the configuration.
//!
//! A spec describes the API of one provider as data. The code is shared by all providers. The
//! modules below do not depend on this one:
//!
//! - `spec`: the file format, its expressions, error rules and prices
//! - `breaker`: circuit breaker and concurrency limit
//! - `client`: requests to the API, downloads and the balance
//! - `webhook`: signature verification and parsing
//!
//! A webhook is parsed only after its signature was verified. A submission is sent at most once,
//! and a response that may mean acceptance is never reported as a rejection.

mod breaker;
mod client;
pub(crate) mod spec;
pub(crate) mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use minijinja::Value;
use progress_hub_auth::jwt::is_encrypted_or_local;
use progress_hub_auth::signature::{Headers, Request, Verified};
use tokio::time::Instant;
use url::Url;

use crate::config::{Config, ConfigError, ProviderConfig};
use crate::job::{Job, JobId, OutputSource, Source, StatusReport, VideoRequest};
use crate::rate_limit::{Rate, RateLimit};
use crate::time::Time;
use client::ProviderClient;
use client::base_url::BaseUrl;
use spec::input_rules::KeyPath;
use spec::pricing::Prices;
use spec::request_spec::RequestSpec;
use spec::{Requirement, Spec};
use webhook::WebhookVerifier;

pub use breaker::{CircuitBreaker, CircuitOpen, Permit, ProviderHealth};
pub use client::SubmitOutcome;
pub use client::balance::Balance;
pub use client::download::{
    Body, Download, DownloadError, DownloadHead, Downloader, IncompleteBody, RangeRequest,
};
pub use client::error::{Rejection, RequestError, UnknownOutcome};
pub use client::http::{Fetcher, HttpClient};
pub use client::submission::Submission;
pub use spec::task_mapping::TaskReport;
pub use webhook::{PayloadError, WebhookContent, WebhookVerifyError};

/// When to poll the jobs of a provider.
#[derive(Clone, Copy, Debug)]
pub struct PollPolicy {
    /// Time without an update after which a job is polled. `None` if the provider cannot be polled.
    pub poll_after: Option<Duration>,
    /// Interval of further polls.
    pub poll_every: Duration,
    /// Minimum time between a poll and one that was requested early. At most `poll_every`.
    pub cool_down: Duration,
    /// Maximum duration of a job.
    pub deadline: Duration,
}

/// A configured provider.
pub struct Provider {
    name: String,
    spec: Arc<Spec>,
    client: ProviderClient,
    webhooks: WebhookVerifier,
    /// Limit of the polls that unverified webhooks trigger, or `None` if they trigger none. Such a
    /// webhook can be forged, and every poll is a request on the provider account.
    unverified_poll_limit: Option<RateLimit>,
    unverified_polls: Rate,
    /// Keys of `input` that the operator allows while a budget or a tier applies.
    allowed_input: Vec<KeyPath>,
    prices: Prices,
    poll_policy: PollPolicy,
    max_concurrent: usize,
}

/// All configured providers, by name.
pub struct Providers {
    by_name: BTreeMap<String, Arc<Provider>>,
}

impl Providers {
    /// Loads the spec of every configured provider.
    ///
    /// # Errors
    /// Returns all errors, each with its configuration key.
    pub fn load(config: &Config, http: &HttpClient) -> Result<Self, Vec<ConfigError>> {
        let mut by_name = BTreeMap::new();
        let mut errors = Vec::new();
        for (name, settings) in &config.providers {
            match Provider::new(name, settings, http.clone()) {
                Ok(provider) => {
                    by_name.insert(name.clone(), Arc::new(provider));
                }
                Err(provider_errors) => {
                    errors.extend(provider_errors.into_iter().map(|error| ConfigError {
                        key: format!("providers.{name}.{}", error.key),
                        message: error.message,
                    }));
                }
            }
        }
        if errors.is_empty() {
            Ok(Self { by_name })
        } else {
            Err(errors)
        }
    }

    /// Returns the provider with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.by_name.get(name)
    }

    /// Returns the provider that reported the outputs of a job, or `None` if it is not configured.
    ///
    /// Also returns `None` if a worker reported them. Its URLs must not be read with the provider's key.
    pub fn of_outputs(&self, job: &Job) -> Option<&Arc<Provider>> {
        let name = job.provider.as_ref();
        self.get(name.filter(|_| job.source != Source::Push)?)
    }

    /// Returns a warning for each valid but insecure setting, with its configuration key.
    #[must_use]
    pub fn warnings(&self) -> Vec<ConfigError> {
        let accepting_any = self.iter().filter(|it| it.webhooks.accepts_any_account());
        let warning = |provider: &Arc<Provider>| ConfigError {
            key: format!("providers.{}.account", provider.name),
            message:
                "not set: webhooks that the provider signed for its other customers are accepted"
                    .to_owned(),
        };
        accepting_any.map(warning).collect()
    }

    /// Returns the provider that accepts submissions, if it is the only one.
    #[must_use]
    pub fn single(&self) -> Option<&Arc<Provider>> {
        let mut providers = self.iter().filter(|provider| provider.can_submit());
        providers.next().filter(|_| providers.next().is_none())
    }

    /// Iterates over all providers in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.by_name.values()
    }
}

impl Provider {
    fn new(
        name: &str,
        settings: &ProviderConfig,
        http: HttpClient,
    ) -> Result<Self, Vec<ConfigError>> {
        let spec = Spec::load(&settings.spec).map_err(|error| vec![error])?;
        let spec = Arc::new(spec);
        let base_url = BaseUrl::new(settings.base_url.as_ref(), spec.base_url.as_deref());
        let mut errors = setting_errors(&spec, settings, &base_url);
        let prices = Prices::new(&settings.prices);
        let webhooks = WebhookVerifier::new(Arc::clone(&spec), settings, &http);
        let (prices, webhooks) = match (prices, webhooks) {
            (Ok(prices), Ok(webhooks)) if errors.is_empty() => (prices, webhooks),
            (prices, webhooks) => {
                errors.extend(prices.err().into_iter().flatten());
                errors.extend(webhooks.err().into_iter().flatten());
                return Err(errors);
            }
        };
        let poll_after = settings.poll_after.unwrap_or(spec.poll_after);
        let poll_every = settings.poll_every.unwrap_or(spec.poll_every);
        let cool_down = settings.cool_down.unwrap_or(spec.cool_down);
        Ok(Self {
            name: name.to_owned(),
            poll_policy: PollPolicy {
                poll_after: spec.poll.is_some().then_some(poll_after),
                poll_every,
                cool_down: cool_down.min(poll_every),
                deadline: settings.deadline.unwrap_or(spec.deadline),
            },
            max_concurrent: settings.max_concurrent.unwrap_or(spec.max_concurrent),
            client: ProviderClient::new(name, Arc::clone(&spec), base_url, settings, http),
            webhooks,
            allowed_input: settings
                .allowed_input
                .iter()
                .map(|path| path.as_str().into())
                .collect(),
            unverified_poll_limit: match settings.unverified_polls_per_minute {
                0 => None,
                polls => Some(RateLimit::per_minute(polls)),
            },
            unverified_polls: Rate::default(),
            prices,
            spec,
        })
    }

    /// Returns the name in the configuration, in URLs and in documents.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the display name.
    pub fn title(&self) -> &str {
        &self.spec.title
    }

    /// Returns the circuit breaker of all requests to the provider.
    pub fn breaker(&self) -> &Arc<CircuitBreaker> {
        &self.client.breaker
    }

    /// Returns when to poll jobs.
    pub fn poll_policy(&self) -> PollPolicy {
        self.poll_policy
    }

    /// Returns how long the provider keeps a finished task.
    pub fn retention(&self) -> Duration {
        self.spec.retention
    }

    /// Returns the maximum number of jobs at the provider at the same time.
    pub fn max_concurrent(&self) -> usize {
        self.max_concurrent
    }

    /// Returns whether the hub can submit jobs.
    pub fn can_submit(&self) -> bool {
        self.spec.submit.is_some()
    }

    /// Returns whether submissions contain the callback URL of their job.
    pub fn sends_callback_url(&self) -> bool {
        let submit = self.spec.submit.as_ref();
        submit.is_some_and(RequestSpec::uses_callback_url)
    }

    /// Returns whether unfinished jobs can be polled.
    pub fn can_poll(&self) -> bool {
        self.spec.poll.is_some()
    }

    /// Renders the submission of a job without sending it. [`submit`](Self::submit) renders it again
    /// and sends it. If the callback URL is the same, the requests differ only in values that the
    /// definition computes from the current time, such as a signed token in a header.
    ///
    /// # Errors
    /// Returns a description that begins with the key in the request or in the definition, for
    /// example if `input` would replace a value that the hub sets.
    pub fn render_submission(
        &self,
        job: &Job,
        callback_url: Option<&Url>,
    ) -> Result<Submission, String> {
        self.client.render_submission(job, callback_url)
    }

    /// Returns the first key of `input` that neither the definition nor the operator allows while a
    /// budget or a tier applies. Such a key may change the price or the size of the output.
    pub fn unknown_input_key(&self, request: &VideoRequest) -> Option<String> {
        let rules = &self.spec.submit.as_ref()?.input;
        let key = rules.unknown_key(&request.input, &self.allowed_input)?;
        Some(format!("input.{key}"))
    }

    /// Returns the error for a request that the provider is known to reject.
    pub fn validate(&self, submission: &Submission) -> Option<&str> {
        let variables = Value::from_serialize(submission.variables());
        let checks = self.spec.checks.iter();
        checks.filter_map(|check| check.validate(&variables)).next()
    }

    /// Returns the price of a job in `budgets.unit`, or `None` if its model has no price.
    ///
    /// # Errors
    /// Returns an error that begins with the configuration key if the price expression fails.
    pub fn price(&self, submission: &Submission) -> Result<Option<f64>, String> {
        let variables = Value::from_serialize(submission.variables());
        let price = self.prices.price(submission.model(), &variables);
        price.map_err(|error| format!("providers.{}.prices: {error}", self.name))
    }

    /// Submits a job. The request costs money and is sent at most once.
    pub async fn submit(
        &self,
        permit: Permit,
        job: &Job,
        callback_url: Option<&Url>,
    ) -> SubmitOutcome {
        self.client.submit(permit, job, callback_url).await
    }

    /// Returns the maximum number of jobs for one [`query`](Self::query).
    pub fn max_query_batch(&self) -> usize {
        self.spec.poll.as_ref().map_or(1, |poll| poll.batch.get())
    }

    /// Returns whether a job can be polled: by its task id, or by the reference if it has none yet.
    pub fn can_query(&self, job: &Job) -> bool {
        let poll = self.spec.poll.as_ref();
        poll.is_some_and(|poll| job.provider_task_id.is_some() || poll.by_reference)
    }

    /// Polls up to [`max_query_batch`](Self::max_query_batch) jobs, either all with a task id or
    /// all without. Jobs that the provider does not know have no report.
    ///
    /// # Errors
    /// Returns [`RequestError`] if there is no usable response.
    pub async fn query(
        &self,
        jobs: &[Arc<Job>],
    ) -> Result<Vec<(JobId, StatusReport)>, RequestError> {
        self.client.query(jobs).await
    }

    /// Returns whether the provider can cancel a job.
    pub fn can_cancel(&self, job: &Job) -> bool {
        self.client.can_cancel(job)
    }

    /// Requests the cancellation of a job. Returns the final state if the response contains it.
    /// Otherwise the job must be polled, because it can still succeed.
    ///
    /// # Errors
    /// Returns [`RequestError`] if the provider did not accept the request.
    pub async fn cancel(&self, job: &Job) -> Result<Option<StatusReport>, RequestError> {
        self.client.cancel(job).await
    }

    /// Downloads an output that the provider reported for a job.
    ///
    /// # Errors
    /// Returns [`DownloadError`] if the download cannot start.
    pub async fn download(
        &self,
        downloader: &Downloader,
        job: &Job,
        source: &OutputSource,
        range: &RangeRequest,
    ) -> Result<Download, DownloadError> {
        self.client.download(downloader, job, source, range).await
    }

    /// Returns the balance of the account when it was last read.
    pub fn balance(&self) -> Option<Balance> {
        self.client.balance.last()
    }

    /// Returns whether the account is due to be checked. If so, the caller must call
    /// [`check_account`](Self::check_account). Other callers get `false` until the next check is
    /// due.
    #[must_use]
    pub fn claim_account_check(&self, now: Time) -> bool {
        self.client.claim_account_check(now)
    }

    /// Sends the account check: the request of `[balance]`, or of `[account]` if the definition has
    /// no balance. Reports the result to the circuit breaker.
    ///
    /// # Errors
    /// Returns [`RequestError`] if the response does not show the state of the account. The last
    /// balance is kept.
    pub async fn check_account(&self) -> Result<(), RequestError> {
        self.client.check_account().await
    }

    /// Checks the headers of a webhook before its body is read. `request` has an empty body.
    ///
    /// # Errors
    /// Returns [`WebhookVerifyError`] if the webhook is invalid regardless of its body.
    pub fn check_headers(
        &self,
        request: &Request<'_>,
        now: Time,
    ) -> Result<(), WebhookVerifyError> {
        self.webhooks.check_headers(request, now)
    }

    /// Returns the maximum size of a webhook's body in bytes, if the spec has one.
    pub fn max_webhook_bytes(&self) -> Option<usize> {
        self.spec.webhook.max_body_bytes
    }

    /// Verifies the signature of a webhook and the `accept` condition of the spec.
    ///
    /// If the spec needs a secret, none is configured and the provider can be polled, every webhook
    /// passes as untrusted.
    ///
    /// # Errors
    /// Returns [`WebhookVerifyError`].
    pub async fn verify<'a>(
        &self,
        request: &Request<'a>,
        now: Time,
    ) -> Result<Verified<'a>, WebhookVerifyError> {
        self.webhooks.verify(request, now).await
    }

    /// Parses a verified webhook. Skips tasks without an id or a status if there are others.
    ///
    /// # Errors
    /// Returns [`PayloadError`] if the body is not a webhook of this provider.
    pub fn parse(
        &self,
        verified: &Verified<'_>,
        headers: &dyn Headers,
    ) -> Result<WebhookContent, PayloadError> {
        webhook::parse(&self.spec, verified, headers)
    }

    /// Takes one poll from the limit for unverified webhooks. Returns `false` if the limit is
    /// reached.
    #[must_use]
    pub fn claim_unverified_poll(&self) -> bool {
        let charge = |limit| {
            self.unverified_polls
                .try_charge(limit, 1, Instant::now())
                .is_ok()
        };
        self.unverified_poll_limit.is_some_and(charge)
    }

    /// Records that a webhook for one of the provider's jobs has arrived.
    pub fn record_webhook(&self) {
        self.breaker().record_webhook(Time::now());
    }

    /// Returns whether webhooks arrive, so that a silent job is probably just running.
    pub fn receives_webhooks(&self) -> bool {
        self.breaker().receives_webhooks(Time::now())
    }
}

/// Returns the errors of settings that the spec requires or limits.
fn setting_errors(spec: &Spec, settings: &ProviderConfig, base_url: &BaseUrl) -> Vec<ConfigError> {
    let missing = spec.requires.iter().filter_map(|requirement| {
        let (key, is_present) = match requirement {
            Requirement::ApiKey => ("api_key", settings.api_key.is_some()),
            Requirement::SecretKey => ("secret_key", settings.secret_key.is_some()),
            Requirement::WebhookSecrets => {
                ("webhook_secrets", !settings.webhook_secrets.is_empty())
            }
            Requirement::BaseUrl => ("base_url", !base_url.as_str().is_empty()),
        };
        (!is_present).then(|| (key, format!("required by the spec '{}'", settings.spec)))
    });
    let too_long = [
        ("deadline", settings.deadline),
        ("poll_after", settings.poll_after),
        ("poll_every", settings.poll_every),
    ]
    .into_iter()
    .filter(|(_, value)| value.is_some_and(|value| value >= spec.retention))
    .map(|(key, _)| {
        let seconds = spec.retention.as_secs();
        let message =
            format!("must be less than {seconds}s, after which the provider deletes tasks");
        (key, message)
    });
    let is_unencrypted = base_url
        .url()
        .is_some_and(|url| !is_encrypted_or_local(url));
    let unencrypted = is_unencrypted.then(|| {
        let message = "must be https, or http on loopback";
        ("base_url", message.to_owned())
    });
    missing
        .chain(too_long)
        .chain(unencrypted)
        .map(|(key, message)| ConfigError {
            key: key.to_owned(),
            message,
        })
        .collect()
}
