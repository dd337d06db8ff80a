//! Flags of `progress-hub load` and their validation.
//!
//! Invariant: no flag contains a secret, because all users of a machine can see the flags of a process.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Serialize, Serializer};
use url::Url;

use super::process::raise_open_file_limit;

/// Maximum sockets per source address. Linux has 28,232 ephemeral ports by default.
const MAX_SOCKETS_PER_SOURCE: u64 = 24_000;

/// Maximum number of source addresses, all of them in 127.0.0.0/24.
const MAX_SOURCES: u64 = 250;

/// Maximum padding in the `metadata` of a job. The hub accepts 2 KiB of JSON.
pub(super) const MAX_METADATA_BYTES: usize = 2000;

/// Maximum padding in the `stage` of an update. The hub keeps 200 characters, including the update's number.
const MAX_STAGE_BYTES: usize = 150;

/// Maximum padding. What exceeds `metadata` is sent in `stage`.
const MAX_PADDING_BYTES: usize = MAX_METADATA_BYTES + MAX_STAGE_BYTES;

/// Request by which updates are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateMethod {
    /// `POST /v1/jobs/{id}/updates`, as a worker sends it
    Push,
    /// Webhooks with an HMAC in `x-ai-signature`, for a provider with the definition `generic`
    Webhook,
    /// Standard Webhooks, for a provider with the definition `kling`
    StandardWebhook,
}

/// Flags of `progress-hub load`. Serialized, they are the plan of a report.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Arguments {
    /// Whether the hub was started for the run. Set by the run.
    #[arg(skip)]
    pub(super) own_hub: bool,
    /// Hub to test, such as http://127.0.0.1:8080 [default: a hub that is started for the run]
    #[arg(long, value_name = "URL", help_heading = "The hub")]
    pub url: Option<Url>,
    /// Allow a hub that is not on a loopback address
    #[arg(long, help_heading = "The hub")]
    #[serde(skip)]
    pub allow_remote: bool,
    /// Process id of the hub at --url, to report its CPU time and memory
    #[arg(long, value_name = "PID", requires = "url", help_heading = "The hub", value_parser = clap::value_parser!(u32).range(1..))]
    #[serde(skip)]
    pub pid: Option<u32>,

    /// WebSockets to open
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000, help_heading = "Sockets", value_parser = integer(1, 1_000_000))]
    pub sockets: u64,
    /// Jobs that each socket subscribes to, distributed evenly
    #[arg(long, short = 's', value_name = "N", default_value_t = 1, help_heading = "Sockets", value_parser = integer(1, 100_000))]
    pub subscriptions: u64,
    /// Time over which the sockets are opened
    #[arg(long, value_name = "TIME", default_value = "1s", help_heading = "Sockets", value_parser = duration)]
    #[serde(rename = "ramp_seconds", serialize_with = "seconds")]
    pub ramp: Duration,
    /// Share of the sockets that disconnect and reconnect every second
    #[arg(long, value_name = "PERCENT", default_value = "0%", help_heading = "Sockets", value_parser = share)]
    pub churn: f64,
    /// Share of slow clients, which read all available data and then pause for --slow-read-pause
    #[arg(long, value_name = "PERCENT", default_value = "0%", help_heading = "Sockets", value_parser = share)]
    pub slow: f64,
    /// Time for which a slow client does not read
    #[arg(long, value_name = "TIME", default_value = "2s", help_heading = "Sockets", value_parser = duration)]
    #[serde(rename = "slow_read_pause_seconds", serialize_with = "seconds")]
    pub slow_read_pause: Duration,
    /// After the updates, close all sockets at once, change every job, and reconnect
    #[arg(long, help_heading = "Sockets")]
    pub reconnect_storm: bool,
    /// Maximum concurrent WebSocket handshakes
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Sockets", value_parser = integer(1, 100_000))]
    pub handshakes: u64,
    /// Loopback addresses to connect from, 127.0.0.1 and up [default: as many as the ports require]
    #[arg(long, value_name = "N", help_heading = "Sockets", value_parser = integer(1, MAX_SOURCES))]
    pub sources: Option<u64>,
    /// Threads for the sockets
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Sockets", value_parser = integer(1, 64))]
    pub threads: u64,

    /// Jobs to register and to update in turn
    #[arg(long, short = 'j', value_name = "N", default_value_t = 100, help_heading = "Updates", value_parser = integer(1, 1_000_000))]
    pub jobs: u64,
    /// Updates per second, on a schedule that does not wait for responses
    #[arg(long, short = 'r', value_name = "N", default_value_t = 100.0, help_heading = "Updates", value_parser = rate)]
    pub rate: f64,
    /// Time for which updates are sent
    #[arg(long, short = 'd', value_name = "TIME", default_value = "10s", help_heading = "Updates", value_parser = duration)]
    #[serde(rename = "duration_seconds", serialize_with = "seconds")]
    pub duration: Duration,
    /// Request by which updates are sent
    #[arg(
        long,
        value_name = "METHOD",
        default_value = "push",
        help_heading = "Updates"
    )]
    pub by: UpdateMethod,
    /// Provider of the webhooks, by its name in the hub's configuration
    #[arg(
        long,
        value_name = "NAME",
        default_value = "load",
        help_heading = "Updates"
    )]
    pub provider: String,
    /// Maximum concurrent requests, each on its own connection
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Updates", value_parser = integer(1, 10_000))]
    pub connections: u64,
    /// Padding of each job document: up to 2000 bytes in metadata, the rest in stage
    #[arg(long, value_name = "BYTES", default_value_t = 0, help_heading = "Updates", value_parser = integer(0, u32::MAX.into()))]
    pub padding: u64,

    /// Time that sockets may take to become current at the start, after a storm and at the end
    #[arg(long, value_name = "TIME", default_value = "30s", help_heading = "Results", value_parser = duration)]
    #[serde(rename = "timeout_seconds", serialize_with = "seconds")]
    pub timeout: Duration,
    /// Write the results as JSON; `-` prints them instead of the table
    #[arg(long, value_name = "FILE|-", help_heading = "Results")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
    /// Write the results as an HTML page with charts
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    #[serde(skip)]
    pub html: Option<PathBuf>,
}

