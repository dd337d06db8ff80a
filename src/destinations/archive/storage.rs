//! The storage service or folder behind the archive.

use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::signer::{Method, Signer};
use object_store::{
    Attributes, ClientConfigKey, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt,
    PutPayload, RetryConfig,
};
use url::Url;

use super::upload::Upload;
use crate::config::ArchiveConfig;

/// Time limit of one request, in the form of the client's configuration. A part of 8 MiB arrives in
/// time at 0.6 Mbit/s.
const REQUEST_TIMEOUT: &str = "120s";

/// Maximum number of repetitions of a request that failed for technical reasons. The outbox repeats
/// the whole copy later.
const MAX_RETRIES: usize = 3;

/// Time after which a request is not repeated any more.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// Name of the object that the check writes.
const PROBE: &str = "progress-hub-check";

/// Validity of the URL that the check signs.
const PROBE_LINK_TTL: Duration = Duration::from_secs(60);

/// Maximum length of an unknown error in a message, in characters.
const MAX_CAUSE_CHARS: usize = 120;

/// The bucket, container or folder, and the prefix in it.
pub(super) struct Storage {
    objects: Arc<dyn ObjectStore>,
    /// Signs URLs. A folder has none.
    signer: Option<Arc<dyn Signer>>,
    prefix: Path,
}

/// The storage service or the folder did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The bucket, the folder or the object does not exist.
    #[error("the bucket, folder or object does not exist: {0}")]
    Missing(String),
    /// The credentials are missing, wrong or insufficient.
    #[error("access to the bucket or folder is denied: {0}")]
    Refused(String),
    /// Any other failure.
    #[error("{0}")]
    Failed(String),
}

impl Storage {
    /// Creates the client for `url`. Connects to nothing.
    ///
    /// # Errors
    /// A description of incomplete credentials in the environment, or of an invalid prefix.
    pub(super) fn open(config: &ArchiveConfig, url: &Url) -> Result<Self, String> {
        let prefix = Path::from_url_path(url.path());
        let prefix = prefix.map_err(|_| "has an invalid prefix".to_owned())?;
        let (objects, signer): (Arc<dyn ObjectStore>, Option<Arc<dyn Signer>>) = match url.scheme()
        {
            "file" => (Arc::new(LocalFileSystem::new().with_fsync(true)), None),
            scheme => {
                let open = |endpoint| match scheme {
                    "gs" => open_gcs(url, endpoint),
                    "az" => open_azure(url, endpoint),
                    _ => open_s3(config, url, endpoint),
                };
                let endpoint = config.endpoint.as_ref();
                let (objects, signer) = open(endpoint)?;
                let signer = match &config.public_endpoint {
                    Some(endpoint) => open(Some(endpoint))?.1,
                    None => signer,
                };
                (objects, Some(signer))
            }
        };
        Ok(Self {
            objects,
            signer,
            prefix,
        })
    }

    /// Returns the path of a key that [`key`](Self::key) returned.
    pub(super) fn path(&self, key: &str) -> Path {
        let key = Path::parse(key).unwrap_or_default();
        if self.is_folder() {
            self.prefix.parts().chain(key.parts()).collect()
        } else {
            key
        }
    }

    /// Returns the path for the name of a copy.
    ///
    /// # Errors
    /// The name is not valid.
    pub(super) fn object_path(&self, name: &str) -> Result<Path, String> {
        let name = Path::parse(name).map_err(|_| "the name is invalid".to_owned())?;
        Ok(self.prefix.parts().chain(name.parts()).collect())
    }

    /// Returns the name of the object in the bucket, or its path below the folder.
    pub(super) fn key(&self, path: &Path) -> String {
        let below = path.prefix_match(&self.prefix);
        match below.filter(|_| self.is_folder()) {
            Some(parts) => parts.collect::<Path>().into(),
            None => path.to_string(),
        }
    }

    fn is_folder(&self) -> bool {
        self.signer.is_none()
    }

    /// Begins to write an object.
    pub(super) fn upload(&self, path: &Path, attributes: Attributes) -> Upload {
        // Folders have no attributes, and reject them.
        let attributes = if self.is_folder() {
            Attributes::new()
        } else {
            attributes
        };
        Upload::new(Arc::clone(&self.objects), path.clone(), attributes)
    }

    /// Returns the size of an object in bytes.
    pub(super) async fn size(&self, path: &Path) -> Result<u64, StorageError> {
        Ok(self.objects.head(path).await?.size)
    }

    /// Returns a signed URL of an object, or `None` if the archive is a folder.
    pub(super) async fn sign(
        &self,
        method: Method,
        path: &Path,
        ttl: Duration,
    ) -> Result<Option<Url>, StorageError> {
        match &self.signer {
            Some(signer) => Ok(Some(signer.signed_url(method, path, ttl).await?)),
            None => Ok(None),
        }
    }

