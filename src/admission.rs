//! Checks before a submission: presets, tiers, prices, budgets and rate limits.
//!
//! Invariants: the admitted request is stored and sent unchanged. Prices, tiers and the definition's
//! checks read the request as it is sent, with the callback URL of the job. A rejected request has no
//! effect other than a metric.

mod budget;
mod parameters;
mod payload;
mod resolution;

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Tier};
use crate::job::{InternalState, Job, NewJob, VideoRequest};
use crate::links::Links;
use crate::provider::{Provider, Submission};
use crate::store::{self, BudgetStore};
use crate::telemetry::{AdmissionRejection, Metrics};
use crate::time::Time;
pub use budget::BudgetEntries;
use budget::BudgetPolicy;

/// Checks requests and creates the jobs for those that pass.
pub struct AdmissionControl {
    tier: Tier,
    budget: BudgetPolicy,
    links: Links,
    metrics: Arc<Metrics>,
}

/// A request that passed all checks.
pub struct Admitted {
    /// The job to create.
    pub job: Job,
    /// The charges to apply when the job is created.
    pub budget_entries: BudgetEntries,
}

/// The reason why a request is rejected. The text starts with the field or setting concerned.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// A parameter is invalid, contradicts another, or exceeds the limit of the tier.
    #[error("{0}")]
    Parameters(String),
    /// A field contains inline data instead of a URL.
    #[error("{0}: inline data is not accepted; pass an http(s) URL")]
    Inline(String),
    /// The request exceeds the size limit.
    #[error("request is {0} bytes, the limit is {max}; pass http(s) URLs for large values", max = payload::MAX_REQUEST_BYTES)]
    TooLarge(usize),
    /// The price of the job is unknown, but a budget requires it.
    #[error("{0}")]
    Price(String),
    /// The job exceeds a budget.
    #[error("{0}")]
    Budget(String),
    /// The owner's jobs that wait for submission exceed a limit on their number or total size.
    #[error("{setting}: limit of {limit} for jobs that wait for submission reached")]
    QueueFull {
        /// Name of the setting.
        setting: &'static str,
        /// Value of the setting.
        limit: i64,
    },
    /// The owner exceeds the submission rate.
    #[error("limits.submits_per_minute: limit of {limit} submissions per minute exceeded")]
    Rate {
        /// Maximum number of submissions per minute.
        limit: i64,
        /// Time until the next submission is accepted.
        retry_after: Duration,
    },
}

impl AdmissionError {
    fn reason(&self) -> AdmissionRejection {
        match self {
            Self::Parameters(_) => AdmissionRejection::Parameters,
            Self::Inline(_) | Self::TooLarge(_) => AdmissionRejection::Payload,
            Self::Price(_) => AdmissionRejection::Price,
            Self::Budget(_) => AdmissionRejection::Budget,
            Self::QueueFull { .. } => AdmissionRejection::Queue,
            Self::Rate { .. } => AdmissionRejection::Rate,
        }
    }
}

impl AdmissionControl {
    /// Creates an admission control with the tier, budgets and limits of `config`. `links` creates the
    /// callback URLs.
    #[must_use]
    pub fn new(config: &Config, links: Links, metrics: Arc<Metrics>) -> Self {
        Self {
            tier: config.defaults.tier,
            budget: BudgetPolicy::new(config),
            links,
            metrics,
        }
    }

    /// Checks `request` and returns its job, with presets applied and sizes capped to the tier.
    ///
    /// # Errors
    /// Returns the first failed check.
    pub fn admit(
        &self,
        owner: &str,
        provider: &Provider,
        request: VideoRequest,
        now: Time,
    ) -> Result<Admitted, AdmissionError> {
        self.evaluate(owner, provider, request, now)
            .inspect_err(|error| self.metrics.submission_rejected(error.reason()))
    }

    fn evaluate(
        &self,
        owner: &str,
        provider: &Provider,
        mut request: VideoRequest,
        now: Time,
    ) -> Result<Admitted, AdmissionError> {
        let metadata = std::mem::take(&mut request.metadata);
        let bytes = payload::check(&request)?;
        parameters::check(&request)?;
        resolution::apply_platform_preset(&mut request)?;
        match self.tier {
            Tier::Development | Tier::Staging => resolution::cap_to_tier(&mut request, self.tier)?,
            Tier::Production => {}
        }
        self.check_input(provider, &request)?;
        request.provider = Some(provider.name().to_owned());
        let new = NewJob {
            owner: owner.to_owned(),
            provider: request.provider.clone(),
            provider_task_id: None,
            model: Some(request.model.clone()),
            metadata,
            request: Some(request),
            deadline: provider.poll_policy().deadline,
        };
        let mut job = Job::new(new, now);
        let submission = self.render(provider, &job)?;
        self.check_submission(provider, &submission)?;
        let (reservation, mut budget_entries) =
            self.budget.reserve(owner, provider, &submission, now)?;
        let queue_charges = self
            .budget
            .charge_queue(owner, bytes, now, &mut budget_entries);
        job.internal = Arc::new(InternalState {
            reservation,
            queue_charges,
            ..InternalState::clone(&job.internal)
        });
        Ok(Admitted {
            job,
            budget_entries,
        })
    }

    /// Renders the submission of a job as it will be sent.
    ///
    /// # Errors
    /// Returns [`AdmissionError::Parameters`] if the definition cannot render the request, for example
    /// because `input` would replace a value that the hub sets.
    pub fn render(&self, provider: &Provider, job: &Job) -> Result<Submission, AdmissionError> {
        let callback_url = self.links.callback_url(provider.name(), &job.id);
        provider
            .render_submission(job, callback_url.as_ref())
            .map_err(AdmissionError::Parameters)
    }

    /// Rejects keys of `input` that are not allowed while a budget or a tier applies, because they
    /// may change the price or the size of the output.
    fn check_input(
        &self,
        provider: &Provider,
        request: &VideoRequest,
    ) -> Result<(), AdmissionError> {
        let limit = match self.tier {
            Tier::Development | Tier::Staging => Some("defaults.tier".to_owned()),
            Tier::Production => self.budget.applicable(provider.name()),
        };
        match limit.zip(provider.unknown_input_key(request)) {
            None => Ok(()),
            Some((setting, key)) => Err(AdmissionError::Parameters(format!(
                "{key}: not allowed by the provider definition while {setting} is set"
            ))),
        }
    }

    /// Checks the rendered request against the tier, the definition's parameters and its checks.
    fn check_submission(
        &self,
        provider: &Provider,
        submission: &Submission,
    ) -> Result<(), AdmissionError> {
        let is_limited = match self.tier {
            Tier::Development | Tier::Staging => {
                resolution::check_rendered(submission, self.tier)?;
                true
            }
            Tier::Production => self.budget.applicable(provider.name()).is_some(),
        };
        if is_limited && let Err(problem) = submission.check_readable() {
            return Err(AdmissionError::Parameters(problem.to_owned()));
        }
        match provider.validate(submission) {
            Some(problem) => Err(AdmissionError::Parameters(problem.to_owned())),
            None => Ok(()),
        }
    }

    /// Returns the error for a job whose entry exceeds the limit of its budget window.
    ///
    /// # Errors
    /// Returns the error of the store, which is read for the remaining balance.
    pub async fn limit_error(
        &self,
        budget_entries: &BudgetEntries,
        window_name: &str,
        store: &dyn BudgetStore,
        now: Time,
    ) -> Result<AdmissionError, store::Error> {
        let error = self
            .budget
            .limit_error(budget_entries, window_name, store, now)
            .await?;
        self.metrics.submission_rejected(error.reason());
        Ok(error)
    }
}
