//! What a run is asked to be: the flags of `progress-hub load`, and what can be wrong with them.
//!
//! Invariant: no secret is among them; flags are seen by every process of the machine.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use url::Url;

use super::target::{MAX_PER_SOURCE, MAX_SOURCES};

/// The most bytes of padding that a job's `metadata` carries; the hub takes 2 KiB of JSON there.
pub(super) const MAX_METADATA: usize = 2000;

/// The most bytes of it in the stage of a push; the hub takes 200, and the update's name is among them.
const MAX_PUSHED: usize = 150;

/// The most bytes of padding in all; what does not fit into `metadata` becomes the job's `stage`.
const MAX_PADDING: usize = 64 * 1024;

/// How a run's updates reach the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateMethod {
    /// A worker's `POST /v1/jobs/{id}/updates`
    Push,
    /// Webhooks that are signed with an HMAC in `x-ai-signature`, as the spec `generic` reads them
    Webhook,
    /// Standard Webhooks, as the spec `kling` reads them
    StandardWebhook,
}

/// The flags of `progress-hub load`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The hub to drive, as http://127.0.0.1:8080; without it one is started for the run
    #[arg(long, value_name = "URL", help_heading = "The hub")]
    pub url: Option<Url>,
    /// Drive a hub that is not on this machine's loopback
    #[arg(long, help_heading = "The hub")]
    pub allow_remote: bool,
    /// The hub's process, where it runs on this machine, to tell its CPU time and memory
    #[arg(
        long,
        value_name = "PID",
        requires = "url",
        help_heading = "The hub",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub pid: Option<u32>,

    /// WebSockets to hold open
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000, help_heading = "Sockets", value_parser = whole(1, 1_000_000))]
    pub sockets: u64,
    /// Jobs that each socket watches; neighbours watch neighbouring jobs, so all jobs are watched evenly
    #[arg(long, short = 's', value_name = "N", default_value_t = 1, help_heading = "Sockets", value_parser = whole(1, 100_000))]
    pub subscriptions: u64,
    /// How long the sockets take to open, evenly spread
    #[arg(long, value_name = "TIME", default_value = "1s", help_heading = "Sockets", value_parser = duration)]
    pub ramp: Duration,
    /// Share of the sockets that leave and come back each second
    #[arg(long, value_name = "PERCENT", default_value = "0%", help_heading = "Sockets", value_parser = share)]
    pub churn: f64,
    /// Share of the sockets that read slowly: all there is, then nothing for --slow-pause
    #[arg(long, value_name = "PERCENT", default_value = "0%", help_heading = "Sockets", value_parser = share)]
    pub slow: f64,
    /// How long a slow reader does not read
    #[arg(long, value_name = "TIME", default_value = "2s", help_heading = "Sockets", value_parser = duration)]
    pub slow_pause: Duration,
    /// When the updates are over, close all sockets at once, change every job, and reconnect
    #[arg(long, help_heading = "Sockets")]
    pub storm: bool,
    /// Handshakes under way at once, a storm's too
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Sockets", value_parser = whole(1, 100_000))]
    pub handshakes: u64,
    /// Loopback addresses to connect from, 127.0.0.1 and up; by default as many as the ports need
    #[arg(long, value_name = "N", help_heading = "Sockets", value_parser = whole(1, MAX_SOURCES))]
    pub sources: Option<u64>,
    /// Threads that the sockets are spread over
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Sockets", value_parser = whole(1, 64))]
    pub threads: u64,

    /// Jobs to register and update in turn
    #[arg(long, short = 'j', value_name = "N", default_value_t = 100, help_heading = "Updates", value_parser = whole(1, 1_000_000))]
    pub jobs: u64,
    /// Updates a second, by a schedule that waits for no answer
    #[arg(long, short = 'r', value_name = "N", default_value_t = 100.0, help_heading = "Updates", value_parser = rate)]
    pub rate: f64,
    /// How long the updates go on
    #[arg(long, short = 'd', value_name = "TIME", default_value = "10s", help_heading = "Updates", value_parser = duration)]
    pub duration: Duration,
    /// How updates reach the hub
    #[arg(
        long,
        value_name = "WAY",
        default_value = "push",
        help_heading = "Updates"
    )]
    pub by: UpdateMethod,
    /// The provider that webhooks come from, as the hub's configuration names it
    #[arg(
        long,
        value_name = "NAME",
        default_value = "load",
        help_heading = "Updates"
    )]
    pub provider: String,
    /// Connections that updates are sent over, each with one request under way
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Updates", value_parser = whole(1, 10_000))]
    pub connections: u64,
    /// Bytes that each document is padded by: 2000 in its metadata, what is more in its stage
    #[arg(long, value_name = "BYTES", default_value_t = 0, help_heading = "Updates", value_parser = whole(0, MAX_PADDING as u64))]
    pub padding: u64,

    /// How long the sockets may take to be current at the start, after a storm, and at the end
    #[arg(long, value_name = "TIME", default_value = "30s", help_heading = "Results", value_parser = duration)]
    pub timeout: Duration,
    /// Write the figures as JSON; `-` prints them instead of the table
    #[arg(long, value_name = "FILE|-", help_heading = "Results")]
    pub json: Option<PathBuf>,
    /// Write one page with the charts
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub html: Option<PathBuf>,
}

