//! Budgets and submission rate: what a submission is charged when its job is created.
//!
//! Invariants: if a budget applies, a request is rejected unless its price is known. The store
//! checks the limits in the same atomic step that creates the job.

use std::collections::BTreeMap;
use std::time::Duration;

use super::AdmissionError;
use crate::config::{Budgets, Config, Limits};
use crate::job::{BudgetWindow, QueueCharge, Reservation};
use crate::provider::{Provider, Submission};
use crate::store::{self, BudgetEntry, BudgetStore};
use crate::time::Time;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The configured budgets and the submission rate.
pub(super) struct BudgetPolicy {
    budgets: Budgets,
    /// Daily budgets by provider name.
    per_provider_day: BTreeMap<String, f64>,
    limits: Limits,
    /// Maximum deadline of a job, and so the longest time that it waits for submission.
    max_deadline: Duration,
}

/// The budget entries of an admitted job.
#[derive(Default)]
pub struct BudgetEntries(Vec<LabeledEntry>);

struct LabeledEntry {
    entry: BudgetEntry,
    limit: i64,
    kind: LimitKind,
}

enum LimitKind {
    /// The submission rate.
    SubmitRate,
    /// Jobs that wait for submission, with the name of the setting.
    Queue(&'static str),
    /// A budget, with the name of its setting.
    Budget(String),
}

impl BudgetEntries {
    /// Returns the entries with their limits, in the order in which the store checks them.
    #[must_use]
    pub fn entries(&self) -> Vec<BudgetEntry> {
        self.0.iter().map(|labeled| labeled.entry.clone()).collect()
    }

    fn add(&mut self, kind: LimitKind, window: BudgetWindow, amount: i64, limit: i64) {
        self.add_after(Vec::new(), kind, window, amount, limit);
    }

    /// Adds an entry whose limit includes the balances of `earlier_windows`.
    fn add_after(
        &mut self,
        earlier_windows: Vec<String>,
        kind: LimitKind,
        window: BudgetWindow,
        amount: i64,
        limit: i64,
    ) {
        let entry = BudgetEntry {
            window: window.name,
            amount,
            limit: Some(limit),
            earlier_windows,
            window_ends_at: window.expires_at,
        };
        self.0.push(LabeledEntry { entry, limit, kind });
    }
}

impl BudgetPolicy {
    pub(super) fn new(config: &Config) -> Self {
        let per_provider_day = config.providers.iter().filter_map(|(name, settings)| {
            let budget = settings.budget_per_day?;
            Some((name.clone(), budget))
        });
        Self {
            budgets: config.budgets.clone(),
            per_provider_day: per_provider_day.collect(),
            limits: config.limits,
            max_deadline: config.store.retain_active,
        }
    }

    /// Returns the setting of the first budget that applies to jobs at `provider`.
    pub(super) fn applicable(&self, provider: &str) -> Option<String> {
        let settings = [
            (self.budgets.per_job, "budgets.per_job".to_owned()),
            (
                self.budgets.per_owner_day,
                "budgets.per_owner_day".to_owned(),
            ),
            (
                self.per_provider_day.get(provider).copied(),
                format!("providers.{provider}.budget_per_day"),
            ),
        ];
        let mut applicable = settings
            .into_iter()
            .filter_map(|(budget, setting)| budget.map(|_| setting));
        applicable.next()
    }

    /// Returns the entries to charge, and the reservation that the job's final version settles.
    pub(super) fn reserve(
        &self,
        owner: &str,
        provider: &Provider,
        submission: &Submission,
        now: Time,
    ) -> Result<(Option<Reservation>, BudgetEntries), AdmissionError> {
        let mut entries = BudgetEntries::default();
        entries.add(
            LimitKind::SubmitRate,
            BudgetWindow::containing("submits", owner, now, MINUTE),
            1,
            integer(self.limits.submits_per_minute),
        );
        let name = provider.name();
        let price = provider.price(submission).map_err(AdmissionError::Price)?;
        let daily_budgets: Vec<_> = [
            (
                self.budgets.per_owner_day,
                "budgets.per_owner_day".to_owned(),
                BudgetWindow::containing("owner", owner, now, DAY),
            ),
            (
                self.per_provider_day.get(name).copied(),
                format!("providers.{name}.budget_per_day"),
                BudgetWindow::containing("provider", name, now, DAY),
            ),
        ]
        .into_iter()
        .filter_map(|(budget, setting, window)| Some((budget?, setting, window)))
        .collect();
        let Some(price) = price else {
            return match self.applicable(name) {
                None => Ok((None, entries)),
                Some(setting) => Err(AdmissionError::Price(format!(
                    "providers.{name}.prices: no price for model '{}', which {setting} requires",
                    submission.model()
                ))),
            };
        };
        let amount_micros = Reservation::to_micros(price);
        let unit = &self.budgets.unit;
        if let Some(limit) = self.budgets.per_job
            && amount_micros > Reservation::to_micros(limit)
        {
            return Err(AdmissionError::Budget(format!(
                "budgets.per_job: {limit} {unit} allowed per job; this job would cost {} {unit}",
                from_micros(amount_micros)
            )));
        }
        let mut reservation = Reservation {
            amount_micros,
            unit: unit.clone(),
            windows: Vec::new(),
        };
        for (budget, setting, window) in daily_budgets {
            reservation.windows.push(window.clone());
            let limit = Reservation::to_micros(budget);
            entries.add(LimitKind::Budget(setting), window, amount_micros, limit);
        }
        Ok((Some(reservation), entries))
    }

