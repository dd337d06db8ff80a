//! Waiting for conditions outside this process, which nothing announces.

use std::time::Duration;

use tokio::time::{interval, timeout};

/// Limit for everything that several processes take part in. It only ends a test that hangs, so it is
/// far longer than even a busy machine needs.
pub const MAX_WAIT: Duration = Duration::from_secs(90);

const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Repeats a check until it returns a value.
pub async fn wait_for<T>(condition: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let mut checks = interval(CHECK_INTERVAL);
    let waiting = async {
        loop {
            checks.tick().await;
            if let Some(value) = check().await {
                return value;
            }
        }
    };
    timeout(MAX_WAIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting until {condition}"))
}

/// Repeats a check until it returns true.
pub async fn wait_until(condition: &str, mut check: impl AsyncFnMut() -> bool) {
    wait_for(condition, async || check().await.then_some(())).await;
}
