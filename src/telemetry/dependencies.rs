//! Limits the log lines of other crates, some of which log every malformed request of a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::LineLimit;

/// Prefix of the targets of the hub's own crates. They limit their lines where they write them.
const OWN_TARGETS: &str = "progress_hub";

/// Target of the events that come from the `log` crate. Their field `log.target` contains the
/// module.
const LOG_TARGET: &str = "log";

/// Suppresses repeated lines of other crates at the level `info` and above. Lines with the same
/// callsite and module are repetitions.
#[derive(Default)]
pub(super) struct DependencyThrottle {
    lines: LineLimit<(Identifier, Option<String>)>,
    suppressed: Arc<AtomicU64>,
}

impl DependencyThrottle {
    /// Returns the number of suppressed lines.
    pub(super) fn suppressed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.suppressed)
    }

    fn is_limited(metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && !metadata.target().starts_with(OWN_TARGETS)
    }
}

impl<S: Subscriber> Layer<S> for DependencyThrottle {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if !Self::is_limited(metadata) {
            return true;
        }
        let mut module = LogTarget(None);
        if metadata.target() == LOG_TARGET {
            event.record(&mut module);
        }
        let key = (metadata.callsite(), module.0);
        let is_admitted = self.lines.admit(key, Instant::now()).is_some();
        if !is_admitted {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        is_admitted
    }
}

struct LogTarget(Option<String>);

impl Visit for LogTarget {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Counts the events that reach it.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU64>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn repeated_lines_of_other_crates_are_suppressed() {
        let (throttle, count) = (DependencyThrottle::default(), Count::default());
        let suppressed = throttle.suppressed();
        let subscriber = tracing_subscriber::registry()
            .with(throttle)
            .with(count.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..5 {
                tracing::error!(target: "actix_http::h1", "stream error");
                tracing::warn!(target: "actix_http::h1", "another place");
                tracing::debug!(target: "actix_http::h1", "on request only");
                tracing::warn!(target: "progress_hub_auth::jwt", "own line");
            }
        });
        assert_eq!(count.0.load(Ordering::Relaxed), 1 + 1 + 5 + 5);
        assert_eq!(suppressed.load(Ordering::Relaxed), 4 + 4);
    }
}
