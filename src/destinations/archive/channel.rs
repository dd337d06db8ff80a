//! Performs the deliveries of the archive: one copy of one output each.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::content::Content;
use super::copy::CopyError;
use super::{Archive, ArchivedOutput};
use crate::config::ConfigError;
use crate::destinations::{Channel, Event, Outcome, Verdict};
use crate::job::{Job, OutputSource, Source};
use crate::outbox::{Delivery, NewDelivery};
use crate::provider::{Download, DownloadError, Downloader, Providers, RangeRequest};
use crate::store::JobStore;
use crate::telemetry::{ArchiveFailure, Metrics};

/// Copies outputs to the archive.
pub struct ArchiveChannel {
    archive: Arc<Archive>,
    jobs: Arc<dyn JobStore>,
    providers: Arc<Providers>,
    downloader: Downloader,
    metrics: Arc<Metrics>,
}

/// Why an output was not copied.
enum Failure {
    /// The provider no longer has the output.
    Expired(String),
    Copy(CopyError),
}

impl<E: Into<CopyError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Copy(error.into())
    }
}

impl ArchiveChannel {
    /// Creates the channel. Limits on the downloads of `downloader` do not apply to it.
    #[must_use]
    pub fn new(
        archive: Arc<Archive>,
        jobs: Arc<dyn JobStore>,
        providers: Arc<Providers>,
        downloader: &Downloader,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            archive,
            jobs,
            providers,
            downloader: downloader.for_archive(),
            metrics,
        }
    }

    async fn copy(&self, delivery: &Delivery) -> Result<ArchivedOutput, Failure> {
        let rejected = |error: &str| Failure::Copy(CopyError::Rejected(error.to_owned()));
        let job = self.jobs.get(&delivery.id.job).await;
        let job = job.map_err(|error| CopyError::Source(error.to_string()))?;
        let job = job.ok_or_else(|| rejected("the job was deleted before the copy"))?;
        let n = Archive::output_of(&delivery.id);
        let n = n.ok_or_else(|| rejected("the delivery names no output"))?;
        let source = job.internal.output_sources.get(n).cloned().flatten();
        let source = source.ok_or_else(|| rejected("the output has no source"))?;
        let content = match source.inline() {
            Some(Ok(inline)) => Content::inline(inline),
            Some(Err(error)) => return Err(rejected(&error.to_string())),
            None => Content::download(self.download(&job, n, &source).await?)?,
        };
        Ok(self.archive.copy(&job, n, content).await?)
    }

    /// Starts the download of an output. If the provider no longer accepts its URL, the provider is
    /// asked for a new one.
    async fn download(
        &self,
        job: &Arc<Job>,
        n: usize,
        source: &OutputSource,
    ) -> Result<Download, Failure> {
        let error = match self.fetch(job, source).await {
            Err(error @ (DownloadError::Gone | DownloadError::Refused(_))) => error,
            fetched => return Ok(fetched?),
        };
        match self.newer_source(job, n).await? {
            Some(newer) if newer != *source => match self.fetch(job, &newer).await {
                Err(error @ (DownloadError::Gone | DownloadError::Refused(_))) => {
                    Err(Failure::Expired(error.to_string()))
                }
                fetched => Ok(fetched?),
            },
            Some(_) | None => Err(Failure::Expired(error.to_string())),
        }
    }

    /// Fetches an output.
    async fn fetch(&self, job: &Job, source: &OutputSource) -> Result<Download, DownloadError> {
        let range = RangeRequest::default();
        match self.providers.of_outputs(job) {
            Some(provider) => {
                provider
                    .download(&self.downloader, job, source, &range)
                    .await
            }
            None if source.is_private => Err(DownloadError::Failed(
                "the provider is not configured any more".to_owned(),
            )),
            None => self.downloader.fetch_public(&source.url, &range).await,
        }
    }

    /// Asks the provider where the output is now. Returns `None` if it does not say.
    async fn newer_source(
        &self,
        job: &Arc<Job>,
        n: usize,
    ) -> Result<Option<OutputSource>, CopyError> {
        let provider = self.providers.of_outputs(job);
        let Some(provider) = provider.filter(|it| it.can_query(job)) else {
            return Ok(None);
        };
        let reports = provider.query(std::slice::from_ref(job)).await;
        let reports = reports.map_err(|error| CopyError::Source(error.to_string()))?;
        let report = reports.into_iter().find(|(id, _)| *id == job.id);
        let update = report.map(|(_, report)| report.into_update(Source::Poll).bounded());
        let Some(report) = update.as_ref().and_then(|update| update.event.report()) else {
            return Ok(None);
        };
        let private = report.output_sources.get(n).cloned().flatten();
        let public = || {
            report.outputs.get(n).map(|output| OutputSource {
                url: output.url.clone(),
                is_private: false,
            })
        };
        Ok(private.or_else(public))
    }
}

impl From<DownloadError> for CopyError {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::UrlNotAllowed(_) => Self::Rejected(error.to_string()),
            DownloadError::Gone
            | DownloadError::Refused(_)
            | DownloadError::Failed(_)
            | DownloadError::Busy => Self::Source(error.to_string()),
        }
    }
}

#[async_trait]
impl Channel for ArchiveChannel {
    fn deliveries(&self, job: &Job, event: Event) -> Vec<NewDelivery> {
        match event {
            Event::Succeeded => Archive::deliveries(job).collect(),
            Event::Created | Event::Updated | Event::Failed | Event::Cancelled => Vec::new(),
        }
    }

    fn max_in_flight(&self) -> usize {
        self.archive.max_concurrent
    }

    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        let failure = match self.copy(delivery).await {
            Ok(archived) => {
                self.metrics.archived(archived.bytes);
                let result = serde_json::to_value(archived).unwrap_or_default();
                return outcome(Verdict::Delivered { result });
            }
            Err(failure) => failure,
        };
        let (reason, verdict) = match failure {
            // Some services serve a new file a few seconds late.
            Failure::Expired(error) if delivery.progress.attempt_count == 0 => {
                (ArchiveFailure::Expired, Verdict::SourceFailed { error })
            }
            Failure::Expired(error) => {
                let error = format!("the output expired before it was copied: {error}");
                (ArchiveFailure::Expired, Verdict::Rejected { error })
            }
            Failure::Copy(CopyError::Source(error)) => {
                (ArchiveFailure::Source, Verdict::SourceFailed { error })
            }
            Failure::Copy(CopyError::Rejected(error)) => {
                (ArchiveFailure::Rejected, Verdict::Rejected { error })
            }
            Failure::Copy(CopyError::Storage(error)) => {
                (ArchiveFailure::Storage, error.into_verdict())
            }
        };
        self.metrics.archive_failed(reason);
        outcome(verdict)
    }

    async fn test(&self) -> Option<Outcome> {
        Some(outcome(match self.archive.check().await {
            Ok(()) => Verdict::Delivered {
                result: Value::Null,
            },
            Err(error) => Verdict::Misconfigured {
                error: error.to_string(),
            },
        }))
    }

    async fn check(&self) -> Result<(), ConfigError> {
        self.archive.check().await
    }
}

impl super::StorageError {
    fn into_verdict(self) -> Verdict {
        let error = format!("archive: {self}");
        match self {
            Self::Missing(_) | Self::Refused(_) => Verdict::Misconfigured { error },
            Self::Failed(_) => {
                let retry_after = None;
                Verdict::Failed { error, retry_after }
            }
        }
    }
}

fn outcome(verdict: Verdict) -> Outcome {
    let status = None;
    Outcome { status, verdict }
}
