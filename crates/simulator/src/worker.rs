//! The work on a task: its way through its plan, and its webhooks.
//!
//! A task advances on schedule, independent of its receiver. Its webhooks are delivered one after the other.

use std::ops::ControlFlow;
use std::time::Duration;

use actix_web::web::Data;
use rand::RngExt;
use reqwest::Url;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Context;
use super::dialect::Dialect;
use super::plan::{FinalOutcome, Schedule, SubmitBehavior};
use super::task::{Status, Task};
use super::webhook::Message;

/// The work on one task.
pub(super) struct Work {
    pub context: Data<Context>,
    pub dialect: &'static Dialect,
    /// The task as it was created.
    pub task: Task,
    /// Destination of the webhooks.
    pub callback: Option<Url>,
}

impl Work {
    /// Starts the work. The returned receiver resolves when the first webhook is done, or when there is none.
    pub fn start(self) -> oneshot::Receiver<()> {
        let (first_done, first) = oneshot::channel();
        let (running, stop) = (self.context.running.clone(), self.context.stop.clone());
        running.spawn(stop.run_until_cancelled_owned(self.run(first_done)));
        first
    }

    async fn run(self, first_done: oneshot::Sender<()>) {
        // Bounded by the plan, which has a fixed number of changes.
        let (outbox, inbox) = mpsc::unbounded_channel();
        let _over = tokio::join!(self.render(outbox), self.notify(inbox, first_done));
        let state = &self.context.state;
        state.change(self.task.number, |task| task.is_settled = true);
    }

    /// Moves the task through its plan. Breaks when it has ended.
    async fn render(&self, outbox: mpsc::UnboundedSender<Message>) -> ControlFlow<()> {
        let plan = &self.task.plan;
        if plan.ending == FinalOutcome::Never {
            return ControlFlow::Continue(());
        }
        // Based on the start time, so that a delay does not add up.
        let mut due = Instant::now();
        let mut pace = || {
            due += self.context.settings.pace;
            sleep_until(due)
        };
        self.change(&outbox, |_| {})?;
        for _ in 0..plan.ahead {
            pace().await;
            self.change(&outbox, Task::advance)?;
        }
        // The submitter waits for the first webhook, so the queue is skipped.
        if plan.submit_behavior != SubmitBehavior::AnswerAfterWebhook {
            pace().await;
        }
        for step in 0..=plan.steps {
            self.change(&outbox, |task| task.proceed(step))?;
            pace().await;
        }
        self.change(&outbox, Task::end)
    }

    /// Applies a change and queues its webhooks. If a cancellation was accepted, cancels the task instead.
    fn change(
        &self,
        outbox: &mpsc::UnboundedSender<Message>,
        change: impl FnOnce(&mut Task),
    ) -> ControlFlow<()> {
        let task = self.context.state.change(self.task.number, |task| {
            if task.cancel_requested && task.plan.honors_cancel {
                task.finish(Status::Cancelled);
            } else {
                change(task);
            }
        });
        let Some(task) = task else {
            return ControlFlow::Break(());
        };
        let delay = match task.plan.schedule {
            Schedule::Late(paces) => self.context.settings.pace * paces,
            Schedule::InTime | Schedule::Twice | Schedule::Reversed | Schedule::Lost => {
                Duration::ZERO
            }
        };
        for body in (self.dialect.webhooks)(&task) {
            let id: u64 = rand::rng().random_range(1_000_000_000_000_000..10_000_000_000_000_000);
            let message = Message {
                id: id.to_string(),
                task: task.id.clone(),
                body: body.to_string().into_bytes(),
                due: Instant::now() + delay,
            };
            // The channel is closed if the receiver is gone.
            outbox.send(message).ok();
        }
        if task.status.is_final() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Delivers the webhooks of the task. Breaks if the receiver must be sent nothing more.
    async fn notify(
        &self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        first_done: oneshot::Sender<()>,
    ) -> ControlFlow<()> {
        let schedule = self.task.plan.schedule;
        let Some(url) = &self.callback else {
            return ControlFlow::Break(());
        };
        if schedule == Schedule::Lost || !self.passes_challenge(url).await {
            return ControlFlow::Break(());
        }
        if schedule == Schedule::Reversed {
            let mut all = Vec::new();
            while inbox.recv_many(&mut all, usize::MAX).await > 0 {}
            for message in all.iter().rev() {
                self.deliver(url, message).await?;
            }
        }
        let mut first_done = Some(first_done);
        while let Some(message) = inbox.recv().await {
            sleep_until(message.due).await;
            self.deliver(url, &message).await?;
            if schedule == Schedule::Twice {
                self.deliver(url, &message).await?;
            }
            if let Some(first_done) = first_done.take() {
                first_done.send(()).ok();
            }
        }
        ControlFlow::Continue(())
    }
}
