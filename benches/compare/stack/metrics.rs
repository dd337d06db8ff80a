//! Request metrics like those of the hub.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

type Labels = Vec<(&'static str, &'static str)>;

/// Metrics of the server.
pub struct Metrics {
    requests: Family<Labels, Counter>,
    updates: Family<Labels, Counter>,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            updates: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
        }
    }
}

impl Metrics {
    /// Records an accepted update.
    pub fn record(&self, duration: Duration) {
        let route = vec![("route", "publish"), ("status", "202")];
        self.requests.get_or_create(&route).inc();
        let source = vec![("source", "push")];
        self.updates.get_or_create(&source).inc();
        self.duration.observe(duration.as_secs_f64());
    }
}
