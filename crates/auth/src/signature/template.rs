//! Template of the signed content. MiniJinja cannot serve here, because the body is raw bytes.
//!
//! Placeholders: `{body}`, `{sha256:body}` (lower-case hex), `{header:NAME}`, `{json:/POINTER|/ANOTHER}` for the first
//! value in the body that exists (RFC 6901), and `{FIELD}` for a field of the signature header (`t=…,v1=…`).
//! A template is validated when it is parsed. Rendering fails only if a value is missing.

use std::borrow::Cow;

use aws_lc_rs::digest;
use serde_json::Value;

use super::header_name::is_token;
use super::{Request, SignatureError, required};

/// A parsed template of the signed content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(String),
    Body,
    BodyDigest,
    Header(String),
    Field(String),
    /// The text or number at the first of these JSON pointers that has one.
    Json(Vec<String>),
}

/// The fields of a signature header: `t=1,v1=ab` is `[("t", "1"), ("v1", "ab")]`.
pub(super) type Fields<'h> = Vec<(&'h str, &'h str)>;

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (before, from_open) = rest.split_at(open);
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (name, after) = from_open
                .strip_prefix('{')
                .and_then(|inside| inside.split_once('}'))
                .ok_or("signed: unbalanced brace")?;
            parts.push(Part::parse(name)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if parts.iter().all(|part| matches!(part, Part::Text(_))) {
            return Err("signed: no placeholder".to_owned());
        }
        Ok(Self(parts))
    }

    /// Returns the template of two headers and the body, joined by dots.
    pub(super) fn headers_and_body(names: [&str; 2]) -> Self {
        let dotted = |name: &str| [Part::Header(name.to_owned()), Part::Text(".".to_owned())];
        let headers = names.into_iter().flat_map(dotted);
        Self(headers.chain([Part::Body]).collect())
    }

    pub(super) fn covers_body(&self) -> bool {
        self.contains(&Part::Body) || self.contains(&Part::BodyDigest)
    }

    pub(super) fn contains(&self, part: &Part) -> bool {
        self.0.contains(part)
    }

    pub(super) fn has_fields(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Field(_)))
    }

    /// Returns the signed bytes. `header_name` is the header that contains `fields`.
    pub(super) fn render<'r>(
        &self,
        &Request { headers, body, .. }: &Request<'r>,
        (header_name, fields): (&str, &Fields<'_>),
    ) -> Result<Cow<'r, [u8]>, SignatureError> {
        if self.0 == [Part::Body] {
            return Ok(Cow::Borrowed(body));
        }
        let mut content = Vec::with_capacity(body.len() + 128);
        for part in &self.0 {
            match part {
                Part::Text(text) => content.extend_from_slice(text.as_bytes()),
                Part::Body => content.extend_from_slice(body),
                Part::BodyDigest => {
                    let digest = digest::digest(&digest::SHA256, body);
                    content.extend_from_slice(hex::encode(digest).as_bytes());
                }
                Part::Header(name) => {
                    content.extend_from_slice(required(headers, name)?.as_bytes());
                }
                Part::Field(name) => {
                    let value = field(fields, name)
                        .ok_or_else(|| SignatureError::Malformed(header_name.into()))?;
                    content.extend_from_slice(value.as_bytes());
                }
                Part::Json(pointers) => {
                    content.extend_from_slice(json_value(pointers, body)?.as_bytes());
                }
            }
        }
        Ok(Cow::Owned(content))
    }
}

impl Part {
    fn parse(name: &str) -> Result<Self, String> {
        match name.split_once(':') {
            Some(("header", header)) if is_token(header) => {
                Ok(Self::Header(header.to_ascii_lowercase()))
            }
            Some(("sha256", "body")) => Ok(Self::BodyDigest),
            Some(("json", pointers)) if pointers.split('|').all(|one| one.starts_with('/')) => {
                Ok(Self::Json(pointers.split('|').map(str::to_owned).collect()))
            }
            None if name == "body" => Ok(Self::Body),
            None if is_token(name) => Ok(Self::Field(name.to_owned())),
            Some(_) | None => Err(format!("signed: unknown placeholder {{{name}}}")),
        }
    }
}

/// Returns the first field with this name.
pub(super) fn field<'h>(fields: &Fields<'h>, name: &str) -> Option<&'h str> {
    let found = fields.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| *value)
}

/// Returns the text or number at the first matching pointer of the unverified body.
fn json_value(pointers: &[String], body: &[u8]) -> Result<String, SignatureError> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let mut found = pointers
        .iter()
        .filter_map(|at| body.pointer(at).and_then(text));
    found
        .next()
        .ok_or_else(|| SignatureError::MissingValue(pointers.join(" or ").into()))
}
