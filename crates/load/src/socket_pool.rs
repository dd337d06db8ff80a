//! All sockets of a run, distributed over threads.
//!
//! Threads share counters only. A socket stays on its thread.

use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::context::Context;
use super::socket::{Command, Socket, SocketGroup};
use super::stats::SocketStats;

/// Running sockets.
pub(super) struct SocketPool {
    commands: watch::Sender<Command>,
    stats: Vec<Arc<Mutex<SocketStats>>>,
    /// Sum of all statistics that were taken.
    pub total: SocketStats,
    threads: Vec<JoinHandle<()>>,
}

impl SocketPool {
    /// Starts to open the sockets, evenly distributed over the ramp.
    ///
    /// # Errors
    /// A thread or its runtime cannot be created.
    pub fn start(context: &Arc<Context>) -> std::io::Result<Self> {
        let mut pool = Self {
            commands: watch::Sender::new(Command::Connect),
            stats: Vec::new(),
            total: SocketStats::default(),
            threads: Vec::new(),
        };
        let start = Instant::now();
        for thread in 0..context.arguments.threads {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let group = SocketGroup {
                context: context.clone(),
                stats: Arc::default(),
                commands: pool.commands.subscribe(),
            };
            pool.stats.push(group.stats.clone());
            let run = move || {
                let group = Rc::new(group);
                let arguments = &group.context.arguments;
                let interval = arguments.ramp.div_f64(arguments.sockets as f64);
                let sockets = LocalSet::new();
                for nth in (thread..arguments.sockets).step_by(arguments.threads as usize) {
                    let start = start + interval.mul_f64(nth as f64);
                    sockets.spawn_local(Socket::new(nth, group.clone()).run(start));
                }
                runtime.block_on(sockets);
            };
            let builder = std::thread::Builder::new().name(format!("load-sockets-{thread}"));
            pool.threads.push(builder.spawn(run)?);
        }
        Ok(pool)
    }

    /// Sends a command to every socket.
    pub fn send(&self, command: Command) {
        self.commands.send_replace(command);
    }

    /// Returns the statistics since the previous call.
    pub fn take_stats(&mut self) -> SocketStats {
        let mut sum = SocketStats::default();
        for stats in &self.stats {
            sum += std::mem::take(&mut *stats.lock());
        }
        self.total += sum.clone();
        sum
    }

    /// Waits for all threads, which end after [`Command::Verify`]. Returns the statistics of the run.
    pub async fn join(mut self) -> SocketStats {
        let threads = std::mem::take(&mut self.threads);
        let join = move || threads.into_iter().all(|thread| thread.join().is_ok());
        let has_joined = tokio::task::spawn_blocking(join).await.unwrap_or(false);
        self.take_stats();
        // The sockets of a thread that panicked have not been verified.
        self.total.violations.not_final += u64::from(!has_joined);
        self.total
    }
}
