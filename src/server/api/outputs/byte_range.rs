//! Ranges of a content whose length is known.

use std::ops::Range;

use crate::provider::RangeRequest;

/// The part of a content that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ByteRange {
    /// No range, several ranges, or a range of another version.
    Whole,
    /// One range, which is not empty.
    Part(Range<u64>),
    /// The range begins after the end.
    NotSatisfiable,
}

impl ByteRange {
    /// Returns the part of a content with this length and entity tag.
    pub(super) fn of(request: &RangeRequest, length: u64, etag: Option<&str>) -> Self {
        let is_current = request
            .if_range
            .as_deref()
            .is_none_or(|tag| Some(tag) == etag);
        let range = request.range.as_deref().filter(|_| is_current);
        match range.and_then(parse) {
            None => Self::Whole,
            Some(Bounds::Suffix(0)) => Self::NotSatisfiable,
            Some(Bounds::Suffix(_)) if length == 0 => Self::NotSatisfiable,
            Some(Bounds::Suffix(bytes)) => Self::Part(length.saturating_sub(bytes)..length),
            Some(Bounds::From(start, _)) if start >= length => Self::NotSatisfiable,
            Some(Bounds::From(start, last)) => {
                let end = last.map_or(length, |last| last.saturating_add(1).min(length));
                Self::Part(start..end)
            }
        }
    }
}

enum Bounds {
    /// The first and the last position.
    From(u64, Option<u64>),
    /// The number of bytes at the end.
    Suffix(u64),
}

/// Parses a `Range` header with one range (RFC 9110, section 14.1.2).
fn parse(range: &str) -> Option<Bounds> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", last) => Some(Bounds::Suffix(number(last)?)),
        (first, "") => Some(Bounds::From(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Bounds::From(first, Some(last)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_the_specification() {
        use ByteRange::{NotSatisfiable, Part, Whole};
        for (range, expected) in [
            ("bytes=0-3", Part(0..4)),
            ("bytes=2-", Part(2..10)),
            ("bytes=9-9", Part(9..10)),
            ("bytes=5-99999999999999999999", Part(5..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-99", Part(0..10)),
            ("bytes=10-", NotSatisfiable),
            ("bytes=99999999999999999999-", NotSatisfiable),
            ("bytes=-0", NotSatisfiable),
            ("bytes=3-2", Whole),
            ("bytes=0-1,4-5", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-2", Whole),
            ("lines=0-1", Whole),
            ("", Whole),
        ] {
            let request = RangeRequest {
                range: Some(range.to_owned()),
                if_range: None,
            };
            assert_eq!(ByteRange::of(&request, 10, None), expected, "{range}");
        }
    }

    #[test]
    fn range_of_another_version_is_ignored() {
        let part = |if_range: &str, etag| {
            let request = RangeRequest {
                range: Some("bytes=0-0".to_owned()),
                if_range: Some(if_range.to_owned()),
            };
            ByteRange::of(&request, 10, etag)
        };
        assert_eq!(part("\"a\"", Some("\"a\"")), ByteRange::Part(0..1));
        assert_eq!(part("\"b\"", Some("\"a\"")), ByteRange::Whole);
        assert_eq!(part("\"b\"", None), ByteRange::Whole);
    }
}
