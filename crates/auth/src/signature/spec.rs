//! Parsing and validation of the table that describes a signature in a custom header.
//!
//! A valid signature covers its own timestamp, message id and account.

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use url::Url;

use super::detached::{Algorithm, Detached, Digest, Encoding, KeyEncoding, Kind, TimestampSource};
use super::header_name::HeaderName;
use super::template::{Part, Template};

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderNames {
    One(String),
    Many(Vec<String>),
}

/// The keys of the table, for HMAC and Ed25519.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    header: HeaderNames,
    encoding: Encoding,
    #[serde(default)]
    prefix: String,
    #[serde(default = "whole_body")]
    signed: String,
    signature_field: Option<String>,
    timestamp_header: Option<HeaderName>,
    timestamp_field: Option<String>,
    id_header: Option<HeaderName>,
    account_header: Option<HeaderName>,
    digest: Option<Digest>,
    key: Option<KeyEncoding>,
    key_prefix: Option<String>,
    key_id_header: Option<HeaderName>,
    jwks_url: Option<Url>,
}

fn whole_body() -> String {
    "{body}".to_owned()
}

/// Deserializes the table of an HMAC.
pub(super) fn hmac<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Detached, D::Error> {
    let mut table = Table::deserialize(deserializer)?;
    if table.key_id_header.is_some() || table.jwks_url.is_some() {
        let message = "key_id_header and jwks_url require scheme = \"ed25519\"";
        return Err(D::Error::custom(message));
    }
    let algorithm = Algorithm::Hmac {
        digest: table.digest.unwrap_or_default(),
        key: table.key.unwrap_or_default(),
        key_prefix: table.key_prefix.take().unwrap_or_default(),
    };
    table.with(algorithm).map_err(D::Error::custom)
}

/// Deserializes the table of an Ed25519 signature.
pub(super) fn ed25519<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Detached, D::Error> {
    let table = Table::deserialize(deserializer)?;
    if table.digest.is_some() || table.key.is_some() || table.key_prefix.is_some() {
        let message = "digest, key and key_prefix require scheme = \"hmac\"";
        return Err(D::Error::custom(message));
    }
    let algorithm = Algorithm::Ed25519 { key_prefix: None };
    table.with(algorithm).map_err(D::Error::custom)
}

impl Table {
    fn with(self, algorithm: Algorithm) -> Result<Detached, String> {
        let signed = Template::parse(&self.signed)?;
        let headers = match self.header {
            HeaderNames::One(name) => vec![name],
            HeaderNames::Many(names) => names,
        };
        if headers.is_empty() {
            return Err("header: at least one name is required".to_owned());
        }
        if self.signature_field.is_none() && (signed.has_fields() || self.timestamp_field.is_some())
        {
            return Err("signature_field is required if the header has fields".to_owned());
        }
        let timestamp = match (self.timestamp_header, self.timestamp_field) {
            (Some(_), Some(_)) => {
                return Err(
                    "timestamp_header and timestamp_field are mutually exclusive".to_owned(),
                );
            }
            (Some(name), None) => Some(TimestampSource::Header(name)),
            (None, field) => field.map(TimestampSource::Field),
        };
        let is_covered = match &timestamp {
            Some(TimestampSource::Header(name)) => signed.contains(&Part::Header(name.to_string())),
            Some(TimestampSource::Field(name)) => signed.contains(&Part::Field(name.clone())),
            None => true,
        };
        if !is_covered {
            return Err("signed must include the timestamp".to_owned());
        }
        for (key, header) in [
            ("id_header", &self.id_header),
            ("account_header", &self.account_header),
        ] {
            let part = header.as_ref().map(|name| Part::Header(name.to_string()));
            if part.is_some_and(|part| !signed.contains(&part)) {
                return Err(format!("signed must include {key}"));
            }
        }
        Ok(Detached {
            headers: headers
                .into_iter()
                .map(HeaderName::try_from)
                .collect::<Result<_, _>>()?,
            encoding: self.encoding,
            signature_field: self.signature_field,
            signed,
            timestamp,
            id_header: self.id_header,
            account_header: self.account_header,
            kinds: vec![Kind {
                prefix: self.prefix,
                algorithm,
            }],
            is_versioned: false,
            key_id_header: self.key_id_header,
            jwks_url: self.jwks_url,
        })
    }
}
