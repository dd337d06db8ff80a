//! Values of metric labels.
//!
//! Every label has a fixed set of values, so a request cannot create a time series.

use serde::{Deserialize, Serialize};

/// Defines enums whose variants are the values of a label.
macro_rules! labels {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $value:literal,)+
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// All values, in the order of declaration.
            pub const ALL: [Self; [$($value),+].len()] = [$(Self::$variant),+];

            /// Returns the value as it appears in metrics and JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $value,)+
                }
            }
        }
    )+};
}

labels! {
    /// How a client receives updates.
    pub enum ConnectionKind {
        /// `GET /v1/ws`.
        Websocket = "websocket",
        /// `GET /v1/events`.
        Sse = "sse",
        /// `GET /v1/jobs/{id}?wait=`.
        Poll = "poll",
    }

    /// Result of a received webhook.
    pub enum WebhookOutcome {
        /// The job changed.
        Applied = "applied",
        /// The job had this state already.
        Unchanged = "unchanged",
        /// No job is known for the task.
        Unmatched = "unmatched",
        /// The signature is missing, wrong or too old.
        Unauthorized = "unauthorized",
        /// The payload is not in the provider's format.
        Malformed = "malformed",
        /// The update could not be stored, or the sender's public keys could not be fetched.
        Unavailable = "unavailable",
        /// The body exceeds `server.max_body_bytes`.
        TooLarge = "too_large",
        /// The provider is not configured, or the callback token is invalid.
        Unknown = "unknown",
    }

    /// Purpose of a request to a provider.
    pub enum ProviderOperation {
        /// Submits a job.
        Submit = "submit",
        /// Reads the state of a job.
        Query = "query",
        /// Cancels a job.
        Cancel = "cancel",
        /// Reads the balance of the account.
        Balance = "balance",
    }

    /// Result of a request to a provider.
    pub enum CallOutcome {
        /// The provider accepted the request.
        Ok = "ok",
        /// The provider limits the rate.
        RateLimited = "rate_limited",
        /// The provider rejected the request or the key.
        Rejected = "rejected",
        /// No response, or one that cannot be interpreted.
        NoResponse = "no_response",
    }

    /// Reason why a submission was rejected before the job was stored.
    pub enum AdmissionRejection {
        /// A parameter is invalid, or the tier does not allow it.
        Parameters = "parameters",
        /// The request contains inline data, or is too large.
        Payload = "payload",
        /// A budget is set and the model has no price.
        Price = "price",
        /// A budget does not allow the job.
        Budget = "budget",
        /// The owner has reached `limits.queued_jobs` or `limits.queued_bytes`.
        Queue = "queue",
        /// The owner has reached `limits.submits_per_minute`.
        Rate = "rate",
    }

    /// Reason why an output was not copied to the archive.
    pub enum ArchiveFailure {
        /// The provider no longer has the output.
        Expired = "expired",
        /// The source failed, or did not return the output.
        Source = "source",
        /// The output cannot be archived, for example because it is too large.
        Rejected = "rejected",
        /// The bucket or folder failed.
        Storage = "storage",
    }

    /// A limit that a client has reached.
    pub enum Limit {
        /// `server.max_connections`, or the maximum number of TCP connections.
        NodeConnections = "node_connections",
        /// `limits.connections_per_address`.
        AddressConnections = "address_connections",
        /// `limits.unauthenticated_per_address`.
        UnauthenticatedConnections = "unauthenticated_connections",
        /// `limits.handshakes_per_second`.
        Handshakes = "handshakes",
        /// `limits.connections_per_subject`.
        SubjectConnections = "subject_connections",
        /// `limits.subscriptions_per_subject`.
        Subscriptions = "subscriptions",
        /// `limits.requests_per_second`.
        Requests = "requests",
        /// `limits.messages_per_second`.
        Messages = "messages",
        /// `limits.ids_per_second`.
        Ids = "ids",
        /// `server.request_timeout`.
        RequestTime = "request_time",
        /// The memory for bodies of requests with a token.
        AuthenticatedBodies = "authenticated_bodies",
        /// `limits.unverified_body_bytes`.
        UnverifiedBodies = "unverified_bodies",
        /// The maximum number of concurrent downloads of the node.
        NodeDownloads = "node_downloads",
        /// `limits.downloads_per_owner`.
        OwnerDownloads = "owner_downloads",
        /// `limits.downloads_per_link`.
        LinkDownloads = "link_downloads",
        /// The minimum rate at which a client reads an output.
        DownloadRate = "download_rate",
    }

    /// Kind of a destination outside the hub.
    pub enum DestinationKind {
        /// An endpoint of `[[webhooks]]`.
        Webhook = "webhook",
        /// A host of `webhook_defaults.hosts`.
        Host = "host",
        /// `[email]`.
        Email = "email",
        /// `[archive]`.
        Archive = "archive",
    }

    /// Result of an attempt to deliver to a destination.
    pub enum AttemptOutcome {
        /// The destination accepted the delivery.
        Delivered = "delivered",
        /// The destination failed or did not respond.
        Failed = "failed",
        /// The delivery cannot succeed.
        Rejected = "rejected",
        /// The destination needs other settings.
        Misconfigured = "misconfigured",
        /// The destination responded with 410.
        Gone = "gone",
        /// Nothing was attempted, because a limit applies.
        Postponed = "postponed",
    }

    /// State of a destination.
    pub enum DestinationStatus {
        /// Deliveries are attempted.
        Active = "active",
        /// Several attempts failed. One attempt at a time tests the destination.
        Paused = "paused",
        /// Deliveries are held.
        Disabled = "disabled",
    }

    /// State of a provider. The order is by severity.
    #[derive(PartialOrd, Ord, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum ProviderState {
        /// Requests are sent.
        Available = "available",
        /// The provider limits the rate. Requests wait until it allows more.
        RateLimited = "rate_limited",
        /// The provider fails or cannot be reached.
        Unavailable = "unavailable",
        /// The account has no credit, or the key is rejected. An operator has to act.
        Suspended = "suspended",
    }
}

/// Close codes of RFC 6455 and of the hub's protocol.
const CLOSE_CODES: [u16; 21] = [
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1011, 1012, 4001, 4002, 4003, 4008, 4009,
    4100, 4101, 4102, 4103, 4200,
];

/// Returns the label value of a WebSocket close code. Clients choose codes freely, so unknown codes
/// become `other`.
pub(super) fn close_code(code: u16) -> String {
    if CLOSE_CODES.contains(&code) {
        code.to_string()
    } else {
        "other".to_owned()
    }
}
