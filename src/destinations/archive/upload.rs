//! One upload of unknown length with bounded memory.

use std::mem;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{
    Attributes, Error, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, WriteMultipart,
};
use tokio::runtime::Handle;

/// Size of a part. All parts but the last have this size, as Cloudflare R2 requires. S3 requires at
/// least 5 MiB, and allows 10,000 parts.
const PART_BYTES: usize = 8 << 20;

/// Maximum number of parts that are sent at the same time. One more is being filled.
const MAX_PARTS_IN_FLIGHT: usize = 2;

/// An upload. Content of less than one part is sent with one request, which all services support.
///
/// Dropping an unfinished upload deletes its parts in the background, because services keep them, and
/// charge for them.
pub(super) struct Upload {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    attributes: Attributes,
    state: State,
}

enum State {
    Buffered(Vec<u8>),
    Multipart(WriteMultipart),
    Ended,
}

impl Upload {
    /// Creates an upload, which sends nothing yet.
    pub(super) fn new(objects: Arc<dyn ObjectStore>, path: Path, attributes: Attributes) -> Self {
        Self {
            objects,
            path,
            attributes,
            state: State::Buffered(Vec::new()),
        }
    }

    /// Adds content. Waits while the maximum number of parts is in flight. The content is copied,
    /// because small chunks would need more memory than their content.
    pub(super) async fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        match &mut self.state {
            State::Buffered(buffer) => {
                buffer.extend_from_slice(chunk);
                if buffer.len() >= PART_BYTES {
                    let options = PutMultipartOptions {
                        attributes: self.attributes.clone(),
                        ..PutMultipartOptions::default()
                    };
                    let upload = self.objects.put_multipart_opts(&self.path, options).await?;
                    let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
                    parts.write(buffer);
                    self.state = State::Multipart(parts);
                }
            }
            State::Multipart(parts) => {
                parts.wait_for_capacity(MAX_PARTS_IN_FLIGHT).await?;
                parts.write(chunk);
            }
            State::Ended => {}
        }
        Ok(())
    }

    /// Completes the upload. Only then is the object visible.
    pub(super) async fn finish(mut self) -> Result<(), Error> {
        match mem::replace(&mut self.state, State::Ended) {
            State::Buffered(buffer) => {
                let options = PutOptions {
                    attributes: self.attributes.clone(),
                    ..PutOptions::default()
                };
                let payload = PutPayload::from(buffer);
                self.objects.put_opts(&self.path, payload, options).await?;
            }
            // Deletes the parts if it fails.
            State::Multipart(parts) => _ = parts.finish().await?,
            State::Ended => {}
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let State::Multipart(mut parts) = mem::replace(&mut self.state, State::Ended) else {
            return;
        };
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            // A part that a service receives after the deletion would stay. Each call that fails
            // removes a part that has ended.
            while parts.wait_for_capacity(0).await.is_err() {}
            if parts.abort().await.is_err() {
                tracing::warn!("failed to delete the parts of an unfinished upload");
            }
        });
    }
}
