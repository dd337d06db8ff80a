//! The client of one provider's API.
//!
//! Every request needs a permit of the circuit breaker, which learns its result. A submission is
//! sent at most once, and a response that may mean acceptance is never reported as a rejection.

pub(super) mod balance;
pub(super) mod base_url;
pub(super) mod download;
pub(super) mod error;
pub(super) mod http;
mod request;
mod retry_hints;
pub(super) mod submission;

use std::sync::Arc;
use std::time::Duration;

use minijinja::{Value, context};
use reqwest::header::HeaderMap;
use url::Url;

use self::balance::{Balance, BalanceCache};
use self::base_url::BaseUrl;
use self::download::{Download, DownloadError, Downloader, RangeRequest};
use self::error::{Rejection, RequestError, UnknownOutcome};
use self::http::{HttpClient, SendError};
use self::request::{Context, RequestRenderer};
use self::submission::Submission;
use super::breaker::{AccountCheck, AccountVerdict, CircuitBreaker, Origin, Permit, RequestResult};
use super::spec::Spec;
use super::spec::request_spec::{Method, RequestSpec};
use super::spec::value::{items, number};
use crate::config::ProviderConfig;
use crate::job::{FailureKind, Job, JobId, OutputSource, Status, StatusReport};
use crate::time::Time;

/// Maximum time that a request waits for a permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Result of a submission attempt.
#[derive(Clone, Debug)]
pub enum SubmitOutcome {
    /// The provider accepted the job. The report contains the `task_id`.
    Accepted(Box<StatusReport>),
    /// The provider did not accept the job.
    Rejected(Rejection),
    /// The provider may have accepted the job.
    Unknown(UnknownOutcome),
}

/// Sends requests to one provider.
pub(super) struct ProviderClient {
    provider: String,
    spec: Arc<Spec>,
    requests: RequestRenderer,
    http: HttpClient,
    pub(super) breaker: Arc<CircuitBreaker>,
    pub(super) balance: BalanceCache,
}

impl ProviderClient {
    pub(super) fn new(
        provider: &str,
        spec: Arc<Spec>,
        base_url: BaseUrl,
        settings: &ProviderConfig,
        http: HttpClient,
    ) -> Self {
        let account_check = match (&spec.balance, &spec.account) {
            (Some(_), _) => AccountCheck::KeyAndCredit,
            (None, Some(_)) => AccountCheck::Key,
            (None, None) => AccountCheck::None,
        };
        Self {
            provider: provider.to_owned(),
            requests: RequestRenderer::new(Arc::clone(&spec), base_url, settings),
            http,
            breaker: CircuitBreaker::new(provider, account_check),
            balance: BalanceCache::default(),
            spec,
        }
    }

    /// Submits a job and reports the result to the circuit breaker.
    pub(super) async fn submit(
        &self,
        permit: Permit,
        job: &Job,
        callback_url: Option<&Url>,
    ) -> SubmitOutcome {
        self.balance.mark_used(Time::now());
        let outcome = self.send_submission(job, callback_url).await;
        permit.complete(match &outcome {
            SubmitOutcome::Accepted(_) => RequestResult::Success,
            SubmitOutcome::Rejected(rejection) => rejection.breaker_result(),
            SubmitOutcome::Unknown(_) => RequestResult::Failure(FailureKind::Technical, None),
        });
        outcome
    }

    /// Renders the submission of a job without sending it.
    pub(super) fn render_submission(
        &self,
        job: &Job,
        callback_url: Option<&Url>,
    ) -> Result<Submission, String> {
        let (Some(spec), Some(request)) = (&self.spec.submit, &job.internal.request) else {
            return Err("this provider does not accept submissions from the hub".to_owned());
        };
        self.requests.submission(spec, job, request, callback_url)
    }

    async fn send_submission(&self, job: &Job, callback_url: Option<&Url>) -> SubmitOutcome {
        let unknown = |cause: String| SubmitOutcome::Unknown(UnknownOutcome(cause));
        let submission = match self.render_submission(job, callback_url) {
            Ok(submission) => submission,
            Err(error) => return SubmitOutcome::Rejected(Rejection::unsupported(error)),
        };
        let response = match self.http.send_once(submission.request).await {
            Ok(response) => response,
            Err(SendError::NotSent(cause)) => {
                return SubmitOutcome::Rejected(Rejection::technical(cause));
            }
            Err(SendError::OutcomeUnknown(cause)) => return unknown(cause),
        };
        let payload = response.json();
        match Rejection::from_response(&self.spec, &response, &payload) {
            Some(rejection) if rejection.is_definitive => SubmitOutcome::Rejected(rejection),
            Some(rejection) => unknown(rejection.failure.message),
            None => match self.accepted_task(job, &payload) {
                Some(report) => SubmitOutcome::Accepted(Box::new(report)),
                None => unknown("response to the submission has no task id".to_owned()),
            },
        }
    }

