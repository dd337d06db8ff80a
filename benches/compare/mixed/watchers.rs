//! The sockets of the watched job, on a thread of their own.
//!
//! They read in intervals instead of after every message. A load generator that wakes for each of the messages would need
//! more CPU time than the server, and the measured latencies would be its own.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::clients::{Clients, Endpoint};

/// Interval of the reads.
const READ_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum time until every socket has the last update.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Open sockets. Dropping them closes them.
pub struct Watchers {
    /// Sends the number of the last update, which the thread confirms.
    last: Option<oneshot::Sender<Last>>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

struct Last {
    number: u64,
    is_expected: oneshot::Sender<()>,
}

impl Watchers {
    /// Opens `sockets` sockets that are subscribed to the first channel of `endpoint`.
    pub async fn open(endpoint: Endpoint, sockets: usize) -> anyhow::Result<Self> {
        let (opened, is_open) = oneshot::channel();
        let (last, received_last) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let run = run(endpoint, sockets, opened, received_last);
            LocalSet::new().block_on(&runtime, run)
        });
        // Without an answer the thread has ended with an error, which `finish` returns.
        let _ = is_open.await;
        Ok(Self {
            last: Some(last),
            thread,
        })
    }

    /// Announces the last update. Call it once, before the update is sent.
    pub async fn expect(&mut self, number: u64) -> anyhow::Result<()> {
        let (is_expected, expected) = oneshot::channel();
        let last = Last {
            number,
            is_expected,
        };
        let sender = self.last.take().context("called twice")?;
        // If the thread has ended with an error, `finish` returns the error.
        let _ = sender.send(last);
        let _ = expected.await;
        Ok(())
    }

    /// Waits until every socket has the last update, and returns the number of messages that they received.
    ///
    /// # Errors
    /// A socket is behind or was lost.
    pub async fn finish(self) -> anyhow::Result<u64> {
        let joined = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        joined.map_err(|_| anyhow!("the thread of the watchers panicked"))?
    }
}

async fn run(
    endpoint: Endpoint,
    sockets: usize,
    opened: oneshot::Sender<()>,
    mut last: oneshot::Receiver<Last>,
) -> anyhow::Result<u64> {
    let clients = Clients::open(&endpoint, sockets, 0).await?;
    let observations = &clients.observations;
    opened
        .send(())
        .map_err(|()| anyhow!("not needed any more"))?;
    let last = loop {
        observations.pause();
        tokio::select! {
            last = &mut last => break last?,
            () = tokio::time::sleep(READ_INTERVAL) => {}
        }
        observations.resume();
        // Every socket reads what has arrived, and waits again.
        tokio::task::yield_now().await;
    };
    observations.resume();
    observations.expect(0, last.number);
    // Fails if the main thread has stopped waiting because of an error.
    let _ = last.is_expected.send(());
    let current = observations.wait_until_current(END_TIMEOUT).await;
    current.context("the watched job")?;
    // Updates are sent on several connections, so they can arrive in another order.
    observations.regressions.set(0);
    clients.verify()?;
    Ok(observations.received.get())
}
