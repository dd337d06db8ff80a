//! Hints of a response about retrying: how long to wait, and whether a retry can succeed.

use std::sync::LazyLock;
use std::time::Duration;

use regex_lite::Regex;

use super::http::Response;
use crate::time::Time;

/// Longest delay that a hint can request, in seconds.
const MAX_DELAY_SECONDS: f64 = 3600.0;

/// A rate limit reset above this value is a Unix time. A smaller one is a number of seconds.
const UNIX_TIME_THRESHOLD: f64 = 1e9;

/// A delay in prose such as "Your limit resets in ~30s" or "please try again in 1.5 minutes".
#[expect(clippy::expect_used, reason = "the constant is valid")]
static DELAY_IN_PROSE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?ix)
        (?: resets? \x20 in | try \x20 again \x20 in | retry \x20 in | retry \x20 after )
        \s* (?: about \s )? ~? \s* ( [\d.]+ ) \s*
        (?: (ms|milliseconds?) | (s|secs?|seconds?) | (m|mins?|minutes?) ) \b",
    )
    .expect("valid pattern")
});

/// Returns how long the provider asks to wait. Sources in order of precedence: `retry-after-ms`,
/// `Retry-After` in seconds or as a date, `ratelimit-reset` and `x-ratelimit-reset` in seconds or
/// as a Unix time, and prose in the body (Replicate).
pub(super) fn delay(response: &Response, now: Time) -> Option<Duration> {
    let number = |name| response.header(name)?.parse().ok();
    let reset = |name| {
        let reset: f64 = number(name)?;
        if reset > UNIX_TIME_THRESHOLD {
            Some(seconds_until(reset, now))
        } else {
            Some(reset)
        }
    };
    let date = |name| {
        let date = httpdate::parse_http_date(response.header(name)?).ok()?;
        let unix_time = date.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(seconds_until(unix_time.as_secs_f64(), now))
    };
    let seconds = number("retry-after-ms")
        .map(|millis| millis / 1000.0)
        .or_else(|| number("retry-after"))
        .or_else(|| date("retry-after"))
        .or_else(|| reset("ratelimit-reset"))
        .or_else(|| reset("x-ratelimit-reset"))
        .or_else(|| delay_in_prose(&response.text()))?;
    let is_valid = seconds.is_finite() && seconds >= 0.0;
    is_valid.then(|| Duration::from_secs_f64(seconds.min(MAX_DELAY_SECONDS)))
}

/// Returns whether the provider states that a retry can succeed: `X-Fal-Retryable`, or
/// `x-should-retry`, which the SDKs of several providers read.
pub(super) fn is_retryable(response: &Response) -> Option<bool> {
    ["x-fal-retryable", "x-should-retry"]
        .into_iter()
        .filter_map(|name| response.header(name))
        .find_map(|value| value.to_ascii_lowercase().parse().ok())
}

#[expect(clippy::cast_precision_loss, reason = "current times fit exactly")]
fn seconds_until(unix_time: f64, now: Time) -> f64 {
    (unix_time - now.millis() as f64 / 1000.0).max(0.0)
}

fn delay_in_prose(text: &str) -> Option<f64> {
    let captures = DELAY_IN_PROSE.captures(text)?;
    let number: f64 = captures[1].parse().ok()?;
    let unit = [(2, 0.001), (3, 1.0), (4, 60.0)];
    let unit = unit
        .iter()
        .find(|(group, _)| captures.get(*group).is_some());
    unit.map(|(_, seconds)| number * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delay_seconds(headers: &[(&'static str, &str)], body: &str) -> Option<f64> {
        let response = Response::for_test(429, body);
        let response = headers.iter().fold(response, |response, (name, value)| {
            response.with_header(name, value)
        });
        let now = Time::from_millis(1_795_428_000_000);
        delay(&response, now).map(|delay| delay.as_secs_f64())
    }

    #[test]
    fn retry_delay_is_read_from_all_known_headers() {
        for (headers, expected) in [
            (
                &[("retry-after-ms", "1500"), ("retry-after", "9")][..],
                Some(1.5),
            ),
            (&[("retry-after", "9"), ("ratelimit-reset", "4")], Some(9.0)),
            (&[("retry-after", "0.5")], Some(0.5)),
            (&[("ratelimit-reset", "4")], Some(4.0)),
            (&[("x-ratelimit-reset", "4")], Some(4.0)),
            (&[("x-ratelimit-reset", "1795428020")], Some(20.0)),
            (&[("ratelimit-reset", "1795427000")], Some(0.0)),
            (
                &[("retry-after", "Mon, 23 Nov 2026 10:01:00 GMT")],
                Some(60.0),
            ),
            (
                &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")],
                Some(0.0),
            ),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "1e300")], Some(MAX_DELAY_SECONDS)),
            (&[], None),
        ] {
            assert_eq!(delay_seconds(headers, ""), expected, "{headers:?}");
        }
    }

    #[test]
    fn retry_delay_is_parsed_from_prose() {
        for (body, expected) in [
            ("Your rate limit resets in ~30s.", Some(30.0)),
            (r#"{"detail": "Limit Resets In 5 seconds"}"#, Some(5.0)),
            ("resets in ~ 250ms", Some(0.25)),
            ("Please try again in 20s.", Some(20.0)),
            ("try again in 1.5 minutes", Some(90.0)),
            ("try again in about 2 m", Some(120.0)),
            ("try again in 20", None),
            ("try again in 2 moons", None),
            ("try again in a minute", None),
            ("try again later", None),
        ] {
            assert_eq!(delay_seconds(&[], body), expected, "{body}");
        }
    }

    #[test]
    fn retry_headers_accept_true_and_false() {
        let retryable = |name, value| {
            let response = Response::for_test(500, "");
            is_retryable(&response.with_header(name, value))
        };
        assert_eq!(retryable("x-fal-retryable", "false"), Some(false));
        assert_eq!(retryable("x-should-retry", "True"), Some(true));
        assert_eq!(retryable("x-should-retry", "maybe"), None);
        assert_eq!(retryable("x-other", "true"), None);
    }
}
