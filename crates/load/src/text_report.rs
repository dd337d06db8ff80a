//! Results as a table for a terminal. Values that were not measured are omitted.

use std::fmt::Write;

use indicatif::{BinaryBytes, HumanCount};

use super::report::Report;

/// Width of the label column.
const LABEL_WIDTH: usize = 26;

/// Label and text of a line.
type Row = (&'static str, String);

impl Report {
    /// Returns the results as a table, with the result of the checks last.
    pub fn table(&self) -> String {
        let columns = ["p50", "p90", "p99", "p99.9", "max"]
            .map(|name| format!("{name:>10}"))
            .concat();
        let latencies = self.latencies().into_iter().map(|(label, _, summary)| {
            (
                label,
                summary.columns().map(|ms| format!("{ms:>10.2}")).concat(),
            )
        });
        let [traffic, resources, checks] = self.sections();
        let latencies = ("latency in ms", columns, latencies.collect());
        let [traffic, resources, checks] =
            [traffic, resources, checks].map(|(title, rows)| (title, String::new(), rows));
        let mut text = String::new();
        for (title, columns, rows) in [traffic, latencies, resources, checks] {
            let gap = if text.is_empty() { "" } else { "\n" };
            text += &format!(
                "{gap}{}\n",
                format!("{title:<width$}{columns}", width = LABEL_WIDTH + 2).trim_end()
            );
            for (label, row) in rows {
                text += &format!("  {label:<LABEL_WIDTH$}{row}\n");
            }
        }
        text
    }

    /// Returns the sections other than latencies, each with its title and rows.
    pub(super) fn sections(&self) -> [(&'static str, Vec<Row>); 3] {
        [
            ("traffic", self.traffic()),
            ("resources", self.resources()),
            ("checks", self.check_results()),
        ]
    }

    fn traffic(&self) -> Vec<Row> {
        let (plan, deliveries) = (&self.plan, &self.deliveries);
        let load = format!(
            "{} sockets × {} of {} jobs, {} updates/s for {} s",
            HumanCount(plan.sockets),
            plan.subscriptions,
            HumanCount(plan.jobs),
            plan.rate,
            plan.duration_seconds
        );
        let deliveries = format!(
            "{}, {}/s, {}/s; {} versions skipped",
            HumanCount(deliveries.count),
            HumanCount(deliveries.per_second.round() as u64),
            BinaryBytes(deliveries.bytes_per_second as u64),
            HumanCount(deliveries.skipped)
        );
        vec![
            ("load", load),
            ("updates", self.update_counts()),
            ("deliveries", deliveries),
        ]
    }

    fn update_counts(&self) -> String {
        let updates = &self.updates;
        let mut text = format!(
            "{} applied, {:.0}/s",
            HumanCount(updates.applied),
            updates.per_second
        );
        for (count, description) in [
            (updates.unchanged, "superseded"),
            (updates.failed, "failed"),
            (
                updates.unsent,
                "not sent; increase --connections or reduce --rate",
            ),
        ] {
            if count > 0 {
                // Writing to a string cannot fail.
                let _ = write!(text, ", {} {description}", HumanCount(count));
            }
        }
        if let Some(reason) = &updates.reason {
            let _ = write!(text, " ({reason})");
        }
        text
    }

    fn resources(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Some(server) = &self.server {
            let cpu = format!(
                "{:.1}% of a core, {:.2} µs per delivery, {:.1} µs per update",
                server.cpu_percent, server.cpu_us_per_delivery, server.cpu_us_per_update
            );
            let memory = format!(
                "{} per connection, {} idle, {} peak",
                BinaryBytes(server.memory_per_connection_bytes as u64),
                BinaryBytes(server.memory_idle_bytes),
                BinaryBytes(server.memory_peak_bytes)
            );
            rows.extend([("hub CPU", cpu), ("hub memory", memory)]);
        }
        let (percent, micros) = (self.client.cpu_percent, self.client.cpu_us_per_delivery);
        rows.push((
            "load generator CPU",
            format!("{percent:.1}% of a core, {micros:.2} µs per delivery"),
        ));
        rows
    }

    fn check_results(&self) -> Vec<Row> {
        let (sockets, checks) = (&self.sockets, &self.checks);
        let mut rows = Vec::new();
        if sockets.failed > 0 {
            let reason = sockets.reason.as_deref().unwrap_or("unknown");
            rows.push((
                "failed connections",
                format!("{}, the first: {reason}", HumanCount(sockets.failed)),
            ));
        }
        let closed = |(code, count): (&u16, &u64)| {
            (
                "closed by the hub",
                format!("{} with {code}", HumanCount(*count)),
            )
        };
        rows.extend(sockets.closed.iter().map(closed));
        let violations = checks
            .by_kind
            .described()
            .into_iter()
            .filter(|(count, _)| *count > 0);
        rows.extend(
            violations.map(|(count, kind)| ("VIOLATION", format!("{} {kind}", HumanCount(count)))),
        );
        let result = if self.ok {
            format!(
                "passed: {} frames with increasing versions, {} sockets ended with the last version of each job",
                HumanCount(checks.frames),
                HumanCount(self.plan.sockets)
            )
        } else {
            format!("failed: {} violations", HumanCount(checks.violations))
        };
        rows.push(("result", result));
        rows
    }
}
