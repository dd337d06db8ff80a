//! Measurements, each on a newly started server.
//!
//! Invariant: a result counts only if every socket has the last update of its channel and none was lost. If updates were
//! sent one at a time, they must also have increased on every socket.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::clients::Clients;
use crate::http_connection::HttpConnection;
use crate::message::{Clock, Stamp, Template};
use crate::peers::{Peer, RunningServer, StartContext};
use crate::process::Cores;

/// Maximum time for all sockets to become current.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Time after which the first update is repeated, for sockets that were not yet subscribed.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum time for sockets to become current after a pause.
const RESUME_TIMEOUT: Duration = Duration::from_secs(20);

/// Concurrent requests if updates do not wait for each other.
const CONNECTIONS: usize = 8;

/// Size of a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub sockets: usize,
    /// Channels that the sockets are distributed over.
    pub channels: usize,
    /// Minimum bytes of a message. A document of the hub without padding may already be longer.
    pub bytes: usize,
}

impl Size {
    /// Returns the actual bytes of a message.
    pub fn message_bytes(self) -> anyhow::Result<usize> {
        Ok(Template::new(self.bytes)?.length())
    }
}

/// A server and its sockets, all of which are current.
pub struct Scenario {
    server: RunningServer,
    clients: Clients,
    connection: HttpConnection,
    clock: Clock,
    size: Size,
    number: Rc<Cell<u64>>,
}

impl Scenario {
    /// Starts a server and opens its sockets.
    pub async fn open(peer: Peer, cores: Cores, dir: &Path, size: Size) -> anyhow::Result<Self> {
        let server = start(peer, cores, dir, size).await?;
        Self::with_server(server, size).await
    }

    /// Opens the sockets of a running server.
    pub async fn with_server(server: RunningServer, size: Size) -> anyhow::Result<Self> {
        let clients = Clients::open(&server.endpoint, size.sockets, 0).await?;
        let connection = HttpConnection::new(server.publish_address);
        let mut scenario = Self {
            server,
            clients,
            connection,
            clock: Clock::start(),
            size,
            number: Rc::new(Cell::new(0)),
        };
        scenario.warm_up().await?;
        Ok(scenario)
    }

