//! A run's figures as one page: nothing of it comes from elsewhere.
//!
//! Invariant: every text that is not drawn from numbers is escaped by the template.

use minijinja::{AutoEscape, Environment, context};
use serde::Serialize;

use super::chart::{Axis, Chart, Series};
use super::report::{LatencySummary, Report, Sample, rounded};
use super::text_report::{bytes, grouped, named, seconds};

const TEMPLATE: &str = include_str!("page.html");

/// The page could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the page's template fails: {0}")]
pub struct PageError(#[from] minijinja::Error);

#[derive(Serialize)]
struct Figure {
    title: &'static str,
    says: &'static str,
    /// Class and name of each line, where there is more than one.
    legend: Vec<(&'static str, &'static str)>,
    svg: String,
}

#[derive(Serialize)]
struct Tile {
    name: &'static str,
    value: String,
    unit: &'static str,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    says: &'static str,
    times: [String; 5],
    count: String,
}

impl Report {
    /// The page: HTML with its style and its charts in it.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn page(&self) -> Result<String, PageError> {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.add_template("page", TEMPLATE)?;
        let faults = named(&self.checks.faults);
        let faults = faults.into_iter().filter(|(count, _)| *count > 0);
        let faults: Vec<(String, &str)> = faults.map(|(n, what)| (grouped(n), what)).collect();
        Ok(environment.get_template("page")?.render(context! {
            report => self,
            started => self.started_at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            sockets => grouped(self.plan.sockets),
            jobs => grouped(self.plan.jobs),
            rate => self.plan.rate.to_string(),
            slow => rounded(self.plan.slow * 100.0).to_string(),
            churn => rounded(self.plan.churn * 100.0).to_string(),
            duration => seconds(self.plan.duration_seconds),
            frames => grouped(self.checks.frames),
            subscriptions => grouped(self.checks.subscriptions),
            violations => grouped(self.checks.violations),
            faults,
            tiles => self.tiles(),
            figures => self.figures(),
            rows => self.rows(),
            facts => self.facts(),
        })?)
    }

    fn tiles(&self) -> Vec<Tile> {
        let tile = |name, value, unit| Tile { name, value, unit };
        let mut tiles = vec![
            tile(
                "Deliveries",
                grouped(self.deliveries.per_second.round() as u64),
                "a second",
            ),
            tile("Latency p50", short(self.latency.p50_ms), "ms"),
            tile("Latency p99", short(self.latency.p99_ms), "ms"),
            tile("Latency p99.9", short(self.latency.p999_ms), "ms"),
        ];
        if let Some(server) = &self.server {
            tiles.push(tile(
                "Hub CPU",
                short(server.cpu_us_per_delivery),
                "µs a delivery",
            ));
            let kib = server.memory_per_connection_bytes / 1024.0;
            tiles.push(tile("Hub memory", short(kib), "KiB a connection"));
        }
        if let Some(storm) = &self.storm {
            tiles.push(tile(
                "Storm",
                short(storm.seconds),
                "s until all are current",
            ));
        }
        tiles
    }

    fn rows(&self) -> Vec<Row> {
        let storm = self.storm.as_ref().map(|storm| &storm.current);
        let spreads: [(&'static str, &'static str, Option<&LatencySummary>); 8] = [
            (
                "Update to socket",
                "from when it was due to its arrival",
                Some(&self.latency),
            ),
            (
                "To slow readers",
                "late by their own fault",
                Some(&self.slow_latency),
            ),
            (
                "Update to answer",
                "when the hub has it on disk",
                Some(&self.updates.answer),
            ),
            (
                "Due to sent",
                "this program's own part of the above",
                Some(&self.updates.delay),
            ),
            (
                "Handshake",
                "first packet to upgrade",
                Some(&self.sockets.handshake),
            ),
            (
                "First shown",
                "first packet to every job",
                Some(&self.sockets.first),
            ),
            (
                "Resume",
                "the same, coming back with versions",
                Some(&self.sockets.resume),
            ),
            ("Storm to current", "everybody back at once", storm),
        ];
        let spreads = spreads.into_iter();
        let known = spreads.filter_map(|(name, says, spread)| Some((name, says, spread?)));
        known
            .filter(|(_, _, spread)| spread.count > 0)
            .map(|(name, says, spread)| Row {
                name,
                says,
                times: [
                    spread.p50_ms,
                    spread.p90_ms,
                    spread.p99_ms,
                    spread.p999_ms,
                    spread.max_ms,
                ]
                .map(|time| format!("{time:.2}")),
                count: grouped(spread.count),
            })
            .collect()
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let (updates, sockets) = (&self.updates, &self.sockets);
        let mut facts = vec![
            ("Updates due", grouped(updates.due)),
            ("Updates applied", grouped(updates.applied)),
            ("Updates overtaken", grouped(updates.unchanged)),
            ("Updates failed", grouped(updates.failed)),
            ("Updates never sent", grouped(updates.unsent)),
            ("Deliveries", grouped(self.deliveries.count)),
            ("Bytes a second", bytes(self.deliveries.bytes_per_second)),
            ("Versions skipped", grouped(self.deliveries.skipped)),
            ("Handshakes", grouped(sockets.handshake.count)),
            ("Not connected", grouped(sockets.failed)),
            ("Closed by the hub", grouped(sockets.closed.values().sum())),
        ];
        if let Some(server) = &self.server {
            facts.extend([
                ("Hub CPU", format!("{:.1} % of a core", server.cpu_percent)),
                (
                    "Hub CPU, an update",
                    format!("{:.1} µs", server.cpu_us_per_update),
                ),
                ("Hub memory, idle", bytes(server.memory_idle_bytes as f64)),
                (
                    "Hub memory, at most",
                    bytes(server.memory_peak_bytes as f64),
                ),
            ]);
        }
        let own = format!("{:.1} % of a core", self.client.cpu_percent);
        facts.push(("Own CPU", own));
        facts
    }

    fn figures(&self) -> Vec<Figure> {
        let beats = &self.timeline;
        let mut figures = vec![
            self.by_percentile(),
            Figure {
                title: "Latency over time",
                says: "milliseconds from when an update was due to its arrival, logarithmic",
                legend: vec![("a", "p50"), ("b", "p99"), ("c", "slowest")],
                svg: over_time(
                    beats,
                    "latency over time",
                    Axis::log(
                        beats.iter().flat_map(|beat| [beat.p50_ms, beat.max_ms]),
                        milliseconds,
                    ),
                    vec![
                        ("a", false, |beat| Some(beat.p50_ms)),
                        ("b", false, |beat| Some(beat.p99_ms)),
                        ("c", false, |beat| Some(beat.max_ms)),
                    ],
                    |value| format!("{value:.2} ms"),
                ),
            },
            Figure {
                title: "Deliveries a second",
                says: "documents that arrived at sockets",
                legend: Vec::new(),
                svg: over_time(
                    beats,
                    "deliveries a second",
                    Axis::linear(highest(beats, |beat| beat.deliveries_per_second), thousands),
                    vec![("a", true, |beat| Some(beat.deliveries_per_second))],
                    |value| format!("{} a second", grouped(value.round() as u64)),
                ),
            },
        ];
        if self.server.is_some() {
            let cpu = |beat: &Sample| beat.cpu_percent.unwrap_or(0.0);
            let memory = |beat: &Sample| mebibytes(beat).unwrap_or(0.0);
            figures.push(Figure {
                title: "CPU of the hub",
                says: "per cent of one core",
                legend: Vec::new(),
                svg: over_time(
                    beats,
                    "CPU of the hub",
                    Axis::linear(highest(beats, cpu), |value| format!("{value} %")),
                    vec![("b", true, |beat| beat.cpu_percent)],
                    |value| format!("{value:.1} %"),
                ),
            });
            figures.push(Figure {
                title: "Memory of the hub",
                says: "resident MiB",
                legend: Vec::new(),
                svg: over_time(
                    beats,
                    "memory of the hub",
                    Axis::linear(highest(beats, memory), |value| format!("{value}")),
                    vec![("c", true, mebibytes)],
                    |value| format!("{value:.1} MiB"),
                ),
            });
        }
        figures
    }

    fn by_percentile(&self) -> Figure {
        // The share that is slower, by powers of ten; of so many times there is no finer one.
        let finest = (self.latency.count.max(10) as f64).log10().min(5.0);
        let points = self.percentiles.iter().map(|(share, time)| {
            let nines = if *share < 1.0 {
                -(1.0 - share).log10()
            } else {
                finest
            };
            (nines.max(0.0), *time)
        });
        let points: Vec<(f64, f64)> = points.filter(|(nines, _)| *nines <= finest).collect();
        let marks = [
            (0.301, "50 %"),
            (1.0, "90 %"),
            (2.0, "99 %"),
            (3.0, "99.9 %"),
            (4.0, "99.99 %"),
            (5.0, "99.999 %"),
        ];
        let marks = marks.map(|(at, text)| (at, text.to_owned())).to_vec();
        let chart = Chart {
            name: "latency by percentile",
            width: 1040.0,
            height: 260.0,
            x: Axis::marked(finest, marks),
            y: Axis::log(points.iter().map(|(_, time)| *time), milliseconds),
            series: vec![Series {
                class: "a",
                points,
                is_area: true,
                label: Box::new(|nines, time| {
                    let share = 100.0 * (1.0 - 10f64.powf(-nines));
                    format!("{share:.3} % within {time:.2} ms")
                }),
            }],
        };
        Figure {
            title: "Latency by percentile",
            says: "the share of deliveries that arrived within so many milliseconds of when their update was due",
            legend: Vec::new(),
            svg: chart.svg(),
        }
    }
}

