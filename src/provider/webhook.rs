//! Webhooks of a provider: verification of the sender, then parsing of the body.

mod parsing;
mod verifier;

pub(crate) use self::parsing::parse;
pub use self::parsing::{PayloadError, WebhookContent};
pub(super) use self::verifier::WebhookVerifier;
pub use self::verifier::WebhookVerifyError;
