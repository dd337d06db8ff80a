//! Money and pace: what a submit is charged before it is kept.
//!
//! Invariant: with a budget that applies, nothing passes whose price is not known; and whether it
//! fits is the store's to say, in the step that keeps the job.

use std::collections::BTreeMap;
use std::time::Duration;

use super::AdmissionError;
use crate::config::{Budgets, Config};
use crate::job::{BudgetWindow, Reservation, VideoRequest};
use crate::provider::Provider;
use crate::store::{self, BudgetEntry, BudgetStore};
use crate::time::Time;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// One submit, in the store's millionths.
const ONE_SUBMIT_MICROS: i64 = 1_000_000;

/// What may be spent, and how often.
pub(super) struct BudgetPolicy {
    budgets: Budgets,
    /// By the provider's name.
    per_day: BTreeMap<String, f64>,
    submits_per_minute: Option<i64>,
}

/// What an admitted job is to be charged.
#[derive(Default)]
pub struct BudgetEntries(Vec<LabeledEntry>);

struct LabeledEntry {
    entry: BudgetEntry,
    limit: i64,
    purpose: LimitKind,
}

enum LimitKind {
    /// The submits of a minute.
    SubmitRate,
    /// The budget that this setting names.
    Budget(String),
}

impl BudgetEntries {
    /// The charges with the limits they are held to, the pace first.
    #[must_use]
    pub fn entries(&self) -> Vec<BudgetEntry> {
        self.0.iter().map(|booking| booking.entry.clone()).collect()
    }

    fn add(&mut self, purpose: LimitKind, account: BudgetWindow, amount: i64, limit: i64) {
        let entry = BudgetEntry {
            window: account.name,
            amount_micros: amount,
            limit_micros: Some(limit),
            window_ends_at: account.expires_at,
        };
        self.0.push(LabeledEntry {
            entry,
            limit,
            purpose,
        });
    }
}

impl BudgetPolicy {
    pub(super) fn new(config: &Config) -> Self {
        let per_day = config.providers.iter().filter_map(|(name, settings)| {
            let budget = settings.budget_per_day?;
            Some((name.clone(), budget))
        });
        let most = config.limits.submits_per_minute;
        Self {
            budgets: config.budgets.clone(),
            per_day: per_day.collect(),
            submits_per_minute: most.and_then(|most| i64::try_from(most).ok()),
        }
    }

    /// What the job is to be charged, and of that what its end has to settle.
    pub(super) fn reserve(
        &self,
        owner: &str,
        provider: &Provider,
        request: &VideoRequest,
        now: Time,
    ) -> Result<(Option<Reservation>, BudgetEntries), AdmissionError> {
        let mut bookings = BudgetEntries::default();
        if let Some(most) = self.submits_per_minute {
            let account = account("submits", owner, now, MINUTE);
            bookings.add(
                LimitKind::SubmitRate,
                account,
                ONE_SUBMIT_MICROS,
                most.saturating_mul(ONE_SUBMIT_MICROS),
            );
        }
        let name = provider.name();
        let price = provider.price(request).map_err(AdmissionError::Price)?;
        let days = [
            (
                self.budgets.per_owner_day,
                "budgets.per_owner_day".to_owned(),
                account("owner", owner, now, DAY),
            ),
            (
                self.per_day.get(name).copied(),
                format!("providers.{name}.budget_per_day"),
                account("provider", name, now, DAY),
            ),
        ];
        let days = days
            .into_iter()
            .filter_map(|(budget, setting, account)| Some((budget?, setting, account)));
        let days: Vec<_> = days.collect();
        let Some(price) = price else {
            let per_job = self.budgets.per_job.map(|_| "budgets.per_job");
            let budget = per_job.or(days.first().map(|(_, setting, _)| setting.as_str()));
            return match budget {
                None => Ok((None, bookings)),
                Some(budget) => Err(AdmissionError::Price(format!(
                    "providers.{name}.prices: has no price for the model '{}', and {budget} needs one",
                    request.model
                ))),
            };
        };
        let amount = Reservation::to_micros(price);
        let unit = &self.budgets.unit;
        if let Some(most) = self.budgets.per_job
            && amount > Reservation::to_micros(most)
        {
            return Err(AdmissionError::Budget(format!(
                "budgets.per_job: {most} {unit} are allowed, and this job would cost {} {unit}",
                sum(amount)
            )));
        }
        let mut charge = Reservation {
            amount_micros: amount,
            unit: unit.clone(),
            windows: Vec::new(),
        };
        for (budget, setting, account) in days {
            charge.windows.push(account.clone());
            let limit = Reservation::to_micros(budget);
            bookings.add(LimitKind::Budget(setting), account, amount, limit);
        }
        Ok((Some(charge), bookings))
    }

