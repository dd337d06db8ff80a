//! Random operations have the effect of the same operations on a model.

use std::collections::BTreeMap;
use std::time::Duration;

use progress_hub::job::{Job, JobId, Status};
use progress_hub::outbox::{
    Delivery, DeliveryId, DeliveryState, DestinationState, NewDelivery, Progress,
};
use progress_hub::store::{
    CommitOutcome, CreateOutcome, DeliveryCursor, DeliveryQuery, StoredDestination,
    WAITING_RETENTION,
};
use progress_hub::time::Time;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::outbox::{commit_with, creation_with, output, to};
use super::{DAY, RETENTION, SECOND, StoreFixture, ended, job_of, next, now};

const STEPS: usize = 60;

/// The position of a delivery in a list: its time, its job, its event and its destination.
type Position = (Time, JobId, String, String);

/// The expected content of a store.
struct Model {
    now: Time,
    jobs: BTreeMap<JobId, Job>,
    deliveries: BTreeMap<(JobId, String, String), Delivery>,
    /// Progress that a node has read, possibly of a delivery that was superseded since.
    seen: Vec<(DeliveryId, Progress)>,
}

impl Model {
    fn add(&mut self, job: &Job, new: &[NewDelivery]) {
        let document = serde_json::to_string(job).unwrap();
        for new in new {
            if !new.is_independent {
                self.deliveries.retain(|(id, _, destination), delivery| {
                    let is_other = *id != job.id || *destination != new.destination;
                    is_other || delivery.due_at().is_none()
                });
            }
            let delivery = Delivery::new(new, job, &document);
            let (id, progress) = (delivery.id.clone(), delivery.progress.clone());
            let key = (id.job.clone(), id.event.clone(), id.destination.clone());
            self.deliveries.insert(key, delivery);
            self.seen.push((id, progress));
        }
        self.jobs.insert(job.id.clone(), job.clone());
    }

    fn record(&mut self, id: &DeliveryId, progress: &Progress) -> bool {
        let key = (id.job.clone(), id.event.clone(), id.destination.clone());
        let Some(delivery) = self.deliveries.get_mut(&key) else {
            return false;
        };
        let is_current = delivery.id.version == id.version
            && delivery.progress.revision + 1 == progress.revision;
        if !is_current {
            return false;
        }
        delivery.progress = progress.clone();
        if progress.due_at().is_none() && !self.jobs.contains_key(&id.job) {
            self.deliveries.remove(&key);
        }
        self.seen.push((id.clone(), progress.clone()));
        true
    }

    fn sweep(&mut self) {
        let now = self.now;
        self.jobs.retain(|_, job| {
            let retention = match job.finished_at {
                Some(_) => RETENTION.terminal,
                None => RETENTION.active,
            };
            job.finished_at.unwrap_or(job.updated_at) + retention >= now
        });
        let jobs = &self.jobs;
        self.deliveries
            .retain(|(id, ..), delivery| match delivery.due_at() {
                Some(due_at) => due_at + WAITING_RETENTION >= now,
                None => jobs.contains_key(id),
            });
    }

    async fn check(&self, fixture: &StoreFixture, context: &str) {
        let store = &fixture.store;
        let position = |delivery: &Delivery| -> Position {
            let id = delivery.id.clone();
            (delivery.created_at, id.job, id.event, id.destination)
        };
        let mut expected: Vec<Delivery> = self.deliveries.values().cloned().collect();
        expected.sort_by_key(position);
        expected.reverse();
        let mut query = DeliveryQuery {
            limit: 20,
            ..DeliveryQuery::default()
        };
        let mut listed = Vec::new();
        loop {
            let page = store.deliveries(query.clone()).await.unwrap();
            listed.extend(page.iter().map(|delivery| Delivery::clone(delivery)));
            let Some(last) = page.last() else { break };
            query.after = Some(DeliveryCursor {
                created_at: last.created_at,
                id: last.id.clone(),
            });
        }
        assert_eq!(listed, expected, "{context}");

        let mut destinations = Vec::new();
        for destination in ["app", "archive", "mail"] {
            let waiting = expected.iter().filter_map(|delivery| {
                let due_at = delivery.due_at()?;
                let is_own = delivery.id.destination == destination;
                is_own.then_some((due_at, delivery.id.job.clone(), delivery.id.event.clone()))
            });
            let mut waiting: Vec<_> = waiting.collect();
            waiting.sort();
            let next_at = store.next_delivery_at(destination).await.unwrap();
            assert_eq!(next_at, waiting.first().map(|(at, ..)| *at), "{context}");
            if !waiting.is_empty() {
                destinations.push(StoredDestination {
                    name: destination.to_owned(),
                    state: DestinationState::default(),
                    waiting: waiting.len() as u64,
                });
            }
            waiting.retain(|(due_at, ..)| *due_at <= self.now);
            let due = store.due_deliveries(destination, self.now, 1000).await;
            let due: Vec<_> = due
                .unwrap()
                .iter()
                .map(|it| (it.due_at().unwrap(), it.id.job.clone(), it.id.event.clone()))
                .collect();
            assert_eq!(due, waiting, "{context}");
        }
        assert_eq!(
            store.destinations().await.unwrap(),
            destinations,
            "{context}"
        );
    }
}

