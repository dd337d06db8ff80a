//! Limits of concurrent downloads, per owner and per output.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::time::Instant;

use super::subject::SubjectUsage;
use super::table::Usage;
use super::{release, try_acquire};
use crate::telemetry::Limit;

/// Usage of one output.
#[derive(Debug, Default)]
pub(super) struct OutputUsage {
    downloads: AtomicUsize,
}

impl Usage for OutputUsage {
    fn is_idle(&self, _: Instant) -> bool {
        true
    }
}

/// A download of an output. Dropping it releases the download.
#[derive(Debug)]
pub struct DownloadPermit {
    owner: Arc<SubjectUsage>,
    link: Arc<OutputUsage>,
}

impl DownloadPermit {
    /// Counts a download. `max_owner` and `max_link` are the maximum numbers of concurrent
    /// downloads.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn acquire(
        owner: Arc<SubjectUsage>,
        link: Arc<OutputUsage>,
        (max_owner, max_link): (usize, usize),
    ) -> Result<Self, Limit> {
        if !try_acquire(&link.downloads, 1, max_link) {
            return Err(Limit::LinkDownloads);
        }
        if !try_acquire(&owner.downloads, 1, max_owner) {
            release(&link.downloads, 1);
            return Err(Limit::OwnerDownloads);
        }
        Ok(Self { owner, link })
    }
}

impl Drop for DownloadPermit {
    fn drop(&mut self) {
        release(&self.owner.downloads, 1);
        release(&self.link.downloads, 1);
    }
}
