//! Database operations whose callers wait for the result.

use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::protocol::Frame;
use crate::store::{Error, Schedule};

/// A job version that a transaction stores, with its schedule.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) frame: Arc<Frame>,
    pub(super) schedule: Schedule,
    /// Size of the stored JSON, in bytes.
    pub(super) bytes: usize,
}

/// The effects of a transaction, which apply after it is durable.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The versions that the transaction stores, in commit order.
    pub(super) stored: Vec<Change>,
    /// Whether the transaction deletes unfinished jobs.
    pub(super) deletes_unfinished: bool,
}

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

/// Receives the result of a command.
pub(super) type CommandResult<T> = oneshot::Receiver<Result<T, Error>>;

/// Returns a command that runs `operation`, and its future result.
pub(super) fn command<T, F>(operation: F) -> (Box<dyn Command>, CommandResult<T>)
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
    (command, result)
}

/// Waits for the result of a command.
pub(super) async fn result_of<T>(result: CommandResult<T>) -> Result<T, Error> {
    let stopped = |_| Err(unavailable("store thread has stopped"));
    result.await.unwrap_or_else(stopped)
}

pub(super) fn unavailable(reason: &str) -> Error {
    Error::Unavailable(reason.to_owned())
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
