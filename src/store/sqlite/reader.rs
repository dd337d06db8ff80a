//! A thread that reads beside the writer.
//!
//! Invariant: each step sees everything that was acknowledged before it was asked.

use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use super::inbox::{Changes, Receiver};
use crate::store::Error;

/// Serves the inbox, together with its fellows, until it is closed and empty.
pub(super) fn serve(db: &Connection, inbox: &Mutex<Receiver>) {
    let next = || {
        let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.blocking_recv()
    };
    while let Some(mut step) = next() {
        let outcome = step.run(db, &mut Changes::new());
        step.answer(outcome.map_err(|error| Error::Away(error.to_string())));
    }
}
