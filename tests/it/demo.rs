//! The demo: access from other machines, sign-in and file permissions.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use reqwest::Client;
use reqwest::header::{CONTENT_TYPE, HOST};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::app::{TEST_TIMEOUT, reserve_port};
use crate::command_line::{err, run};
use crate::wait::wait_for;

/// A running demo that listens on all interfaces, stopped on drop.
struct Demo {
    url: String,
    process: Child,
    temporary_directory: TempDir,
    /// Kept open, because the demo exits when it cannot write its output.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Demo {
    fn start_public() -> Self {
        let temporary_directory = tempfile::tempdir().unwrap();
        let (port, address) = reserve_port();
        let mut process = Command::new(env!("CARGO_BIN_EXE_progress-hub"))
            .args(["demo", "--public", "--bind"])
            .arg(format!("0.0.0.0:{}", address.port()))
            .env("TMPDIR", temporary_directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = output.find_map(|line| {
            let url = line.unwrap().trim().strip_prefix("Open  ")?.to_owned();
            Some(url.trim_end_matches('/').to_owned())
        });
        drop(port);
        Self {
            url: url.expect("a URL"),
            process,
            temporary_directory,
            _output: output,
        }
    }

    async fn session(&self, host: &str) -> reqwest::Response {
        let request = client().get(format!("{}/demo/session", self.url));
        request.header(HOST, host).send().await.unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn client() -> Client {
    let builder = Client::builder().no_proxy().timeout(TEST_TIMEOUT);
    builder.build().unwrap()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn address_of_other_machines_needs_an_option() {
    let rejected = run(&["demo", "--bind", "0.0.0.0:0"]);
    assert_eq!(rejected.status.code(), Some(2));
    assert!(err(&rejected).contains("--public"), "{}", err(&rejected));
}

#[tokio::test(flavor = "multi_thread")]
async fn public_demo_signs_in_browsers_on_loopback_and_serves_its_clips() {
    let demo = Demo::start_public();
    assert!(demo.url.starts_with("http://127.0.0.1:"), "{}", demo.url);
    assert_eq!(demo.session("192.0.2.1").await.status(), 404);
    assert_eq!(demo.session("rebound.example.com").await.status(), 404);
    let session = demo.session("localhost:8080").await;
    assert_eq!(session.status(), 200);
    let session: Value = session.json().await.unwrap();

    let body = json!({ "model": session["model"], "prompt": "a boat" });
    let token = session["token"].as_str().unwrap();
    let submit = client().post(format!("{}/v1/videos", demo.url));
    let submitted = submit.bearer_auth(token).json(&body).send().await.unwrap();
    let job: Value = submitted.json().await.unwrap();
    let path = format!("{}/v1/jobs/{}", demo.url, job["id"].as_str().unwrap());
    let job = wait_for("the job is final", async || {
        let job = client().get(&path).bearer_auth(token).send().await.unwrap();
        let job: Value = job.json().await.unwrap();
        (job["final"] == true).then_some(job)
    })
    .await;
    let clip = job["outputs"][0]["url"].as_str().unwrap();
    assert!(clip.starts_with(&demo.url), "{clip}");
    let clip = client().get(clip).send().await.unwrap();
    assert_eq!(clip.status(), 200);
    assert_eq!(clip.headers()[CONTENT_TYPE], "video/mp4");
}

#[test]
fn files_of_the_demo_are_private() {
    let demo = Demo::start_public();
    let mut folders = demo.temporary_directory.path().read_dir().unwrap();
    let folder = folders.next().unwrap().unwrap().path();
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("hub.db")), 0o600);
}
