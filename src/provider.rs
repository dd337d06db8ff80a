//! Providers: what differs between them is data (a spec), what they share is here.
//!
//! Invariant: a body is parsed only once it is [`Verified`](progress_hub_auth::signature::Verified), a paid request is sent at most once a
//! call, and an answer that may have been an acceptance is never told as a refusal.

mod breaker;
mod client;
mod spec;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::config::{Config, ConfigError, ProviderConfig};
use crate::time::Time;

pub use breaker::{CircuitBreaker, CircuitOpen, Permit, ProviderHealth};
pub use client::balance::Balance;
use client::balance::BalanceCache;
use client::base_url::BaseUrl;
pub use client::download::{Body, Download, DownloadError, IncompleteBody, RangeRequest};
pub use client::error::{Rejection, RequestError, UnknownOutcome};
pub use client::http::{ClientBuildError, Fetcher, HttpClient};
pub use client::submission::SubmitOutcome;
use spec::pricing::Prices;
pub use spec::task_mapping::{PayloadError, TaskReport};
use spec::{Requirement, Spec};
pub use webhook::parsing::WebhookContent;
use webhook::verifier::WebhookVerifier;
pub use webhook::verifier::WebhookVerifyError;

/// How and when a provider is asked.
#[derive(Clone, Copy, Debug)]
pub struct PollPolicy {
    /// Silence after which a job is asked about; none where the provider can't be asked.
    pub poll_after: Option<Duration>,
    /// How often, from then on.
    pub poll_every: Duration,
    /// How long after one question a nudge may bring the next; at most `poll_every`.
    pub cool_down: Duration,
    /// How long a job may take in all.
    pub deadline: Duration,
}

/// A configured provider: its spec with the operator's keys and settings.
pub struct Provider {
    name: String,
    spec: Spec,
    http: HttpClient,
    base_url: BaseUrl,
    api_key: String,
    secret_key: String,
    webhook_secret: String,
    webhook_verifier: WebhookVerifier,
    poll_policy: PollPolicy,
    max_concurrent: usize,
    prices: Prices,
    gate: Arc<CircuitBreaker>,
    balance_cache: BalanceCache,
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
    pub fn load(config: &Config, http: &HttpClient) -> Result<Self, Vec<ConfigError>> {
        let mut by_name = BTreeMap::new();
        let mut mistakes = Vec::new();
        for (name, settings) in &config.providers {
            match Provider::new(name, settings, http.clone()) {
                Ok(provider) => {
                    by_name.insert(name.clone(), Arc::new(provider));
                }
                Err(found) => {
                    mistakes.extend(found.into_iter().map(|(key, problem)| ConfigError {
                        key: format!("providers.{name}.{key}"),
                        message: problem,
                    }))
                }
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
    pub fn single(&self) -> Option<&Arc<Provider>> {
        let mut takers = self.iter().filter(|provider| provider.can_submit());
        takers.next().filter(|_| takers.next().is_none())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.by_name.values()
    }
}

/// What is wrong with a time that is longer than a provider keeps its tasks.
fn exceeds_retention(retention: Duration) -> String {
    let seconds = retention.as_secs();
    format!("must be less than {seconds}s: the provider forgets a task by then")
}

impl Provider {
    fn new(
        name: &str,
        settings: &ProviderConfig,
        http: HttpClient,
    ) -> Result<Self, Vec<(String, String)>> {
        let spec = Spec::load(&settings.spec)?;
        let text = |secret: &Option<SecretString>| {
            secret
                .as_ref()
                .map(|secret| secret.expose_secret().to_owned())
                .unwrap_or_default()
        };
        let home = BaseUrl::new(settings.base_url.as_ref(), spec.base_url.as_deref());
        let mut mistakes = Vec::new();
        for requirement in &spec.requires {
            let (key, is_there) = match requirement {
                Requirement::ApiKey => ("api_key", settings.api_key.is_some()),
                Requirement::SecretKey => ("secret_key", settings.secret_key.is_some()),
                Requirement::WebhookSecrets => {
                    ("webhook_secrets", !settings.webhook_secrets.is_empty())
                }
                Requirement::BaseUrl => ("base_url", !home.as_str().is_empty()),
            };
            if !is_there {
                mistakes.push((
                    key.to_owned(),
                    format!("is needed by the spec '{}'", settings.spec),
                ));
            }
        }
        let prices = Prices::new(&settings.prices).unwrap_or_else(|problems| {
            mistakes.extend(problems);
            Prices::default()
        });
        for (key, given) in [
            ("deadline", settings.deadline),
            ("poll_after", settings.poll_after),
            ("poll_every", settings.poll_every),
        ] {
            if given.is_some_and(|given| given >= spec.retention) {
                mistakes.push((key.to_owned(), exceeds_retention(spec.retention)));
            }
        }
        let proof =
            WebhookVerifier::new(&spec, settings, &http).map_err(|found| mistakes.extend(found));
        let (Ok(proof), true) = (proof, mistakes.is_empty()) else {
            return Err(mistakes);
        };
        let poll_every = settings.poll_every.unwrap_or(spec.poll_every);
        let cool_down = settings.cool_down.unwrap_or(spec.cool_down);
        let cadence = PollPolicy {
            poll_after: spec
                .poll
                .as_ref()
                .map(|_| settings.poll_after.unwrap_or(spec.poll_after)),
            poll_every,
            cool_down: cool_down.min(poll_every),
            deadline: settings.deadline.unwrap_or(spec.deadline),
        };
        Ok(Self {
            name: name.to_owned(),
            http,
            base_url: home,
            api_key: text(&settings.api_key),
            secret_key: text(&settings.secret_key),
            webhook_secret: text(&settings.webhook_secrets.first().cloned()),
            webhook_verifier: proof,
            poll_policy: cadence,
            max_concurrent: settings.max_concurrent.unwrap_or(spec.max_concurrent),
            prices,
            gate: CircuitBreaker::new(name),
            balance_cache: BalanceCache::default(),
            spec,
        })
    }

    /// Its name in the configuration, in URLs and in documents.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name for a person.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.spec.title
    }

    /// Whether and how fast it may be sent requests.
    #[must_use]
    pub fn gate(&self) -> &Arc<CircuitBreaker> {
        &self.gate
    }

    /// How and when it is asked.
    #[must_use]
    pub fn cadence(&self) -> PollPolicy {
        self.poll_policy
    }

    /// How long it keeps a task; there is no asking after that.
    #[must_use]
    pub fn retention(&self) -> Duration {
        self.spec.retention
    }

    /// News of one of its jobs came by webhook.
    pub fn heard(&self) {
        self.gate.record_webhook(Time::now());
    }

    /// Whether its webhooks do arrive, so that silence need not mean that one was lost.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.gate.receives_webhooks(Time::now())
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
}