    /// Reads the task from the response to a submission. A final status is ignored: only a webhook
    /// or a poll ends a job.
    fn accepted_task(&self, job: &Job, payload: &Value) -> Option<StatusReport> {
        let spec = self.spec.submit.as_ref()?;
        let task = self.spec.read_task(&spec.items.evaluate(payload))?;
        let context = Value::from_serialize(self.requests.job_context(job));
        let names = context! { payload, ..context };
        let handle = spec
            .handle
            .as_ref()
            .map(|handle| handle.evaluate_in(&names));
        let status = task.report.status.filter(|status| !status.is_final());
        Some(StatusReport {
            task_id: Some(task.task_id?),
            status: Some(status.unwrap_or(Status::Queued)),
            handle: serde_json::to_value(handle).unwrap_or_default(),
            ..task.report
        })
    }

    /// Polls several jobs. Jobs that the response does not contain have no report.
    pub(super) async fn query(
        &self,
        jobs: &[Arc<Job>],
    ) -> Result<Vec<(JobId, StatusReport)>, RequestError> {
        let (Some(poll), Some(first)) = (&self.spec.poll, jobs.first()) else {
            return Ok(Vec::new());
        };
        let task_ids = jobs
            .iter()
            .filter_map(|job| job.provider_task_id.as_deref());
        let references = jobs.iter().map(|job| job.id.as_str());
        let mut context = self.requests.job_context(first);
        context.insert("tasks".to_owned(), task_ids.collect());
        context.insert("references".to_owned(), references.collect());
        let is_shared = jobs.iter().any(|job| origin(job) != origin(first));
        let call = self.call(poll, Method::Get, &context, first, is_shared);
        let (_, payload) = call.await?;
        let mut reports = Vec::new();
        for item in items(&poll.items.evaluate(&payload)) {
            let Some(task) = self.spec.read_task(&item) else {
                continue;
            };
            let Some(job) = jobs.iter().find(|job| task.matches_job(job)) else {
                continue;
            };
            match self.fetch_result(job, &item, task.report).await {
                Ok(report) => {
                    let report = StatusReport {
                        task_id: task.task_id,
                        is_authoritative: true,
                        ..report
                    };
                    reports.push((job.id.clone(), report));
                }
                Err(error) => tracing::warn!(
                    provider.name = self.provider,
                    job.id = %job.id,
                    %error,
                    "failed to fetch task result"
                ),
            }
        }
        Ok(reports)
    }

