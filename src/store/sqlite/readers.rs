//! The threads that read the database file. Each has its own connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;

use super::command::{self, Changes, Command, unavailable};
use super::spawn;
use crate::store::Error;

/// Number of threads.
const THREADS: usize = 4;

/// Maximum number of queued commands.
const QUEUE_CAPACITY: usize = 1024;

/// Maximum number of commands that a thread takes at once. Batches save thread switches under
/// load. A small batch seldom waits behind a slow command while another thread is idle.
const MAX_BATCH: usize = 8;

type Sender = mpsc::Sender<Box<dyn Command>>;
type Receiver = mpsc::Receiver<Box<dyn Command>>;

/// The queue of the reader threads.
#[derive(Debug)]
pub(super) struct Readers {
    sender: Mutex<Option<Sender>>,
    enqueue_timeout: Duration,
}

impl Readers {
    /// Starts the threads. `open` is called once for each thread and returns its connection.
    pub(super) fn start(
        open: impl Fn() -> Result<Connection, Error>,
        enqueue_timeout: Duration,
    ) -> Result<(Self, Vec<JoinHandle<()>>), Error> {
        let (readers, receiver) = Self::with_capacity(QUEUE_CAPACITY, enqueue_timeout);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let (db, receiver) = (open()?, Arc::clone(&receiver));
            threads.push(spawn("store-reader", move || run(&db, &receiver))?);
        }
        Ok((readers, threads))
    }

    fn with_capacity(capacity: usize, enqueue_timeout: Duration) -> (Self, Receiver) {
        let (sender, receiver) = mpsc::channel(capacity);
        let readers = Self {
            sender: Mutex::new(Some(sender)),
            enqueue_timeout,
        };
        (readers, receiver)
    }

    /// Runs `operation` on one of the threads. It sees every transaction that was acknowledged
    /// before this call.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if the queue stays full, or the error of the operation.
    pub(super) async fn execute<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (command, result) = command::command(|db, _| operation(db));
        let sender = self.lock().clone();
        let sender = sender.ok_or_else(|| unavailable("store is closed"))?;
        let sent = sender.send_timeout(command, self.enqueue_timeout).await;
        // The threads end when the last sender is dropped, so do not keep one while waiting.
        drop(sender);
        match sent {
            Ok(()) => command::result_of(result).await,
            Err(SendTimeoutError::Timeout(_)) => Err(Error::Overloaded),
            Err(SendTimeoutError::Closed(_)) => Err(unavailable("store thread has stopped")),
        }
    }

    /// Rejects further commands. The threads end after the queued commands.
    pub(super) fn close(&self) {
        drop(self.lock().take());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Sender>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs commands until the queue is closed and empty.
fn run(db: &Connection, queue: &Mutex<Receiver>) {
    let mut commands = Vec::with_capacity(MAX_BATCH);
    let receive = |commands: &mut Vec<_>| {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.blocking_recv_many(commands, MAX_BATCH)
    };
    while receive(&mut commands) > 0 {
        for mut command in commands.drain(..) {
            let outcome = command.run(db, &mut Changes::default());
            command.reply(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_queue_times_out_with_overloaded() {
        let (readers, receiver) = Readers::with_capacity(1, Duration::ZERO);
        let queued = readers.execute(|_| Ok(1));
        let rejected = async {
            let rejected = readers.execute(|_| Ok(2)).await;
            assert!(matches!(rejected, Err(Error::Overloaded)), "{rejected:?}");
            drop(receiver);
        };
        let (queued, ()) = tokio::join!(queued, rejected);
        assert!(matches!(queued, Err(Error::Unavailable(_))), "{queued:?}");
    }
}
