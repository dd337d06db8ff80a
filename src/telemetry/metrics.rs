//! The numbers at `/metrics`, counted where things happen.
//!
//! Invariant: the number of time series is bounded by the configuration. A label is a word of
//! `labels` or the name of a configured provider, never what a request says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::labels::{
    self, AdmissionRejection, CallOutcome, ConnectionKind, ProviderOperation, ProviderState,
    WebhookOutcome,
};
use crate::job::Source;

/// The `Content-Type` of what [`Metrics::render`] writes.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WebhookLabels {
    provider: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    provider: String,
    call: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabels {
    provider: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CloseLabels {
    code: &'static str,
}

/// Money, which comes in fractions.
type AmountCounter = Counter<f64, AtomicU64>;

/// One hub's numbers. All methods take `&self`, from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: PerConnection<Gauge>,
    subscribed_jobs: Gauge,
    deliveries: PerConnection<Counter>,
    webhooks: Family<WebhookLabels, Counter>,
    provider_requests: Family<RequestLabels, Counter>,
    provider_state: Family<StateLabels, Gauge>,
    provider_state_transitions: Family<StateLabels, Counter>,
    provider_balance: Family<ProviderLabels, Gauge<f64, AtomicU64>>,
    job_updates: Family<SourceLabels, Counter>,
    submissions_rejected: Family<ReasonLabels, Counter>,
    budget_reserved: Family<ProviderLabels, AmountCounter>,
    budget_spent: Family<ProviderLabels, AmountCounter>,
    websocket_closes: Family<CloseLabels, Counter>,
    webhook_duration: Histogram,
}

/// Looked up once, because deliveries are counted by the hundred thousand.
#[derive(Debug)]
struct PerConnection<M> {
    websocket: M,
    sse: M,
    poll: M,
}

impl<M: Clone + Default> PerConnection<M> {
    fn of(family: &Family<KindLabels, M>) -> Self {
        let [websocket, sse, poll] = ConnectionKind::ALL
            .map(|kind| family.get_or_create_owned(&KindLabels { kind: kind.as_str() }));
        Self {
            websocket,
            sse,
            poll,
        }
    }

    fn get(&self, kind: ConnectionKind) -> &M {
        match kind {
            ConnectionKind::Websocket => &self.websocket,
            ConnectionKind::Sse => &self.sse,
            ConnectionKind::Poll => &self.poll,
        }
    }
}

