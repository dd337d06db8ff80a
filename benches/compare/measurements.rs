//! Measurements, each on a newly started server.
//!
//! Invariant: a result counts only if every socket has received the last update of its channel and no update was lost.
//! If updates were sent one at a time, every socket must also have received them in order.

mod load;
mod system_calls;

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::clients::{Clients, Endpoint};
use crate::http_connection::{HttpConnection, send_all};
use crate::message::{Clock, Stamp, Template};
use crate::peers::{Peer, RunningServer, StartContext};
use crate::process::Cores;

pub use load::{Load, Outcome, UpdateCost};

/// Maximum time until every socket has received the last update of its channel.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Time after which the first updates are sent again, because sockets may not have been subscribed yet.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(3);

/// Maximum time until every socket has received the last update of its channel after a pause.
const RESUME_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections on which concurrent updates are sent.
const CONNECTIONS: usize = 8;

/// Size of a scenario.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub sockets: usize,
    /// Number of channels. The sockets are distributed evenly over them.
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

/// A server, and sockets that are subscribed to some of its channels and have received their last updates.
pub struct Scenario {
    server: Rc<RunningServer>,
    first_channel: usize,
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
        Self::on_channels(Rc::new(server), 0, size).await
    }

    /// Opens the sockets of `size.channels` channels of a running server, starting with `first_channel`.
    pub async fn on_channels(
        server: Rc<RunningServer>,
        first_channel: usize,
        size: Size,
    ) -> anyhow::Result<Self> {
        let channels = first_channel..first_channel + size.channels;
        let endpoint = Endpoint {
            subscriptions: server.endpoint.subscriptions[channels].to_vec(),
            ..server.endpoint.clone()
        };
        let clients = Clients::open(&endpoint, size.sockets, 0).await?;
        let connection = HttpConnection::new(server.publish_address);
        let mut scenario = Self {
            server,
            first_channel,
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
            let requests = (0..self.size.channels).map(|_| self.expected_update());
            let requests = requests.collect::<anyhow::Result<_>>()?;
            self.send_concurrently(requests).await?;
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

    /// Returns the channel and the stamp of the next update. Updates go to the channels in turn.
    fn next(&self, due: u64) -> (usize, Stamp) {
        let number = self.number.get() + 1;
        self.number.set(number);
        let channels = self.size.channels as u64;
        #[expect(clippy::cast_possible_truncation, reason = "less than the channels")]
        let channel = (number % channels) as usize;
        (channel, Stamp { number, due })
    }

    /// Returns the number of the last update.
    pub fn last_number(&self) -> u64 {
        self.number.get()
    }

    fn update(&self, channel: usize, stamp: Stamp) -> anyhow::Result<Vec<u8>> {
        self.server.update(self.first_channel + channel, stamp)
    }

    /// Returns the request of the next update, and records that all sockets of its channel must receive it.
    fn expected_update(&self) -> anyhow::Result<Vec<u8>> {
        let (channel, stamp) = self.next(self.clock.now());
        self.clients.observations.expect(channel, stamp.number);
        self.update(channel, stamp)
    }

    /// Sends the next update.
    pub async fn post(&mut self) -> anyhow::Result<()> {
        let request = self.expected_update()?;
        self.connection.send(&request).await?;
        Ok(())
    }

    /// Posts one update to each channel.
    async fn post_to_all(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.size.channels {
            self.post().await?;
        }
        Ok(())
    }

    /// Sends updates one at a time: each one after every socket has received the previous one. Returns the cost per
    /// delivery. Every delivery is one write.
    pub async fn sequential(&mut self, updates: usize) -> anyhow::Result<Cost> {
        let (start, before) = (Instant::now(), self.server.cpu()?);
        let received = self.clients.observations.received.get();
        for _ in 0..updates {
            self.post().await?;
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

    /// Sends updates as fast as the server responds, without waiting for deliveries. Returns the CPU time divided by
    /// updates × sockets, even if superseded updates were not delivered.
    pub async fn concurrent(&mut self, updates: usize) -> anyhow::Result<Cost> {
        let (start, before) = (Instant::now(), self.server.cpu()?);
        self.send_concurrently(self.updates(updates)?).await?;
        self.post_to_all().await?;
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
        let sent = self.send_concurrently(self.updates(updates)?).await;
        self.clients.observations.resume();
        sent?;
        self.post_to_all().await?;
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

    /// Returns the number of deliveries of `updates` updates and one more per channel, without conflation.
    fn expected_deliveries(&self, updates: usize) -> u64 {
        let sockets_per_channel = self.size.sockets / self.size.channels;
        ((updates + self.size.channels) * sockets_per_channel) as u64
    }

    /// Returns the requests of `count` updates.
    fn updates(&self, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
        let requests = (0..count).map(|_| {
            let (channel, stamp) = self.next(self.clock.now());
            self.update(channel, stamp)
        });
        requests.collect()
    }

    /// Sends the requests as fast as the server responds.
    async fn send_concurrently(&self, requests: Vec<Vec<u8>>) -> anyhow::Result<()> {
        send_all(self.server.publish_address, CONNECTIONS, requests).await?;
        Ok(())
    }

    /// Verifies the sockets, except for the order of updates: concurrent requests may arrive in any order.
    fn verify_unordered(&self) -> anyhow::Result<()> {
        self.clients.observations.regressions.set(0);
        self.clients.verify()
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

/// Starts a server with the channels of a scenario.
pub async fn start(
    peer: Peer,
    cores: Cores,
    dir: &Path,
    size: Size,
) -> anyhow::Result<RunningServer> {
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