    /// Adds to `entries` the charges for a job that waits for submission, and returns them. The
    /// first submission attempt or a terminal status releases them.
    pub(super) fn charge_queue(
        &self,
        owner: &str,
        bytes: usize,
        now: Time,
        entries: &mut BudgetEntries,
    ) -> Vec<QueueCharge> {
        let Limits {
            queued_jobs,
            queued_bytes,
            ..
        } = self.limits;
        [
            ("queued-jobs", "limits.queued_jobs", 1, queued_jobs),
            ("queued-bytes", "limits.queued_bytes", bytes, queued_bytes),
        ]
        .map(|(kind, setting, amount, limit)| {
            let (window, earlier) = queue_windows(kind, owner, now, self.max_deadline);
            let amount = integer(amount);
            entries.add_after(
                earlier,
                LimitKind::Queue(setting),
                window.clone(),
                amount,
                integer(limit),
            );
            QueueCharge { window, amount }
        })
        .into()
    }

    /// Returns the error for an entry that the store rejected, with the remaining balance of its
    /// window.
    pub(super) async fn limit_error(
        &self,
        entries: &BudgetEntries,
        window_name: &str,
        store: &dyn BudgetStore,
        now: Time,
    ) -> Result<AdmissionError, store::Error> {
        let is_rejected = |labeled: &&LabeledEntry| labeled.entry.window == window_name;
        let Some(labeled) = entries.0.iter().find(is_rejected) else {
            return Ok(AdmissionError::Budget(format!(
                "{window_name}: budget exhausted"
            )));
        };
        let ends_at = labeled.entry.window_ends_at;
        let setting = match &labeled.kind {
            LimitKind::SubmitRate => {
                return Ok(AdmissionError::Rate {
                    limit: labeled.limit,
                    retry_after: ends_at.saturating_duration_since(now),
                });
            }
            LimitKind::Queue(setting) => {
                return Ok(AdmissionError::QueueFull {
                    setting,
                    limit: labeled.limit,
                });
            }
            LimitKind::Budget(setting) => setting,
        };
        let balances = store.balances(&[window_name.to_owned()], now).await?;
        let spent_micros = balances.first().copied().unwrap_or_default();
        let left = from_micros(labeled.limit.saturating_sub(spent_micros).max(0));
        let cost = from_micros(labeled.entry.amount);
        let unit = &self.budgets.unit;
        Ok(AdmissionError::Budget(format!(
            "{setting}: {left} {unit} left until {ends_at}; this job would cost {cost} {unit}"
        )))
    }
}

/// Returns the window for jobs that are queued on the day of `now`, and the names of the windows of
/// earlier days whose jobs can still be queued. A job is queued for at most `max_deadline`, and a
/// window expires when all of its jobs have reached their deadlines.
///
/// There is one window per day because the store records every charge of a window until the window
/// expires. The record prevents a charge from being applied twice.
fn queue_windows(
    kind: &str,
    owner: &str,
    now: Time,
    max_deadline: Duration,
) -> (BudgetWindow, Vec<String>) {
    let mut today = BudgetWindow::containing(kind, owner, now, DAY);
    let mut earlier = Vec::new();
    let mut earlier_end = today.expires_at - DAY;
    while earlier_end > now - max_deadline {
        earlier_end = earlier_end - DAY;
        earlier.push(BudgetWindow::containing(kind, owner, earlier_end, DAY).name);
    }
    today.expires_at = today.expires_at + max_deadline;
    (today, earlier)
}

fn integer(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Converts millionths to the unit.
#[expect(
    clippy::cast_precision_loss,
    reason = "configuration limits amounts to the exact range"
)]
fn from_micros(micros: i64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_windows_are_counted_until_their_jobs_are_past_the_deadline() {
        let hour = Duration::from_secs(3600);
        let midnight = Time::from_millis(20_000 * 86_400_000);
        let name = |days: u32| {
            BudgetWindow::containing("queued-jobs", "ada", midnight - DAY * days, DAY).name
        };
        for (max_deadline, now, days) in [
            (hour, midnight, 1),
            (hour, midnight + hour / 2, 1),
            (hour, midnight + hour, 0),
            (DAY, midnight, 1),
            (DAY, midnight + DAY - hour, 1),
            (DAY * 3, midnight + hour, 3),
        ] {
            let (today, earlier) = queue_windows("queued-jobs", "ada", now, max_deadline);
            assert_eq!(today.name, name(0));
            assert_eq!(today.expires_at, midnight + DAY + max_deadline);
            let expected: Vec<String> = (1..=days).map(name).collect();
            assert_eq!(earlier, expected, "{max_deadline:?} {now}");
        }
    }

    #[test]
    fn budget_windows_are_per_owner_and_contiguous() {
        for (span, end) in [(MINUTE, 60_000), (DAY, 86_400_000)] {
            for start in [-end, 0, end, 20_000 * end] {
                let at = |millis| {
                    BudgetWindow::containing("submits", "ada", Time::from_millis(millis), span)
                };
                let (first, last, next) = (at(start), at(start + end - 1), at(start + end));
                assert_eq!(first.name, last.name);
                assert_eq!(first.expires_at, Time::from_millis(start + end));
                assert_eq!(
                    last.expires_at, first.expires_at,
                    "all times of a window share its end"
                );
                assert_ne!(next.name, first.name);
                assert_eq!(next.expires_at, Time::from_millis(start + 2 * end));
            }
        }
        // Distinct owners and kinds have distinct window names.
        let of = |owner| BudgetWindow::containing("owner", owner, Time::from_millis(0), DAY).name;
        let names = [
            of("a"),
            of("a/b"),
            of(""),
            BudgetWindow::containing("submits", "a", Time::from_millis(0), DAY).name,
        ];
        for (n, name) in names.iter().enumerate() {
            assert!(!names[n + 1..].contains(name), "{name}");
        }
    }
}