    async fn warm_up(&mut self) -> anyhow::Result<()> {
        for _ in 0..5 {
            for channel in 0..self.size.channels {
                self.post(channel).await?;
            }
            if self
                .clients
                .observations
                .wait_until_current(WARM_UP_TIMEOUT)
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        self.clients
            .observations
            .wait_until_current(WARM_UP_TIMEOUT)
            .await
            .context("not all sockets received the first update")
    }

    fn next(&self, due: u64) -> Stamp {
        self.number.set(self.number.get() + 1);
        Stamp {
            number: self.number.get(),
            due,
        }
    }

    async fn post(&mut self, channel: usize) -> anyhow::Result<()> {
        let stamp = self.next(self.clock.now());
        self.clients.observations.expect(channel, stamp.number);
        self.connection
            .send(&self.server.update(channel, stamp))
            .await?;
        Ok(())
    }

    /// Sends updates one at a time, each after every socket has received the previous one. Returns the cost per
    /// delivery, of which each is one write.
    pub async fn sequential(&mut self, updates: usize) -> anyhow::Result<Cost> {
        let (start, before) = (Instant::now(), self.server.cpu()?);
        let received = self.clients.observations.received.get();
        for nth in 0..updates {
            self.post(nth % self.size.channels).await?;
            self.clients
                .observations
                .wait_until_current(MEASUREMENT_TIMEOUT)
                .await
                .context("sequential updates")?;
        }
        let cost = Cost::new(
            self.server.cpu()?.saturating_sub(before),
            start.elapsed(),
            self.clients.observations.received.get() - received,
        );
        self.clients.verify()?;
        Ok(cost)
    }

    /// Sends updates as fast as the server responds, without waiting for deliveries. Returns the cost per update and
    /// subscribed socket, whether or not the update was superseded before its delivery.
    pub async fn concurrent(&mut self, updates: usize) -> anyhow::Result<Cost> {
        let (start, before) = (Instant::now(), self.server.cpu()?);
        self.send_concurrently(updates).await?;
        for channel in 0..self.size.channels {
            self.post(channel).await?;
        }
        self.clients
            .observations
            .wait_until_current(MEASUREMENT_TIMEOUT)
            .await
            .context("concurrent updates")?;
        let cost = Cost::new(
            self.server.cpu()?.saturating_sub(before),
            start.elapsed(),
            self.expected_deliveries(updates),
        );
        self.verify_unordered()?;
        Ok(cost)
    }

    /// Like [`Scenario::concurrent`], but no socket reads until all updates are sent. Returns `None` if a socket does
    /// not receive the last update after that.
    pub async fn unread(&mut self, updates: usize) -> anyhow::Result<Option<Cost>> {
        let (start, before) = (Instant::now(), self.server.cpu()?);
        self.clients.observations.pause();
        let sent = self.send_concurrently(updates).await;
        self.clients.observations.resume();
        sent?;
        for channel in 0..self.size.channels {
            self.post(channel).await?;
        }
        if self
            .clients
            .observations
            .wait_until_current(RESUME_TIMEOUT)
            .await
            .is_err()
        {
            return Ok(None);
        }
        let cost = Cost::new(
            self.server.cpu()?.saturating_sub(before),
            start.elapsed(),
            self.expected_deliveries(updates),
        );
        self.verify_unordered()?;
        Ok(Some(cost))
    }

    /// Returns the deliveries of `updates` updates and one more per channel, without conflation.
    fn expected_deliveries(&self, updates: usize) -> u64 {
        let sockets_per_channel = self.size.sockets / self.size.channels;
        ((updates + self.size.channels) * sockets_per_channel) as u64
    }

    async fn send_concurrently(&self, updates: usize) -> anyhow::Result<()> {
        let left = Rc::new(Cell::new(updates));
        let mut senders = JoinSet::new();
        let requests: Vec<Vec<u8>> = (0..updates)
            .map(|nth| {
                self.server
                    .update(nth % self.size.channels, self.next(self.clock.now()))
            })
            .collect();
        let requests = Rc::new(requests);
        for _ in 0..CONNECTIONS {
            let (left, requests) = (Rc::clone(&left), Rc::clone(&requests));
            let mut connection = HttpConnection::new(self.server.publish_address);
            senders.spawn_local(async move {
                while let Some(next) = left.get().checked_sub(1) {
                    left.set(next);
                    connection.send(&requests[updates - 1 - next]).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = senders.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Verifies the sockets, except for the order of updates: concurrent requests may arrive in any order.
    fn verify_unordered(&self) -> anyhow::Result<()> {
        self.clients.observations.regressions.set(0);
        self.clients.verify()
    }

    /// Sends `rate` updates per second to the channels in turn, on a schedule that does not wait for responses. Returns
    /// latencies from the due time of each update, in microseconds.
    pub async fn at_rate(
        &mut self,
        rate: u32,
        duration: Duration,
    ) -> anyhow::Result<Histogram<u64>> {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|_| Rc::new(Mutex::new(HttpConnection::new(self.server.publish_address))))
            .collect();
        self.clients.observations.start_latencies(self.clock);
        let start = self.clock.now();
        let interval_nanos = 1_000_000_000 / u64::from(rate);
        let updates = u64::from(rate) * duration.as_secs();
        let mut requests = JoinSet::new();
        for nth in 0..updates {
            let due = start + nth * interval_nanos;
            self.clock.wait_until(due).await;
            let nth = usize::try_from(nth)?;
            let stamp = self.next(due);
            let channel = nth % self.size.channels;
            let request = self.server.update(channel, stamp);
            self.clients.observations.expect(channel, stamp.number);
            let connection = Rc::clone(&connections[nth % CONNECTIONS]);
            requests.spawn_local(async move {
                connection.lock().await.send(&request).await?;
                anyhow::Ok(())
            });
        }
        while let Some(done) = requests.join_next().await {
            done??;
        }
        self.clients
            .observations
            .wait_until_current(MEASUREMENT_TIMEOUT)
            .await?;
        let latencies = self.clients.observations.finish_latencies();
        self.verify_unordered()?;
        Ok(latencies)
    }
}

/// Cost and rate of deliveries.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// CPU time per delivery.
    pub cpu_nanos: f64,
    pub deliveries_per_second: f64,
}

impl Cost {
    fn new(cpu: Duration, elapsed: Duration, deliveries: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
        let deliveries = deliveries as f64;
        Self {
            cpu_nanos: cpu.as_secs_f64() * 1e9 / deliveries,
            deliveries_per_second: deliveries / elapsed.as_secs_f64(),
        }
    }
}

/// Returns the memory in bytes that a subscribed socket without traffic adds to the server.
pub async fn memory(peer: Peer, cores: Cores, dir: &Path, size: Size) -> anyhow::Result<f64> {
    let server = start(peer, cores, dir, size).await?;
    wait_until_idle(&server).await?;
    let before = server.memory()?;
    let scenario = Scenario::with_server(server, size).await?;
    wait_until_idle(&scenario.server).await?;
    let after = scenario.server.memory()?;
    scenario.clients.verify()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
    let per_socket = after.saturating_sub(before) as f64 / size.sockets as f64;
    Ok(per_socket)
}

async fn start(peer: Peer, cores: Cores, dir: &Path, size: Size) -> anyhow::Result<RunningServer> {
    let unpadded = Template::new(0)?.length();
    let context = StartContext {
        dir,
        cores,
        channels: size.channels,
        template: Rc::new(Template::new(size.bytes)?),
        padding: size.bytes.saturating_sub(unpadded),
    };
    peer.start(&context).await
}

/// Waits until the server uses less than 10 ms of CPU time in 300 ms.
async fn wait_until_idle(server: &RunningServer) -> anyhow::Result<()> {
    let deadline = Instant::now() + MEASUREMENT_TIMEOUT;
    let mut before = server.cpu()?;
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = server.cpu()?;
        if now.saturating_sub(before) < Duration::from_millis(10) {
            return Ok(());
        }
        before = now;
    }
    bail!("the server does not become idle");
}