fn random_deliveries(rng: &mut StdRng, event: &str) -> Vec<NewDelivery> {
    let mut deliveries = Vec::new();
    for destination in ["app", "mail"] {
        if rng.random_bool(0.6) {
            deliveries.push(to(destination, event));
        }
    }
    deliveries.extend((0..rng.random_range(0..3)).map(output));
    deliveries
}

fn random_state(rng: &mut StdRng, now: Time) -> DeliveryState {
    match rng.random_range(0..4) {
        0 => DeliveryState::Delivered { at: now },
        1 => DeliveryState::Failed { at: now },
        _ => DeliveryState::Waiting {
            due_at: now + Duration::from_secs(rng.random_range(0..3)),
            is_manual: rng.random(),
        },
    }
}

pub(crate) async fn random_operations_match_a_model(fixture: StoreFixture) {
    let seed: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model {
        now: now(),
        jobs: BTreeMap::new(),
        deliveries: BTreeMap::new(),
        seen: Vec::new(),
    };
    for step in 0..STEPS {
        let context = format!("seed {seed}, step {step}");
        let unfinished = model.jobs.values().filter(|job| !job.is_final());
        let unfinished: Vec<Job> = unfinished.cloned().collect();
        match rng.random_range(0..20) {
            0..4 => {
                let job = Job {
                    created_at: model.now,
                    updated_at: model.now,
                    ..job_of("ada")
                };
                let new = random_deliveries(&mut rng, "job.created");
                let created = fixture.store.create(creation_with(&job, &new)).await;
                assert_eq!(created.unwrap(), CreateOutcome::Created, "{context}");
                model.add(&job, &new);
            }
            4..11 => {
                let Some(job) = unfinished.choose(&mut rng) else {
                    continue;
                };
                let (job, event) = if rng.random_bool(0.3) {
                    let last = ended(job, Status::Succeeded, model.now);
                    (last, "job.succeeded")
                } else {
                    let updated_at = model.now;
                    let next = Job {
                        updated_at,
                        ..next(job)
                    };
                    (next, "job.updated")
                };
                let new = random_deliveries(&mut rng, event);
                let mut commit = commit_with(&job, &new);
                let is_stale = rng.random_bool(0.2);
                commit.expected_version -= u64::from(is_stale);
                let committed = fixture.store.commit(commit).await.unwrap();
                assert_eq!(committed == CommitOutcome::Conflict, is_stale, "{context}");
                if !is_stale {
                    model.add(&job, &new);
                }
            }
            11..18 => {
                // Mostly progress that was read recently.
                let recent = model.seen.len().saturating_sub(8);
                let from = if rng.random_bool(0.8) { recent } else { 0 };
                let Some((id, progress)) = model.seen[from..].choose(&mut rng).cloned() else {
                    continue;
                };
                let progress = progress.next(random_state(&mut rng, model.now), None);
                let recorded = fixture.store.record_progress(&id, progress.clone()).await;
                let expected = model.record(&id, &progress);
                assert_eq!(recorded.unwrap(), expected, "{context}");
            }
            18 => model.now = model.now + rng.random_range(1..4) * SECOND,
            _ => {
                model.now = model.now + rng.random_range(1..12) * DAY;
                while fixture.store.sweep(model.now).await.unwrap() > 0 {}
                model.sweep();
            }
        }
        model.check(&fixture, &context).await;
    }
}
