//! Which outputs of a job are in the archive, for reading them and in documents.

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::web;
use futures_util::future::try_join_all;
use serde::{Serialize, Serializer};

use crate::destinations::archive::{Archive, ArchivedOutput, DESTINATION};
use crate::job::{Job, Output, Status};
use crate::outbox::{Delivery, DeliveryState};
use crate::store::{self, DeliveryQuery, Store};

/// Returns the copy of an output, or `None` if there is none yet.
pub(super) async fn find_archived(
    outbox: &dyn Store,
    archive: &Archive,
    job: &Job,
    n: usize,
) -> Result<Option<ArchivedOutput>, store::Error> {
    let delivery = outbox.delivery(&Archive::delivery_id(job, n)).await?;
    Ok(delivery.and_then(|delivery| archive.archived(&delivery)))
}

/// A document in which each output states whether it is in the archive.
pub struct JobWithArchive {
    job: Arc<Job>,
    /// `None` if the outputs are not copied to an archive.
    states: Option<Vec<ArchiveState>>,
}

/// Whether an output is in the archive, and otherwise why not.
#[derive(Clone, Default)]
struct ArchiveState {
    is_archived: bool,
    error: Option<String>,
}

/// Reads the archive's state of each job.
pub async fn with_archive(
    store: &dyn Store,
    archive: Option<&web::Data<Archive>>,
    jobs: Vec<Arc<Job>>,
) -> Result<Vec<JobWithArchive>, store::Error> {
    let jobs = jobs.into_iter();
    try_join_all(jobs.map(async |job| {
        let is_copied = job.status == Status::Succeeded && !job.internal.output_sources.is_empty();
        let states = match archive.filter(|_| is_copied) {
            Some(archive) => Some(states(store, archive, &job).await?),
            None => None,
        };
        Ok(JobWithArchive { job, states })
    }))
    .await
}

async fn states(
    outbox: &dyn Store,
    archive: &Archive,
    job: &Job,
) -> Result<Vec<ArchiveState>, store::Error> {
    let query = DeliveryQuery {
        job: Some(job.id.clone()),
        destination: Some(DESTINATION.to_owned()),
        limit: job.outputs.len(),
        ..DeliveryQuery::default()
    };
    let deliveries = outbox.deliveries(query).await?;
    let by_output = deliveries.iter().filter_map(|delivery| {
        let n = Archive::output_of(&delivery.id)?;
        Some((n, ArchiveState::of(archive, delivery)))
    });
    let mut by_output: HashMap<usize, ArchiveState> = by_output.collect();
    let outputs = 0..job.outputs.len();
    Ok(outputs
        .map(|n| by_output.remove(&n).unwrap_or_default())
        .collect())
}

impl ArchiveState {
    fn of(archive: &Archive, delivery: &Delivery) -> Self {
        let progress = &delivery.progress;
        match progress.state {
            DeliveryState::Delivered { .. } => Self {
                is_archived: archive.archived(delivery).is_some(),
                error: None,
            },
            DeliveryState::Waiting { .. } | DeliveryState::Failed { .. } => Self {
                is_archived: false,
                error: progress.attempts.last().and_then(|last| last.error.clone()),
            },
        }
    }
}

#[derive(Serialize)]
struct OutputWithArchive<'a> {
    #[serde(flatten)]
    output: &'a Output,
    archived: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive_error: Option<&'a str>,
}

impl Serialize for JobWithArchive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(states) = &self.states else {
            return self.job.serialize(serializer);
        };
        let outputs = self.job.outputs.iter().zip(states);
        let outputs: Vec<_> = outputs
            .map(|(output, state)| OutputWithArchive {
                output,
                archived: state.is_archived,
                archive_error: state.error.as_deref(),
            })
            .collect();
        self.job.serialize_with_outputs(&outputs, serializer)
    }
}
