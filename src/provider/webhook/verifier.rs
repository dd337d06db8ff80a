//! How a provider's webhooks are proven: its schemes, each with the keys it goes by.
//!
//! Invariant: a webhook that satisfies no scheme whose keys are known is refused, and keys that can't be had are
//! never taken for keys that are not needed. Strangers cause no more fetches than [`Jwks`] allows.

use std::sync::Arc;
use std::time::Duration;

use crate::config::ProviderConfig;
use crate::provider::spec::Spec;
use crate::provider::{Fetcher, HttpClient, Provider};
use crate::time::Time;
use progress_hub_auth::jwt::{Jwks, JwksUnavailable};
use progress_hub_auth::signature::{Key, Request, Scheme, SignatureError, Trust, Verified};

/// The schemes of which a webhook must satisfy one.
pub(in crate::provider) struct WebhookVerifier {
    /// Those whose keys are configured or published; without any, nothing can be proven.
    schemes: Vec<SchemeKeys>,
}

struct SchemeKeys {
    scheme: Scheme,
    keys: Keys,
}

enum Keys {
    Configured(Vec<Key>),
    Published(Arc<Jwks<Key>>),
}

/// Why a webhook is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookVerifyError {
    /// It is not what its sender would have sent.
    #[error(transparent)]
    Refused(#[from] SignatureError),
    /// It breaks the spec's own condition.
    #[error("the webhook does not meet its provider's condition")]
    NotAccepted,
    /// The keys that may prove it can't be fetched now, so it can be neither believed nor refused.
    #[error("the provider's keys can't be fetched for a moment")]
    KeysUnavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

impl WebhookVerifyError {
    /// The stable word for logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::NotAccepted => "signature_not_accepted",
            Self::KeysUnavailable { .. } => "signature_keys_unavailable",
        }
    }
}

impl From<JwksUnavailable> for WebhookVerifyError {
    fn from(unavailable: JwksUnavailable) -> Self {
        Self::KeysUnavailable {
            retry_after: unavailable.retry_after,
        }
    }
}

impl WebhookVerifier {
    /// The spec's schemes with the operator's secrets and addresses.
    ///
    /// # Errors
    /// All mistakes, by key: secrets that fit no scheme, published keys without a place, and a provider
    /// whose webhooks could never tell anything.
    pub(in crate::provider) fn new(
        spec: &Spec,
        settings: &ProviderConfig,
        http: &HttpClient,
    ) -> Result<Self, Vec<(String, String)>> {
        let can_be_asked = spec.poll.is_some();
        let secrets = settings.webhook_secrets.iter().cloned().map(Key::from);
        let secrets: Vec<Key> = secrets.collect();
        let keyed = |scheme: &Scheme| {
            let keys = keys_of(scheme, &secrets, settings, http)?;
            let scheme = scheme.clone();
            Some(SchemeKeys { scheme, keys })
        };
        let mut ways: Vec<SchemeKeys> = spec.signature.iter().filter_map(keyed).collect();

        let mut mistakes = Vec::new();
        for (at, secret) in secrets.iter().enumerate() {
            if let Some(problem) = key_problem(&spec.signature, secret) {
                mistakes.push((format!("webhook_secrets[{at}]"), problem.to_owned()));
            }
        }
        if ways.is_empty() && !spec.signature.iter().any(Scheme::needs_secret) {
            let problem = "is needed: the spec does not say where the provider publishes its keys";
            mistakes.push(("jwks_url".to_owned(), problem.to_owned()));
        }
        let is_nudge = |scheme: &Scheme| scheme.trust() == Trust::Unsigned;
        if !can_be_asked && spec.signature.iter().all(is_nudge) {
            let problem = "signature: proves no body, and without [poll] nobody can be asked: \
                           nothing could ever be applied";
            mistakes.push(("spec".to_owned(), format!("'{}': {problem}", settings.spec)));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        // All that is missing is a secret: whatever comes is a reason to ask.
        if ways.is_empty() && can_be_asked {
            ways.push(SchemeKeys {
                scheme: Scheme::None {},
                keys: Keys::Configured(Vec::new()),
            });
        }
        Ok(Self { schemes: ways })
    }

    /// Proves a request by the first scheme that it satisfies.
    async fn verify<'a>(
        &self,
        request: &Request<'a>,
        now: Time,
    ) -> Result<Verified<'a>, WebhookVerifyError> {
        let mut unproven: Option<WebhookVerifyError> = None;
        for way in &self.schemes {
            let failed = match way.verify(request, now).await {
                Ok(verified) => return Ok(verified),
                Err(failed) => failed,
            };
            // What was meant for another scheme says the least; keys that may yet come say the most.
            let says_more = match (&unproven, &failed) {
                (None, _) | (Some(_), WebhookVerifyError::KeysUnavailable { .. }) => true,
                (Some(WebhookVerifyError::Refused(earlier)), _) => earlier.is_format_error(),
                (
                    Some(
                        WebhookVerifyError::NotAccepted
                        | WebhookVerifyError::KeysUnavailable { .. },
                    ),
                    _,
                ) => false,
            };
            if says_more {
                unproven = Some(failed);
            }
        }
        Err(unproven.unwrap_or(SignatureError::NoKeyConfigured.into()))
    }
}

