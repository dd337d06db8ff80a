//! The table that is printed: ratios, with where and how they came to be.
//!
//! Invariant: a ratio is to the floor of the same round; what is shown of several rounds is their
//! median, and beside it the least and the most.

use std::fmt::Write;
use std::fs;

/// The median of the rounds, and the least and the most.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Half are below.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these; none of none.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&least, &most) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self {
            median,
            least,
            most,
        })
    }

    /// As a ratio with its range.
    pub fn ratio(self) -> String {
        format!("{:.2} × ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}

/// A table in Markdown.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|", head.join(" | "));
    for at in 0..head.len() {
        text.push_str(if at == 0 { "---|" } else { "---:|" });
    }
    text.push('\n');
    for row in rows {
        // Writing to a String can't fail.
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// The machine, in a line.
pub fn machine() -> String {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = about.lines().find(|line| line.starts_with("model name"));
    let model = named
        .and_then(|line| line.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = about
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let version = kernel
        .split(['-', '+'])
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    format!("{cores} cores of {model}, Linux {version}")
}

/// Today, in UTC.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}
