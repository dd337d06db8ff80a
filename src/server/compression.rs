//! Compression of responses with gzip or Brotli.
//!
//! Only complete bodies of text and JSON are compressed. Streams are not, because the compressor
//! would delay their events.

use std::io::{self, Write};

use actix_web::HttpMessage;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, AcceptEncoding, HeaderMap, HeaderValue};
use actix_web::web::Bytes;

/// Minimum size of a compressed body, in bytes. A smaller response fits in one network packet.
const MIN_COMPRESSED_BYTES: usize = 1024;

/// Trade-off between the time of compression and the size of the result.
#[derive(Clone, Copy)]
pub enum Effort {
    /// For a body that is compressed for each response.
    Low,
    /// For a body that is compressed once and cached.
    High,
}

/// A content encoding that the server can produce.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encoding {
    /// `br`
    Brotli,
    /// `gzip`
    Gzip,
}

impl Encoding {
    /// Returns Brotli if the client accepts it, otherwise gzip if the client accepts it, otherwise
    /// `None`.
    pub fn negotiate(request: &impl HttpMessage) -> Option<Self> {
        let accepted: AcceptEncoding = request.get_header()?;
        let is_accepted = |encoding: &Self| {
            let encoding = header::Encoding::Known(match encoding {
                Self::Brotli => header::ContentEncoding::Brotli,
                Self::Gzip => header::ContentEncoding::Gzip,
            });
            accepted.negotiate([&encoding].into_iter()) == Some(encoding)
        };
        [Self::Brotli, Self::Gzip].into_iter().find(is_accepted)
    }

    /// Returns the name in `Content-Encoding`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    /// Compresses a body.
    ///
    /// # Errors
    /// The error of the encoder. Writing to memory does not fail.
    pub fn compress(self, body: &[u8], effort: Effort) -> io::Result<Bytes> {
        let mut compressed = Vec::with_capacity(body.len() / 2);
        match (self, effort) {
            (Self::Brotli, effort) => {
                let quality = match effort {
                    Effort::Low => 3,
                    Effort::High => 9,
                };
                let mut writer = brotli::CompressorWriter::new(&mut compressed, 4096, quality, 22);
                writer.write_all(body)?;
                writer.into_inner();
            }
            (Self::Gzip, effort) => {
                let level = match effort {
                    Effort::Low => flate2::Compression::new(4),
                    Effort::High => flate2::Compression::best(),
                };
                let mut writer = flate2::write::GzEncoder::new(&mut compressed, level);
                writer.write_all(body)?;
                writer.finish()?;
            }
        }
        Ok(compressed.into())
    }
}

/// Value of `Vary` of a response that exists in more than one encoding.
pub const ACCEPT_ENCODING: &str = "Accept-Encoding";

/// Returns whether bodies of this type and this length in bytes are compressed.
pub fn is_compressible(content_type: &str, length: usize) -> bool {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let is_text = media_type.starts_with("text/")
        || media_type.ends_with("json")
        || media_type.ends_with("javascript")
        || media_type.ends_with("+xml")
        || media_type == "application/openmetrics-text";
    is_text && length >= MIN_COMPRESSED_BYTES
}

/// Compresses a complete response whose handler has not negotiated an encoding.
pub fn compress(response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let size = response.response().body().size();
    let is_small = matches!(size, BodySize::Sized(bytes) if bytes < MIN_COMPRESSED_BYTES as u64);
    if is_small || size == BodySize::None {
        return response;
    }
    if response.status() == StatusCode::PARTIAL_CONTENT
        || response.headers().contains_key(header::CONTENT_ENCODING)
        || varies_by_encoding(response.headers())
    {
        return response;
    }
    let request = response.request().clone();
    response.map_body(|head, body| {
        let body = match body.try_into_bytes() {
            Ok(body) => body,
            Err(stream) => return stream,
        };
        let content_type = head.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        if !content_type.is_some_and(|content_type| is_compressible(content_type, body.len())) {
            return BoxBody::new(body);
        }
        vary_by_encoding(head.headers_mut());
        let encoding = Encoding::negotiate(&request);
        match encoding.map(|encoding| (encoding, encoding.compress(&body, Effort::Low))) {
            Some((encoding, Ok(compressed))) => {
                let name = HeaderValue::from_static(encoding.as_str());
                head.headers_mut().insert(header::CONTENT_ENCODING, name);
                weaken_etag(head.headers_mut());
                BoxBody::new(compressed)
            }
            Some((_, Err(_))) | None => BoxBody::new(body),
        }
    })
}

/// Adds `Vary: Accept-Encoding`, so that caches store one response per encoding.
fn vary_by_encoding(headers: &mut HeaderMap) {
    headers.append(header::VARY, HeaderValue::from_static(ACCEPT_ENCODING));
}

fn varies_by_encoding(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::VARY);
    let mut names = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    names.any(|name| name.trim().eq_ignore_ascii_case(ACCEPT_ENCODING))
}

/// Makes a strong `ETag` weak. A strong one identifies the bytes of the body, and the compressed ones
/// differ.
fn weaken_etag(headers: &mut HeaderMap) {
    let tag = headers.get(header::ETAG).map(HeaderValue::as_bytes);
    let strong = tag.filter(|tag| tag.starts_with(b"\""));
    let weak = strong.map(|tag| HeaderValue::from_bytes(&[b"W/", tag].concat()));
    if let Some(Ok(weak)) = weak {
        headers.insert(header::ETAG, weak);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn brotli_is_preferred_and_refused_encodings_are_not_used() {
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", Some(Encoding::Brotli)),
            ("br;q=0, gzip", Some(Encoding::Gzip)),
            ("gzip;q=0.5", Some(Encoding::Gzip)),
            ("deflate", None),
            ("identity", None),
            ("gzip;q=0", None),
            ("", None),
        ] {
            let request = TestRequest::default().insert_header(("accept-encoding", accepted));
            assert_eq!(
                Encoding::negotiate(&request.to_srv_request()),
                expected,
                "{accepted}"
            );
        }
        assert_eq!(
            Encoding::negotiate(&TestRequest::default().to_srv_request()),
            None
        );
    }

    #[test]
    fn compressed_bodies_decompress_to_the_same_bytes() {
        let body = b"a job document ".repeat(500);
        for effort in [Effort::Low, Effort::High] {
            let mut text = Vec::new();
            let gzip = Encoding::Gzip.compress(&body, effort).unwrap();
            flate2::read::GzDecoder::new(&gzip[..])
                .read_to_end(&mut text)
                .unwrap();
            assert_eq!(text, body);
            text.clear();
            let br = Encoding::Brotli.compress(&body, effort).unwrap();
            brotli::Decompressor::new(&br[..], 4096)
                .read_to_end(&mut text)
                .unwrap();
            assert_eq!(text, body);
            assert!(gzip.len() < body.len() / 4 && br.len() < body.len() / 4);
        }
    }

    #[test]
    fn media_and_small_bodies_are_not_compressed() {
        for (content_type, length, expected) in [
            ("application/json", 1024, true),
            ("application/problem+json", 2000, true),
            ("text/javascript; charset=utf-8", 2000, true),
            ("image/svg+xml", 2000, true),
            ("application/json", 1023, false),
            ("video/mp4", 2000, false),
            ("application/octet-stream", 2000, false),
            ("", 2000, false),
        ] {
            assert_eq!(
                is_compressible(content_type, length),
                expected,
                "{content_type} {length}"
            );
        }
    }
}
