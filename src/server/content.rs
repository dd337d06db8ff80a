//! Checks of the content type and the content encoding of request bodies.

use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::error::{ErrorCode, Problem};

/// Checks that a body has no content encoding. Webhook signatures cover the bytes that were sent.
///
/// # Errors
/// `unsupported_media_type`.
pub fn require_identity(headers: &HeaderMap) -> Result<(), Problem> {
    for encoding in headers.get_all(header::CONTENT_ENCODING) {
        let encoding = encoding.to_str().unwrap_or("…").trim();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            return Err(unsupported(
                format!("Content-Encoding '{encoding}' is not supported; send the body without it"),
                header::ACCEPT_ENCODING,
                "identity",
            ));
        }
    }
    Ok(())
}

/// Checks that the declared type of a body is JSON. A body without a declared type is treated as
/// JSON.
///
/// # Errors
/// `unsupported_media_type`.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let content_type = content_type.to_str().unwrap_or("…");
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let subtype = media_type.rsplit('/').next().unwrap_or_default();
    let subtype = subtype.to_ascii_lowercase();
    if subtype == "json" || subtype.ends_with("+json") {
        return Ok(());
    }
    Err(unsupported(
        format!("Content-Type must be application/json, is '{media_type}'"),
        header::ACCEPT,
        "application/json",
    ))
}

/// Returns `unsupported_media_type`. The header states what the API accepts (RFC 9110, section
/// 15.5.16).
fn unsupported(detail: String, header: HeaderName, accepted: &'static str) -> Problem {
    Problem::new(ErrorCode::UnsupportedMediaType, detail)
        .with_header(header, HeaderValue::from_static(accepted))
}
