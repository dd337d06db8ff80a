//! What comes from a provider by itself: proven first, read after.
//!
//! Invariant: a body is parsed only once it is [`Verified`].

use minijinja::Value;
use serde_json::Value as Json;

use super::{NotItsShape, Provider, Told};
use crate::signature::{Headers, Refusal, Scheme, Trust, Verified};
use crate::time::Time;

impl Provider {
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
}
