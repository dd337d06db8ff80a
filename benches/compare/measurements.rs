//! What is measured, each on a server that was just started.
//!
//! Invariant: nothing counts that was not checked: at the end of each part every socket has the last
//! update of its channel, none was lost, and where updates were sent one by one, none went back.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::clients::Crowd;
use crate::http_connection::Lane;
use crate::message::{Clock, Stamp, Template};
use crate::peers::{Ground, Peer, Stand};
use crate::process::Cores;

/// How long all sockets may take to be current.
const MEASUREMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a first try may take, before a second makes up for a socket that was not yet subscribed.
const WARM_UP: Duration = Duration::from_secs(3);

/// The same for those that had not read for a while.
const UNREAD: Duration = Duration::from_secs(20);

/// Posts under way at once, where updates do not wait for each other.
const LANES: usize = 8;

/// How many sockets, channels and bytes.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Sockets in all.
    pub sockets: usize,
    /// Channels they are spread over.
    pub channels: usize,
    /// Bytes of a message; a smaller document than the hub's own there is not.
    pub bytes: usize,
}

impl Size {
    /// How long a message really is.
    pub fn message(self) -> anyhow::Result<usize> {
        Ok(Template::new(self.bytes)?.length())
    }
}

/// A server with its sockets, all of them current.
pub struct Scene {
    stand: Stand,
    crowd: Crowd,
    lane: Lane,
    clock: Clock,
    size: Size,
    number: Rc<Cell<u64>>,
}

impl Scene {
    /// Starts a server and opens its sockets.
    pub async fn open(peer: Peer, cores: Cores, dir: &Path, size: Size) -> anyhow::Result<Self> {
        let stand = stand(peer, cores, dir, size).await?;
        Self::with(stand, size).await
    }

    /// Opens the sockets of a server that is up.
    pub async fn with(stand: Stand, size: Size) -> anyhow::Result<Self> {
        let crowd = Crowd::open(&stand.door, size.sockets, 0).await?;
        let lane = Lane::to(stand.publish_at);
        let mut scene = Self {
            stand,
            crowd,
            lane,
            clock: Clock::start(),
            size,
            number: Rc::new(Cell::new(0)),
        };
        scene.warm_up().await?;
        Ok(scene)
    }

    async fn warm_up(&mut self) -> anyhow::Result<()> {
        for _ in 0..5 {
            for channel in 0..self.size.channels {
                self.post(channel).await?;
            }
            if self.crowd.board.reached(WARM_UP).await.is_ok() {
                return Ok(());
            }
        }
        self.crowd
            .board
            .reached(WARM_UP)
            .await
            .context("not everybody heard a first update")
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
        self.crowd.board.want(channel, stamp.number);
        self.lane.call(&self.stand.update(channel, stamp)).await?;
        Ok(())
    }

    /// Update after update, each once everybody has the one before: one write per delivery. Gives
    /// the CPU time of a delivery, and how many there were a second.
    pub async fn one_by_one(&mut self, updates: usize) -> anyhow::Result<Pace> {
        let (begun, before) = (Instant::now(), self.stand.cpu()?);
        let received = self.crowd.board.received.get();
        for at in 0..updates {
            self.post(at % self.size.channels).await?;
            self.crowd
                .board
                .reached(MEASUREMENT_TIMEOUT)
                .await
                .context("one by one")?;
        }
        let pace = Pace::of(
            self.stand.cpu()?.saturating_sub(before),
            begun.elapsed(),
            self.crowd.board.received.get() - received,
        );
        self.crowd.is_sound()?;
        Ok(pace)
    }

    /// As many updates as the server takes, none of which waits for a delivery. Gives the CPU time
    /// of each update at each socket that watches, whether it was sent there or a newer one was.
    pub async fn all_at_once(&mut self, updates: usize) -> anyhow::Result<Pace> {
        let (begun, before) = (Instant::now(), self.stand.cpu()?);
        self.flood(updates).await?;
        for channel in 0..self.size.channels {
            self.post(channel).await?;
        }
        self.crowd
            .board
            .reached(MEASUREMENT_TIMEOUT)
            .await
            .context("all at once")?;
        let pace = Pace::of(
            self.stand.cpu()?.saturating_sub(before),
            begun.elapsed(),
            self.owed(updates),
        );
        self.forget_order()?;
        Ok(pace)
    }

    /// The same while nobody reads; then everybody does. None where some never came to the last
    /// update, though they read.
    pub async fn unread(&mut self, updates: usize) -> anyhow::Result<Option<Pace>> {
        let (begun, before) = (Instant::now(), self.stand.cpu()?);
        self.crowd.board.pause();
        let flooded = self.flood(updates).await;
        self.crowd.board.resume();
        flooded?;
        for channel in 0..self.size.channels {
            self.post(channel).await?;
        }
        if self.crowd.board.reached(UNREAD).await.is_err() {
            return Ok(None);
        }
        let pace = Pace::of(
            self.stand.cpu()?.saturating_sub(before),
            begun.elapsed(),
            self.owed(updates),
        );
        self.forget_order()?;
        Ok(Some(pace))
    }