/// One connection in the gauge, until it is dropped.
#[derive(Debug)]
#[must_use = "the connection is counted for as long as this lives"]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// All numbers at zero.
    #[must_use]
    pub fn new() -> Self {
        let connections = Family::default();
        let deliveries = Family::default();
        let mut metrics = Self {
            registry: Registry::with_prefix("progress_hub"),
            connections: PerConnection::of(&connections),
            subscribed_jobs: Gauge::default(),
            deliveries: PerConnection::of(&deliveries),
            webhooks: Family::default(),
            provider_requests: Family::default(),
            provider_state: Family::default(),
            provider_state_transitions: Family::default(),
            provider_balance: Family::default(),
            job_updates: Family::default(),
            submissions_rejected: Family::default(),
            budget_reserved: Family::default(),
            budget_spent: Family::default(),
            websocket_closes: Family::default(),
            webhook_duration: Histogram::new(exponential_buckets(0.000_5, 2.0, 15)),
        };
        for source in labels::SOURCES {
            metrics.update_counter(source);
        }
        metrics.register(connections, deliveries);
        metrics
    }

    fn register(
        &mut self,
        connections: Family<KindLabels, Gauge>,
        deliveries: Family<KindLabels, Counter>,
    ) {
        let registry = &mut self.registry;
        registry.register("connections", "Open connections", connections);
        registry.register(
            "watched_jobs",
            "Jobs that at least one connection watches",
            self.subscribed_jobs.clone(),
        );
        registry.register(
            "deliveries",
            "Job documents handed to connections",
            deliveries,
        );
        registry.register("webhooks", "Webhooks received", self.webhooks.clone());
        registry.register(
            "provider_calls",
            "Requests to providers",
            self.provider_requests.clone(),
        );
        registry.register(
            "provider_state",
            "1 for the state that a provider is in",
            self.provider_state.clone(),
        );
        registry.register(
            "provider_turns",
            "How often a provider came to a state",
            self.provider_state_transitions.clone(),
        );
        registry.register(
            "provider_balance",
            "What was left on a provider's account",
            self.provider_balance.clone(),
        );
        registry.register(
            "updates",
            "Updates that changed a job",
            self.job_updates.clone(),
        );
        registry.register(
            "submits_refused",
            "Submits refused before anything was kept",
            self.submissions_rejected.clone(),
        );
        registry.register(
            "reserved",
            "What was set aside for jobs, in budgets.unit",
            self.budget_reserved.clone(),
        );
        registry.register(
            "spent",
            "What ended jobs came to, in budgets.unit",
            self.budget_spent.clone(),
        );
        registry.register(
            "sockets_closed",
            "WebSockets closed, by close code",
            self.websocket_closes.clone(),
        );
        registry.register_with_unit(
            "webhook",
            "From a webhook's arrival to its answer",
            Unit::Seconds,
            self.webhook_duration.clone(),
        );
    }

    /// A connection opened; it counts until the answer is dropped.
    pub fn connection_opened(&self, kind: ConnectionKind) -> OpenConnection {
        let gauge = self.connections.get(kind).clone();
        gauge.inc();
        OpenConnection(gauge)
    }

    /// So many jobs have at least one watcher on this node.
    pub fn set_subscribed_jobs(&self, jobs: usize) {
        self.subscribed_jobs
            .set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    /// So many documents were handed to connections of this kind.
    pub fn delivered(&self, kind: ConnectionKind, documents: u64) {
        self.deliveries.get(kind).inc_by(documents);
    }

    /// A webhook was answered. `provider` is a configured name; with
    /// [`WebhookOutcome::Unknown`] it is what a stranger wrote, so it is not kept.
    pub fn webhook(&self, provider: &str, outcome: WebhookOutcome) {
        let unknown = outcome == WebhookOutcome::Unknown;
        let labels = WebhookLabels {
            provider: if unknown { "" } else { provider }.to_owned(),
            outcome: outcome.as_str(),
        };
        self.webhooks.get_or_create(&labels).inc();
    }

    /// A webhook's answer took this long.
    pub fn observe_webhook_duration(&self, time: Duration) {
        self.webhook_duration.observe(time.as_secs_f64());
    }

    /// A provider, by its configured name, was asked for something.
    pub fn provider_request(&self, provider: &str, call: ProviderOperation, outcome: CallOutcome) {
        let labels = RequestLabels {
            provider: provider.to_owned(),
            call: call.as_str(),
            outcome: outcome.as_str(),
        };
        self.provider_requests.get_or_create(&labels).inc();
    }

    /// A provider, by its configured name, is in this state, and came to each so often.
    pub fn set_provider_state(
        &self,
        provider: &str,
        now: ProviderState,
        turns: impl Fn(ProviderState) -> u64,
    ) {
        for state in ProviderState::ALL {
            let labels = StateLabels {
                provider: provider.to_owned(),
                state: state.as_str(),
            };
            let gauge = self.provider_state.get_or_create(&labels);
            gauge.set(i64::from(state == now));
            let counter = self.provider_state_transitions.get_or_create(&labels);
            counter.inner().store(turns(state), Ordering::Relaxed);
        }
    }

    /// So much was left on a provider's account when it was last read.
    pub fn set_provider_balance(&self, provider: &str, amount: f64) {
        let provider = provider.to_owned();
        let labels = ProviderLabels { provider };
        self.provider_balance.get_or_create(&labels).set(amount);
    }

    /// An update changed a job.
    pub fn job_updated(&self, source: Source) {
        self.update_counter(source).inc();
    }

    fn update_counter(&self, source: Source) -> Counter {
        let source = labels::source(source);
        self.job_updates.get_or_create_owned(&SourceLabels { source })
    }

    /// A submit was refused before anything was kept.
    pub fn submission_rejected(&self, reason: AdmissionRejection) {
        let reason = reason.as_str();
        self.submissions_rejected
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// So many millionths were set aside for a job of this provider.
    pub fn reserved(&self, provider: &str, millionths: i64) {
        add(&self.budget_reserved, provider, millionths);
    }

    /// A job of this provider ended, and came to so many millionths.
    pub fn spent(&self, provider: &str, millionths: i64) {
        add(&self.budget_spent, provider, millionths);
    }

    /// A WebSocket was closed with this code, by either side.
    pub fn socket_closed(&self, code: u16) {
        let code = labels::close_code(code);
        self.websocket_closes
            .get_or_create(&CloseLabels { code })
            .inc();
    }

    /// All of it in the OpenMetrics text format, of type [`METRICS_CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // It fails only where its writer does, and a String never does.
        let written = encode(&mut text, &self.registry);
        debug_assert!(written.is_ok());
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number to look at")]
fn add(sums: &Family<ProviderLabels, AmountCounter>, provider: &str, millionths: i64) {
    let provider = provider.to_owned();
    sums.get_or_create(&ProviderLabels { provider })
        .inc_by(millionths as f64 / 1e6);
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    /// The samples of one metric, a line each.
    fn samples(metrics: &Metrics, name: &str) -> Vec<String> {
        let text = metrics.render();
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("progress_hub_"))
            .filter(|line| line.starts_with(name))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn metric_names_match_the_documentation() {
        let metrics = Metrics::new();
        metrics.webhook("kling", WebhookOutcome::Applied);
        metrics.provider_request("kling", ProviderOperation::Submit, CallOutcome::Ok);
        metrics.set_provider_state("kling", ProviderState::Available, |_| 0);
        metrics.set_provider_balance("kling", 1.0);
        metrics.socket_closed(1000);
        metrics.submission_rejected(AdmissionRejection::Budget);
        metrics.reserved("kling", 1);
        metrics.spent("kling", 1);
        let text = metrics.render();
        let described: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        assert_snapshot!(described.join("\n"), @r"
    progress_hub_connections gauge
    progress_hub_watched_jobs gauge
    progress_hub_deliveries counter
    progress_hub_webhooks counter
    progress_hub_provider_calls counter
    progress_hub_provider_state gauge
    progress_hub_provider_turns counter
    progress_hub_provider_balance gauge
    progress_hub_updates counter
    progress_hub_submits_refused counter
    progress_hub_reserved counter
    progress_hub_spent counter
    progress_hub_sockets_closed counter
    progress_hub_webhook_seconds histogram
    ");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn connections_gauge_counts_open_connections() {
        let metrics = Metrics::new();
        let first = metrics.connection_opened(ConnectionKind::Websocket);
        let second = metrics.connection_opened(ConnectionKind::Websocket);
        let _stream = metrics.connection_opened(ConnectionKind::Sse);
        drop(first);
        assert_eq!(
            samples(&metrics, "connections"),
            [
                "connections{kind=\"poll\"} 0",
                "connections{kind=\"sse\"} 1",
                "connections{kind=\"websocket\"} 1",
            ]
        );
        drop(second);
        assert_eq!(
            samples(&metrics, "connections{kind=\"websocket\"}"),
            ["connections{kind=\"websocket\"} 0"]
        );
    }

    #[test]
    fn counters_use_the_documented_labels() {
        let metrics = Metrics::new();
        metrics.set_subscribed_jobs(1);
        metrics.delivered(ConnectionKind::Websocket, 1_000);
        metrics.delivered(ConnectionKind::Poll, 1);
        metrics.webhook("kling", WebhookOutcome::TooLarge);
        metrics.provider_request("fal", ProviderOperation::Cancel, CallOutcome::RateLimited);
        metrics.job_updated(Source::Deadline);
        let told: Vec<String> = ["watched", "deliv", "webhooks", "provider", "updates"]
            .iter()
            .flat_map(|name| samples(&metrics, name))
            .collect();
        assert_snapshot!(told.join("\n"), @r#"
    watched_jobs 1
    deliveries_total{kind="poll"} 1
    deliveries_total{kind="sse"} 0
    deliveries_total{kind="websocket"} 1000
    webhooks_total{provider="kling",outcome="too_large"} 1
    provider_calls_total{provider="fal",call="cancel",outcome="rate_limited"} 1
    updates_total{source="api"} 0
    updates_total{source="deadline"} 1
    updates_total{source="poll"} 0
    updates_total{source="push"} 0
    updates_total{source="submit"} 0
    updates_total{source="webhook"} 0
    "#);
    }

    #[test]
    fn exactly_one_provider_state_is_set() {
        let metrics = Metrics::new();
        let turns = |state| u64::from(state == ProviderState::Suspended) * 2;
        metrics.set_provider_state("fal", ProviderState::Available, turns);
        metrics.set_provider_state("fal", ProviderState::Suspended, turns);
        metrics.set_provider_balance("fal", 12.5);
        assert_snapshot!(samples(&metrics, "provider").join("\n"), @r#"
    provider_balance{provider="fal"} 12.5
    provider_state{provider="fal",state="failing"} 0
    provider_state{provider="fal",state="open"} 0
    provider_state{provider="fal",state="paused"} 0
    provider_state{provider="fal",state="stopped"} 1
    provider_turns_total{provider="fal",state="failing"} 0
    provider_turns_total{provider="fal",state="open"} 0
    provider_turns_total{provider="fal",state="paused"} 0
    provider_turns_total{provider="fal",state="stopped"} 2
    "#);
    }

    #[test]
    fn unknown_providers_create_no_time_series() {
        let metrics = Metrics::new();
        for n in 0..1_000_u16 {
            metrics.webhook(&format!("made-up-{n}"), WebhookOutcome::Unknown);
            metrics.socket_closed(3_000 + n);
        }
        assert_eq!(
            samples(&metrics, "webhooks"),
            ["webhooks_total{provider=\"\",outcome=\"unknown\"} 1000"]
        );
        assert_eq!(
            samples(&metrics, "sockets_closed"),
            ["sockets_closed_total{code=\"other\"} 1000"]
        );
    }

    #[test]
    fn webhook_duration_is_in_seconds() {
        let metrics = Metrics::new();
        metrics.observe_webhook_duration(Duration::from_millis(1));
        let lines = samples(&metrics, "webhook_seconds");
        for line in ["sum 0.001", "count 1", "bucket{le=\"+Inf\"} 1"] {
            assert!(
                lines.contains(&format!("webhook_seconds_{line}")),
                "{lines:?}"
            );
        }
    }
}
