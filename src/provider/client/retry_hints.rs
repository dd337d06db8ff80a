//! What an answer says about trying again: how long to wait, and whether at all.
//!
//! Invariant: a hint is followed or there is none; nothing here makes an answer more certain.

use std::time::Duration;

use crate::provider::client::http::Response;
use crate::time::Time;

/// The longest wait a hint can ask for, in seconds.
const MAX_WAIT: f64 = 3600.0;

/// A reset from here on is a moment in Unix time, and no number of seconds.
const UNIX_TIME_THRESHOLD: f64 = 1e9;

/// What stands before a number of seconds in a provider's words.
const DELAY_PHRASES: [&str; 5] = [
    "resets in",
    "reset in",
    "try again in",
    "retry in",
    "retry after",
];

/// How long the provider asks to wait: `retry-after-ms`, `Retry-After` in seconds or as a date,
/// `ratelimit-reset` in seconds or as a Unix time, or "resets in ~30s" in its words (Replicate).
pub(in crate::provider) fn wait(answer: &Response, now: Time) -> Option<Duration> {
    let number = |name| answer.header(name).and_then(seconds);
    let reset = |name| {
        let reset: f64 = number(name)?;
        let is_moment = reset > UNIX_TIME_THRESHOLD;
        Some(if is_moment { until(reset, now) } else { reset })
    };
    let date = |text: &str| {
        let date = httpdate::parse_http_date(text).ok()?;
        let moment = date.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(until(moment.as_secs_f64(), now))
    };
    let wait = number("retry-after-ms")
        .map(|millis| millis / 1000.0)
        .or_else(|| number("retry-after"))
        .or_else(|| answer.header("retry-after").and_then(date))
        .or_else(|| reset("ratelimit-reset"))
        .or_else(|| reset("x-ratelimit-reset"))
        .or_else(|| parse_prose_delay(&answer.text()))?;
    (wait.is_finite() && wait >= 0.0).then(|| Duration::from_secs_f64(wait.min(MAX_WAIT)))
}

/// Whether the provider says that another try may pass, or may not: `X-Fal-Retryable`, and
/// `x-should-retry` as the clients of several providers read it.
pub(in crate::provider) fn may_retry(answer: &Response) -> Option<bool> {
    ["x-fal-retryable", "x-should-retry"]
        .into_iter()
        .filter_map(|name| answer.header(name))
        .find_map(|word| word.to_ascii_lowercase().parse().ok())
}

fn seconds(text: &str) -> Option<f64> {
    text.parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of this age fit")]
fn until(moment: f64, now: Time) -> f64 {
    (moment - now.millis() as f64 / 1000.0).max(0.0)
}

/// The wait in a text such as "Your limit resets in ~30s", or "please try again in 1.5 minutes".
fn parse_prose_delay(text: &str) -> Option<f64> {
    let text = text.to_ascii_lowercase();
    let after = |words: &&str| text.split_once(*words).map(|(_, after)| after);
    let after = DELAY_PHRASES.iter().find_map(after)?.trim_start();
    let after = after.strip_prefix("about ").unwrap_or(after);
    let after = after.strip_prefix('~').unwrap_or(after).trim_start();
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let end = after.find(|c| !is_number(c)).unwrap_or(after.len());
    let (number, rest) = after.split_at(end);
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_alphabetic());
    let unit = match &rest[..end.unwrap_or(rest.len())] {
        "ms" | "millisecond" | "milliseconds" => 0.001,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        _ => return None,
    };
    seconds(number).map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(headers: &[(&'static str, &str)], body: &str) -> Option<f64> {
        let answer = headers
            .iter()
            .fold(Response::for_test(429, body), |answer, (name, value)| {
                answer.with(name, value)
            });
        wait(&answer, Time::from_millis(1_795_428_000_000)).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn retry_delay_is_read_from_all_known_headers() {
        for (headers, wait) in [
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
            (&[("retry-after", "1e300")], Some(MAX_WAIT)),
            (&[], None),
        ] {
            assert_eq!(told(headers, ""), wait, "{headers:?}");
        }
    }

    #[test]
    fn retry_delay_is_parsed_from_prose() {
        for (words, wait) in [
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
            assert_eq!(told(&[], words), wait, "{words}");
        }
    }

    #[test]
    fn retry_headers_accept_true_and_false() {
        let told = |name, value| may_retry(&Response::for_test(500, "").with(name, value));
        assert_eq!(told("x-fal-retryable", "false"), Some(false));
        assert_eq!(told("x-should-retry", "True"), Some(true));
        assert_eq!(told("x-should-retry", "maybe"), None);
        assert_eq!(told("x-other", "true"), None);
    }
}