    /// What so many updates and a last one of each channel come to, for all who watch.
    fn owed(&self, updates: usize) -> u64 {
        let watched = self.size.sockets / self.size.channels;
        ((updates + self.size.channels) * watched) as u64
    }

    async fn flood(&self, updates: usize) -> anyhow::Result<()> {
        let left = Rc::new(Cell::new(updates));
        let mut lanes = JoinSet::new();
        let requests: Vec<Vec<u8>> = (0..updates)
            .map(|at| {
                self.stand
                    .update(at % self.size.channels, self.next(self.clock.now()))
            })
            .collect();
        let requests = Rc::new(requests);
        for _ in 0..LANES {
            let (left, requests) = (Rc::clone(&left), Rc::clone(&requests));
            let mut lane = Lane::to(self.stand.publish_at);
            lanes.spawn_local(async move {
                while let Some(next) = left.get().checked_sub(1) {
                    left.set(next);
                    lane.call(&requests[updates - 1 - next]).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = lanes.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Posts that were under way at once came in whatever order: that is not the server's fault.
    fn forget_order(&self) -> anyhow::Result<()> {
        self.crowd.board.backwards.set(0);
        self.crowd.is_sound()
    }

    /// So many updates a second for so long, channel by channel, whatever the server makes of it;
    /// each counts from the moment it was due. Gives microseconds.
    pub async fn at_a_rate(&mut self, rate: u32, time: Duration) -> anyhow::Result<Histogram<u64>> {
        let lanes: Vec<_> = (0..LANES)
            .map(|_| Rc::new(Mutex::new(Lane::to(self.stand.publish_at))))
            .collect();
        self.crowd.board.begin_latencies(self.clock);
        let begun = self.clock.now();
        let gap = 1_000_000_000 / u64::from(rate);
        let updates = u64::from(rate) * time.as_secs();
        let mut posts = JoinSet::new();
        for at in 0..updates {
            let due = begun + at * gap;
            self.clock.reach(due).await;
            let turn = usize::try_from(at)?;
            let stamp = self.next(due);
            let channel = turn % self.size.channels;
            let request = self.stand.update(channel, stamp);
            self.crowd.board.want(channel, stamp.number);
            let lane = Rc::clone(&lanes[turn % LANES]);
            posts.spawn_local(async move {
                lane.lock().await.call(&request).await?;
                anyhow::Ok(())
            });
        }
        while let Some(done) = posts.join_next().await {
            done??;
        }
        self.crowd.board.reached(MEASUREMENT_TIMEOUT).await?;
        let latencies = self.crowd.board.end_latencies();
        self.forget_order()?;
        Ok(latencies)
    }
}

/// What a part cost.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Nanoseconds of CPU per delivery.
    pub cpu: f64,
    /// Deliveries a second.
    pub rate: f64,
}

impl Pace {
    fn of(cpu: Duration, took: Duration, deliveries: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "nowhere near 2⁵³")]
        let deliveries = deliveries as f64;
        Self {
            cpu: cpu.as_secs_f64() * 1e9 / deliveries,
            rate: deliveries / took.as_secs_f64(),
        }
    }
}

/// Bytes of memory for each socket that has subscribed and hears nothing.
pub async fn memory(peer: Peer, cores: Cores, dir: &Path, size: Size) -> anyhow::Result<f64> {
    let stand = stand(peer, cores, dir, size).await?;
    quiet(&stand).await?;
    let before = stand.memory()?;
    let scene = Scene::with(stand, size).await?;
    quiet(&scene.stand).await?;
    let after = scene.stand.memory()?;
    scene.crowd.is_sound()?;
    #[expect(clippy::cast_precision_loss, reason = "nowhere near 2⁵³")]
    let each = after.saturating_sub(before) as f64 / size.sockets as f64;
    Ok(each)
}

async fn stand(peer: Peer, cores: Cores, dir: &Path, size: Size) -> anyhow::Result<Stand> {
    let plain = Template::new(0)?.length();
    let ground = Ground {
        dir,
        cores,
        channels: size.channels,
        template: Rc::new(Template::new(size.bytes)?),
        padding: size.bytes.saturating_sub(plain),
    };
    peer.start(&ground).await
}

/// Waits until the server does nothing worth mentioning.
async fn quiet(stand: &Stand) -> anyhow::Result<()> {
    let until = Instant::now() + MEASUREMENT_TIMEOUT;
    let mut before = stand.cpu()?;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = stand.cpu()?;
        if now.saturating_sub(before) < Duration::from_millis(10) {
            return Ok(());
        }
        before = now;
    }
    bail!("it does not come to rest");
}
