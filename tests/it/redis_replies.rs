//! Invalid replies of a server that stands in for Redis.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;

use crate::app::{TestApp, send};
use crate::wait::wait_until;

/// Starts a server that answers the first command of each connection with `reply`. Returns its URL and
/// the number of its replies.
fn start_server(reply: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let replies = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&replies);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            let received = connection.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0);
            // The client may close the connection before the end of the reply.
            if received {
                _ = connection.write_all(reply.as_bytes());
                _ = connection.shutdown(Shutdown::Write);
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (url, replies)
}

/// The hub runs in a separate process, because a crash would end the process of the test.
#[tokio::test(flavor = "multi_thread")]
async fn deeply_nested_replies_make_the_store_unavailable() {
    let (url, replies) = start_server("*1\r\n".repeat(1_000_000));
    let app = TestApp::builder()
        .set("store.url", url)
        .spawn_process(&[])
        .await;
    wait_until("the hub reconnects", async || {
        replies.load(Ordering::Relaxed) >= 3
    })
    .await;
    let response = send(app.request(Method::GET, "/v1/jobs/job_a", "alice")).await;
    assert_eq!(response.status, 503, "{}", response.body);
    assert_eq!(response.body["code"], "store_unavailable");
    let live = app.request_without_token(Method::GET, "/v1/health/live");
    assert_eq!(send(live).await.status, 200);
}
