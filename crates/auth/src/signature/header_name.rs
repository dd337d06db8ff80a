//! Names of headers in the tables of schemes.

use std::ops::Deref;

use serde::Deserialize;

/// A header name in lower case.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct HeaderName(String);

impl HeaderName {
    /// `name` must be a header name in lower case.
    pub(super) fn from_static(name: &'static str) -> Self {
        Self(name.to_owned())
    }
}

impl TryFrom<String> for HeaderName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        is_token(&name)
            .then(|| Self(name.to_ascii_lowercase()))
            .ok_or_else(|| format!("{name:?} is not a header name"))
    }
}

impl Deref for HeaderName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Returns whether `text` consists of letters, digits, `-` and `_`.
pub(super) fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !text.is_empty() && text.bytes().all(fits)
}
