//! Where the hub reads an output whose URL in the document is a link of the hub.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

/// The source of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSource {
    /// An absolute URL, a `data:` URL, or a URL relative to the provider's base URL.
    pub url: String,
    /// Whether only the provider's API key can read it.
    pub is_private: bool,
}

/// Content that is part of a report instead of a file at the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineContent {
    /// The declared content type, or an empty string.
    pub content_type: String,
    /// The content.
    pub bytes: Bytes,
}

/// The `data:` URL is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("inline output is not a valid data URL")]
pub struct InvalidDataUrl;

impl OutputSource {
    /// Returns the content of a `data:` URL, or `None` if the source is a file.
    ///
    /// # Errors
    /// [`InvalidDataUrl`] if the URL cannot be decoded.
    pub fn inline(&self) -> Option<Result<InlineContent, InvalidDataUrl>> {
        let scheme = self.url.get(..5)?;
        let is_data = scheme.eq_ignore_ascii_case("data:");
        is_data.then(|| decode(&self.url[5..]).ok_or(InvalidDataUrl))
    }
}

/// Decodes a `data:` URL (RFC 2397) without its scheme.
fn decode(text: &str) -> Option<InlineContent> {
    /// Accepts base64 with and without padding.
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);

    let (head, data) = text.split_once(',')?;
    let data: Cow<'_, [u8]> = percent_decode_str(data).into();
    let (content_type, bytes) = match head.rsplit_once(';') {
        Some((content_type, encoding)) if encoding.trim().eq_ignore_ascii_case("base64") => {
            let is_space = |byte: &u8| byte.is_ascii_whitespace();
            let data: Vec<u8> = data
                .iter()
                .copied()
                .filter(|byte| !is_space(byte))
                .collect();
            let decoded = STANDARD.decode(&data).or_else(|_| URL_SAFE.decode(&data));
            (content_type, decoded.ok()?)
        }
        Some(_) | None => (head, data.into_owned()),
    };
    Some(InlineContent {
        content_type: content_type.trim().to_owned(),
        bytes: bytes.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_are_decoded() {
        for (url, content_type, content) in [
            ("data:image/png;base64,aGVsbG8=", "image/png", "hello"),
            ("data:image/png;base64,aGVsbG8", "image/png", "hello"),
            ("DATA:image/png;BASE64,aGVs\n bG8=", "image/png", "hello"),
            ("data:image/png;base64,aGVsbG8%3D", "image/png", "hello"),
            (
                "data:video/mp4;codecs=avc1;base64,Pz8_",
                "video/mp4;codecs=avc1",
                "???",
            ),
            ("data:video/mp4;base64,Pz8/", "video/mp4", "???"),
            ("data:image/svg+xml,%3Csvg/%3E", "image/svg+xml", "<svg/>"),
            ("data:,", "", ""),
        ] {
            let source = OutputSource {
                url: url.to_owned(),
                is_private: false,
            };
            let expected = InlineContent {
                content_type: content_type.to_owned(),
                bytes: content.into(),
            };
            assert_eq!(source.inline(), Some(Ok(expected)), "{url}");
        }
    }

    #[test]
    fn malformed_data_urls_are_errors_and_other_urls_are_not_inline() {
        let inline = |url: &str| {
            let source = OutputSource {
                url: url.to_owned(),
                is_private: false,
            };
            source.inline()
        };
        for url in [
            "data:",
            "data:image/png;base64",
            "data:image/png;base64,a*b",
        ] {
            assert_eq!(inline(url), Some(Err(InvalidDataUrl)), "{url}");
        }
        for url in ["https://cdn.example.com/a", "files/1", "", "dat"] {
            assert_eq!(inline(url), None, "{url}");
        }
    }
}
