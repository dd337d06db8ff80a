//! A thread that reads beside the writer.
//!
//! Invariant: each step sees everything that was acknowledged before it was asked.

use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use super::command_queue::{Changes, Receiver};
use crate::store::Error;

/// The most steps taken at once: where many wait, most of the way is from one thread to another; and
/// few enough that none waits for long behind a slow one while another reader is free.
const MAX_READ_BATCH: usize = 8;

/// Serves the inbox, together with its fellows, until it is closed and empty.
pub(super) fn serve(db: &Connection, inbox: &Mutex<Receiver>) {
    let mut steps = Vec::with_capacity(MAX_READ_BATCH);
    let take = |steps: &mut Vec<_>| {
        let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.blocking_recv_many(steps, MAX_READ_BATCH)
    };
    while take(&mut steps) > 0 {
        for mut step in steps.drain(..) {
            let outcome = step.run(db, &mut Changes::new());
            step.answer(outcome.map_err(|error| Error::Unavailable(error.to_string())));
        }
    }
}
