//! Reload of the TLS certificate without a restart. Open connections are not affected.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::tls::TlsInfo;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder};
use crate::command_line::{err, run_with};
use crate::wait::wait_until;

/// Files with a certificate and its key. A renewal replaces both.
pub struct CertificateFiles {
    folder: TempDir,
}

impl CertificateFiles {
    pub fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        files.renew();
        files
    }

    fn cert(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Replaces both files with a new self-signed certificate and its key.
    fn renew(&self) {
        create_certificate(&self.cert(), &self.key());
    }

    /// Configures a hub that presents the certificate.
    pub fn configure(&self, hub: TestAppBuilder) -> TestAppBuilder {
        hub.set("server.tls_cert", self.cert().display())
            .set("server.tls_key", self.key().display())
    }

    fn hub(&self) -> TestAppBuilder {
        self.configure(TestApp::builder())
    }
}

fn create_certificate(cert: &Path, key: &Path) {
    let status = Command::new("openssl")
        .args(["req", "-x509", "-nodes", "-subj", "/CN=localhost"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .arg("-out")
        .arg(cert)
        .arg("-keyout")
        .arg(key)
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

/// Returns a client without open connections that accepts any certificate.
fn new_client() -> Client {
    Client::builder()
        .no_proxy()
        .danger_accept_invalid_certs(true)
        .tls_info(true)
        .timeout(TEST_TIMEOUT)
        .build()
        .unwrap()
}

/// Sends a request and returns the certificate of its connection. A new client opens a new connection.
async fn presented_certificate(client: &Client, app: &TestApp) -> Vec<u8> {
    let url = format!("{}/v1/health/live", app.url);
    let response = client.get(url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let info: &TlsInfo = response.extensions().get().unwrap();
    info.peer_certificate().unwrap().to_vec()
}

async fn wait_for_new_certificate(app: &TestApp, old: &[u8]) {
    wait_until("the hub presents another certificate", async || {
        presented_certificate(&new_client(), app).await != old
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_reloaded_and_connections_stay_open() {
    let files = CertificateFiles::new();
    let app = files.hub().spawn().await;
    let client = new_client();
    let worker = app.token("worker", "jobs:read jobs:publish");
    let request = |method, path: &str| {
        let url = format!("{}{path}", app.url);
        client.request(method, url).bearer_auth(&worker)
    };
    let body = json!({ "owner": "worker" });
    let created = request(Method::POST, "/v1/jobs").json(&body).send().await;
    let job: Value = created.unwrap().json().await.unwrap();
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let poll = request(Method::GET, &format!("{path}?wait=50&since=1"));
    let poll = tokio::spawn(poll.send());
    wait_until("the long poll waits", async || {
        let metrics = request(Method::GET, "/metrics").send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        metrics.contains("connections{kind=\"poll\"} 1\n")
    })
    .await;

    let idle = new_client();
    let old = presented_certificate(&idle, &app).await;
    files.renew();
    wait_for_new_certificate(&app, &old).await;
    assert_eq!(presented_certificate(&idle, &app).await, old);

    let update = json!({ "progress": 50 });
    let pushed = request(Method::POST, &format!("{path}/updates")).json(&update);
    assert_eq!(pushed.send().await.unwrap().status(), 200);
    let job: Value = poll.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(job["version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_check_accepts_any_certificate() {
    let files = CertificateFiles::new();
    let app = files.hub().spawn().await;
    let bind = app.url.trim_start_matches("https://");
    let settings = [
        ("PROGRESS_HUB__SERVER__BIND", bind.to_owned()),
        (
            "PROGRESS_HUB__SERVER__TLS_CERT",
            files.cert().display().to_string(),
        ),
        (
            "PROGRESS_HUB__SERVER__TLS_KEY",
            files.key().display().to_string(),
        ),
    ];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let output = run_with(&["health"], &settings);
    assert!(output.status.success(), "{}", err(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reloads_the_certificate() {
    let files = CertificateFiles::new();
    let app = files.hub().spawn_process(&[]).await;
    // Unchanged files are not reloaded by the watcher.
    app.signal("HUP");
    wait_until("the certificate is reloaded", async || {
        app.log().contains("TLS certificate reloaded")
    })
    .await;
    presented_certificate(&new_client(), &app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_files_keep_the_current_certificate() {
    let files = CertificateFiles::new();
    let app = files.hub().spawn_process(&[]).await;
    let old = presented_certificate(&new_client(), &app).await;
    let errors = || {
        let log = app.log();
        log.lines().filter(|line| line.contains("ERROR")).count()
    };
    let break_files: [&dyn Fn(); 3] = [
        &|| create_certificate(&files.cert(), &files.folder.path().join("other-key.pem")),
        &|| std::fs::write(files.cert(), "").unwrap(),
        &|| std::fs::remove_file(files.cert()).unwrap(),
    ];
    for (count, break_files) in (1..).zip(break_files) {
        break_files();
        wait_until("the hub has read the files", async || errors() == count).await;
        assert_eq!(presented_certificate(&new_client(), &app).await, old);
    }

    files.renew();
    wait_for_new_certificate(&app, &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_does_not_stop_a_hub_without_tls() {
    let app = TestApp::builder().spawn_process(&[]).await;
    app.signal("HUP");
    wait_until("the signal is handled", async || {
        app.log().contains("SIGHUP")
    })
    .await;
    let live = app.request_without_token(Method::GET, "/v1/health/live");
    assert_eq!(live.send().await.unwrap().status(), 200);
}
