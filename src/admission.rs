//! Guardrails: what a submit must pass before anything is kept, let alone paid for.
//!
//! Invariant: what is admitted is what is stored, and what is stored is what is sent; a request that
//! is refused leaves nothing behind but a number.

mod budget;
mod parameters;
mod payload;
mod resolution;

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Tier};
use crate::job::{InternalState, Job, NewJob, VideoRequest};
use crate::provider::Provider;
use crate::store::{self, BudgetStore};
use crate::telemetry::{AdmissionRejection, Metrics};
use crate::time::Time;
pub use budget::BudgetEntries;
use budget::BudgetPolicy;

/// Judges what callers want submitted.
pub struct AdmissionControl {
    tier: Tier,
    purse: BudgetPolicy,
    metrics: Arc<Metrics>,
}

/// A request that passed, and what it is to be charged.
pub struct Admitted {
    /// The job to be created.
    pub job: Job,
    /// What is to be booked with it.
    pub bookings: BudgetEntries,
}

/// Why nothing is submitted. Its text begins with the field or the setting that is to blame.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// A parameter makes no sense, contradicts another, or is more than the tier allows.
    #[error("{0}")]
    Parameters(String),
    /// It carries data where a URL belongs.
    #[error("{0}: holds the data itself; give an http(s) URL")]
    Inline(String),
    /// It is too long as a whole.
    #[error("the request has {0} bytes, and at most {most} are taken; give http(s) URLs for what is large", most = payload::MAX_REQUEST_BYTES)]
    TooLarge(usize),
    /// Nobody knows what it would cost.
    #[error("{0}")]
    Price(String),
    /// A budget does not allow it.
    #[error("{0}")]
    Budget(String),
    /// Its owner has submitted as much as is allowed for a while.
    #[error("limits.submits_per_minute: an owner may submit {most} jobs in a minute")]
    Rate {
        /// How many.
        most: i64,
        /// Until the next may pass.
        wait: Duration,
    },
}

impl AdmissionError {
    fn reason(&self) -> AdmissionRejection {
        match self {
            Self::Parameters(_) => AdmissionRejection::Parameters,
            Self::Inline(_) | Self::TooLarge(_) => AdmissionRejection::Payload,
            Self::Price(_) => AdmissionRejection::Price,
            Self::Budget(_) => AdmissionRejection::Budget,
            Self::Rate { .. } => AdmissionRejection::Rate,
        }
    }
}

impl AdmissionControl {
    /// A guard that knows this configuration's tier, budgets and limits.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        Self {
            tier: config.defaults.tier,
            purse: BudgetPolicy::new(config),
            metrics,
        }
    }

    /// The job that a request makes, with presets filled in and lowered to the tier.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn admit(
        &self,
        owner: &str,
        provider: &Provider,
        request: VideoRequest,
        now: Time,
    ) -> Result<Admitted, AdmissionError> {
        let judged = self.evaluate(owner, provider, request, now);
        judged.inspect_err(|refusal| self.metrics.submission_rejected(refusal.reason()))
    }

    fn evaluate(
        &self,
        owner: &str,
        provider: &Provider,
        mut request: VideoRequest,
        now: Time,
    ) -> Result<Admitted, AdmissionError> {
        let metadata = std::mem::take(&mut request.metadata);
        payload::check(&request)?;
        parameters::check(&request)?;
        resolution::apply_platform_preset(&mut request)?;
        match self.tier {
            Tier::Development | Tier::Staging => resolution::cap_to_tier(&mut request, self.tier)?,
            Tier::Production => {}
        }
        if let Some(objection) = provider.validate_request(&request) {
            return Err(AdmissionError::Parameters(objection.to_owned()));
        }
        let (charge, bookings) = self.purse.reserve(owner, provider, &request, now)?;
        request.provider = Some(provider.name().to_owned());
        let new = NewJob {
            owner: owner.to_owned(),
            provider: request.provider.clone(),
            provider_task_id: None,
            model: Some(request.model.clone()),
            metadata,
            request: Some(request),
            deadline: provider.cadence().deadline,
        };
        let mut job = Job::new(new, now);
        job.internal = Arc::new(InternalState {
            reservation: charge,
            ..InternalState::clone(&job.internal)
        });
        Ok(Admitted { job, bookings })
    }

    /// What to tell the caller whose job did not fit into an account of its bookings.
    ///
    /// # Errors
    /// The store's, which is asked for what is left.
    pub async fn limit_error(
        &self,
        bookings: &BudgetEntries,
        account: &str,
        store: &dyn BudgetStore,
        now: Time,
    ) -> Result<AdmissionError, store::Error> {
        let refusal = self.purse.over_limit(bookings, account, store, now).await?;
        self.metrics.submission_rejected(refusal.reason());
        Ok(refusal)
    }
}