/// The keys that a scheme goes by; none where it needs some and none are configured.
fn keys_of(
    scheme: &Scheme,
    secrets: &[Key],
    settings: &ProviderConfig,
    http: &HttpClient,
) -> Option<Keys> {
    if let Some(published) = scheme.published() {
        let url = settings.jwks_url.as_ref().or(published.url)?;
        let fetch = Arc::new(Fetcher::new(http.clone()));
        let jwks = Jwks::new(url.clone(), fetch, published.read);
        return Some(Keys::Published(Arc::new(jwks)));
    }
    let is_complete = !secrets.is_empty() || !scheme.needs_secret();
    is_complete.then(|| Keys::Configured(secrets.to_vec()))
}

/// What keeps a secret from proving anything under any scheme.
fn key_problem(schemes: &[Scheme], secret: &Key) -> Option<&'static str> {
    let takes_secrets = |scheme: &&Scheme| scheme.needs_secret();
    let problem = |scheme: &Scheme| scheme.key_problem(secret);
    if schemes.iter().any(|scheme| problem(scheme).is_none()) {
        return None;
    }
    let first = schemes.iter().find(takes_secrets).or(schemes.first());
    first.and_then(problem)
}

impl SchemeKeys {
    async fn verify<'a>(
        &self,
        request: &Request<'a>,
        now: Time,
    ) -> Result<Verified<'a>, WebhookVerifyError> {
        let verify = |keys: &[Key]| self.scheme.verify(request, keys, now.timestamp());
        let jwks = match &self.keys {
            Keys::Configured(keys) => return Ok(verify(keys)?),
            Keys::Published(jwks) => jwks,
        };
        // What no key can prove is refused without any.
        if let Err(refusal) = verify(&[])
            && !refusal.is_key_error()
        {
            return Err(refusal.into());
        }
        let held = jwks.current().await?;
        let refusal = match verify(&held) {
            Err(refusal) if refusal.is_key_error() => refusal,
            answer => return Ok(answer?),
        };
        match jwks.newer_than(&held).await {
            Some(newer) => Ok(verify(&newer)?),
            None => Err(refusal.into()),
        }
    }
}

impl Provider {
    /// Proves who sent a webhook, and that it meets the spec's condition.
    ///
    /// # Errors
    /// [`Unproven`]. Where the schemes need a secret, none is configured and the provider can be asked,
    /// nothing is refused and nothing is trusted either.
    pub async fn verify<'a>(
        &self,
        request: &Request<'a>,
        now: Time,
    ) -> Result<Verified<'a>, WebhookVerifyError> {
        let verified = self.webhook_verifier.verify(request, now).await?;
        if self.spec.webhook.accepts(request) {
            Ok(verified)
        } else {
            Err(WebhookVerifyError::NotAccepted)
        }
    }
}
