//! Storage servers of other projects, which `scripts/test` installs into `target/archive-servers`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::app::reserve_port;
use crate::wait::wait_until;

pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A running server with the empty bucket `outputs`.
pub struct StorageServer {
    pub url: String,
    folder: TempDir,
    process: Child,
    _port: socket2::Socket,
}

impl StorageServer {
    /// Starts versitygw, an S3 server that checks signatures and their expiry. Its objects are files
    /// in a folder. Returns `None` if it is not installed.
    pub async fn versitygw() -> Option<Self> {
        let program = installed("bin/versitygw")?;
        let server = Self::start(|address, folder| {
            let mut command = Command::new(program);
            command
                .args(["--port", &address.to_string(), "--region", "us-east-1"])
                .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY])
                .arg("posix")
                .arg(folder);
            command
        });
        Some(server.await)
    }

    /// Starts moto, which simulates S3 and checks no signatures. Returns `None` if it is not
    /// installed.
    pub async fn moto() -> Option<Self> {
        let program = installed("python/bin/moto_server")?;
        let server = Self::start(|address, _| {
            let mut command = Command::new(program);
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            command.args(["-H", &host, "-p", &port]);
            command
        })
        .await;
        server.send(reqwest::Method::PUT, "/outputs").await;
        Some(server)
    }

    /// Starts a simulation of Google Cloud Storage. Returns `None` if it is not installed.
    pub async fn fake_gcs() -> Option<Self> {
        let program = installed("bin/fake-gcs-server")?;
        let server = Self::start(|address, _| {
            let mut command = Command::new(program);
            let host = address.to_string();
            command
                .args([
                    "-scheme",
                    "http",
                    "-backend",
                    "memory",
                    "-host",
                    "127.0.0.1",
                ])
                .args(["-port", &address.port().to_string(), "-public-host", &host]);
            command
        })
        .await;
        let bucket = serde_json::json!({ "name": "outputs" });
        let created = reqwest::Client::builder().no_proxy().build().unwrap();
        let created = created.post(format!("{}/storage/v1/b", server.url));
        let created = created.json(&bucket).send().await.unwrap();
        assert_eq!(created.status(), 200);
        Some(server)
    }

    async fn start(command: impl FnOnce(SocketAddr, &Path) -> Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("outputs")).unwrap();
        let (port, address) = reserve_port();
        let mut command = command(address, folder.path());
        let process = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the storage server");
        let server = Self {
            url: format!("http://{address}"),
            folder,
            process,
            _port: port,
        };
        wait_until("the storage server listens", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        server
    }

    /// Sends a request with a signature that only moto accepts, and returns the body.
    pub async fn send(&self, method: reqwest::Method, path: &str) -> String {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=00"
        );
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.request(method, format!("{}{path}", self.url));
        let response = request.header("authorization", authorization).send().await;
        response.unwrap().text().await.unwrap()
    }

    /// Returns the folder of versitygw's bucket.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join("outputs")
    }
}

impl Drop for StorageServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the path of a program in `target/archive-servers`.
#[expect(
    clippy::print_stderr,
    reason = "a test that does not run must say so, and why"
)]
fn installed(name: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_progress-hub"))
        .ancestors()
        .nth(2);
    let program = target.unwrap().join("archive-servers").join(name);
    if !program.exists() {
        eprintln!(
            "skipped: {} is not installed; run scripts/test",
            program.display()
        );
        return None;
    }
    Some(program)
}