    /// Why the store did not take the bookings, with what it has left of this account.
    pub(super) async fn over_limit(
        &self,
        bookings: &BudgetEntries,
        account: &str,
        store: &dyn BudgetStore,
        now: Time,
    ) -> Result<AdmissionError, store::Error> {
        let its = |booking: &&LabeledEntry| booking.entry.window == account;
        let Some(booking) = bookings.0.iter().find(its) else {
            return Ok(AdmissionError::Budget(format!(
                "{account}: nothing is left"
            )));
        };
        let ends_at = booking.entry.window_ends_at;
        let setting = match &booking.purpose {
            LimitKind::SubmitRate => {
                return Ok(AdmissionError::Rate {
                    most: booking.limit / ONE_SUBMIT_MICROS,
                    wait: ends_at.saturating_duration_since(now),
                });
            }
            LimitKind::Budget(setting) => setting,
        };
        let balances = store.balances(&[account.to_owned()], now).await?;
        let spent = balances.first().copied().unwrap_or_default();
        let left = sum(booking.limit.saturating_sub(spent).max(0));
        let (unit, cost) = (&self.budgets.unit, sum(booking.entry.amount_micros));
        Ok(AdmissionError::Budget(format!(
            "{setting}: {left} {unit} are left until {ends_at}, and this job would cost {cost} {unit}"
        )))
    }
}

/// The account that is `whose` for the span of the clock that `now` is in.
fn account(kind: &str, whose: &str, now: Time, span: Duration) -> BudgetWindow {
    let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    let begun = now.millis().div_euclid(millis).saturating_mul(millis);
    let begun = Time::from_millis(begun);
    BudgetWindow {
        name: format!("{kind}/{whose}/{begun}"),
        expires_at: begun + span,
    }
}

/// Millionths as a person writes them.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact for any sum that is allowed"
)]
fn sum(millionths: i64) -> f64 {
    millionths as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_windows_are_per_owner_and_contiguous() {
        for (span, end) in [(MINUTE, 60_000), (DAY, 86_400_000)] {
            for begun in [-end, 0, end, 20_000 * end] {
                let at = |millis| account("submits", "ada", Time::from_millis(millis), span);
                let (first, last, next) = (at(begun), at(begun + end - 1), at(begun + end));
                assert_eq!(first.name, last.name);
                assert_eq!(first.expires_at, Time::from_millis(begun + end));
                assert_eq!(
                    last.expires_at, first.expires_at,
                    "the wait is what is left of it"
                );
                assert_ne!(next.name, first.name);
                assert_eq!(next.expires_at, Time::from_millis(begun + 2 * end));
            }
        }
        // No owner's name reaches into another's account.
        let of = |owner| account("owner", owner, Time::from_millis(0), DAY).name;
        let names = [
            of("a"),
            of("a/b"),
            of(""),
            account("submits", "a", Time::from_millis(0), DAY).name,
        ];
        for (n, name) in names.iter().enumerate() {
            assert!(!names[n + 1..].contains(name), "{name}");
        }
    }
}
