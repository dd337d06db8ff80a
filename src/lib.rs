//! A real-time progress hub for long-running jobs. Providers and workers report progress, browsers
//! receive every change, and no result is lost.
//!
//! A job is a versioned document. The hub never sends deltas: each message carries the newest
//! [`Job`](job::Job) with its `version`. Duplicates, reordering, gaps, races, slow consumers and
//! reconnects are all handled by one comparison: is this version newer than the one I have?
//!
//! # From a webhook to a browser
//!
//! 1. `server::api::webhooks` receives the raw body and finds the [`Provider`](provider::Provider).
//! 2. [`Provider::verify`](provider::Provider::verify) checks the signature. Only
//!    [`Verified`](progress_hub_auth::signature::Verified) bytes can be parsed.
//! 3. [`Provider::parse`](provider::Provider::parse) evaluates the provider definition and returns a
//!    [`StatusReport`](job::StatusReport).
//! 4. [`Tracker::apply_update`](tracker::Tracker::apply_update) reads the job, applies the transition
//!    rules ([`Job::apply`](job::Job::apply)) and commits the result. Submit responses, polls, worker
//!    updates, cancellations and deadlines take the same path.
//! 5. The store compares the version, then stores, schedules and publishes the change in one atomic
//!    step. The webhook is answered with 200 after this step.
//! 6. [`ChangeFeed`](background::change_feed::ChangeFeed) passes the change to
//!    [`Hub::deliver`](hub::Hub::deliver), which queues it for each [`Shard`](hub::Shard) with subscribers.
//! 7. The shard encodes one [`Frame`](protocol::Frame) and offers it to each
//!    [`Connection`](hub::Connection). A [`Sink`](hub::Sink) that is not ready receives the newest
//!    version later.
//!
//! # A browser subscribes
//!
//! 1. The token is verified ([`Verifier::verify`](progress_hub_auth::jwt::Verifier::verify)).
//! 2. [`Connection::subscribe_paused`](hub::Connection::subscribe_paused) attaches the connection to
//!    the topic without delivering anything.
//! 3. The newest document is read, and the [`Principal`](progress_hub_auth::jwt::Principal) decides
//!    whether the caller may see it. If the store needs a subscription for the job, it is made now, and
//!    the document is read again.
//! 4. [`Connection::activate`](hub::Connection::activate) delivers the document if it is newer than the
//!    client's. A change that arrives between the steps is resolved by its version.
//!
//! # Modules
//!
//! In reading order. A module imports only from the groups above its own; `tests/docs.rs` checks this.
//! `docs/explanation/architecture.md` describes each module.

pub mod egress; // outgoing HTTP: clients and the addresses they may reach
pub mod rate_limit; // units per time and client
pub mod template; // MiniJinja with a limit of steps
pub mod time; // timestamps and deterministic jitter

pub mod job; // the document, its updates and the transition rules

pub mod outbox; // deliveries to destinations outside the hub
pub mod protocol; // messages, frames and close codes
pub mod telemetry; // logs and metrics

pub mod config; // settings: read, validated, printed
pub mod links; // callback and output URLs

pub mod hub; // fan-out from one change to every connection
pub mod provider; // provider definitions, requests, circuit breaker, webhooks
pub mod store; // job storage: SQLite and Redis

pub mod destinations; // webhook endpoints, e-mail and the archive of outputs

pub mod admission; // checks before a submission
pub mod tracker; // the single writer of jobs

pub mod cancellation; // cancels jobs, at the provider if necessary

pub mod background; // loops without a request

pub mod server; // HTTP, WebSocket, server-sent events

#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/invariants.rs"]
pub mod fuzz;