/// How many ports of a source address are used unless fewer addresses are asked for: where most are
/// taken, Linux searches long for one that is not.
const ROOMY_PER_SOURCE: f64 = 8_000.0;

/// What is wrong with the flags, all of it.
#[derive(Debug, thiserror::Error)]
pub struct ArgumentErrors(Vec<String>);

impl ArgumentErrors {
    /// One mistake.
    pub fn one(text: impl Into<String>) -> Self {
        Self(vec![text.into()])
    }
}

impl fmt::Display for ArgumentErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl Arguments {
    /// Whether updates come as webhooks.
    pub fn is_by_webhook(&self) -> bool {
        match self.by {
            UpdateMethod::Push => false,
            UpdateMethod::Webhook | UpdateMethod::StandardWebhook => true,
        }
    }

    /// How many source addresses the sockets need: each has a port for every socket that is open or
    /// was closed within the last minute.
    pub fn sources(&self) -> u64 {
        let twice = if self.storm { 2.0 } else { 1.0 };
        let ports = self.sockets as f64 * (twice + self.churn * 60.0);
        let needed = (ports / ROOMY_PER_SOURCE).ceil() as u64;
        self.sources.unwrap_or(needed.clamp(1, MAX_SOURCES))
    }

    /// How many open files the run takes.
    pub fn files(&self) -> u64 {
        self.sockets + self.connections + 16 * self.threads + 64
    }

    /// How many updates the schedule has.
    pub fn updates(&self) -> u64 {
        ((self.rate * self.duration.as_secs_f64()) as u64).max(1)
    }

    /// Checks what one flag means for another.
    ///
    /// # Errors
    /// All [`Mistakes`] there are.
    pub fn check(&self) -> Result<(), ArgumentErrors> {
        let mut wrong = Vec::new();
        let mut no = |is_wrong: bool, text: String| wrong.extend(is_wrong.then_some(text));
        no(
            self.subscriptions > self.jobs,
            format!(
                "--subscriptions {}: a socket can't watch more jobs than --jobs {}",
                self.subscriptions, self.jobs
            ),
        );
        let stage = (self.padding as usize).saturating_sub(MAX_METADATA);
        no(
            stage > MAX_PUSHED && self.by == UpdateMethod::Push,
            format!(
                "--padding {}: a push carries at most {}; --by webhook carries more",
                self.padding,
                MAX_METADATA + MAX_PUSHED
            ),
        );
        no(
            stage > 0 && self.by == UpdateMethod::StandardWebhook,
            format!(
                "--padding {}: the spec 'kling' reads no stage, so at most {MAX_METADATA}",
                self.padding
            ),
        );
        no(
            self.duration.is_zero(),
            "--duration: must be more than 0".to_owned(),
        );
        no(
            self.sockets > self.sources() * MAX_PER_SOURCE,
            format!(
                "--sources {}: {} sockets need one for each {MAX_PER_SOURCE}",
                self.sources(),
                self.sockets
            ),
        );
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(ArgumentErrors(wrong))
        }
    }
}

fn whole(least: u64, most: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=most)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    let rate = rate.filter(|rate| (0.01..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "must be 0.01 to 1000000 a second".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let percent: Option<f64> = text.strip_suffix('%').unwrap_or(text).parse().ok();
    let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
    let percent = percent.ok_or_else(|| "must be 0% to 100%".to_owned())?;
    Ok(percent / 100.0)
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = jiff::fmt::friendly::SpanParser::new().parse_unsigned_duration(text);
    let day = Duration::from_secs(24 * 60 * 60);
    let parsed = parsed.ok().filter(|duration| *duration <= day);
    parsed.ok_or_else(|| "must be a duration such as 500ms, 15s or 1m30s, at most 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn read(flags: &str) -> Result<Arguments, String> {
        let words = std::iter::once("load").chain(flags.split_whitespace());
        Line::try_parse_from(words)
            .map(|line| line.arguments)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_value_out_of_its_range_is_refused_with_what_it_must_be() {
        for (flags, told) in [
            ("--sockets 0", "1..=1000000"),
            ("--churn 101%", "0% to 100%"),
            ("--rate fast", "0.01 to 1000000"),
            ("--ramp soon", "500ms, 15s"),
            ("--by pigeon", "standard-webhook"),
            ("--pid 1", "--url"),
        ] {
            let error = read(flags).unwrap_err();
            assert!(error.contains(told), "{flags}: {error}");
        }
    }

    #[test]
    fn conflicting_flags_are_reported_together() {
        let arguments = read("--jobs 2 -s 3 --padding 3000 --sources 1 -n 60000").unwrap();
        let told = arguments.check().unwrap_err().to_string();
        for flag in ["--subscriptions 3", "--padding 3000", "--sources 1"] {
            assert!(told.contains(flag), "{told}");
        }
        assert_eq!(told.lines().count(), 3);
        assert!(read("").unwrap().check().is_ok());
    }

    #[test]
    fn time_wait_ports_are_included_in_the_port_budget() {
        assert_eq!(read("").unwrap().sources(), 1);
        assert_eq!(read("-n 18000").unwrap().sources(), 3);
        assert_eq!(read("-n 18000 --storm").unwrap().sources(), 5);
        assert_eq!(read("-n 18000 --churn 5%").unwrap().sources(), 9);
        assert_eq!(read("-n 18000 --storm --sources 1").unwrap().sources(), 1);
    }
}
