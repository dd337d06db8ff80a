//! Workers: they move each task through its plan, and tell the task's callback.
//!
//! Invariant: a task's truth moves by the pace alone, never held up by a slow or absent receiver; its messages
//! are delivered one after the other. Each task has room for all the messages of its plan, so nothing waits and
//! nothing is dropped.

use std::time::Duration;

use rand::RngExt;
use reqwest::Url;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::Ledger;
use super::scenario::{Door, Ending, Plan, Schedule};
use super::task::Task;
use super::webhook::{Delivery, Message, Postman, Recipient};

/// Starts the work on tasks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Workers {
    pub ledger: Ledger,
    pub postman: Postman,
    pub pace: Duration,
    pub runtime: Handle,
    pub running: TaskTracker,
    pub stop: CancellationToken,
}

/// The work on one task.
struct Work {
    ledger: Ledger,
    postman: Postman,
    pace: Duration,
    task: u64,
    plan: Plan,
}

/// A message and the moment of the change that it tells.
struct News {
    at: Instant,
    message: Message,
}

impl Workers {
    /// Starts the work on a task. The returned end is told, or dropped, when its first webhook is done with.
    pub fn start(&self, task: u64, plan: Plan, callback: Option<Url>) -> oneshot::Receiver<()> {
        let (first_done, first) = oneshot::channel();
        let recipient = callback.map(|url| Recipient {
            task,
            url,
            seal: plan.seal,
        });
        let work = Work {
            ledger: self.ledger.clone(),
            postman: self.postman.clone(),
            pace: self.pace,
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
        let (outbox, inbox) = mpsc::channel(usize::from(self.plan.steps) + 2);
        tokio::join!(
            self.render(outbox),
            self.notify(inbox, recipient, first_done)
        );
        self.ledger.rest(self.task);
    }

    async fn render(&self, outbox: mpsc::Sender<News>) {
        if matches!(self.plan.ending, Ending::Never) {
            return;
        }
        // Where the submitter is kept waiting for the first webhook, there is no time in the queue.
        if !matches!(self.plan.door, Door::AnswerAfterWebhook) {
            sleep(self.pace).await;
        }
        for step in 0..=self.plan.steps {
            self.change(&outbox, |task| {
                task.proceed(percent(step, self.plan.steps + 1));
            });
            sleep(self.pace).await;
        }
        self.change(&outbox, |task| task.end(self.plan.ending));
    }

    fn change(&self, outbox: &mpsc::Sender<News>, change: impl FnOnce(&mut Task)) {
        let Some(task) = self.ledger.change(self.task, change) else {
            return;
        };
        let thin = matches!(
            self.plan.ending,
            Ending::SucceedsThin | Ending::SucceedsExpired
        );
        let document = if thin && task.status.is_final() {
            task.thin_document()
        } else {
            task.document()
        };
        // Strings and numbers under fixed names always serialise.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let message = Message {
            id: rand::rng().random_range(1_000_000_000_000_000..10_000_000_000_000_000),
            body,
        };
        // A receiver that is gone wants no more news.
        outbox
            .try_send(News {
                at: Instant::now(),
                message,
            })
            .ok();
    }

    async fn notify(
        &self,
        mut inbox: mpsc::Receiver<News>,
        recipient: Option<Recipient>,
        first_done: oneshot::Sender<()>,
    ) {
        let Some(to) = recipient else { return };
        let mut first_done = Some(first_done);
        let mut held_back = Vec::new();
        while let Some(news) = inbox.recv().await {
            let delivery = match self.plan.schedule {
                Schedule::Lost => Delivery::GivenUp,
                Schedule::InTime => self.postman.deliver(&news.message, &to).await,
                Schedule::Twice => {
                    self.postman.deliver(&news.message, &to).await;
                    self.postman.deliver(&news.message, &to).await
                }
                Schedule::Late(paces) => {
                    sleep_until(news.at + self.pace * paces).await;
                    self.postman.deliver(&news.message, &to).await
                }
                Schedule::Reversed => {
                    held_back.push(news.message);
                    Delivery::GivenUp
                }
            };
            if let Some(first_done) = first_done.take() {
                first_done.send(()).ok();
            }
            match delivery {
                Delivery::Acknowledged | Delivery::GivenUp => {}
                Delivery::Unwanted => return,
            }
        }
        for message in held_back.iter().rev() {
            match self.postman.deliver(message, &to).await {
                Delivery::Acknowledged | Delivery::GivenUp => {}
                Delivery::Unwanted => return,
            }
        }
    }
}

fn percent(step: u8, of: u8) -> u8 {
    // Below a hundred, because a step is below the number of steps.
    u8::try_from(u32::from(step) * 100 / u32::from(of)).unwrap_or(100)
}
