//! Execution of a task: the steps of its plan, and the delivery of its webhooks.
//!
//! A task advances on schedule, independent of its receiver. Its webhooks are delivered one after the other. A message
//! keeps its id and body across attempts. Each attempt has its own timestamp and signature. Redirects are not followed.
//! Secrets and URLs are not logged.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use actix_web::web::Data;
use rand::RngExt;
use reqwest::{Client, RequestBuilder, StatusCode, Url, redirect};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::field::display;

use super::context::Context;
use super::dialect::{Dialect, Message, uuid};
use super::plan::{FinalOutcome, Schedule, SignatureMode, SubmitBehavior};
use super::state::Counts;
use super::task::{Status, Task, now_ms};

/// Attempts per message. The delay between them doubles, starting at one step.
const ATTEMPTS: u32 = 5;
/// Timeout of an attempt: the lower end of the range that Standard Webhooks recommends.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(15);

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

    /// Delivers the webhooks of the task. Breaks if no further webhook may be sent.
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

    /// Sends a message until a 2xx, a 410 or the last attempt. Any other status, including 3xx, is retried. Breaks after
    /// a 410, because no further webhook may be sent.
    async fn deliver(&self, url: &Url, message: &Message) -> ControlFlow<()> {
        let (state, task) = (&self.context.state, self.task.number);
        let mut wait = self.context.settings.pace;
        for attempt in 1..=ATTEMPTS {
            state.change(task, |task| task.callbacks_sent += 1);
            state.count(self.dialect.name, |counts| counts.callbacks_sent += 1);
            let error = match self.attempt(url, message).await {
                Ok(status) if status.is_success() => {
                    state.change(task, |task| task.callbacks_acknowledged += 1);
                    let count = |counts: &mut Counts| counts.callbacks_acknowledged += 1;
                    state.count(self.dialect.name, count);
                    return ControlFlow::Continue(());
                }
                Ok(StatusCode::GONE) => return ControlFlow::Break(()),
                Ok(status) => status.to_string(),
                Err(error) => error.without_url().to_string(),
            };
            tracing::debug!(task.id = task, webhook.attempt = attempt, %error, "webhook not delivered");
            if attempt < ATTEMPTS {
                sleep(wait).await;
                wait *= 2;
            }
        }
        ControlFlow::Continue(())
    }

    async fn attempt(&self, url: &Url, message: &Message) -> Result<StatusCode, reqwest::Error> {
        let mut request = self.post(url, message.body.clone());
        let keys = match self.task.plan.signature {
            SignatureMode::Signed => Some(&self.context.keys),
            SignatureMode::Unsigned => None,
            SignatureMode::Forged => Some(&self.context.forged_keys),
        };
        if let Some(keys) = keys {
            for (name, value) in (self.dialect.sign)(keys, message, now_ms() / 1000) {
                request = request.header(name, value);
            }
        }
        Ok(request.send().await?.status())
    }

    /// Sends a challenge if the dialect has one, and returns whether the receiver echoed it.
    async fn passes_challenge(&self, url: &Url) -> bool {
        let Some(timeout) = self.dialect.challenge_timeout else {
            return true;
        };
        let (state, dialect) = (&self.context.state, self.dialect.name);
        state.count(dialect, |counts| counts.challenges_sent += 1);
        let challenge = json!({"challenge": uuid()});
        let request = self.post(url, challenge.to_string().into_bytes());
        let echo = async {
            let response = request.timeout(timeout).send().await?;
            response.error_for_status()?.json::<Value>().await
        };
        let echo = echo.await;
        let is_echoed = echo.as_ref().is_ok_and(|echo| *echo == challenge);
        if is_echoed {
            state.count(dialect, |counts| counts.challenges_passed += 1);
        } else {
            let error = echo.err().map(|error| display(error.without_url()));
            tracing::debug!(
                task.id = self.task.number,
                error,
                "webhook challenge not echoed"
            );
        }
        is_echoed
    }

    fn post(&self, url: &Url, body: Vec<u8>) -> RequestBuilder {
        let request = self.context.client.post(url.clone());
        request
            .header("content-type", "application/json")
            .body(body)
    }
}

/// Creates the client that sends webhooks.
pub(super) fn client() -> io::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(redirect::Policy::none())
        .timeout(WEBHOOK_TIMEOUT)
        .build()
        .map_err(io::Error::other)
}
