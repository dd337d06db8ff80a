//! The words that tell numbers of one kind apart.
//!
//! Invariant: each is one of a closed list, so no request can make up a new time series.

use serde::{Deserialize, Serialize};

use crate::job::Source;

/// How a client follows its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionKind {
    /// `GET /v1/ws`.
    Websocket,
    /// `GET /v1/events`.
    Sse,
    /// `GET /v1/jobs/{id}?wait=`.
    Poll,
}

impl ConnectionKind {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Websocket, Self::Sse, Self::Poll];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Sse => "sse",
            Self::Poll => "poll",
        }
    }
}

/// What became of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookOutcome {
    /// It changed its job.
    Applied,
    /// Its job knew it already.
    Unchanged,
    /// It belongs to no job that is known.
    Unmatched,
    /// Its signature was missing, wrong or stale.
    Unauthorized,
    /// It has not its provider's shape.
    Malformed,
    /// It could not be stored.
    Unavailable,
    /// Its body was over the limit.
    TooLarge,
    /// It named no configured provider, or a callback token that is none.
    Unknown,
}

impl WebhookOutcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Unmatched => "unmatched",
            Self::Unauthorized => "unauthorized",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too_large",
            Self::Unknown => "unknown",
        }
    }
}

/// What a provider was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderOperation {
    /// To take a job.
    Submit,
    /// How a job is.
    Query,
    /// To end a job.
    Cancel,
    /// What is left on the account.
    Balance,
}

impl ProviderOperation {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Query => "ask",
            Self::Cancel => "cancel",
            Self::Balance => "balance",
        }
    }
}

/// How a provider answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// As asked.
    Ok,
    /// Not now: it limits the rate.
    RateLimited,
    /// No: the request or the key is at fault.
    Rejected,
    /// There was no answer, or none that can be understood.
    NoResponse,
}

impl CallOutcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RateLimited => "rate_limited",
            Self::Rejected => "refused",
            Self::NoResponse => "unanswered",
        }
    }
}

/// Why a submit was refused before anything was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionRejection {
    /// A parameter makes no sense, or is more than the tier allows.
    Parameters,
    /// It carries data where a URL belongs, or is too long.
    Payload,
    /// Nobody knows what it would cost.
    Price,
    /// A budget does not allow it.
    Budget,
    /// Its owner submits too often.
    Rate,
}

impl AdmissionRejection {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Payload => "payload",
            Self::Price => "price",
            Self::Budget => "budget",
            Self::Rate => "rate",
        }
    }
}

/// How a provider is, in a word; a later one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProviderState {
    /// Whatever is due is sent.
    Available,
    /// It asked to be left alone for a while.
    RateLimited,
    /// It fails, or can't be reached.
    Unavailable,
    /// Its account has no credit, or its key is refused: somebody must do something.
    Suspended,
}

impl ProviderState {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Available,
        Self::RateLimited,
        Self::Unavailable,
        Self::Suspended,
    ];

    /// As documents and metrics say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Available => "open",
            Self::RateLimited => "paused",
            Self::Unavailable => "failing",
            Self::Suspended => "stopped",
        }
    }
}

/// Every source of news.
pub(super) const SOURCES: [Source; 6] = [
    Source::Api,
    Source::Submit,
    Source::Webhook,
    Source::Poll,
    Source::Push,
    Source::Deadline,
];

pub(super) const fn source(source: Source) -> &'static str {
    match source {
        Source::Api => "api",
        Source::Submit => "submit",
        Source::Webhook => "webhook",
        Source::Poll => "poll",
        Source::Push => "push",
        Source::Deadline => "deadline",
    }
}

/// A WebSocket close code as a word. Clients choose theirs freely, so only those of RFC 6455 and
/// of our own protocol are told apart.
pub(super) const fn close_code(code: u16) -> &'static str {
    match code {
        1000 => "1000",
        1001 => "1001",
        1002 => "1002",
        1003 => "1003",
        1005 => "1005",
        1006 => "1006",
        1007 => "1007",
        1008 => "1008",
        1009 => "1009",
        1011 => "1011",
        1012 => "1012",
        4001 => "4001",
        4002 => "4002",
        4003 => "4003",
        4008 => "4008",
        4009 => "4009",
        4100 => "4100",
        4101 => "4101",
        4200 => "4200",
        _ => "other",
    }
}
