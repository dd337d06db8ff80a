//! Durations as people write them: `500ms`, `20s`, `5m`, `1h30m`.
//!
//! Invariant: what [`text`] writes, [`parse`] reads back to the same duration.

use std::time::Duration;

use jiff::fmt::friendly::{Spacing, SpanParser, SpanPrinter};

/// A number needs its unit; hours are the largest one.
pub(super) fn parse(text: &str) -> Option<Duration> {
    SpanParser::new().parse_unsigned_duration(text).ok()
}

/// The shortest form.
pub(super) fn text(duration: Duration) -> String {
    SpanPrinter::new()
        .spacing(Spacing::None)
        .unsigned_duration_to_string(&duration)
}
