//! Credentials of a run.

use secrecy::SecretString;

/// Owner of the jobs of a run.
pub const OWNER: &str = "load";

/// Credentials for the hub under test.
pub struct Access {
    /// Bearer tokens.
    pub tokens: Tokens,
    /// Secret that signs webhooks. Required if updates are sent as webhooks.
    pub webhook_secret: Option<SecretString>,
}

/// Bearer tokens, or the token that mints them.
pub enum Tokens {
    /// Tokens minted by the caller with the secret of the hub.
    Minted {
        /// Token with subject [`OWNER`] and scope `jobs:read`.
        reader: SecretString,
        /// Token with scope `jobs:publish`.
        worker: SecretString,
    },
    /// Token with scope `admin`. The run requests the other tokens from the hub.
    Admin(SecretString),
}
