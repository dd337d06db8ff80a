//! The TLS certificate, which can be replaced while the server runs.
//!
//! A new certificate applies to new handshakes. Open connections are not affected.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::TlsFiles;

/// Interval of the checks for changed files. Polling also detects a replaced directory, which is
/// how Kubernetes updates secrets.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The certificate of the server and its key.
#[derive(Debug)]
pub struct Certificate {
    files: TlsFiles,
    loaded: RwLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// State of the files when they were last read, successfully or not.
    state: FilesState,
}

/// State of the certificate file and the key file. `None` for a file that cannot be read.
type FilesState = [Option<FileState>; 2];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Certificate {
    /// Reads the certificate chain and its key.
    pub(super) fn load(files: TlsFiles) -> Result<Self, String> {
        let state = files_state(&files);
        let key = read(&files)?;
        Ok(Self {
            files,
            loaded: RwLock::new(Loaded { key, state }),
        })
    }

    /// Reads the files again. If they are invalid, logs the error and keeps the current certificate.
    pub fn reload(&self) {
        let state = files_state(&self.files);
        let read = read(&self.files);
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.state = state;
        let tls_cert = self.files.cert.display();
        match read {
            Ok(key) => {
                loaded.key = key;
                tracing::info!(server.tls_cert = %tls_cert, "TLS certificate reloaded");
            }
            Err(error) => {
                tracing::error!(server.tls_cert = %tls_cert, error, "invalid TLS certificate or key; keeping the current one");
            }
        }
    }

    /// Reloads the files when they have changed, until `stop`.
    ///
    /// A renewal writes two files. They are read when neither has changed between two checks.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut previous = self.loaded_state();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = poll.tick() => {}
            }
            let certificate = Arc::clone(&self);
            let checked = spawn_blocking(move || certificate.reload_if_changed(previous)).await;
            previous = checked.unwrap_or(previous);
        }
    }

    /// Reloads the files if they have changed since they were loaded, but not since `previous`. Returns
    /// their state.
    fn reload_if_changed(&self, previous: FilesState) -> FilesState {
        let state = files_state(&self.files);
        if state == previous && state != self.loaded_state() {
            self.reload();
        }
        state
    }

    fn loaded_state(&self) -> FilesState {
        let loaded = self.loaded.read();
        loaded.unwrap_or_else(PoisonError::into_inner).state
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let loaded = self.loaded.read();
        Some(Arc::clone(
            &loaded.unwrap_or_else(PoisonError::into_inner).key,
        ))
    }
}

/// Returns the TLS configuration of a listener that presents the certificate.
pub(super) fn server_config(certificate: Arc<Certificate>) -> Result<rustls::ServerConfig, String> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn read(files: &TlsFiles) -> Result<Arc<CertifiedKey>, String> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", files.cert.display()))?;
    if chain.is_empty() {
        return Err(format!("{}: no certificate found", files.cert.display()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("{}: {error}", files.key.display()))?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| error.to_string())?;
    Ok(Arc::new(key))
}

fn files_state(files: &TlsFiles) -> FilesState {
    [&files.cert, &files.key].map(|path| file_state(path).ok())
}

fn file_state(path: &Path) -> io::Result<FileState> {
    let metadata = fs::metadata(path)?;
    Ok(FileState {
        modified: metadata.modified()?,
        length: metadata.len(),
        inode: metadata.ino(),
    })
}
