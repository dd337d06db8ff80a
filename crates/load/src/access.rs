//! Credentials of a run.

use secrecy::SecretString;

/// Owner of the jobs of a run.
pub const OWNER: &str = "load";

/// Scopes of the token that opens all sockets. The hub limits the connections and messages of a subject,
/// but not those of an administrator.
pub const READER_SCOPE: &str = "jobs:read admin";

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
        /// Token with subject [`OWNER`] and the scopes [`READER_SCOPE`].
        reader: SecretString,
        /// Token with scope `jobs:publish`.
        worker: SecretString,
    },
    /// Token with scope `admin`. The run requests the other tokens from the hub.
    Admin(SecretString),
}