type Read = fn(&Sample) -> Option<f64>;

fn over_time(
    beats: &[Sample],
    name: &'static str,
    y: Axis,
    lines: Vec<(&'static str, bool, Read)>,
    unit: fn(f64) -> String,
) -> String {
    let end = beats.last().map_or(1.0, |beat| beat.at);
    let series = lines.into_iter().map(|(class, is_area, read)| Series {
        class,
        points: beats
            .iter()
            .filter_map(|beat| Some((beat.at, read(beat)?)))
            .collect(),
        is_area,
        label: Box::new(move |at, value| format!("{at:.1} s: {}", unit(value))),
    });
    let chart = Chart {
        name,
        width: 500.0,
        height: 210.0,
        x: Axis::until(end, seconds),
        y,
        series: series.collect(),
    };
    chart.svg()
}

fn highest(beats: &[Sample], read: impl Fn(&Sample) -> f64) -> f64 {
    beats.iter().map(read).fold(0.0, f64::max)
}

fn mebibytes(beat: &Sample) -> Option<f64> {
    Some(beat.memory_bytes? as f64 / 1_048_576.0)
}

fn milliseconds(value: f64) -> String {
    format!("{value} ms")
}

fn thousands(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value if value >= 1e3 => format!("{} k", value / 1e3),
        value => format!("{value}"),
    }
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => grouped(value.round() as u64),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
