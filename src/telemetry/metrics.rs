//! Metrics of one node, rendered at `/metrics`.
//!
//! The configuration bounds the number of time series: the value of a label is either fixed or the
//! name of a configured provider.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

use super::labels::{
    self, AdmissionRejection, ArchiveFailure, AttemptOutcome, CallOutcome, ConnectionKind,
    DestinationKind, DestinationStatus, Limit, ProviderOperation, ProviderState, WebhookOutcome,
};
use crate::job::Source;

/// `Content-Type` of [`Metrics::render`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Prefix of the name of every metric.
const PREFIX: &str = "progress_hub";

/// Defines sets of labels.
macro_rules! label_sets {
    ($($name:ident { $($label:ident: $value:ty),+ })+) => {$(
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        struct $name {
            $($label: $value,)+
        }
    )+};
}

label_sets! {
    KindLabels { kind: &'static str }
    WebhookLabels { provider: String, outcome: &'static str }
    RequestLabels { provider: String, operation: &'static str, outcome: &'static str }
    StateLabels { provider: String, state: &'static str }
    ProviderLabels { provider: String }
    ReasonLabels { reason: &'static str }
    SourceLabels { source: &'static str }
    LimitLabels { limit: &'static str }
    CloseLabels { code: String }
    CodeLabels { code: &'static str }
    AttemptLabels { kind: &'static str, outcome: &'static str }
    DestinationLabels { destination: String }
    DestinationStateLabels { destination: String, state: &'static str }
}

/// Counter of an amount of money.
type AmountCounter = Counter<f64, AtomicU64>;

/// Metrics of one node. All methods take `&self` and can be called from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Balances and spending, which the public listener returns only to admins.
    account_registry: Registry,
    connections: PerConnectionKind<Gauge>,
    tcp_connections: Gauge,
    subscribed_jobs: Gauge,
    subscribed_channels: Gauge,
    deliveries: PerConnectionKind<Counter>,
    webhooks: Family<WebhookLabels, Counter>,
    webhook_polls_suppressed: Family<ProviderLabels, Counter>,
    provider_requests: Family<RequestLabels, Counter>,
    provider_state: Family<StateLabels, Gauge>,
    provider_state_transitions: Family<StateLabels, Counter>,
    provider_holds: Family<ProviderLabels, Gauge>,
    provider_balance: Family<ProviderLabels, Gauge<f64, AtomicU64>>,
    job_updates: Family<SourceLabels, Counter>,
    submissions_rejected: Family<ReasonLabels, Counter>,
    archived_bytes: Counter,
    archive_failures: Family<ReasonLabels, Counter>,
    budget_reserved: Family<ProviderLabels, AmountCounter>,
    budget_spent: Family<ProviderLabels, AmountCounter>,
    limits_reached: Family<LimitLabels, Counter>,
    websocket_closes: Family<CloseLabels, Counter>,
    problems: Family<CodeLabels, Counter>,
    delivery_attempts: Family<AttemptLabels, Counter>,
    deliveries_waiting: Family<DestinationLabels, Gauge>,
    destination_state: Family<DestinationStateLabels, Gauge>,
    log_lines_dropped: Counter,
    log_lines_suppressed: Counter,
    webhook_duration: Histogram,
}

/// One metric for each kind of connection. A lookup by label for each delivery would be too slow.
#[derive(Debug)]
struct PerConnectionKind<M> {
    websocket: M,
    sse: M,
    poll: M,
}

impl<M: Clone + Default> PerConnectionKind<M> {
    fn new(family: &Family<KindLabels, M>) -> Self {
        let [websocket, sse, poll] = ConnectionKind::ALL.map(|kind| {
            let kind = kind.as_str();
            family.get_or_create_owned(&KindLabels { kind })
        });
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

/// An open connection. Dropping it decrements the gauge.
#[derive(Debug)]
#[must_use = "the connection is counted until this is dropped"]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Creates a metric and registers it.
fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// Creates the metrics, all at zero.
    #[must_use]
    #[rustfmt::skip] // a metric a line
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let mut account_registry = Registry::with_prefix(PREFIX);
        let r = &mut account_registry;
        let provider_balance = register(r, "provider_balance", "Balance of the provider account when last read");
        let budget_reserved = register(r, "budget_reserved", "Budget reserved for accepted jobs, in budgets.unit");
        let budget_spent = register(r, "budget_spent", "Budget spent by finished jobs, in budgets.unit");
        let r = &mut registry;
        let connections = register(r, "connections", "Open connections");
        let tcp_connections = register(r, "tcp_connections", "Open TCP connections");
        let subscribed_jobs = register(r, "subscribed_jobs", "Jobs that at least one connection subscribes to");
        let subscribed_channels = register(r, "subscribed_channels", "Redis channels that the node subscribes to");
        let deliveries = register(r, "deliveries", "Job documents delivered to connections");
        let webhooks = register(r, "webhooks", "Webhooks received");
        let webhook_polls_suppressed = register(r, "webhook_polls_suppressed", "Polls for unverified webhooks that were suppressed");
        let provider_requests = register(r, "provider_requests", "Requests to providers");
        let provider_state = register(r, "provider_state", "Provider state (1 = current)");
        let provider_state_transitions = register(r, "provider_state_transitions", "Transitions of a provider to a state");
        let provider_holds = register(r, "provider_holds", "Owners and models whose submissions are held");
        let job_updates = register(r, "job_updates", "Updates that changed a job");
        let submissions_rejected = register(r, "submissions_rejected", "Submissions rejected before the job was stored");
        let archived_bytes = register(r, "archived_bytes", "Bytes of outputs copied to the archive");
        let archive_failures = register(r, "archive_failures", "Attempts to copy an output to the archive that failed");
        let limits_reached = register(r, "limits_reached", "Times that a client reached a limit");
        let websocket_closes = register(r, "websocket_closes", "Closed WebSockets, by close code");
        let problems = register(r, "problems", "Requests answered with a problem, by error code");
        let delivery_attempts = register(r, "delivery_attempts", "Attempts to deliver to destinations outside the hub");
        let deliveries_waiting = register(r, "deliveries_waiting", "Deliveries that wait for an attempt");
        let destination_state = register(r, "destination_state", "Destination state (1 = current)");
        let log_lines_dropped = register(r, "log_lines_dropped", "Log lines dropped because the buffer was full or the write failed");
        let log_lines_suppressed = register(r, "log_lines_suppressed", "Repeated log lines of other crates that were not written");
        let webhook_duration = Histogram::new(exponential_buckets(0.000_5, 2.0, 15));
        r.register_with_unit("webhook_duration", "Time from the arrival of a webhook to its response", Unit::Seconds, webhook_duration.clone());
        let metrics = Self {
            registry,
            account_registry,
            connections: PerConnectionKind::new(&connections),
            tcp_connections,
            subscribed_jobs,
            subscribed_channels,
            deliveries: PerConnectionKind::new(&deliveries),
            webhooks,
            webhook_polls_suppressed,
            provider_requests,
            provider_state,
            provider_state_transitions,
            provider_holds,
            provider_balance,
            job_updates,
            submissions_rejected,
            archived_bytes,
            archive_failures,
            budget_reserved,
            budget_spent,
            limits_reached,
            websocket_closes,
            problems,
            delivery_attempts,
            deliveries_waiting,
            destination_state,
            log_lines_dropped,
            log_lines_suppressed,
            webhook_duration,
        };
        for source in Source::ALL {
            metrics.job_update_counter(source);
        }
        for limit in Limit::ALL {
            metrics.limit_counter(limit);
        }
        // A counter that is missing until its first event loses that event in rates.
        for kind in DestinationKind::ALL {
            for outcome in AttemptOutcome::ALL {
                metrics.attempt_counter(kind, outcome);
            }
        }
        metrics
    }

    /// Counts an open connection until the returned guard is dropped.
    pub fn connection_opened(&self, kind: ConnectionKind) -> OpenConnection {
        let gauge = self.connections.get(kind).clone();
        gauge.inc();
        OpenConnection(gauge)
    }

    /// Counts an open TCP connection until the returned guard is dropped.
    pub fn tcp_connection_opened(&self) -> OpenConnection {
        self.tcp_connections.inc();
        OpenConnection(self.tcp_connections.clone())
    }

    /// Counts a client that reached a limit.
    pub fn limit_reached(&self, limit: Limit) {
        self.limit_counter(limit).inc();
    }

    fn limit_counter(&self, limit: Limit) -> Counter {
        let limit = limit.as_str();
        self.limits_reached
            .get_or_create_owned(&LimitLabels { limit })
    }

    /// Sets the number of jobs that at least one connection of this node subscribes to.
    pub fn set_subscribed_jobs(&self, jobs: usize) {
        self.subscribed_jobs
            .set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    /// Sets the number of channels of the store that this node is subscribed to.
    pub fn set_subscribed_channels(&self, channels: usize) {
        self.subscribed_channels
            .set(i64::try_from(channels).unwrap_or(i64::MAX));
    }

    /// Counts documents delivered to connections of this kind.
    pub fn delivered(&self, kind: ConnectionKind, documents: u64) {
        self.deliveries.get(kind).inc_by(documents);
    }

    /// Counts a received webhook. The label `provider` stays empty for [`WebhookOutcome::Unknown`],
    /// because the sender chose that name.
    pub fn webhook(&self, provider: &str, outcome: WebhookOutcome) {
        let is_configured = outcome != WebhookOutcome::Unknown;
        let labels = WebhookLabels {
            provider: if is_configured { provider } else { "" }.to_owned(),
            outcome: outcome.as_str(),
        };
        self.webhooks.get_or_create(&labels).inc();
    }

    /// Counts a poll for an unverified webhook that was suppressed.
    pub fn webhook_poll_suppressed(&self, provider: &str) {
        let provider = provider.to_owned();
        self.webhook_polls_suppressed
            .get_or_create(&ProviderLabels { provider })
            .inc();
    }

    /// Records the time from the arrival of a webhook to its response.
    pub fn observe_webhook_duration(&self, duration: Duration) {
        self.webhook_duration.observe(duration.as_secs_f64());
    }

    /// Counts a request to a configured provider.
    pub fn provider_request(
        &self,
        provider: &str,
        operation: ProviderOperation,
        outcome: CallOutcome,
    ) {
        let labels = RequestLabels {
            provider: provider.to_owned(),
            operation: operation.as_str(),
            outcome: outcome.as_str(),
        };
        self.provider_requests.get_or_create(&labels).inc();
    }

    /// Sets the state of a configured provider, and the number of transitions to each state.
    pub fn set_provider_state(
        &self,
        provider: &str,
        current: ProviderState,
        transitions: impl Fn(ProviderState) -> u64,
    ) {
        for state in ProviderState::ALL {
            let labels = StateLabels {
                provider: provider.to_owned(),
                state: state.as_str(),
            };
            let gauge = self.provider_state.get_or_create(&labels);
            gauge.set(i64::from(state == current));
            let counter = self.provider_state_transitions.get_or_create(&labels);
            counter.inner().store(transitions(state), Ordering::Relaxed);
        }
    }

    /// Sets the number of owners and models whose submissions to a configured provider are held.
    pub fn set_provider_holds(&self, provider: &str, holds: usize) {
        let provider = provider.to_owned();
        self.provider_holds
            .get_or_create(&ProviderLabels { provider })
            .set(i64::try_from(holds).unwrap_or(i64::MAX));
    }

    /// Sets the balance of a provider account.
    pub fn set_provider_balance(&self, provider: &str, amount: f64) {
        let provider = provider.to_owned();
        let labels = ProviderLabels { provider };
        self.provider_balance.get_or_create(&labels).set(amount);
    }

    /// Counts an update that changed a job.
    pub fn job_updated(&self, source: Source) {
        self.job_update_counter(source).inc();
    }

    fn job_update_counter(&self, source: Source) -> Counter {
        let source = source.as_str();
        self.job_updates
            .get_or_create_owned(&SourceLabels { source })
    }

    /// Counts an output that was copied to the archive.
    pub fn archived(&self, bytes: u64) {
        self.archived_bytes.inc_by(bytes);
    }

    /// Counts an attempt to copy an output to the archive that failed.
    pub fn archive_failed(&self, reason: ArchiveFailure) {
        let reason = reason.as_str();
        self.archive_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// Counts a submission that was rejected before the job was stored.
    pub fn submission_rejected(&self, reason: AdmissionRejection) {
        let reason = reason.as_str();
        self.submissions_rejected
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// Adds to the budget reserved for jobs of a provider, in millionths of `budgets.unit`.
    pub fn reserved(&self, provider: &str, millionths: i64) {
        add(&self.budget_reserved, provider, millionths);
    }

    /// Adds to the budget spent by jobs of a provider, in millionths of `budgets.unit`.
    pub fn spent(&self, provider: &str, millionths: i64) {
        add(&self.budget_spent, provider, millionths);
    }

    /// Counts a request that was answered with a problem of this code.
    pub fn problem(&self, code: &'static str) {
        self.problems.get_or_create(&CodeLabels { code }).inc();
    }

    /// Counts an attempt to deliver to a destination.
    pub fn delivery_attempt(&self, kind: DestinationKind, outcome: AttemptOutcome) {
        self.attempt_counter(kind, outcome).inc();
    }

    fn attempt_counter(&self, kind: DestinationKind, outcome: AttemptOutcome) -> Counter {
        let labels = AttemptLabels {
            kind: kind.as_str(),
            outcome: outcome.as_str(),
        };
        self.delivery_attempts.get_or_create_owned(&labels)
    }

    /// Sets the state of a configured destination and the number of deliveries that wait for it.
    pub fn set_destination(&self, name: &str, current: DestinationStatus, waiting: u64) {
        for state in DestinationStatus::ALL {
            let labels = DestinationStateLabels {
                destination: name.to_owned(),
                state: state.as_str(),
            };
            let gauge = self.destination_state.get_or_create(&labels);
            gauge.set(i64::from(state == current));
        }
        let destination = name.to_owned();
        self.deliveries_waiting
            .get_or_create(&DestinationLabels { destination })
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// Counts a WebSocket that either side closed with this code.
    pub fn socket_closed(&self, code: u16) {
        let code = labels::close_code(code);
        self.websocket_closes
            .get_or_create(&CloseLabels { code })
            .inc();
    }

    /// Renders all metrics in the OpenMetrics text format, of type [`METRICS_CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        self.render_registries(&[&self.registry, &self.account_registry])
    }

    /// Renders the same format as [`Metrics::render`], without balances and spending.
    #[must_use]
    pub fn render_public(&self) -> String {
        self.render_registries(&[&self.registry])
    }

    fn render_registries(&self, registries: &[&Registry]) -> String {
        let lost = super::lost_lines();
        for (counter, lines) in [
            (&self.log_lines_dropped, lost.dropped),
            (&self.log_lines_suppressed, lost.suppressed),
        ] {
            counter.inner().store(lines, Ordering::Relaxed);
        }
        let mut text = String::new();
        // Encoding fails only if the writer fails, and a String does not.
        let mut encoded = registries
            .iter()
            .try_for_each(|registry| encode_registry(&mut text, registry));
        encoded = encoded.and_then(|()| encode_eof(&mut text));
        debug_assert!(encoded.is_ok());
        text
    }
}

fn add(counters: &Family<ProviderLabels, AmountCounter>, provider: &str, millionths: i64) {
    let provider = provider.to_owned();
    counters
        .get_or_create(&ProviderLabels { provider })
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

    /// Returns the samples of the metrics whose name starts with `name`, sorted.
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
        metrics.webhook_poll_suppressed("kling");
        metrics.provider_request("kling", ProviderOperation::Submit, CallOutcome::Ok);
        metrics.set_provider_state("kling", ProviderState::Available, |_| 0);
        metrics.set_provider_balance("kling", 1.0);
        metrics.socket_closed(1000);
        metrics.problem("not_found");
        metrics.set_destination("app", DestinationStatus::Active, 0);
        metrics.submission_rejected(AdmissionRejection::Budget);
        metrics.archive_failed(ArchiveFailure::Expired);
        metrics.reserved("kling", 1);
        metrics.spent("kling", 1);
        let text = metrics.render();
        let types: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .collect();
        assert_snapshot!(types.join("\n"), @r"
    progress_hub_connections gauge
    progress_hub_tcp_connections gauge
    progress_hub_subscribed_jobs gauge
    progress_hub_subscribed_channels gauge
    progress_hub_deliveries counter
    progress_hub_webhooks counter
    progress_hub_webhook_polls_suppressed counter
    progress_hub_provider_requests counter
    progress_hub_provider_state gauge
    progress_hub_provider_state_transitions counter
    progress_hub_job_updates counter
    progress_hub_submissions_rejected counter
    progress_hub_archived_bytes counter
    progress_hub_archive_failures counter
    progress_hub_limits_reached counter
    progress_hub_websocket_closes counter
    progress_hub_problems counter
    progress_hub_delivery_attempts counter
    progress_hub_deliveries_waiting gauge
    progress_hub_destination_state gauge
    progress_hub_log_lines_dropped counter
    progress_hub_log_lines_suppressed counter
    progress_hub_webhook_duration_seconds histogram
    progress_hub_provider_balance gauge
    progress_hub_budget_reserved counter
    progress_hub_budget_spent counter
    ");
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("# EOF").count(), 1);
        let public = metrics.render_public();
        for amount in ["provider_balance", "budget_reserved", "budget_spent"] {
            assert!(text.contains(amount), "{amount}");
            assert!(!public.contains(amount), "{amount}");
        }
        assert!(public.ends_with("# EOF\n"));
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
        let samples: Vec<String> = ["subscribed", "deliveries", "webhooks", "provider", "job"]
            .iter()
            .flat_map(|name| samples(&metrics, name))
            .collect();
        assert_snapshot!(samples.join("\n"), @r#"
    subscribed_channels 0
    subscribed_jobs 1
    deliveries_total{kind="poll"} 1
    deliveries_total{kind="sse"} 0
    deliveries_total{kind="websocket"} 1000
    webhooks_total{provider="kling",outcome="too_large"} 1
    provider_requests_total{provider="fal",operation="cancel",outcome="rate_limited"} 1
    job_updates_total{source="api"} 0
    job_updates_total{source="deadline"} 1
    job_updates_total{source="poll"} 0
    job_updates_total{source="push"} 0
    job_updates_total{source="submit"} 0
    job_updates_total{source="webhook"} 0
    "#);
    }

    #[test]
    fn exactly_one_provider_state_is_set() {
        let metrics = Metrics::new();
        let transitions = |state| u64::from(state == ProviderState::Suspended) * 2;
        metrics.set_provider_state("fal", ProviderState::Available, transitions);
        metrics.set_provider_state("fal", ProviderState::Suspended, transitions);
        metrics.set_provider_holds("fal", 3);
        metrics.set_provider_balance("fal", 12.5);
        assert_snapshot!(samples(&metrics, "provider").join("\n"), @r#"
    provider_balance{provider="fal"} 12.5
    provider_holds{provider="fal"} 3
    provider_state_transitions_total{provider="fal",state="available"} 0
    provider_state_transitions_total{provider="fal",state="rate_limited"} 0
    provider_state_transitions_total{provider="fal",state="suspended"} 2
    provider_state_transitions_total{provider="fal",state="unavailable"} 0
    provider_state{provider="fal",state="available"} 0
    provider_state{provider="fal",state="rate_limited"} 0
    provider_state{provider="fal",state="suspended"} 1
    provider_state{provider="fal",state="unavailable"} 0
    "#);
    }

    #[test]
    fn unknown_providers_create_no_time_series() {
        let metrics = Metrics::new();
        for n in 0..1_000_u16 {
            metrics.webhook(&format!("unknown-{n}"), WebhookOutcome::Unknown);
            metrics.socket_closed(3_000 + n);
        }
        assert_eq!(
            samples(&metrics, "webhooks"),
            ["webhooks_total{provider=\"\",outcome=\"unknown\"} 1000"]
        );
        assert_eq!(
            samples(&metrics, "websocket_closes"),
            ["websocket_closes_total{code=\"other\"} 1000"]
        );
    }

    #[test]
    fn webhook_duration_is_in_seconds() {
        let metrics = Metrics::new();
        metrics.observe_webhook_duration(Duration::from_millis(1));
        let lines = samples(&metrics, "webhook_duration_seconds");
        for line in ["sum 0.001", "count 1", "bucket{le=\"+Inf\"} 1"] {
            assert!(
                lines.contains(&format!("webhook_duration_seconds_{line}")),
                "{lines:?}"
            );
        }
    }
}
