//! Libraries of other projects verify real deliveries. `scripts/test` installs them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::receiver::{Receiver, Webhook};
use super::*;

const LIBRARIES: [&str; 3] = ["openai", "standardwebhooks", "svix"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libraries")
}

/// Receives a webhook of a hub whose endpoint has two secrets.
async fn real_webhook() -> Webhook {
    let receiver = Receiver::start().await;
    let app = hub()
        .endpoint("app", &receiver.url)
        .set("webhooks.app.secrets", format!("{SECRET},{OLD_SECRET}"))
        .spawn()
        .await;
    finish_job(&app, "alice").await;
    receiver.wait_for_count(1).await.remove(0)
}

/// Expects that every library of a language accepts the webhook with either secret.
async fn expect_accepted(program: &Path, script: &str) {
    let webhook = real_webhook().await;
    let headers: serde_json::Map<String, Value> = webhook
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    for secret in [SECRET, OLD_SECRET] {
        let body = std::str::from_utf8(&webhook.raw).unwrap();
        let input = json!({ "secret": secret, "headers": headers, "body": body });
        let mut verifier = Command::new(program)
            .arg(folder().join(script))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = verifier.stdin.take().unwrap();
        stdin.write_all(input.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = verifier.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let accepted = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{errors}");
        assert_eq!(accepted.lines().collect::<Vec<_>>(), LIBRARIES, "{errors}");
    }
}

/// Reports that a test cannot run on this machine.
pub fn skip(missing: &Path) {
    let mut out = std::io::stderr();
    drop(writeln!(
        out,
        "skipped: {} is missing; scripts/test installs it",
        missing.display()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_for_node_verify_a_delivery() {
    let installed = folder().join("node_modules");
    if !installed.exists() {
        return skip(&installed);
    }
    expect_accepted(Path::new("node"), "verify.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_for_python_verify_a_delivery() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("python-libraries/bin/python");
    if !python.exists() {
        return skip(&python);
    }
    expect_accepted(&python, "verify.py").await;
}
