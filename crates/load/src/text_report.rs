//! A run's figures for a terminal.
//!
//! Invariant: a figure that was not measured is left out rather than shown as nothing.

use std::fmt::Write;

use super::report::{LatencySummary, Report};
use super::stats::Violations;

impl Report {
    /// The figures as a table, with the verdict last.
    pub fn table(&self) -> String {
        let mut table = Table(String::new());
        self.traffic(&mut table);
        self.times(&mut table);
        self.costs(&mut table);
        self.verdict(&mut table);
        table.0
    }

    fn traffic(&self, table: &mut Table) {
        let (plan, updates, deliveries) = (&self.plan, &self.updates, &self.deliveries);
        table.head("traffic", "");
        table.row(
            "asked for",
            &format!(
                "{} sockets × {} of {} jobs, {} updates/s for {}",
                grouped(plan.sockets),
                plan.subscriptions,
                grouped(plan.jobs),
                plan.rate,
                seconds(plan.duration_seconds)
            ),
        );
        let mut told = format!(
            "{} applied, {:.0}/s",
            grouped(updates.applied),
            updates.per_second
        );
        for (count, what) in [
            (updates.unchanged, "overtaken"),
            (updates.failed, "failed"),
            (
                updates.unsent,
                "never sent: more --connections, or less --rate",
            ),
        ] {
            if count > 0 {
                let _ = write!(told, ", {} {what}", grouped(count));
            }
        }
        if let Some(reason) = &updates.reason {
            let _ = write!(told, " ({reason})");
        }
        table.row("updates", &told);
        table.row(
            "deliveries",
            &format!(
                "{}, {}/s, {}/s; {} versions skipped",
                grouped(deliveries.count),
                grouped(deliveries.per_second.round() as u64),
                bytes(deliveries.bytes_per_second),
                grouped(deliveries.skipped)
            ),
        );
    }

    fn times(&self, table: &mut Table) {
        let columns = ["p50", "p90", "p99", "p99.9", "max"].map(|name| format!("{name:>10}"));
        table.head("times in ms", &columns.concat());
        table.spread("update to socket", &self.latency);
        table.spread("to slow readers", &self.slow_latency);
        table.spread("update to answer", &self.updates.answer);
        table.spread("due to sent", &self.updates.delay);
        table.spread("handshake", &self.sockets.handshake);
        table.spread("first shown", &self.sockets.first);
        table.spread("resume", &self.sockets.resume);
        if let Some(storm) = &self.storm {
            table.spread("storm to current", &storm.current);
        }
    }

    fn costs(&self, table: &mut Table) {
        table.head("cost", "");
        if let Some(server) = &self.server {
            table.row(
                "hub, CPU",
                &format!(
                    "{:.1} % of a core, {:.2} µs a delivery, {:.1} µs an update",
                    server.cpu_percent, server.cpu_us_per_delivery, server.cpu_us_per_update
                ),
            );
            table.row(
                "hub, memory",
                &format!(
                    "{} a connection, {} idle, {} at most",
                    bytes(server.memory_per_connection_bytes),
                    bytes(server.memory_idle_bytes as f64),
                    bytes(server.memory_peak_bytes as f64)
                ),
            );
        }
        table.row(
            "this program",
            &format!(
                "{:.1} % of a core, {:.2} µs a delivery",
                self.client.cpu_percent, self.client.cpu_us_per_delivery
            ),
        );
    }

    fn verdict(&self, table: &mut Table) {
        table.head("checks", "");
        let sockets = &self.sockets;
        if sockets.failed > 0 {
            let reason = sockets.reason.as_deref().unwrap_or("unknown");
            let failed = grouped(sockets.failed);
            table.row(
                "not connected",
                &format!("{failed} times, at first: {reason}"),
            );
        }
        for (code, count) in &sockets.closed {
            table.row("closed by hub", &format!("{} with {code}", grouped(*count)));
        }
        for (count, what) in named(&self.checks.faults) {
            if count > 0 {
                table.row("WRONG", &format!("{} {what}", grouped(count)));
            }
        }
        let (checks, plan) = (&self.checks, &self.plan);
        let verdict = match self.ok {
            true => format!(
                "ok: {} frames in rising versions, {} sockets ended on the last of each job",
                grouped(checks.frames),
                grouped(plan.sockets)
            ),
            false => format!("{} violations", grouped(checks.violations)),
        };
        table.row("verdict", &verdict);
    }
}

/// Each fault with what it means.
pub(super) fn named(faults: &Violations) -> [(u64, &'static str); 7] {
    [
        (faults.backwards, "frames whose version did not rise"),
        (faults.strangers, "frames of jobs that were not subscribed"),
        (faults.malformed, "frames that are no message"),
        (faults.refused, "subscriptions refused, or errors told"),
        (
            faults.behind,
            "subscriptions that did not get the last version",
        ),
        (
            faults.ahead,
            "subscriptions with a version that the hub never had",
        ),
        (faults.unended, "ends that are missing or no ends"),
    ]
}

struct Table(String);

impl Table {
    fn head(&mut self, name: &str, columns: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.0, "{gap}{name:<18}{columns}");
    }

    fn row(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.0, "  {name:<16}{text}");
    }

    fn spread(&mut self, name: &str, spread: &LatencySummary) {
        if spread.count == 0 {
            return;
        }
        let times = [
            spread.p50_ms,
            spread.p90_ms,
            spread.p99_ms,
            spread.p999_ms,
            spread.max_ms,
        ];
        self.row(name, &times.map(|time| format!("{time:>10.2}")).concat());
    }
}

/// A number that is read at a glance.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn bytes(count: f64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut count = count;
    let mut unit = 0;
    while count >= 1024.0 && unit < UNITS.len() - 1 {
        count /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0);
    format!("{count:.digits$} {}", UNITS[unit])
}

pub(super) fn seconds(seconds: f64) -> String {
    format!("{} s", (seconds * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(bytes(900.0), "900 B");
        assert_eq!(bytes(3.5 * 1024.0 * 1024.0), "3.5 MiB");
        assert_eq!(seconds(10.0), "10 s");
    }
}