    /// Reads a part of an object.
    pub(super) async fn read(
        &self,
        path: &Path,
        part: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, StorageError> {
        let range = (!part.is_empty()).then_some(GetRange::Bounded(part));
        let is_empty = range.is_none();
        let options = GetOptions {
            range,
            head: is_empty,
            ..GetOptions::default()
        };
        let found = self.objects.get_opts(path, options).await?;
        if is_empty {
            return Ok(futures_util::stream::empty().boxed());
        }
        Ok(found.into_stream())
    }

    /// Writes, reads and deletes a small object.
    pub(super) async fn probe(&self, needs_signatures: bool) -> Result<(), StorageError> {
        let path = self.prefix.clone().join(PROBE);
        let payload = PutPayload::from_static(b"written by progress-hub check");
        self.objects.put(&path, payload).await?;
        self.objects.head(&path).await?;
        if needs_signatures {
            self.sign(Method::GET, &path, PROBE_LINK_TTL).await?;
        }
        // Lifecycle rules delete copies, so the hub needs no permission to delete.
        drop(self.objects.delete(&path).await);
        Ok(())
    }
}

type Opened = (Arc<dyn ObjectStore>, Arc<dyn Signer>);

fn open_s3(config: &ArchiveConfig, url: &Url, endpoint: Option<&Url>) -> Result<Opened, String> {
    let bucket = url.host_str().unwrap_or_default();
    let timeout = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!config.path_style)
        .with_config(timeout, REQUEST_TIMEOUT)
        .with_retry(retries());
    if let Some(endpoint) = endpoint {
        let mut endpoint = endpoint.clone();
        let host = endpoint.host_str().unwrap_or_default().to_owned();
        if host.ends_with(".r2.cloudflarestorage.com") && config.region.is_none() {
            builder = builder.with_region("auto");
        }
        if !config.path_style {
            let host = endpoint.set_host(Some(&format!("{bucket}.{host}")));
            host.map_err(|_| "cannot be part of the host name of archive.endpoint".to_owned())?;
        }
        // A service-specific endpoint in the environment would take precedence.
        let key = AmazonS3ConfigKey::S3Endpoint;
        builder = builder
            .with_config(key, without_slash(&endpoint))
            .with_allow_http(endpoint.scheme() == "http");
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let s3 = Arc::new(builder.build().map_err(|error| describe(&error))?);
    Ok((Arc::clone(&s3) as _, s3))
}

fn open_gcs(url: &Url, endpoint: Option<&Url>) -> Result<Opened, String> {
    let timeout = GoogleConfigKey::Client(ClientConfigKey::Timeout);
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(url.host_str().unwrap_or_default())
        .with_config(timeout, REQUEST_TIMEOUT)
        .with_retry(retries());
    if let Some(endpoint) = endpoint {
        builder = builder.with_base_url(&without_slash(endpoint));
    }
    let gcs = Arc::new(builder.build().map_err(|error| describe(&error))?);
    Ok((Arc::clone(&gcs) as _, gcs))
}

fn open_azure(url: &Url, endpoint: Option<&Url>) -> Result<Opened, String> {
    let timeout = AzureConfigKey::Client(ClientConfigKey::Timeout);
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(url.host_str().unwrap_or_default())
        .with_config(timeout, REQUEST_TIMEOUT)
        .with_retry(retries());
    if let Some(endpoint) = endpoint {
        builder = builder
            .with_endpoint(without_slash(endpoint))
            .with_allow_http(endpoint.scheme() == "http");
    }
    let azure = Arc::new(builder.build().map_err(|error| describe(&error))?);
    Ok((Arc::clone(&azure) as _, azure))
}

fn without_slash(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

fn retries() -> RetryConfig {
    RetryConfig {
        max_retries: MAX_RETRIES,
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    }
}

impl From<Error> for StorageError {
    fn from(error: Error) -> Self {
        let cause = describe(&error);
        let is_refused = matches!(
            error,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
        );
        if matches!(error, Error::NotFound { .. }) {
            Self::Missing(cause)
        } else if is_refused || is_permission_denied(&error) {
            Self::Refused(cause)
        } else {
            Self::Failed(cause)
        }
    }
}

fn is_permission_denied(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns the root cause of an error: the status and the code of the service's response, or the
/// system's error. The response itself is left out, because it can contain parts of signatures.
fn describe(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    let Some((_, response)) = text.split_once("status code: ") else {
        let has_url = text.contains("://");
        let text = if has_url { "request failed" } else { &text };
        return text.chars().take(MAX_CAUSE_CHARS).collect();
    };
    let status: String = response.chars().take_while(char::is_ascii_digit).collect();
    let code = response
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    let is_code =
        |code: &str| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match code {
        Some((code, _)) if is_code(code) => format!("status {status}, {code}"),
        Some(_) | None => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> Error {
        let response = format!("Server returned non-2xx status code: {status} X: {body}");
        Error::Generic {
            store: "S3",
            source: Box::new(io::Error::other(response)),
        }
    }

    #[test]
    fn errors_name_the_status_and_the_code_of_the_service_only() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><StringToSign>AWS4</StringToSign>";
        for (error, expected) in [
            (error(403, body), "status 403, SignatureDoesNotMatch"),
            (error(503, "busy"), "status 503"),
            (error(400, "<Code>a b</Code>"), "status 400"),
        ] {
            assert_eq!(describe(&error), expected);
        }
        let source = "failed for https://bucket.example.com/?sig=secret".into();
        let store = "S3";
        assert_eq!(
            describe(&Error::Generic { store, source }),
            "request failed"
        );
    }
}