/// Ports used per source address by default. Linux searches long for a free port if most of them are in use.
const PORTS_PER_SOURCE: f64 = 8_000.0;

/// Time for which Linux keeps the port of a closed connection (TIME_WAIT).
const TIME_WAIT_SECONDS: f64 = 60.0;

/// All errors in the flags, one per line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ArgumentErrors(Vec<String>);

impl ArgumentErrors {
    /// Creates a single error.
    pub fn one(message: impl Into<String>) -> Self {
        Self(vec![message.into()])
    }
}

impl Arguments {
    /// Returns whether updates are sent as webhooks.
    pub fn is_by_webhook(&self) -> bool {
        self.by != UpdateMethod::Push
    }

    /// Returns the number of source addresses. Each socket needs a port, and so does each socket that was closed
    /// within the last minute.
    pub fn sources(&self) -> u64 {
        let storm = if self.reconnect_storm { 1.0 } else { 0.0 };
        let ports = self.sockets as f64 * (1.0 + storm + self.churn * TIME_WAIT_SECONDS);
        let needed = (ports / PORTS_PER_SOURCE).ceil() as u64;
        self.sources.unwrap_or(needed.clamp(1, MAX_SOURCES))
    }

    /// Returns the number of updates in the schedule.
    pub fn update_count(&self) -> u64 {
        ((self.rate * self.duration.as_secs_f64()) as u64).max(1)
    }

    /// Validates combinations of flags, and raises the open-file limit to the number that the run needs.
    ///
    /// # Errors
    /// All invalid combinations, or an open-file limit that is too low.
    pub fn check(&self) -> Result<(), ArgumentErrors> {
        let (subscriptions, jobs) = (self.subscriptions, self.jobs);
        let (padding, sockets, sources) = (self.padding, self.sockets, self.sources());
        let stage = (padding as usize).saturating_sub(MAX_METADATA_BYTES);
        let mut errors = Vec::new();
        if subscriptions > jobs {
            errors.push(format!(
                "--subscriptions {subscriptions}: must not exceed --jobs {jobs}"
            ));
        }
        if stage > MAX_STAGE_BYTES {
            errors.push(format!("--padding {padding}: at most {MAX_PADDING_BYTES}"));
        } else if stage > 0 && self.by == UpdateMethod::StandardWebhook {
            errors.push(format!(
                "--padding {padding}: at most {MAX_METADATA_BYTES} with --by standard-webhook"
            ));
        }
        if self.duration.is_zero() {
            errors.push("--duration: must be greater than 0".to_owned());
        }
        if sockets > sources * MAX_SOCKETS_PER_SOURCE {
            errors.push(format!(
                "--sources {sources}: {sockets} sockets need one per {MAX_SOCKETS_PER_SOURCE}"
            ));
        }
        let files = sockets + self.connections + 16 * self.threads + 64;
        if errors.is_empty()
            && let Err(limit) = raise_open_file_limit(files)
        {
            errors.push(format!(
                "--sockets {sockets}: needs {files} open files, but the limit is {limit}; raise it with 'ulimit -n'"
            ));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(ArgumentErrors(errors))
        }
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn integer(min: u64, max: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(min..=max)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok();
    let rate = rate.filter(|rate| (0.01..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "must be 0.01 to 1000000".to_owned())
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
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(flags: &str) -> Result<Arguments, String> {
        let words = std::iter::once("load").chain(flags.split_whitespace());
        Cli::try_parse_from(words)
            .map(|cli| cli.arguments)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn out_of_range_value_error_states_the_range() {
        for (flags, expected) in [
            ("--sockets 0", "1..=1000000"),
            ("--churn 101%", "0% to 100%"),
            ("--rate fast", "0.01 to 1000000"),
            ("--ramp soon", "500ms, 15s"),
            ("--by pigeon", "standard-webhook"),
            ("--pid 1", "--url"),
        ] {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(expected), "{flags}: {error}");
        }
    }

    #[test]
    fn conflicting_flags_are_reported_together() {
        let arguments = parse("--jobs 2 -s 3 --padding 3000 --sources 1 -n 60000").unwrap();
        let error = arguments.check().unwrap_err().to_string();
        for flag in ["--subscriptions 3", "--padding 3000", "--sources 1"] {
            assert!(error.contains(flag), "{error}");
        }
        assert_eq!(error.lines().count(), 3);
        assert!(parse("").unwrap().check().is_ok());
    }

    #[test]
    fn time_wait_ports_are_included_in_the_port_budget() {
        assert_eq!(parse("").unwrap().sources(), 1);
        assert_eq!(parse("-n 18000").unwrap().sources(), 3);
        assert_eq!(parse("-n 18000 --reconnect-storm").unwrap().sources(), 5);
        assert_eq!(parse("-n 18000 --churn 5%").unwrap().sources(), 9);
        assert_eq!(
            parse("-n 18000 --reconnect-storm --sources 1")
                .unwrap()
                .sources(),
            1
        );
    }
}
