//! Results as a table for a terminal and as one self-contained HTML page. Both show the same rows. Values that were not
//! measured are omitted.

use anyhow::Result;
use indicatif::{BinaryBytes, HumanCount};
use minijinja::{Environment, context};

use super::report::Report;
use super::stats::{COLUMNS, Latencies, rounded};

/// Width of the label column of the table.
const LABEL_WIDTH: usize = 26;

/// Title of a section, and label and text of each of its rows.
type Section = (String, Vec<(String, String)>);

impl Report {
    /// Returns the results as a table, with the result of the checks last.
    ///
    /// # Errors
    /// The rows cannot be rendered.
    pub fn table(&self) -> Result<String> {
        let mut text = String::new();
        for (title, rows) in self.sections(&environment()?)? {
            if !text.is_empty() {
                text.push('\n');
            }
            text += &format!("{title}\n");
            for (label, row) in rows {
                text += &format!("  {label:<LABEL_WIDTH$}{row}\n");
            }
            if title == "traffic" {
                text += &self.latency_table();
            }
        }
        Ok(text)
    }

    fn latency_table(&self) -> String {
        let heading = COLUMNS.map(|(_, name, _)| format!("{name:>10}")).concat();
        let mut text = format!("\n{:<LABEL_WIDTH$}  {heading}\n", "latency in ms");
        for (label, _, latencies) in self.latencies() {
            let row = latencies.columns().map(|ms| format!("{ms:>10.2}")).concat();
            text += &format!("  {label:<LABEL_WIDTH$}{row}\n");
        }
        text
    }

    /// Returns the results as an HTML page. The template escapes all text.
    ///
    /// # Errors
    /// The page cannot be rendered, or a chart cannot be drawn.
    pub fn page(&self) -> Result<String> {
        let environment = environment()?;
        let latencies = self
            .latencies()
            .into_iter()
            .map(|(label, description, latencies)| {
                (label, description, latencies.columns(), latencies.count())
            });
        Ok(environment.get_template("page.html")?.render(context! {
            report => self,
            started => self.started_at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            charts => self.charts()?,
            columns => COLUMNS.map(|(_, name, _)| name),
            latencies => latencies.collect::<Vec<_>>(),
            sections => self.sections(&environment)?,
        })?)
    }

    /// Returns all rows other than latencies.
    fn sections(&self, environment: &Environment<'_>) -> Result<Vec<Section>> {
        let violations = self.checks.by_kind.described();
        let context = context! { report => self, violations };
        let rows = environment.get_template("rows.txt")?.render(context)?;
        let mut sections: Vec<Section> = Vec::new();
        for line in rows.lines() {
            match (line.split_once('\t'), sections.last_mut()) {
                (Some((label, text)), Some((_, rows))) => {
                    rows.push((label.to_owned(), text.to_owned()));
                }
                _ => sections.push((line.to_owned(), Vec::new())),
            }
        }
        Ok(sections)
    }

    /// Returns all latencies that were recorded at least once, with label and description.
    fn latencies(&self) -> Vec<(&'static str, &'static str, &Latencies)> {
        let (updates, sockets) = (&self.updates.stats, &self.sockets);
        let mut latencies = vec![
            ("update to socket", "due time to arrival", &self.latency),
            ("slow clients", "due time to arrival", &self.slow_latency),
            (
                "update to response",
                "due time to HTTP response",
                &updates.response,
            ),
            (
                "scheduling delay",
                "due time to send time",
                &updates.scheduling_delay,
            ),
            ("handshake", "first packet to WebSocket", &sockets.handshake),
            (
                "initial sync",
                "first packet to current",
                &sockets.initial_sync,
            ),
            ("resume", "reconnect to current", &sockets.resume),
        ];
        latencies.extend(self.storm.iter().map(|storm| {
            (
                "reconnect-storm recovery",
                "start to current",
                &storm.recovery,
            )
        }));
        latencies.retain(|(_, _, latencies)| latencies.count() > 0);
        latencies
    }
}

/// Returns the templates, and filters that format numbers.
fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.add_filter("grouped", |number: f64| {
        HumanCount(number.round() as u64).to_string()
    });
    environment.add_filter("number", |number: f64| rounded(number).to_string());
    environment.add_filter("fixed", |number: f64, digits: usize| {
        format!("{number:.digits$}")
    });
    environment.add_filter("bytes", |number: f64| {
        BinaryBytes(number as u64).to_string()
    });
    environment.add_template("page.html", include_str!("page.html"))?;
    environment.add_template("rows.txt", include_str!("rows.txt"))?;
    Ok(environment)
}
