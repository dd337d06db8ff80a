//! Workers that advance each task through its plan and send its webhooks.
//!
//! A task advances on schedule, independent of its receiver. Its webhooks are delivered one after the other. The queue
//! of a task has capacity for all webhooks of its plan, so none is dropped.

use std::ops::ControlFlow;
use std::time::Duration;

use rand::RngExt;
use reqwest::Url;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dialect::Dialect;
use super::plan::{CancelBehavior, FinalOutcome, Plan, Schedule, SubmitBehavior};
use super::state::SimulatorState;
use super::task::Task;
use super::webhook::{Delivery, Message, Recipient, WebhookSender};

/// Maximum number of webhooks per change.
const MAX_WEBHOOKS_PER_CHANGE: usize = 2;

/// Starts the work on tasks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Workers {
    pub state: SimulatorState,
    pub webhooks: WebhookSender,
    pub pace: Duration,
    pub runtime: Handle,
    pub running: TaskTracker,
    pub stop: CancellationToken,
}

/// The work on one task.
struct Work {
    state: SimulatorState,
    webhooks: WebhookSender,
    pace: Duration,
    dialect: &'static dyn Dialect,
    task: u64,
    plan: Plan,
}

/// A message and the time of its change.
struct PendingWebhook {
    at: Instant,
    message: Message,
}

impl Workers {
    /// Starts the work on a task. The returned receiver resolves when the first webhook is done, or when there is none.
    pub fn start(
        &self,
        task: u64,
        dialect: &'static dyn Dialect,
        plan: Plan,
        callback: Option<Url>,
    ) -> oneshot::Receiver<()> {
        let (first_done, first) = oneshot::channel();
        let recipient = callback.map(|url| Recipient {
            task,
            dialect,
            url,
            signature: plan.signature,
        });
        let work = Work {
            state: self.state.clone(),
            webhooks: self.webhooks.clone(),
            pace: self.pace,
            dialect,
            task,
            plan,
        };
        let stop = self.stop.clone();
        let work = async move {
            stop.run_until_cancelled(work.run(recipient, first_done))
                .await
        };
        self.running.spawn_on(work, &self.runtime);
        first
    }
}

impl Work {
    async fn run(self, recipient: Option<Recipient>, first_done: oneshot::Sender<()>) {
        let changes = usize::from(self.plan.ahead) + usize::from(self.plan.steps) + 3;
        let (outbox, inbox) = mpsc::channel(changes * MAX_WEBHOOKS_PER_CHANGE);
        tokio::join!(
            self.render(outbox),
            self.notify(inbox, recipient, first_done)
        );
        self.state.settle(self.task);
    }

    async fn render(&self, outbox: mpsc::Sender<PendingWebhook>) {
        if matches!(self.plan.ending, FinalOutcome::Never) {
            return;
        }
        // Based on the start time, so that a delay does not add up.
        let mut due = Instant::now();
        let mut pace = || {
            due += self.pace;
            sleep_until(due)
        };
        if self.change(&outbox, |_| {}).is_break() {
            return;
        }
        for _ in 0..self.plan.ahead {
            pace().await;
            if self.change(&outbox, Task::advance).is_break() {
                return;
            }
        }
        // The submitter waits for the first webhook, so the queue is skipped.
        if !matches!(
            self.plan.submit_behavior,
            SubmitBehavior::AnswerAfterWebhook
        ) {
            pace().await;
        }
        for step in 0..=self.plan.steps {
            if self.change(&outbox, |task| task.proceed(step)).is_break() {
                return;
            }
            pace().await;
        }
        let _over = self.change(&outbox, |task| task.end(self.plan.ending));
    }

    /// Applies a change and queues its webhooks. If a cancellation was accepted, cancels the task instead and breaks.
    fn change(
        &self,
        outbox: &mpsc::Sender<PendingWebhook>,
        change: impl FnOnce(&mut Task),
    ) -> ControlFlow<()> {
        let task = self.state.change(self.task, |task| {
            let is_cancelled = match self.plan.cancelling {
                CancelBehavior::Honored => task.cancel_requested,
                CancelBehavior::Ignored => false,
            };
            if is_cancelled {
                task.cancel();
            } else {
                change(task);
            }
        });
        let Some(task) = task else {
            return ControlFlow::Break(());
        };
        for body in self.dialect.webhooks(&task) {
            let id: u64 = rand::rng().random_range(1_000_000_000_000_000..10_000_000_000_000_000);
            let message = Message {
                id: id.to_string(),
                task: task.id.clone(),
                body: body.to_string().into_bytes(),
            };
            // The channel is closed if the receiver is gone.
            let at = Instant::now();
            outbox.try_send(PendingWebhook { at, message }).ok();
        }
        if task.status.is_final() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    async fn notify(
        &self,
        mut inbox: mpsc::Receiver<PendingWebhook>,
        recipient: Option<Recipient>,
        first_done: oneshot::Sender<()>,
    ) {
        let Some(to) = recipient else { return };
        let is_lost = matches!(self.plan.schedule, Schedule::Lost);
        if is_lost || !self.webhooks.challenge_receiver(&to).await {
            return;
        }
        let mut first_done = Some(first_done);
        let mut held_back = Vec::new();
        while let Some(pending) = inbox.recv().await {
            let delivery = match self.plan.schedule {
                Schedule::Lost => return,
                Schedule::InTime => self.webhooks.deliver(&pending.message, &to).await,
                Schedule::Twice => {
                    self.webhooks.deliver(&pending.message, &to).await;
                    self.webhooks.deliver(&pending.message, &to).await
                }
                Schedule::Late(paces) => {
                    sleep_until(pending.at + self.pace * paces).await;
                    self.webhooks.deliver(&pending.message, &to).await
                }
                Schedule::Reversed => {
                    held_back.push(pending.message);
                    Delivery::Failed
                }
            };
            if let Some(first_done) = first_done.take() {
                first_done.send(()).ok();
            }
            match delivery {
                Delivery::Acknowledged | Delivery::Failed => {}
                Delivery::Gone => return,
            }
        }
        for message in held_back.iter().rev() {
            match self.webhooks.deliver(message, &to).await {
                Delivery::Acknowledged | Delivery::Failed => {}
                Delivery::Gone => return,
            }
        }
    }
}
