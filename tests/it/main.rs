//! The hub as its users meet it: one story a test, over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "a test that says what it means"
)]

mod app;
mod auth;
mod bad_input;
mod calls;
mod cancel;
mod client;
mod command_line;
mod conformance;
mod crash;
mod dialects;
mod drain;
mod fan_out;
mod first;
mod fleet;
mod forger;
mod gate;
mod guard;
mod heartbeat;
mod hunt;
mod issuer;
mod limits;
mod load;
mod long_poll;
mod lost;
mod outputs;
mod proxy;
mod raw;
mod redis;
mod result;
mod resume;
mod sent;
mod signatures;
mod signing;
mod spec;
mod sse;
mod standin;
mod store;
mod strangers;
mod stream;
mod submit;
mod subscribe;
mod watchdog;
mod webhook;
mod webhook_bodies;
mod workers;
