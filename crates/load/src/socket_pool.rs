//! All sockets of a run, distributed over threads.
//!
//! Threads share counters only. A socket stays on its thread.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use reqwest::header::HeaderValue;
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

use super::arguments::Arguments;
use super::jobs::JobIndex;
use super::schedule::Schedule;
use super::socket::{Command, Socket, SocketGroup};
use super::stats::{SocketCounts, SocketStats};
use super::subscription_state::SubscriptionState;
use super::target::Target;

/// Running sockets.
pub(super) struct SocketPool {
    counts: Arc<SocketCounts>,
    schedule: Arc<OnceLock<Schedule>>,
    commands: watch::Sender<Command>,
    stats: Vec<Arc<Mutex<SocketStats>>>,
    threads: Vec<JoinHandle<()>>,
}

impl SocketPool {
    /// Starts to open the sockets, evenly distributed over the ramp.
    ///
    /// # Errors
    /// A thread or its runtime cannot be created.
    pub fn start(
        arguments: &Arguments,
        target: &Target,
        bearer: &HeaderValue,
        jobs: &Arc<JobIndex>,
    ) -> std::io::Result<Self> {
        let mut pool = Self {
            counts: Arc::default(),
            schedule: Arc::default(),
            commands: watch::Sender::new(Command::Connect),
            stats: Vec::new(),
            threads: Vec::new(),
        };
        let handshakes = Arc::new(Semaphore::new(arguments.handshakes as usize));
        let start = Instant::now();
        for thread in 0..arguments.threads {
            let stats = Arc::new(Mutex::new(SocketStats::default()));
            pool.stats.push(stats.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let group = SocketGroup {
                arguments: arguments.clone(),
                target: target.clone(),
                bearer: bearer.clone(),
                jobs: jobs.clone(),
                schedule: pool.schedule.clone(),
                counts: pool.counts.clone(),
                stats,
                handshakes: handshakes.clone(),
                commands: pool.commands.subscribe(),
            };
            let run = move || {
                let group = Rc::new(group);
                let arguments = &group.arguments;
                let sockets = LocalSet::new();
                for nth in (thread..arguments.sockets).step_by(arguments.threads as usize) {
                    let delay = arguments
                        .ramp
                        .mul_f64(nth as f64 / arguments.sockets as f64);
                    sockets.spawn_local(socket(nth, group.clone()).run(start + delay));
                }
                runtime.block_on(sockets);
            };
            let builder = std::thread::Builder::new().name(format!("load-sockets-{thread}"));
            pool.threads.push(builder.spawn(run)?);
        }
        Ok(pool)
    }

    /// Publishes the schedule, from which sockets look up the due times of updates.
    pub fn set_schedule(&self, schedule: Schedule) {
        self.schedule.get_or_init(|| schedule);
    }

    /// Sends a command to every socket.
    pub fn send(&self, command: Command) {
        self.commands.send_replace(command);
    }

    /// Returns the statistics since the previous call.
    pub fn take_stats(&self) -> SocketStats {
        take_stats(&self.stats)
    }

    /// Returns the current value of a counter.
    pub fn count(&self, counter: impl Fn(&SocketCounts) -> &AtomicU64) -> u64 {
        counter(&self.counts).load(Ordering::Relaxed)
    }

    /// Waits for all threads, which end after [`Command::Verify`]. Returns the remaining statistics.
    pub async fn join(self) -> SocketStats {
        let Self {
            threads,
            stats,
            commands,
            ..
        } = self;
        let join = move || threads.into_iter().all(|thread| thread.join().is_ok());
        let has_joined = tokio::task::spawn_blocking(join).await.unwrap_or(false);
        // Sockets end as soon as the sender is dropped.
        drop(commands);
        let mut sum = take_stats(&stats);
        // The sockets of a thread that panicked have not been verified.
        sum.violations.not_final += u64::from(!has_joined);
        sum
    }
}

fn take_stats(stats: &[Arc<Mutex<SocketStats>>]) -> SocketStats {
    let mut sum = SocketStats::default();
    for stats in stats {
        sum.add(&std::mem::take(
            &mut *stats.lock().unwrap_or_else(PoisonError::into_inner),
        ));
    }
    sum
}

fn socket(nth: u64, group: Rc<SocketGroup>) -> Socket {
    let arguments = &group.arguments;
    let jobs = group.jobs.count();
    let first = (nth * arguments.subscriptions) % u64::from(jobs);
    let state = SubscriptionState::new(first as u32, arguments.subscriptions as u32, jobs);
    // Slow clients are evenly distributed, so that every thread has its share.
    let slow_before = |nth: u64| (nth as f64 * arguments.slow).floor();
    let is_slow = slow_before(nth + 1) > slow_before(nth);
    Socket::new(nth, is_slow, state, group)
}
