//! Loops that run without a request: they submit, poll, distribute changes and exchange provider state.

pub mod breaker_sync;
pub mod change_feed;
pub mod submitter;
pub mod watchdog;
