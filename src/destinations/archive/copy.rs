//! Copies the content of one output to the archive.

use aws_lc_rs::digest::{Context, SHA256};
use object_store::{Attribute, Attributes};

use super::content::{Content, ReadError};
use super::media::{self, NotMedia};
use super::storage::StorageError;
use super::{Archive, ArchivedOutput, file_name};
use crate::job::Job;
use crate::time::Time;

/// An output was not copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CopyError {
    /// The source did not return the output.
    #[error("{0}")]
    Source(String),
    /// The output cannot be archived.
    #[error("{0}")]
    Rejected(String),
    /// The archive did not store the output.
    #[error("archive: {0}")]
    Storage(#[from] StorageError),
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> Self {
        Self::Source(error.to_string())
    }
}

impl From<NotMedia> for CopyError {
    fn from(error: NotMedia) -> Self {
        Self::Source(error.to_string())
    }
}

impl From<object_store::Error> for CopyError {
    fn from(error: object_store::Error) -> Self {
        Self::Storage(error.into())
    }
}

impl Archive {
    /// Copies output `n` of a job. An object with the same name is replaced when the copy is
    /// complete.
    ///
    /// # Errors
    /// [`CopyError`]. Nothing is left in the archive.
    pub(super) async fn copy(
        &self,
        job: &Job,
        n: usize,
        mut content: Content,
    ) -> Result<ArchivedOutput, CopyError> {
        let declared_length = content.length;
        self.check_size(declared_length.unwrap_or(0))?;
        let head = content.head().await?;
        if head.is_empty() {
            return Err(CopyError::Source("the source is empty".to_owned()));
        }
        let kind = job.outputs.get(n).map_or("", |output| &output.kind);
        let declared_type = content.declared_type.as_deref();
        let content_type = media::detect(kind, declared_type, &content.path, &head)?;
        let extension = media::extension(&content_type);
        let path = self.object_path(
            job,
            n,
            match extension.strip_prefix('.') {
                Some(extension) => extension,
                None => "bin",
            },
        )?;

        let attributes = self.attributes(job, n, &content_type);
        let mut upload = self.storage.upload(&path, attributes);
        let mut digest = Context::new(&SHA256);
        let mut bytes = 0;
        while let Some(chunk) = content.next().await? {
            bytes += chunk.len() as u64;
            self.check_size(bytes)?;
            digest.update(&chunk);
            upload.write(&chunk).await?;
        }
        if declared_length.is_some_and(|length| length != bytes) {
            return Err(ReadError::Incomplete.into());
        }
        upload.finish().await?;
        let stored = self.storage.size(&path).await?;
        if stored != bytes {
            let error = format!("stored {stored} of {bytes} bytes");
            return Err(StorageError::Failed(error).into());
        }
        Ok(ArchivedOutput {
            archive: self.url.clone(),
            key: self.storage.key(&path),
            bytes,
            sha256: hex(digest.finish().as_ref()),
            content_type,
            archived_at: Time::now(),
        })
    }

    fn check_size(&self, bytes: u64) -> Result<(), CopyError> {
        if bytes > self.max_bytes {
            let max = self.max_bytes;
            let error = format!("the output is larger than archive.max_bytes ({max})");
            return Err(CopyError::Rejected(error));
        }
        Ok(())
    }

    /// Returns the headers and the metadata of an object.
    pub(super) fn attributes(&self, job: &Job, n: usize, content_type: &str) -> Attributes {
        let name = file_name(&job.id, n, media::extension(content_type));
        let disposition = if media::is_attachment(content_type) {
            "attachment"
        } else {
            "inline"
        };
        let visibility = match self.public_url {
            Some(_) => "public",
            None => "private",
        };
        let mut attributes = Attributes::from_iter([
            (Attribute::ContentType, content_type.to_owned()),
            (
                Attribute::ContentDisposition,
                format!("{disposition}; filename=\"{name}\""),
            ),
            // The content of an object never changes.
            (
                Attribute::CacheControl,
                format!("{visibility}, max-age=31536000, immutable"),
            ),
        ]);
        let mut metadata = |name: &'static str, value: String| {
            attributes.insert(Attribute::Metadata(name.into()), value.into());
        };
        metadata("job", job.id.to_string());
        metadata("output", n.to_string());
        // The names are valid on all services: Azure allows no hyphens, and proxies no underscores.
        metadata("keepuntil", (Time::now() + self.keep).to_string());
        if let Some(output) = job.outputs.get(n) {
            if let Some(nsfw) = output.nsfw {
                metadata("nsfw", nsfw.to_string());
            }
            if output.watermark_url.is_some() {
                // The provider makes both variants. This is the one without a watermark.
                metadata("watermark", "false".to_owned());
            }
        }
        attributes
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
