//! Loops that run without a request.

pub mod breaker_sync;
pub mod change_feed;
pub mod delivery;
pub mod submitter;
pub mod watchdog;
