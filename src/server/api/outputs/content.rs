//! The content of an output: from the provider, from its own document, or from a folder.

use actix_web::web::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use super::byte_range::ByteRange;
use crate::destinations::archive::{Archive, ArchivedOutput, StorageError};
use crate::job::{InlineContent, Job, OutputSource};
use crate::provider::{
    DownloadError, DownloadHead, Downloader, IncompleteBody, Providers, RangeRequest,
};

/// The content of an output, or the requested part of it.
pub(super) struct OutputContent {
    pub(super) head: DownloadHead,
    pub(super) body: BoxStream<'static, Result<Bytes, IncompleteBody>>,
}

/// Starts the download of an output.
pub(super) async fn download(
    providers: &Providers,
    downloader: &Downloader,
    job: &Job,
    source: &OutputSource,
    range: &RangeRequest,
) -> Result<OutputContent, DownloadError> {
    let download = match providers.of_outputs(job) {
        Some(provider) => provider.download(downloader, job, source, range).await?,
        // A provider that was removed from the configuration has no key to read the output with.
        None if source.is_private => return Err(DownloadError::Gone),
        None => downloader.fetch_public(&source.url, range).await?,
    };
    let chunks = stream::unfold(download.body, |mut body| async {
        let chunk = body.next().await?;
        Some((chunk, body))
    });
    Ok(OutputContent {
        head: download.head,
        body: chunks.boxed(),
    })
}

impl OutputContent {
    /// Returns an output whose content is part of its report.
    pub(super) fn inline(inline: InlineContent, range: &RangeRequest) -> Self {
        let length = inline.bytes.len();
        let part = ByteRange::of(range, length as u64, None);
        let bytes = match &part {
            ByteRange::Whole => inline.bytes,
            ByteRange::Part(part) => {
                let position = |at: u64| usize::try_from(at).unwrap_or(length);
                inline.bytes.slice(position(part.start)..position(part.end))
            }
            ByteRange::NotSatisfiable => Bytes::new(),
        };
        Self {
            head: head(inline.content_type, length as u64, &part, None),
            body: stream::iter([Ok(bytes)]).boxed(),
        }
    }

    /// Reads a copy in an archive that is a folder.
    pub(super) async fn archived(
        archive: &Archive,
        copy: &ArchivedOutput,
        range: &RangeRequest,
    ) -> Result<Self, StorageError> {
        let etag = format!("\"{}\"", copy.sha256);
        let part = ByteRange::of(range, copy.bytes, Some(&etag));
        let read = match &part {
            ByteRange::Whole => Some(0..copy.bytes),
            ByteRange::Part(part) => Some(part.clone()),
            ByteRange::NotSatisfiable => None,
        };
        let body = match read {
            Some(part) => archive.read(copy, part).await?,
            None => stream::empty().boxed(),
        };
        Ok(Self {
            head: head(copy.content_type.clone(), copy.bytes, &part, Some(etag)),
            body: body.map_err(|_| IncompleteBody).boxed(),
        })
    }
}

fn head(content_type: String, length: u64, part: &ByteRange, etag: Option<String>) -> DownloadHead {
    let (status, part_length, content_range) = match part {
        ByteRange::Whole => (200, length, None),
        ByteRange::Part(part) => {
            let (first, last) = (part.start, part.end - 1);
            let range = format!("bytes {first}-{last}/{length}");
            (206, part.end - part.start, Some(range))
        }
        ByteRange::NotSatisfiable => (416, 0, Some(format!("bytes */{length}"))),
    };
    let headers = [
        ("accept-ranges", Some("bytes".to_owned())),
        ("content-range", content_range),
        ("etag", etag),
    ];
    let headers = headers.into_iter();
    DownloadHead {
        status,
        path: String::new(),
        content_type: Some(content_type),
        length: Some(part_length),
        headers: headers
            .filter_map(|(name, value)| Some((name, value?.into_bytes())))
            .collect(),
    }
}
