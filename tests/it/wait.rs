//! Waiting for conditions that send no notification. Prefer to wait for an event.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::app::TEST_TIMEOUT;

const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Repeats a check until it returns a value. Panics after [`TEST_TIMEOUT`].
pub async fn wait_for<T, F>(condition: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let waiting = async {
        loop {
            checks.tick().await;
            if let Some(value) = check().await {
                return value;
            }
        }
    };
    timeout(TEST_TIMEOUT, waiting)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting until {condition}"))
}

/// Repeats a check until it returns true. Panics after [`TEST_TIMEOUT`].
pub async fn wait_until<F>(condition: &str, mut check: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    wait_for(condition, || {
        let check = check();
        async { check.await.then_some(()) }
    })
    .await;
}
