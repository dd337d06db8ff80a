//! Loads of updates to many jobs, and the cost of an update under each load.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::system_calls::Counter;
use super::{Cost, MEASUREMENT_TIMEOUT, Scenario};
use crate::http_connection::HttpConnection;
use crate::message::Clock;
use crate::process::Usage;

/// Connections of the load generator. Each has at most one request in flight.
const CONNECTIONS: usize = 32;

/// How updates are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A fixed number of updates per second, sent on a schedule that does not wait for responses.
    Rate(u32),
    /// Like `Rate`, but without polling the clock, so that the core is free for other threads. The delay of a timer, up
    /// to 2 ms, counts as latency.
    CoarseRate(u32),
    /// Every connection sends its next update when it has the response to the previous one.
    Full,
}

/// Measured values of one load.
pub struct Outcome {
    /// Updates that the server accepted.
    pub updates: u64,
    /// Messages that the sockets received.
    pub deliveries: u64,
    pub elapsed: Duration,
    pub usage: Usage,
    /// Microseconds until a socket has received an update, from its due time, or from its request under full load.
    pub latencies: Histogram<u64>,
}

/// Cost of an update under a load.
#[derive(Clone, Debug)]
pub struct UpdateCost {
    /// CPU time of the server in microseconds.
    pub cpu_micros: f64,
    pub context_switches: f64,
    /// `None` if `perf` is not available.
    pub system_calls: Option<f64>,
    /// Memory of the server after the load, in bytes.
    pub memory: u64,
    pub updates_per_second: f64,
    /// Deliveries per accepted update.
    pub delivered: f64,
    /// Latencies in microseconds.
    pub latencies: Histogram<u64>,
}

impl Scenario {
    /// Runs a load for `duration` after a warm-up of half that time, and returns the cost of an update. System calls
    /// are counted in a separate run of half that time, because counting them costs CPU time.
    pub async fn update_cost(
        &mut self,
        load: Load,
        duration: Duration,
    ) -> anyhow::Result<UpdateCost> {
        self.run(load, duration / 2).await?;
        let outcome = self.run(load, duration).await?;
        let counter = Counter::start(&self.server.process_ids()?).await;
        let counted = self.run(load, duration / 2).await?;
        let system_calls = counter.and_then(Counter::finish);
        #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
        let [updates, counted_updates] =
            [outcome.updates, counted.updates].map(|updates| updates as f64);
        #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
        let cost = UpdateCost {
            cpu_micros: outcome.usage.cpu.as_secs_f64() * 1e6 / updates,
            context_switches: outcome.usage.context_switches as f64 / updates,
            system_calls: system_calls.map(|calls| calls as f64 / counted_updates),
            memory: self.server.memory()?,
            updates_per_second: updates / outcome.elapsed.as_secs_f64(),
            delivered: outcome.deliveries as f64 / updates,
            latencies: outcome.latencies,
        };
        Ok(cost)
    }

    /// Sends `rate` updates per second for `duration`, and returns their latencies in microseconds.
    pub async fn latencies_at_rate(
        &mut self,
        rate: u32,
        duration: Duration,
    ) -> anyhow::Result<Histogram<u64>> {
        Ok(self.run(Load::Rate(rate), duration).await?.latencies)
    }

    /// Runs a load until every socket has the last update of its channel.
    pub async fn run(&mut self, load: Load, duration: Duration) -> anyhow::Result<Outcome> {
        let observations = Rc::clone(&self.clients.observations);
        let received = observations.received.get();
        let (start, before) = (Instant::now(), self.server.usage()?);
        observations.start_latencies(self.clock);
        let updates = match load {
            Load::Rate(rate) => self.at_rate(rate, Clock::wait_until, duration).await?,
            Load::CoarseRate(rate) => self.at_rate(rate, Clock::sleep_until, duration).await?,
            Load::Full => self.as_fast_as_accepted(duration).await?,
        };
        observations
            .wait_until_current(MEASUREMENT_TIMEOUT)
            .await
            .with_context(|| format!("after {updates} updates"))?;
        let outcome = Outcome {
            updates,
            deliveries: observations.received.get() - received,
            elapsed: start.elapsed(),
            usage: self.server.usage()?.since(before),
            latencies: observations.finish_latencies(),
        };
        self.verify_unordered()?;
        Ok(outcome)
    }

    /// Sends `rate` updates per second for `duration`, and waits with `wait` until each is due. Returns the number of
    /// updates.
    async fn at_rate(
        &self,
        rate: u32,
        wait: impl AsyncFn(Clock, u64),
        duration: Duration,
    ) -> anyhow::Result<u64> {
        let connections = self.connections();
        let start = self.clock.now();
        let interval_nanos = 1_000_000_000 / u64::from(rate);
        let updates = u64::from(rate) * u64::try_from(duration.as_millis())? / 1000;
        let mut requests = JoinSet::new();
        for (nth, connection) in (0..updates).zip(connections.iter().cycle()) {
            let due = start + nth * interval_nanos;
            wait(self.clock, due).await;
            let (channel, stamp) = self.next(due);
            let request = self.update(channel, stamp)?;
            self.clients.observations.expect(channel, stamp.number);
            requests.spawn_local(send(Rc::clone(connection), request));
        }
        while let Some(done) = requests.join_next().await {
            done??;
        }
        Ok(updates)
    }

    /// Updates all channels at once, repeatedly: each time after every socket has received the previous update. Returns
    /// the cost per delivery.
    pub async fn bursts(&self, count: usize) -> anyhow::Result<Cost> {
        let observations = &self.clients.observations;
        let connections = self.connections();
        let (start, before) = (Instant::now(), self.server.cpu()?);
        let received = observations.received.get();
        for _ in 0..count {
            let mut requests = JoinSet::new();
            for (_, connection) in (0..self.size.channels).zip(connections.iter().cycle()) {
                requests.spawn_local(send(Rc::clone(connection), self.expected_update()?));
            }
            while let Some(done) = requests.join_next().await {
                done??;
            }
            let current = observations.wait_until_current(MEASUREMENT_TIMEOUT).await;
            current.context("updates of all channels at once")?;
        }
        let cpu = self.server.cpu()?.saturating_sub(before);
        self.clients.verify()?;
        Ok(Cost::new(
            cpu,
            start.elapsed(),
            observations.received.get() - received,
        ))
    }

    fn connections(&self) -> Vec<Rc<Mutex<HttpConnection>>> {
        let connection = || Rc::new(Mutex::new(HttpConnection::new(self.server.publish_address)));
        std::iter::repeat_with(connection)
            .take(CONNECTIONS)
            .collect()
    }

    /// Sends updates on all connections for `duration`, as fast as the server responds. Returns their number.
    async fn as_fast_as_accepted(&self, duration: Duration) -> anyhow::Result<u64> {
        let first = self.number.get();
        let end = Instant::now() + duration;
        let sender = || async {
            let mut connection = HttpConnection::new(self.server.publish_address);
            while Instant::now() < end {
                connection.send(&self.expected_update()?).await?;
            }
            anyhow::Ok(())
        };
        futures_util::future::try_join_all((0..CONNECTIONS).map(|_| sender())).await?;
        Ok(self.number.get() - first)
    }
}

/// Sends a request when the connection has the responses to the previous ones.
async fn send(connection: Rc<Mutex<HttpConnection>>, request: Vec<u8>) -> anyhow::Result<()> {
    connection.lock().await.send(&request).await?;
    Ok(())
}
