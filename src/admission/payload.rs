//! Checks the size of a request and rejects inline files, which must be passed by URL.

use serde_json::Value;

use super::AdmissionError;
use crate::job::VideoRequest;

/// Maximum size of a request, in bytes of JSON.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 10;

/// A base64 text longer than this many bytes counts as an inline file.
const MIN_INLINE_BASE64: usize = 8 << 10;

/// Checks a request for inline files and for its size. Returns the size in bytes of JSON.
pub(super) fn check(request: &VideoRequest) -> Result<usize, AdmissionError> {
    let request = serde_json::to_value(request).unwrap_or_default();
    for (field, value) in request.as_object().into_iter().flatten() {
        if let Some(path) = find_inline_data(value, field) {
            return Err(AdmissionError::Inline(path));
        }
    }
    let bytes = request.to_string().len();
    if bytes > MAX_REQUEST_BYTES {
        return Err(AdmissionError::TooLarge(bytes));
    }
    Ok(bytes)
}

/// Returns the path of the first inline file in `value`.
fn find_inline_data(value: &Value, path: &str) -> Option<String> {
    match value {
        Value::String(text) => is_inline_data(text).then(|| path.to_owned()),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(at, item)| find_inline_data(item, &format!("{path}[{at}]")))
        }
        Value::Object(fields) => {
            let mut fields = fields.iter();
            fields.find_map(|(name, value)| find_inline_data(value, &format!("{path}.{name}")))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn is_inline_data(text: &str) -> bool {
    let text = text.trim();
    let is_data_url = text
        .get(..5)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
        && text
            .split_once(',')
            .is_some_and(|(kind, _)| !kind.contains(char::is_whitespace));
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=\r\n".contains(&byte);
    is_data_url
        || text.contains(";base64,")
        || (text.len() > MIN_INLINE_BASE64 && text.bytes().all(is_base64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_data_is_detected() {
        let base64 = "QUJD".repeat(MIN_INLINE_BASE64 / 4) + "RA==";
        for data in [
            "data:image/png;base64,iVBORw0KGgo=",
            " DATA:,hello",
            "look at this: data:image/png;base64,iVBORw0KGgo=",
            &base64,
            &base64.replace("QUJDQUJD", "QU_-QU\r\n"),
        ] {
            assert!(is_inline_data(data), "{}", &data[..20.min(data.len())]);
        }
        let prose = "a lighthouse in the fog ".repeat(1000);
        let chinese = "灯塔".repeat(5000);
        for text in [
            "https://files.example/data:1,2.png",
            "data: a chart of rainfall, animated",
            "data:",
            "é",
            &prose,
            &chinese,
            &"a".repeat(MIN_INLINE_BASE64),
        ] {
            assert!(!is_inline_data(text), "{text:.20}");
        }
    }
}
