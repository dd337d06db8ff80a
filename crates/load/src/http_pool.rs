//! All connections that a run speaks to the hub over.
//!
//! Invariant: each has one request under way at most.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::client::{HttpClient, RequestError};
use super::target::Target;

/// How often a request that the run can't do without is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// The connections.
pub(super) struct HttpPool(pub(super) Vec<HttpClient>);

impl HttpPool {
    pub fn new(count: u64, target: &Target) -> Self {
        Self(
            (0..count)
                .map(|_| HttpClient::new(target.clone()))
                .collect(),
        )
    }

    /// Does something for each job, over all callers at once; the results in the order of the jobs.
    pub async fn each<T>(
        &mut self,
        jobs: u32,
        act: impl AsyncFn(&mut HttpClient, u32) -> T,
    ) -> Vec<T> {
        let next = AtomicU32::new(0);
        let (next, act) = (&next, &act);
        let work = self.0.iter_mut().map(|caller| async move {
            let mut done = Vec::new();
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                if job >= jobs {
                    return done;
                }
                done.push((job, act(caller, job).await));
            }
        });
        let mut done: Vec<(u32, T)> = join_all(work).await.into_iter().flatten().collect();
        done.sort_by_key(|(job, _)| *job);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

/// Tries again until the deadline: without an answer to this there is nothing to judge by.
pub(super) async fn retry_until<T>(
    deadline: Instant,
    mut act: impl AsyncFnMut() -> Result<T, RequestError>,
) -> Result<T, RequestError> {
    loop {
        match act().await {
            Err(_) if Instant::now() < deadline => sleep(AGAIN).await,
            done => return done,
        }
    }
}