    /// Fetches the outputs of a succeeded task whose poll response has none.
    ///
    /// A rejection about the task becomes its failure. If the result no longer exists, the job
    /// succeeds without outputs.
    async fn fetch_result(
        &self,
        job: &Job,
        task: &Value,
        report: StatusReport,
    ) -> Result<StatusReport, RequestError> {
        let lacks_outputs = report.status == Some(Status::Succeeded) && report.outputs.is_empty();
        let Some(spec) = self.spec.result.as_ref().filter(|_| lacks_outputs) else {
            return Ok(report);
        };
        let mut context = self.requests.job_context(job);
        let task_json = serde_json::to_value(task).unwrap_or_default();
        context.insert("task".to_owned(), task_json);
        if !spec.applies_to(&Value::from_serialize(&context)) {
            return Ok(report);
        }
        match self.call(spec, Method::Get, &context, job, false).await {
            Ok((_, payload)) => {
                let result = spec.items.evaluate_in(&context! { payload, task });
                let result = self.spec.read_task(&result);
                let missing = "result.item: has no task id";
                result
                    .map(|result| result.report)
                    .ok_or_else(|| RequestError::InvalidSpec(missing.to_owned()))
            }
            Err(RequestError::Rejected(rejection)) if rejection.is_task_not_found() => Ok(report),
            Err(RequestError::Rejected(rejection)) if rejection.is_about_task() => {
                Ok(StatusReport::failed(rejection.failure))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns whether the provider can cancel a job.
    pub(super) fn can_cancel(&self, job: &Job) -> bool {
        let context = || Value::from_serialize(self.requests.job_context(job));
        let spec = self.spec.cancel.as_ref();
        spec.is_some_and(|spec| spec.applies_to(&context()))
    }

    /// Cancels a job. Returns the final state if the response contains it.
    pub(super) async fn cancel(&self, job: &Job) -> Result<Option<StatusReport>, RequestError> {
        let Some(spec) = &self.spec.cancel else {
            return Err(RequestError::Rejected(Rejection::unsupported(
                "this provider cannot cancel jobs",
            )));
        };
        let context = self.requests.job_context(job);
        let call = self.call(spec, Method::Post, &context, job, false);
        let (http, payload) = call.await?;
        let task_id = job.provider_task_id.as_deref();
        let task = spec.items.evaluate_in(&context! { payload, http, task_id });
        let task = self.spec.read_task(&task).filter(|task| {
            task.matches_job(job) && task.report.status.is_some_and(Status::is_final)
        });
        Ok(task.map(|task| StatusReport {
            task_id: task.task_id,
            ..task.report
        }))
    }

    /// Downloads an output. The key is sent only if the output needs it.
    pub(super) async fn download(
        &self,
        downloader: &Downloader,
        job: &Job,
        source: &OutputSource,
        range: &RangeRequest,
    ) -> Result<Download, DownloadError> {
        let base_url = &self.requests.base_url;
        let (url, headers) = if source.is_private {
            let headers = self.requests.auth_headers(job);
            let headers = headers.map_err(DownloadError::Failed)?;
            (base_url.resolve(&source.url), headers)
        } else {
            (Url::parse(&source.url).ok(), HeaderMap::new())
        };
        let url = url.ok_or(DownloadError::UrlNotAllowed("invalid URL"))?;
        downloader.fetch(base_url.url(), url, &headers, range).await
    }

    /// Returns whether the caller should check the account now.
    pub(super) fn claim_account_check(&self, now: Time) -> bool {
        let is_wanted = self.breaker.is_account_check_due(now);
        let has_balance = self.spec.balance.is_some();
        (is_wanted || has_balance) && self.balance.claim_read(is_wanted, now)
    }

    /// Sends the account check and reports its result to the circuit breaker.
    ///
    /// The request needs no permit, because its result decides whether permits are available.
    pub(super) async fn check_account(&self) -> Result<(), RequestError> {
        let result = self.account_verdict().await;
        let verdict = match &result {
            Ok(verdict) => Some(*verdict),
            Err(RequestError::Rejected(rejection)) => rejection.account_verdict(),
            Err(_) => None,
        };
        if let Some(verdict) = verdict {
            self.breaker.record_account_check(verdict, Time::now());
        }
        // A rejection that shows the state of the account is a valid result.
        if verdict.is_some() {
            return Ok(());
        }
        result.map(|_| ())
    }

    async fn account_verdict(&self) -> Result<AccountVerdict, RequestError> {
        let context = self.requests.base_context();
        let Some(spec) = &self.spec.balance else {
            if let Some(account) = &self.spec.account {
                self.execute(account, Method::Get, &context).await?;
            }
            return Ok(AccountVerdict::KeyValid);
        };
        let (_, payload) = self.execute(&spec.request, Method::Get, &context).await?;
        let amount = number(&spec.amount.evaluate(&payload))
            .ok_or_else(|| RequestError::InvalidSpec("balance.amount: not a number".to_owned()))?;
        let unit = spec.unit.as_ref();
        let unit = unit.and_then(|unit| unit.render(&context! { payload }).ok());
        self.balance.set(Balance {
            amount,
            unit: unit.map(|unit| unit.to_lowercase()),
            at: Time::now(),
        });
        Ok(if amount > 0.0 {
            AccountVerdict::Good
        } else {
            AccountVerdict::NoCredit
        })
    }

    /// Sends a request that may be repeated when a permit is available, and reports the result to
    /// the circuit breaker. `is_shared` is true if it concerns jobs of other owners or models than
    /// `job`. Returns the status and the body of a success.
    async fn call(
        &self,
        spec: &RequestSpec,
        default_method: Method,
        context: &Context,
        job: &Job,
        is_shared: bool,
    ) -> Result<(u16, Value), RequestError> {
        let mut permit = self.breaker.acquire(PERMIT_TIMEOUT).await?;
        permit.attribute_to(origin(job), is_shared);
        self.balance.mark_used(Time::now());
        let response = self.execute(spec, default_method, context).await;
        permit.complete(match &response {
            Ok(_) => RequestResult::Success,
            Err(error) => error.breaker_result(),
        });
        response
    }

    async fn execute(
        &self,
        spec: &RequestSpec,
        default_method: Method,
        context: &Context,
    ) -> Result<(u16, Value), RequestError> {
        let request = self.requests.render(spec, default_method, context);
        let request = request.map_err(RequestError::InvalidSpec)?;
        let response = self.http.send(request).await?;
        let payload = response.json();
        match Rejection::from_response(&self.spec, &response, &payload) {
            Some(rejection) => Err(RequestError::Rejected(rejection)),
            None => Ok((response.status, payload)),
        }
    }
}

fn origin(job: &Job) -> Origin {
    Origin {
        owner: job.owner.clone(),
        model: job.model.clone().unwrap_or_default(),
    }
}
