//! A job from its submission to a browser.

use progress_hub_simulator::Scenario;

use crate::app::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn submitted_job_is_delivered_until_final() {
    let app = TestApp::builder()
        .with_simulator(Scenario::Normal)
        .spawn()
        .await;
    let mut socket = app.connect("alice").await;
    let job = app.submit("alice", Scenario::Normal).await;
    let id = job["id"].as_str().unwrap();
    let outcome = socket.subscribe(&[(id, 0)]).await;
    assert_eq!(outcome[id], "sent");
    let ended = socket.follow_to_final(id).await;
    assert_eq!(ended["status"], "succeeded");
    assert_eq!(ended["outputs"][0]["type"], "video");
    assert_eq!(ended["source"], "webhook");
    assert_eq!(app.get_job(id, "alice").await, ended);
    assert_eq!(app.simulator().submits_of(id).received, 1);
}
