//! The bounded queue between async callers and the threads that own a connection.
//!
//! If the queue is full, a caller waits without blocking its thread. After [`ENQUEUE_TIMEOUT`] it
//! receives [`Error::Overloaded`], and its command does not run.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};

use crate::job::Job;
use crate::store::Error;

/// Maximum number of queued commands.
const QUEUE_CAPACITY: usize = 1024;

/// How long a caller waits for free capacity.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// Job versions that a transaction publishes, in commit order.
pub(super) type Changes = Vec<Arc<Job>>;

/// An operation on a connection, with the caller that waits for its result.
pub(super) trait Command: Send {
    /// Runs the operation and keeps its result for [`Command::reply`].
    ///
    /// Returns an error only if the whole transaction must be rolled back. A result that concerns
    /// one caller, such as a conflict or [`Error::Corrupt`], is not an error here and must be
    /// determined before the operation writes.
    fn run(&mut self, db: &Connection, changes: &mut Changes) -> Result<(), Error>;

    /// Sends the caller its result, or the error of the transaction.
    fn reply(self: Box<Self>, transaction: Result<(), Error>);
}

/// The sending side of a queue.
#[derive(Debug)]
pub(super) struct CommandQueue {
    sender: Mutex<Option<Sender>>,
    enqueue_timeout: Duration,
}

pub(super) type Sender = mpsc::Sender<Box<dyn Command>>;
pub(super) type Receiver = mpsc::Receiver<Box<dyn Command>>;

impl CommandQueue {
    pub(super) fn new() -> (Self, Receiver) {
        Self::bounded(QUEUE_CAPACITY, ENQUEUE_TIMEOUT)
    }

    fn bounded(capacity: usize, enqueue_timeout: Duration) -> (Self, Receiver) {
        let (sender, receiver) = mpsc::channel(capacity);
        let queue = Self {
            sender: Mutex::new(Some(sender)),
            enqueue_timeout,
        };
        (queue, receiver)
    }

    /// Runs `operation` on the connection and returns its result.
    ///
    /// A queued operation runs even if the returned future is dropped.
    pub(super) async fn execute<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Changes) -> Result<T, Error> + Send + 'static,
    {
        let (caller, result) = oneshot::channel();
        let command = Box::new(PendingCommand {
            operation: Some(operation),
            result: Err(unavailable("operation did not run")),
            caller,
        });
        let Some(sender) = self.lock().clone() else {
            return Err(unavailable("store is closed"));
        };
        let sent = sender.send_timeout(command, self.enqueue_timeout).await;
        // The thread ends when the last sender is dropped, so do not keep one while waiting.
        drop(sender);
        let stopped = || unavailable("store thread has stopped");
        match sent {
            Ok(()) => result.await.unwrap_or_else(|_| Err(stopped())),
            Err(SendTimeoutError::Timeout(_)) => Err(Error::Overloaded),
            Err(SendTimeoutError::Closed(_)) => Err(stopped()),
        }
    }

    /// Rejects further commands. Queued commands still run.
    ///
    /// The receiver ends when the returned sender is dropped too.
    pub(super) fn close(&self) -> Option<Sender> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Sender>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PendingCommand<T, F> {
    operation: Option<F>,
    result: Result<T, Error>,
    caller: oneshot::Sender<Result<T, Error>>,
}

impl<T, F> Command for PendingCommand<T, F>
where
    T: Send,
    F: FnOnce(&Connection, &mut Changes) -> Result<T, Error> + Send,
{
    fn run(&mut self, db: &Connection, changes: &mut Changes) -> Result<(), Error> {
        let Some(operation) = self.operation.take() else {
            return Ok(());
        };
        match operation(db, changes) {
            Err(Error::Unavailable(reason)) => Err(Error::Unavailable(reason)),
            result => {
                self.result = result;
                Ok(())
            }
        }
    }

    fn reply(self: Box<Self>, transaction: Result<(), Error>) {
        // Fails if the caller has stopped waiting.
        drop(self.caller.send(transaction.and(self.result)));
    }
}

fn unavailable(reason: &str) -> Error {
    Error::Unavailable(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_command_queue_times_out_with_overloaded() {
        let (queue, receiver) = CommandQueue::bounded(1, Duration::ZERO);
        let queued = queue.execute(|_, _| Ok(1));
        let rejected = async {
            let rejected = queue.execute(|_, _| Ok(2)).await;
            assert!(matches!(rejected, Err(Error::Overloaded)), "{rejected:?}");
            drop(receiver);
        };
        let (queued, ()) = tokio::join!(queued, rejected);
        assert!(matches!(queued, Err(Error::Unavailable(_))), "{queued:?}");
    }
}
