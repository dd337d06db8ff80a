//! The archive: copies of outputs in a bucket or folder of the operator.
//!
//! A copy is streamed, so its memory is bounded. Its name depends on the job and on the position of
//! the output only, so that a repeated copy replaces an earlier one.

mod channel;
mod content;
mod copy;
mod key;
pub mod media;
mod storage;
#[cfg(test)]
mod tests;
mod upload;

use std::time::Duration;

use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::signer::Method;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use url::Url;

pub use self::channel::ArchiveChannel;
use self::copy::CopyError;
use self::key::KeyTemplate;
use self::storage::Storage;
pub use self::storage::StorageError;
use super::Destination;
use crate::config::{ArchiveConfig, ConfigError};
use crate::job::{Job, JobId};
use crate::outbox::{Delivery, DeliveryId, NewDelivery};
use crate::telemetry::DestinationKind;
use crate::time::Time;

/// Name of the destination in deliveries.
pub const DESTINATION: &str = "archive";

/// Time limit of [`Archive::check`].
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit of a signature, which needs a request if the credentials are temporary.
const SIGN_TIMEOUT: Duration = Duration::from_secs(5);

/// Copies of outputs, and links to them.
pub struct Archive {
    /// `archive.url`.
    url: Url,
    storage: Storage,
    key: KeyTemplate,
    public_url: Option<Url>,
    link_ttl: Duration,
    max_bytes: u64,
    keep: Duration,
    max_concurrent: usize,
    /// Key of the setting that is probably wrong if the service cannot be reached.
    endpoint_key: &'static str,
}

/// A copy in the archive. It is the result of its delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedOutput {
    /// `archive.url` at the time of the copy.
    pub archive: Url,
    /// Name of the object in the bucket, or path below the folder.
    pub key: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
    /// Content type.
    pub content_type: String,
    /// End of the copy.
    pub archived_at: Time,
}

/// How clients read a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAccess {
    /// At this URL.
    Redirect(Url),
    /// From the hub, because the archive is a folder.
    Stream,
}

impl Archive {
    /// Creates the archive of a configuration, or `None` if there is none. Connects to nothing.
    ///
    /// # Errors
    /// All invalid settings, and credentials in the environment that are incomplete.
    pub fn open(config: &ArchiveConfig) -> Result<Option<Self>, Vec<ConfigError>> {
        let Some(url) = &config.url else {
            return Ok(None);
        };
        let error = |key: &str, message| ConfigError {
            key: format!("archive.{key}"),
            message,
        };
        let key = KeyTemplate::parse(&config.key).map_err(|message| error("key", message));
        let storage = Storage::open(config, url).map_err(|message| error("url", message));
        match (key, storage) {
            (Ok(key), Ok(storage)) => Ok(Some(Self {
                url: url.clone(),
                storage,
                key,
                public_url: config.public_url.clone(),
                link_ttl: config.link_ttl,
                max_bytes: config.max_bytes as u64,
                keep: config.keep,
                max_concurrent: config.max_concurrent,
                endpoint_key: match config.endpoint {
                    Some(_) => "archive.endpoint",
                    None => "archive.url",
                },
            })),
            (key, storage) => Err([key.err(), storage.err()].into_iter().flatten().collect()),
        }
    }

    /// Writes a small object, reads it and deletes it, to check that the bucket or folder exists and
    /// can be used.
    ///
    /// # Errors
    /// What is wrong, with the key of the setting.
    pub async fn check(&self) -> Result<(), ConfigError> {
        let needs_signatures = self.public_url.is_none();
        let probe = timeout(CHECK_TIMEOUT, self.storage.probe(needs_signatures)).await;
        let (key, message) = match probe {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error @ (StorageError::Missing(_) | StorageError::Refused(_)))) => {
                ("archive.url", error.to_string())
            }
            Ok(Err(error @ StorageError::Failed(_))) => (self.endpoint_key, error.to_string()),
            Err(_) => {
                let seconds = CHECK_TIMEOUT.as_secs();
                (self.endpoint_key, format!("no response within {seconds} s"))
            }
        };
        Err(ConfigError {
            key: key.to_owned(),
            message,
        })
    }

    /// Creates the destination of the copies.
    #[must_use]
    pub fn destination(&self, channel: ArchiveChannel) -> Destination {
        Destination::new(
            DESTINATION,
            DestinationKind::Archive,
            self.url.as_str(),
            channel,
        )
    }

    /// Returns the deliveries that copy the outputs of a job that has succeeded.
    pub fn deliveries(job: &Job) -> impl Iterator<Item = NewDelivery> {
        (0..job.outputs.len()).map(|n| NewDelivery {
            destination: DESTINATION.to_owned(),
            event: event(n),
            target: None,
            is_independent: true,
        })
    }

    /// Returns the id of the delivery that copies output `n` of a job that has succeeded.
    #[must_use]
    pub fn delivery_id(job: &Job, n: usize) -> DeliveryId {
        DeliveryId {
            job: job.id.clone(),
            version: job.version,
            event: event(n),
            destination: DESTINATION.to_owned(),
        }
    }

    /// Returns the position of the output that a delivery copies.
    #[must_use]
    pub fn output_of(id: &DeliveryId) -> Option<usize> {
        id.event.strip_prefix("output.")?.parse().ok()
    }

    /// Returns the copy that a delivery has made, or `None` if it has not made one in this archive.
    #[must_use]
    pub fn archived(&self, delivery: &Delivery) -> Option<ArchivedOutput> {
        let result = &delivery.progress.result;
        let archived: ArchivedOutput = serde_json::from_value(result.clone()).ok()?;
        (archived.archive == self.url).then_some(archived)
    }

    /// Returns how clients read a copy. A signed URL is valid for `archive.link_ttl`, and either for
    /// HEAD or for GET requests.
    ///
    /// # Errors
    /// [`StorageError`] if the URL cannot be signed.
    pub async fn read_access(
        &self,
        archived: &ArchivedOutput,
        is_head: bool,
    ) -> Result<ReadAccess, StorageError> {
        if let Some(mut url) = self.public_url.clone() {
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().extend(archived.key.split('/'));
            }
            return Ok(ReadAccess::Redirect(url));
        }
        let path = self.storage.path(&archived.key);
        let method = if is_head { Method::HEAD } else { Method::GET };
        let url = timeout(
            SIGN_TIMEOUT,
            self.storage.sign(method, &path, self.link_ttl),
        )
        .await;
        let no_credentials = |_| StorageError::Failed("no credentials in time".to_owned());
        let url = url.map_err(no_credentials)??;
        Ok(url.map_or(ReadAccess::Stream, ReadAccess::Redirect))
    }

    /// Reads a part of a copy. `part` is within its size.
    ///
    /// # Errors
    /// [`StorageError`] if it cannot be read.
    pub async fn read(
        &self,
        archived: &ArchivedOutput,
        part: std::ops::Range<u64>,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, object_store::Error>>, StorageError> {
        let path = self.storage.path(&archived.key);
        self.storage.read(&path, part).await
    }

    fn object_path(&self, job: &Job, n: usize, extension: &str) -> Result<Path, CopyError> {
        let key = self.key.render(job, n, extension);
        key.and_then(|key| self.storage.object_path(&key))
            .map_err(|error| CopyError::Rejected(format!("archive.key: {error}")))
    }
}

fn event(n: usize) -> String {
    format!("output.{n}")
}

/// Name for the file of an output.
#[must_use]
pub fn file_name(job: &JobId, n: usize, extension: &str) -> String {
    format!("{job}-{n}{extension}")
}
