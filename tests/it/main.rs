//! Integration tests: each starts a real hub and uses it over the network, as its clients do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    reason = "a failed assumption fails the test"
)]

mod admission;
mod app;
mod archive;
mod auth;
mod bad_input;
mod built_in_specs;
mod cancel;
mod circuit_breaker;
mod client;
mod client_limits;
mod cluster;
mod command_line;
mod conformance;
mod crash;
mod crash_during_submit;
mod custom_specs;
mod demo;
mod drain;
mod email;
mod fan_out;
mod health_check;
mod heartbeat;
mod http;
mod issuer;
mod limits;
mod load;
mod long_poll;
mod lost_submit_response;
mod mock_provider;
mod outputs;
mod poll_budget;
mod problems;
mod provider_requests;
mod proxy;
mod raw_websocket;
mod redis;
mod redis_channels;
mod redis_replies;
mod rendered_request;
mod reservation_bounds;
mod result_fetch;
mod resume;
mod security;
mod signatures;
mod slow_requests;
mod smoke;
mod spec;
mod sse;
mod sse_client;
mod store;
mod submit;
mod subscribe;
mod tampering_proxy;
mod tls;
mod wait;
mod watchdog;
mod webhook;
mod webhook_bodies;
mod webhook_signatures;
mod webhooks_out;
mod workers;
