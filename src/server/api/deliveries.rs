//! `/v1/deliveries`: deliveries to destinations outside the hub.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

use crate::destinations::Destinations;
use crate::egress::masked;
use crate::job::JobId;
use crate::outbox::{Delivery, DeliveryId, DeliveryState};
use crate::server::caller::Caller;
use crate::server::error::{ErrorCode, Problem};
use crate::server::request::Query;
use crate::server::router::Segment;
use crate::server::subscribe::granted_job_ids;
use crate::store::{self, DeliveryCursor, DeliveryQuery, DeliveryStateFilter, Store};
use crate::time::Time;

/// Number of deliveries on a page, by default and at most.
const DEFAULT_PAGE_SIZE: usize = 50;
const MAX_PAGE_SIZE: usize = 200;

/// Maximum number of compare-and-swap attempts. A conflict means that an attempt ended meanwhile.
const MAX_CAS_ATTEMPTS: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    job: Option<String>,
    destination: Option<String>,
    state: Option<State>,
    owner: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// State of a delivery as clients see it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Waits for an attempt.
    Waiting,
    /// Waits until its destination is enabled.
    Held,
    Delivered,
    Failed,
}

impl State {
    fn filter(self) -> DeliveryStateFilter {
        match self {
            Self::Waiting | Self::Held => DeliveryStateFilter::Waiting,
            Self::Delivered => DeliveryStateFilter::Delivered,
            Self::Failed => DeliveryStateFilter::Failed,
        }
    }
}

/// What decides whether waiting deliveries are held.
struct View<'a> {
    destinations: &'a Destinations,
    disabled: BTreeSet<String>,
}

impl<'a> View<'a> {
    async fn read(destinations: &'a Destinations, store: &dyn Store) -> Result<Self, store::Error> {
        let stored = store.destinations().await?.into_iter();
        let disabled = stored.filter(|it| it.state.disabled.is_some());
        Ok(Self {
            destinations,
            disabled: disabled.map(|it| it.name).collect(),
        })
    }

    fn state(&self, delivery: &Delivery) -> State {
        let name = &delivery.id.destination;
        match delivery.progress.state {
            DeliveryState::Delivered { .. } => State::Delivered,
            DeliveryState::Failed { .. } => State::Failed,
            DeliveryState::Waiting { .. }
                if self.disabled.contains(name) || self.destinations.get(name).is_none() =>
            {
                State::Held
            }
            DeliveryState::Waiting { .. } => State::Waiting,
        }
    }

    fn body(&self, delivery: &Delivery) -> serde_json::Value {
        let (id, progress) = (&delivery.id, &delivery.progress);
        let address = match &delivery.target {
            Some(target) => Some(masked_target(target)),
            None => {
                let destination = self.destinations.get(&id.destination);
                destination.map(|it| it.address.clone())
            }
        };
        let (next_attempt_at, ended_at) = match progress.state {
            DeliveryState::Waiting { due_at, .. } => (Some(due_at), None),
            DeliveryState::Delivered { at } | DeliveryState::Failed { at } => (None, Some(at)),
        };
        let attempts = progress.attempts.iter().map(|attempt| {
            json!({
                "at": attempt.at,
                "duration_ms": attempt.duration_ms,
                "status": attempt.status,
                "error": attempt.error,
            })
        });
        json!({
            "id": id.to_string(),
            "job": id.job,
            "version": id.version,
            "event": id.event,
            "destination": id.destination,
            "owner": delivery.owner,
            "address": address,
            "state": self.state(delivery),
            "created_at": delivery.created_at,
            "next_attempt_at": next_attempt_at,
            "ended_at": ended_at,
            "attempt_count": progress.attempt_count,
            "attempts": attempts.collect::<Vec<_>>(),
        })
    }
}

/// Returns a URL or an e-mail address without the parts that may be secret or personal.
fn masked_target(target: &str) -> String {
    match (Url::parse(target), target.rsplit_once('@')) {
        (Ok(url), _) if url.has_host() => masked(&url),
        (_, Some((_, domain))) => format!("…@{domain}"),
        (_, None) => "…".to_owned(),
    }
}

