//! The bounded queue in front of the threads that own a connection.
//!
//! Invariant: an async thread only ever waits here without blocking; a full inbox makes its caller
//! wait, and past [`PATIENCE`] refuses it as busy before anything was done.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};

use crate::job::Job;
use crate::store::Error;

/// The most steps that wait for a connection.
const CAPACITY: usize = 1024;

/// How long a caller waits for a place in the queue.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The stored versions that the transaction has to announce, in commit order.
pub(super) type Changes = Vec<Arc<Job>>;

/// One thing to do on a connection, and the caller who waits for its answer.
pub(super) trait Command: Send {
    /// Does it. What is the caller's own affair (a refusal, an unreadable document) is no error
    /// here and comes before the step's first write.
    fn run(&mut self, db: &Connection, changes: &mut Changes) -> rusqlite::Result<()>;

    /// Tells the caller, who gets his own outcome only where `group` is well.
    fn answer(self: Box<Self>, group: Result<(), Error>);
}

/// The sending end, shared by all callers.
#[derive(Debug)]
pub(super) struct CommandQueue {
    sender: Mutex<Option<Sender>>,
    enqueue_timeout: Duration,
}

pub(super) type Sender = mpsc::Sender<Box<dyn Command>>;
pub(super) type Receiver = mpsc::Receiver<Box<dyn Command>>;

impl CommandQueue {
    pub(super) fn new() -> (Self, Receiver) {
        Self::bounded(CAPACITY, ENQUEUE_TIMEOUT)
    }

    fn bounded(capacity: usize, patience: Duration) -> (Self, Receiver) {
        let (sender, receiver) = mpsc::channel(capacity);
        let sender = Mutex::new(Some(sender));
        (
            Self {
                sender,
                enqueue_timeout: patience,
            },
            receiver,
        )
    }

    /// Has `run` done on the connection and waits for the answer. Once it is queued it is done,
    /// even if the caller goes away.
    pub(super) async fn execute<T, F>(&self, run: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Changes) -> rusqlite::Result<T> + Send + 'static,
    {
        let (caller, answer) = oneshot::channel();
        let step = Box::new(PendingCommand {
            run: Some(run),
            outcome: Err(to_store_error("the request was not reached")),
            caller,
        });
        let sender = self
            .lock()
            .clone()
            .ok_or_else(|| to_store_error("it is closed"))?;
        match sender.send_timeout(step, self.enqueue_timeout).await {
            Ok(()) => drop(sender),
            Err(SendTimeoutError::Timeout(_)) => return Err(Error::Overloaded),
            Err(SendTimeoutError::Closed(_)) => return Err(to_store_error("its thread has ended")),
        }
        answer
            .await
            .unwrap_or_else(|_| Err(to_store_error("its thread has ended")))
    }

    /// Takes no more steps once the returned sender is dropped, too; what waits is still done.
    pub(super) fn close(&self) -> Option<Sender> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sender>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PendingCommand<T, F> {
    run: Option<F>,
    outcome: Result<T, Error>,
    caller: oneshot::Sender<Result<T, Error>>,
}

impl<T, F> Command for PendingCommand<T, F>
where
    T: Send,
    F: FnOnce(&Connection, &mut Changes) -> rusqlite::Result<T> + Send,
{
    fn run(&mut self, db: &Connection, changes: &mut Changes) -> rusqlite::Result<()> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        self.outcome = match run(db, changes) {
            Ok(outcome) => Ok(outcome),
            Err(error) if is_unreadable(&error) => Err(Error::Corrupt(error.to_string())),
            Err(error) => return Err(error),
        };
        Ok(())
    }

    fn answer(self: Box<Self>, group: Result<(), Error>) {
        // A caller who has gone away needs no answer.
        drop(self.caller.send(group.and(self.outcome)));
    }
}

/// Whether a row was found and could not be understood; the connection itself is well.
pub(super) fn is_unreadable(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
    )
}

fn to_store_error(why: &str) -> Error {
    Error::Unavailable(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_command_queue_times_out_with_overloaded() {
        let (inbox, receiver) = CommandQueue::bounded(1, Duration::ZERO);
        let waiting = inbox.execute(|_, _| Ok(1));
        let refused = async {
            let refused = inbox.execute(|_, _| Ok(2)).await;
            assert!(matches!(refused, Err(Error::Overloaded)), "{refused:?}");
            drop(receiver);
        };
        let (waited, ()) = tokio::join!(waiting, refused);
        assert!(matches!(waited, Err(Error::Unavailable(_))), "{waited:?}");
    }
}
