//! A real-time progress hub for long jobs: providers and workers tell how their jobs are, browsers
//! see it, and no result is lost.
//!
//! **The one idea.** A job is a versioned document, and the document is the message. What travels is
//! never an event to be added up but the newest [`Job`](job::Job) with its `version`. Repetition,
//! disorder, a race, a gap, a slow reader and a reconnect are all the same question: *is this version
//! newer than the one I have?*
//!
//! # News comes in: from a webhook to a browser
//!
//! 1. `server::webhooks` takes the raw body and finds the [`Provider`](provider::Provider).
//! 2. [`Provider::verify`](provider::Provider::verify) proves the bytes with the spec's
//!    `Scheme`; only [`Verified`](progress_hub_auth::signature::Verified) bytes can be parsed.
//! 3. [`Provider::parse`](provider::Provider::parse) reads them, by the spec's expressions, into a
//!    [`Report`](job::Report).
//! 4. [`Tracker::record`](tracker::Tracker::record) reads the job, asks the law
//!    ([`Job::apply`](job::Job::apply)), and commits what comes of it. The submitter's answers, the
//!    watchdog's, a worker's pushes, cancels and deadlines come this way too; there is no other.
//! 5. [`Store::commit`](store::Store::commit) compares the version, stores and schedules in one step, and
//!    announces the change once it is on disk. Only then does the webhook get its 200.
//! 6. [`feed::Feed`] hands it to [`Hub::deliver`](hub::Hub::deliver), which puts it in the mailbox of each
//!    [`Shard`](hub::Shard) that watches the job.
//! 7. The shard, on its own thread, makes it the topic's newest [`Frame`](protocol::Frame) and offers it to each
//!    [`Connection`](hub::Connection). Its [`Sink`](hub::Sink) writes it at once; where the socket does not take it,
//!    the job waits for its turn, with whatever version is newest by then.
//!
//! # A browser subscribes
//!
//! 1. `server::socket` proves the token ([`Verifier::verify`](progress_hub_auth::jwt::Verifier::verify)) and takes the raw stream over:
//!    one connection, one task, one `select!`.
//! 2. [`Connection::hold`](hub::Connection::hold) attaches it to the job's topic *first*, shown nothing yet.
//! 3. [`Store::get_many`](store::Store::get_many) reads the newest document *then*, and the
//!    [`Principal`](progress_hub_auth::jwt::Principal) says whether the caller may see it.
//! 4. [`Connection::release`](hub::Connection::release) shows it, if it is newer than what the client has. Whatever
//!    changed in between, the version absorbs. There is no other code for a first state or for resuming.
//!
//! # The house, ground floor first
//!
//! A room imports from floors below its own only, and each outside crate has one door; `tests/tidy.rs`
//! holds both. `docs/architecture.md` walks through it.

// Ground floor: what everybody speaks of.

pub mod time; // a moment, as documents and stores have it

pub mod job; // the document, the news about it, and the law

// First floor: words, tokens and numbers; and above them what may be proven by a token.

pub mod protocol; // messages, and the frames that jobs travel in
pub mod telemetry; // logs and metrics


// Second floor: what the operator says, and what the hub gives away.

pub mod config; // every setting, typed and checked
pub mod links; // the URLs of its own that it hands out

// Third floor: memory, the fan-out, the world outside; none of them knows another.

pub mod hub; // from one change to every connection
pub mod provider; // who does the jobs, by spec files
pub mod store; // where jobs live, on disk before anybody is told

// Fourth floor: the only writer, and what comes before it.

pub mod admission; // what a submit must pass
pub mod tracker; // read, apply, commit

// Fifth floor: work that nobody waits for, and stopping it.

pub mod breaker_sync; // what nodes know of providers, known to all
pub mod cancellation; // ends what is not wanted any more
pub mod change_feed; // from the store to the hub
pub mod submitter; // sends accepted jobs
pub mod watchdog; // asks about silent ones, ends late ones

// Sixth floor: the door to the world. The roof, `main`, is the command line.

pub mod server; // HTTP, WebSockets, server-sent events

// Beside the house: a provider to try things with, which knows nothing of the hub.


// And a client that drives a hub and checks it, which knows nothing but the protocol.