/// `GET /v1/deliveries`: lists the deliveries of the caller's jobs, newest first. An admin may select
/// an `owner`, and otherwise sees all.
pub async fn list(
    caller: Caller,
    store: web::Data<dyn Store>,
    destinations: web::Data<Destinations>,
    Query(params): Query<ListParams>,
) -> Result<HttpResponse, Problem> {
    let limit = params.limit.unwrap_or(DEFAULT_PAGE_SIZE);
    if !(1..=MAX_PAGE_SIZE).contains(&limit) {
        return Err(Problem::invalid(format!(
            "limit must be from 1 to {MAX_PAGE_SIZE}"
        )));
    }
    let job = params.job.as_deref().map(JobId::parse).transpose();
    let job = job.map_err(|_| Problem::invalid("job must be a job id"))?;
    let after = params.cursor.as_deref().map(parse_cursor).transpose()?;
    let owner = match params.owner {
        Some(owner) if caller.is_admin() || owner == caller.subject() => Some(owner),
        Some(_) => return Err(Problem::forbidden("admin")),
        None if caller.is_admin() => None,
        None => Some(caller.subject().to_owned()),
    };
    let query = DeliveryQuery {
        job,
        owner,
        destination: params.destination,
        state: params.state.map(State::filter),
        after,
        // One more than requested, which shows whether there is a next page.
        limit: limit + 1,
    };
    let mut found = match granted_job_ids(&caller) {
        Some(granted) => deliveries_of(&**store, query, granted).await?,
        None => store.deliveries(query).await?,
    };
    found.retain(|delivery| caller.may_see(delivery.id.job.as_str(), &delivery.owner));
    let has_next_page = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| has_next_page);
    let next_cursor = last.map(|delivery| format_cursor(delivery));
    let view = View::read(&destinations, &**store).await?;
    // A state that is derived restricts the page after it was read, so it may be shorter.
    let is_selected = |delivery: &&Arc<Delivery>| {
        let state = params.state;
        state.is_none_or(|state| view.state(delivery) == state)
    };
    let selected = found.iter().filter(is_selected);
    let bodies: Vec<_> = selected.map(|delivery| view.body(delivery)).collect();
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "deliveries": bodies, "next_cursor": next_cursor })))
}

/// Returns the deliveries of the jobs that a token is limited to, whoever owns them.
async fn deliveries_of(
    store: &dyn Store,
    query: DeliveryQuery,
    granted: Vec<JobId>,
) -> Result<Vec<Arc<Delivery>>, store::Error> {
    let mut found = Vec::new();
    for job in granted {
        if query.job.as_ref().is_none_or(|only| *only == job) {
            let query = DeliveryQuery {
                job: Some(job),
                owner: None,
                ..query.clone()
            };
            found.extend(store.deliveries(query).await?);
        }
    }
    found.sort_by(|a, b| b.order().cmp(&a.order()));
    found.truncate(query.limit);
    Ok(found)
}

fn format_cursor(delivery: &Delivery) -> String {
    format!("{}.{}", delivery.created_at.millis(), delivery.id)
}

fn parse_cursor(text: &str) -> Result<DeliveryCursor, Problem> {
    let parse = || {
        let (millis, id) = text.split_once('.')?;
        Some(DeliveryCursor {
            created_at: Time::from_millis(millis.parse().ok()?),
            id: DeliveryId::parse(id).ok()?,
        })
    };
    parse().ok_or_else(|| Problem::invalid("cursor must be the next_cursor of an earlier response"))
}

/// `POST /v1/deliveries/{id}/redeliver`: makes a delivery due now. If it has ended, one attempt is
/// made, with the same id.
pub async fn redeliver(
    caller: Caller,
    store: web::Data<dyn Store>,
    destinations: web::Data<Destinations>,
    Segment(id): Segment<2>,
) -> Result<HttpResponse, Problem> {
    let not_found = || Problem::not_found("delivery");
    let id = DeliveryId::parse(&id).map_err(|_| not_found())?;
    for _ in 0..MAX_CAS_ATTEMPTS {
        let delivery = store.delivery(&id).await?.ok_or_else(not_found)?;
        if !caller.may_see(id.job.as_str(), &delivery.owner) {
            return Err(not_found());
        }
        if !caller.may_cancel(id.job.as_str(), &delivery.owner) {
            return Err(Problem::forbidden("jobs:write"));
        }
        let destination = destinations.get(&id.destination).ok_or_else(|| {
            let detail = format!("destination '{}' is not configured", id.destination);
            Problem::new(ErrorCode::DestinationNotConfigured, detail)
        })?;
        let state = DeliveryState::Waiting {
            due_at: Time::now(),
            is_manual: match delivery.progress.state {
                DeliveryState::Waiting { is_manual, .. } => is_manual,
                DeliveryState::Delivered { .. } | DeliveryState::Failed { .. } => true,
            },
        };
        let progress = delivery.progress.next(state, None);
        if store.record_progress(&id, progress.clone()).await? {
            destination.wakeup.notify_one();
            tracing::info!(delivery.id = %id, caller.subject = caller.subject(), "delivery requested");
            let delivery = Delivery {
                progress,
                ..Delivery::clone(&delivery)
            };
            let view = View::read(&destinations, &**store).await?;
            return Ok(HttpResponse::Accepted().json(view.body(&delivery)));
        }
    }
    Err(store::Error::Overloaded.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_masked() {
        for (target, expected) in [
            (
                "https://hooks.example.com/secret?x=1",
                "https://hooks.example.com/…",
            ),
            ("ada@example.com", "…@example.com"),
            ("secret", "…"),
        ] {
            assert_eq!(masked_target(target), expected);
        }
    }
}
