//! All sockets of a run, spread over threads that share nothing but counts.
//!
//! Invariant: a thread's sockets are its own from the first to the last; an order reaches all of them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::BytesMut;
use hyper::header::HeaderValue;
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

use super::arguments::Arguments;
use super::jobs::JobIndex;
use super::schedule::Schedule;
use super::socket::{Command, Socket, SocketGroup};
use super::stats::{SocketCounts, SocketStats};
use super::subscription_state::SubscriptionState;
use super::target::Target;
use super::wire::READ_BUFFER_BYTES;

/// The sockets, running.
pub(super) struct SocketPool {
    pub standing: Arc<SocketCounts>,
    pub schedule: Arc<OnceLock<Schedule>>,
    order: watch::Sender<Command>,
    tallies: Vec<Arc<Mutex<SocketStats>>>,
    threads: Vec<JoinHandle<()>>,
}

impl SocketPool {
    /// Opens all sockets over the ramp.
    ///
    /// # Errors
    /// The system's, when there can't be so many threads.
    pub fn start(
        arguments: &Arguments,
        target: &Target,
        bearer: &HeaderValue,
        jobs: &Arc<JobIndex>,
    ) -> std::io::Result<Self> {
        let (order, orders) = watch::channel(Command::Connect);
        let mut fleet = Self {
            standing: Arc::default(),
            schedule: Arc::default(),
            order,
            tallies: Vec::new(),
            threads: Vec::new(),
        };
        let handshakes = Arc::new(Semaphore::new(arguments.handshakes as usize));
        let start = Instant::now();
        for thread in 0..arguments.threads {
            let tally = Arc::new(Mutex::new(SocketStats::default()));
            fleet.tallies.push(tally.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (arguments, target, bearer) = (arguments.clone(), target.clone(), bearer.clone());
            let (jobs, schedule) = (jobs.clone(), fleet.schedule.clone());
            let (standing, handshakes, order) =
                (fleet.standing.clone(), handshakes.clone(), orders.clone());
            let run = move || {
                let crew = Rc::new(SocketGroup {
                    target,
                    bearer,
                    jobs,
                    schedule,
                    standing,
                    tally,
                    handshakes,
                    order,
                    churn: arguments.churn,
                    slow_pause: arguments.slow_pause,
                    desk: RefCell::new(BytesMut::with_capacity(READ_BUFFER_BYTES)),
                });
                let sockets = LocalSet::new();
                for nth in (thread..arguments.sockets).step_by(arguments.threads as usize) {
                    let at = start
                        + arguments
                            .ramp
                            .mul_f64(nth as f64 / arguments.sockets as f64);
                    let socket = socket(nth, &arguments, crew.clone());
                    sockets.spawn_local(socket.live(at));
                }
                runtime.block_on(sockets);
            };
            let name = format!("load-sockets-{thread}");
            let builder = std::thread::Builder::new().name(name);
            fleet.threads.push(builder.spawn(run)?);
        }
        Ok(fleet)
    }

    /// Tells every socket.
    pub fn order(&self, order: Command) {
        self.order.send_replace(order);
    }

    /// What was counted since it was last asked for.
    pub fn take(&self) -> SocketStats {
        let mut sum = SocketStats::default();
        for tally in &self.tallies {
            let taken = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
            sum.add(&taken);
        }
        sum
    }

    /// How many of the sockets are so.
    pub fn count(&self, of: impl Fn(&SocketCounts) -> &AtomicU64) -> u64 {
        of(&self.standing).load(Ordering::Relaxed)
    }

    /// Waits for the threads, which end once every socket was judged.
    pub async fn end(self) -> SocketStats {
        let Self {
            order,
            tallies,
            threads,
            ..
        } = self;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().all(|thread| thread.join().is_ok())
        });
        let is_whole = joined.await.unwrap_or(false);
        drop(order);
        let mut sum = SocketStats::default();
        for tally in tallies {
            sum.add(&tally.lock().unwrap_or_else(PoisonError::into_inner));
        }
        // A thread that broke has judged nobody.
        sum.faults.unended += u64::from(!is_whole);
        sum
    }
}

fn socket(nth: u64, arguments: &Arguments, crew: Rc<SocketGroup>) -> Socket {
    let jobs = crew.jobs.count();
    let first = (nth * arguments.subscriptions) % u64::from(jobs);
    let memory = SubscriptionState::new(first as u32, arguments.subscriptions as u32, jobs);
    // Evenly among the others, so that each thread has its share.
    let slow_before = |nth: u64| (nth as f64 * arguments.slow).floor();
    let is_slow = slow_before(nth + 1) > slow_before(nth);
    Socket::new(nth, is_slow, memory, crew)
}
