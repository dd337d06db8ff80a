//! Verifies webhooks with the signature schemes of the spec and the configured or published keys.
//!
//! A webhook must satisfy one scheme whose keys are known. Keys that cannot be fetched never count
//! as keys that are not needed. [`Jwks`] limits how often unknown senders can trigger a fetch.

use std::sync::Arc;
use std::time::Duration;

use progress_hub_auth::jwt::{Jwks, JwksUnavailable, is_encrypted_or_local};
use progress_hub_auth::signature::{
    Key, KeySource, Request, Scheme, SignatureError, Trust, Verified,
};
use url::Url;

use crate::config::{ConfigError, ProviderConfig};
use crate::provider::client::http::{Fetcher, HttpClient};
use crate::provider::spec::Spec;
use crate::time::Time;

/// Verifies the webhooks of one provider.
pub(crate) struct WebhookVerifier {
    spec: Arc<Spec>,
    /// Schemes whose keys are configured or published, in the order of the spec.
    schemes: Vec<KeyedScheme>,
    /// The account that the account header of a webhook must contain.
    account: Option<String>,
}

struct KeyedScheme {
    scheme: Scheme,
    keys: SchemeKeys,
}

enum SchemeKeys {
    Configured(Vec<Key>),
    Published(Arc<Jwks<Key>>),
}

/// Reason why a webhook is not verified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebhookVerifyError {
    /// The signature is missing or invalid.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The `accept` condition of the spec is false.
    #[error("webhook rejected by the spec's `accept` condition")]
    NotAccepted,
    /// The webhook is signed for another account at the provider.
    #[error("webhook is for another account at the provider")]
    OtherAccount,
    /// The public keys of the sender cannot be fetched at the moment.
    #[error("provider signing keys are temporarily unavailable")]
    KeysUnavailable {
        /// Time until the keys may be fetched again.
        retry_after: Duration,
    },
}

impl WebhookVerifyError {
    /// Returns a stable code for logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Signature(error) => error.code(),
            Self::NotAccepted => "signature_not_accepted",
            Self::OtherAccount => "signature_other_account",
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
    /// Combines the schemes of the spec with the configured keys.
    ///
    /// If the only thing missing is a secret and the provider can be polled, every webhook passes
    /// as untrusted and triggers a poll.
    ///
    /// # Errors
    /// Returns all errors: secrets that fit no scheme, a missing or unencrypted JWKS URL, an
    /// account although no scheme has an account header, and a spec with neither signatures nor
    /// polling.
    pub(crate) fn new(
        spec: Arc<Spec>,
        settings: &ProviderConfig,
        http: &HttpClient,
    ) -> Result<Self, Vec<ConfigError>> {
        let can_poll = spec.poll.is_some();
        let secrets: Vec<Key> = settings
            .webhook_secrets
            .iter()
            .cloned()
            .map(Key::from)
            .collect();
        let mut schemes: Vec<KeyedScheme> = spec
            .signature
            .iter()
            .filter_map(|scheme| {
                Some(KeyedScheme {
                    keys: keys_for(scheme, &secrets, settings, http)?,
                    scheme: scheme.clone(),
                })
            })
            .collect();

        let mut errors = Vec::new();
        let mut report = |key: String, message: String| errors.push(ConfigError { key, message });
        for (index, secret) in secrets.iter().enumerate() {
            if let Some(problem) = key_problem(&spec.signature, secret) {
                report(format!("webhook_secrets[{index}]"), problem.to_owned());
            }
        }
        if schemes.is_empty() && !spec.signature.iter().any(needs_secret) {
            let message = "required: the spec has no URL of the provider's public keys";
            report("jwks_url".to_owned(), message.to_owned());
        }
        let unencrypted = spec.signature.iter().any(|scheme| {
            let url = jwks_url(scheme, settings);
            url.is_some_and(|url| !is_encrypted_or_local(url))
        });
        if unencrypted {
            let message = "must be https, or http on loopback";
            report("jwks_url".to_owned(), message.to_owned());
        }
        if settings.account.is_some() && !names_account(&spec.signature) {
            let message = "the webhooks of this provider do not name an account";
            report("account".to_owned(), message.to_owned());
        }
        let is_unsigned = |scheme: &Scheme| scheme.trust() == Trust::Unsigned;
        if !can_poll && spec.signature.iter().all(is_unsigned) {
            let message = format!(
                "'{}': signature: does not cover the body, and there is no [poll] to confirm updates",
                settings.spec
            );
            report("spec".to_owned(), message);
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        if schemes.is_empty() && can_poll {
            schemes.push(KeyedScheme {
                scheme: Scheme::None {},
                keys: SchemeKeys::Configured(Vec::new()),
            });
        }
        Ok(Self {
            spec,
            schemes,
            account: settings.account.clone(),
        })
    }

    /// Returns whether webhooks have an account header and no account is configured.
    pub(crate) fn accepts_any_account(&self) -> bool {
        self.account.is_none() && names_account(&self.spec.signature)
    }

    fn is_for_account(&self, scheme: &Scheme, request: &Request<'_>) -> bool {
        match (&self.account, scheme.account_header()) {
            // The signature covers the header.
            (Some(account), Some(header)) => request.headers.get(header) == Some(account),
            (Some(_), None) | (None, _) => true,
        }
    }

    /// Verifies a webhook: one of the schemes must accept the signature, and the `accept` condition
    /// of the spec must be true.
    ///
    /// # Errors
    /// Returns the most informative error of all schemes.
    pub(crate) async fn verify<'a>(
        &self,
        request: &Request<'a>,
        now: Time,
    ) -> Result<Verified<'a>, WebhookVerifyError> {
        let mut reported = None;
        for scheme in &self.schemes {
            let error = match scheme.verify(request, now).await {
                Ok(_) if !self.is_for_account(&scheme.scheme, request) => {
                    return Err(WebhookVerifyError::OtherAccount);
                }
                Ok(verified) if self.spec.webhook.accepts(request) => return Ok(verified),
                Ok(_) => return Err(WebhookVerifyError::NotAccepted),
                Err(error) => error,
            };
            reported = Some(more_informative(reported, error));
        }
        Err(reported.unwrap_or(SignatureError::NoKeyConfigured.into()))
    }

    /// Checks the headers of a webhook before its body is read. `request` has an empty body.
    ///
    /// # Errors
    /// Returns the most informative error of all schemes if each rejects the headers.
    pub(crate) fn check_headers(
        &self,
        request: &Request<'_>,
        now: Time,
    ) -> Result<(), WebhookVerifyError> {
        let mut reported = None;
        for scheme in &self.schemes {
            match scheme.check_headers(request, now) {
                Ok(()) => return Ok(()),
                Err(error) => reported = Some(more_informative(reported, error.into())),
            }
        }
        Err(reported.unwrap_or(SignatureError::NoKeyConfigured.into()))
    }
}

