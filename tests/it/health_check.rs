//! The command `health`.

use crate::app::{TestApp, reserve_port};
use crate::command_line::{err, out, run_with};

/// Runs `health` for a hub at `bind`. Omits the settings that only `serve` requires, as the container
/// of a demo does.
fn health(bind: &str, more: &[(&str, &str)]) -> (Option<i32>, String) {
    let settings = [("PROGRESS_HUB__SERVER__BIND", bind)];
    let output = run_with(&["health"], &[&settings, more].concat());
    (output.status.code(), out(&output) + &err(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn health_succeeds_while_the_hub_responds() {
    let app = TestApp::spawn().await;
    let port = app.address().rsplit(':').next().unwrap().to_owned();
    for bind in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")] {
        let (code, output) = health(&bind, &[]);
        assert_eq!(code, Some(0), "{output}");
        let expected = format!("healthy: http://127.0.0.1:{port}/v1/health/live\n");
        assert_eq!(output, expected);
    }
}

#[test]
fn health_fails_with_one_line_if_nothing_listens() {
    let (_port, address) = reserve_port();
    let (code, output) = health(&address.to_string(), &[]);
    assert_eq!(code, Some(1), "{output}");
    let expected = format!("progress-hub: unhealthy: http://{address}/v1/health/live: ");
    assert!(output.starts_with(&expected), "{output}");
    assert_eq!(output.lines().count(), 1, "{output}");
}

#[test]
fn health_reports_an_invalid_configuration() {
    let (code, output) = health("nowhere", &[]);
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("server.bind"), "{output}");
}

#[test]
fn health_reads_the_configuration_file_in_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("hub.toml");
    let (_port, address) = reserve_port();
    let text = format!("[server]\nbind = \"{address}\"\n");
    std::fs::write(&config, text).unwrap();
    let path = config.display().to_string();
    let (code, output) = health("", &[("PROGRESS_HUB_CONFIG", &path)]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains(&address.to_string()), "{output}");

    let (code, output) = health("", &[("PROGRESS_HUB_CONFIG", "nowhere.toml")]);
    assert_eq!(code, Some(2), "{output}");
    assert!(output.contains("nowhere.toml: "), "{output}");
}