/// Returns the more informative of the errors of two schemes.
fn more_informative(
    reported: Option<WebhookVerifyError>,
    error: WebhookVerifyError,
) -> WebhookVerifyError {
    match reported {
        None => error,
        // The sender must retry, because the keys may be available then.
        Some(_) if matches!(error, WebhookVerifyError::KeysUnavailable { .. }) => error,
        // A format error only shows that the webhook uses another scheme.
        Some(WebhookVerifyError::Signature(reported)) if reported.is_format_error() => error,
        Some(reported) => reported,
    }
}

/// Returns the keys for a scheme, or `None` if it needs keys and none are known.
fn keys_for(
    scheme: &Scheme,
    secrets: &[Key],
    settings: &ProviderConfig,
    http: &HttpClient,
) -> Option<SchemeKeys> {
    match scheme.key_source() {
        KeySource::Jwks(_) => {
            let url = jwks_url(scheme, settings)?;
            let fetch = Arc::new(Fetcher::new(http.clone()));
            let jwks = Jwks::new(url.clone(), fetch, Key::from_jwks);
            Some(SchemeKeys::Published(Arc::new(jwks)))
        }
        KeySource::Secrets if secrets.is_empty() => None,
        KeySource::Secrets | KeySource::None => Some(SchemeKeys::Configured(secrets.to_vec())),
    }
}

/// Returns the URL of the public keys of a scheme: the configured one, else that of the spec.
fn jwks_url<'a>(scheme: &'a Scheme, settings: &'a ProviderConfig) -> Option<&'a Url> {
    match scheme.key_source() {
        KeySource::Jwks(published_at) => settings.jwks_url.as_ref().or(published_at),
        KeySource::Secrets | KeySource::None => None,
    }
}

fn names_account(schemes: &[Scheme]) -> bool {
    schemes
        .iter()
        .any(|scheme| scheme.account_header().is_some())
}

fn needs_secret(scheme: &Scheme) -> bool {
    scheme.key_source() == KeySource::Secrets
}

/// Returns why a secret can be used with none of the schemes, or `None` if one accepts it.
fn key_problem(schemes: &[Scheme], secret: &Key) -> Option<&'static str> {
    let problem = |scheme: &Scheme| scheme.key_problem(secret);
    if schemes.iter().any(|scheme| problem(scheme).is_none()) {
        return None;
    }
    let needs_secret = schemes.iter().find(|scheme| needs_secret(scheme));
    needs_secret.or(schemes.first()).and_then(problem)
}

impl KeyedScheme {
    /// Checks a request with an empty body for errors that do not depend on the body.
    fn check_headers(&self, request: &Request<'_>, now: Time) -> Result<(), SignatureError> {
        let (keys, may_get_keys) = match &self.keys {
            SchemeKeys::Configured(keys) => (keys.as_slice(), false),
            SchemeKeys::Published(_) => (&[][..], true),
        };
        let covers_body = self.scheme.trust() == Trust::Signed;
        match self.scheme.verify(request, keys, now.timestamp()) {
            Ok(_) | Err(SignatureError::MissingValue(_)) => Ok(()),
            Err(error) if error.is_key_error() && (covers_body || may_get_keys) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn verify<'a>(
        &self,
        request: &Request<'a>,
        now: Time,
    ) -> Result<Verified<'a>, WebhookVerifyError> {
        let verify = |keys: &[Key]| self.scheme.verify(request, keys, now.timestamp());
        let jwks = match &self.keys {
            SchemeKeys::Configured(keys) => return Ok(verify(keys)?),
            SchemeKeys::Published(jwks) => jwks,
        };
        // Webhooks that no key can verify are rejected without fetching keys.
        if let Err(error) = verify(&[])
            && !error.is_key_error()
        {
            return Err(error.into());
        }
        let keys = jwks.current().await?;
        let error = match verify(&keys) {
            Err(error) if error.is_key_error() => error,
            result => return Ok(result?),
        };
        match jwks.newer_than(&keys).await {
            Some(newer) => Ok(verify(&newer)?),
            None => Err(error.into()),
        }
    }
}
