//! The kinds of values that a setting can have.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use progress_hub_auth::jwt::secret_problem;
use progress_hub_auth::signature::SigningSecret;
use secrecy::{ExposeSecret, SecretString};
use toml::Value;
use url::Url;

use super::Price;
use super::layers::RawValue;
use super::parse;
use super::setting::{Kind, Parsed, invalid};
use crate::egress::{check_header, masked};

const KIB: usize = 1024;

/// Printed instead of a secret.
const REDACTED: &str = "(set)";

/// Any text.
pub(super) fn text() -> Kind<String> {
    parsed(|text| Ok(text.to_owned()))
}

/// A text that `parse` accepts. The error of `parse` must not contain the text.
pub(super) fn parsed<T: Display + 'static>(parse: fn(&str) -> Result<T, &'static str>) -> Kind<T> {
    Kind::new(
        move |raw| parse(&string(raw)?).or_else(invalid),
        |value: &T| Value::String(value.to_string()),
    )
}

/// The URL of a store. Its credentials are not printed.
pub(super) fn store_url() -> Kind<String> {
    Kind {
        print: Box::new(|url| Value::String(redact_url(url))),
        ..parsed(parse::store_url)
    }
}

/// The path of an existing file.
pub(super) fn file() -> Kind<PathBuf> {
    let parse = |raw| {
        let path = PathBuf::from(string(raw)?);
        if path.is_file() {
            Ok(path)
        } else {
            invalid(format!("{} is not a file", path.display()))
        }
    };
    Kind::new(parse, |path: &PathBuf| {
        Value::String(path.to_string_lossy().into_owned())
    })
}

/// A secret that is not empty.
pub(super) fn secret() -> Kind<SecretString> {
    let parse = |raw| {
        let text = string(raw)?;
        if text.trim() == text {
            Ok(text.into())
        } else {
            invalid("must not begin or end with white space")
        }
    };
    Kind::new(parse, |_| Value::String(REDACTED.to_owned()))
}

/// A password for Redis.
pub(super) fn redis_password() -> Kind<SecretString> {
    const LIMITS: &str = "no white space, quotes or control characters";
    let Kind {
        parse: secret,
        print,
        ..
    } = secret();
    let parse = move |raw| {
        let password = secret(raw)?;
        if parse::is_redis_credential(password.expose_secret()) {
            Ok(password)
        } else {
            invalid(format!("must have {LIMITS}"))
        }
    };
    Kind::new(parse, print).limits(LIMITS)
}

/// A secret that is long enough to sign with HMAC-SHA-256.
pub(super) fn signing_secret() -> Kind<SecretString> {
    let Kind { parse, print, .. } = secret();
    let parse = move |raw| {
        let secret = parse(raw)?;
        match secret_problem(secret.expose_secret()) {
            None => Ok(secret),
            Some(problem) => invalid(problem),
        }
    };
    Kind::new(parse, print).limits("at least 32 random bytes")
}

/// A secret that signs webhooks as Standard Webhooks specifies.
pub(super) fn webhook_secret() -> Kind<SecretString> {
    let Kind { parse, print, .. } = secret();
    let parse = move |raw| {
        let secret = parse(raw)?;
        match SigningSecret::parse(&secret) {
            Ok(_) => Ok(secret),
            Err(error) => invalid(error.to_string()),
        }
    };
    Kind::new(parse, print).limits("`whsec_` and the base64 of at least 24 random bytes")
}

/// The URL of an endpoint for webhooks. Its path and query are not printed.
pub(super) fn webhook_url() -> Kind<Url> {
    Kind {
        print: Box::new(|url| Value::String(masked(url))),
        ..parsed(parse::webhook_url)
    }
}

/// A table of header values by name. The values are not printed.
pub(super) fn headers() -> Kind<BTreeMap<String, SecretString>> {
    let parse_header = |(name, value): (String, Value)| {
        let error = |message: &str| Err(vec![(format!(".{name}"), message.to_owned())]);
        let Value::String(value) = value else {
            return error("must be text");
        };
        match check_header(&name, &value) {
            Ok(()) => Ok((name, SecretString::from(value))),
            Err(message) => error(message),
        }
    };
    Kind::new(
        move |raw| {
            let value = raw.into_toml();
            if let Value::Table(table) = value {
                all(table.into_iter().map(parse_header))
            } else {
                expected("a table", &value)
            }
        },
        |headers: &BTreeMap<_, _>| {
            let names = headers.keys();
            let redacted = names.map(|name| (name.clone(), Value::String(REDACTED.to_owned())));
            Value::Table(redacted.collect())
        },
    )
}

/// A list of texts: a TOML list, or in the environment and flags also texts separated by commas.
pub(super) fn list<T: 'static>(item: Kind<T>) -> Kind<Vec<T>> {
    let Kind { parse, print, .. } = item;
    let parse_item = move |(index, item): (usize, Value)| {
        let parsed = match item.as_str() {
            Some("") => invalid("must not be empty"),
            Some(_) | None => parse(RawValue::Toml(item)),
        };
        let number = |(key, message)| (key, format!("item {} {message}", index + 1));
        parsed.map_err(|errors| errors.into_iter().map(number).collect())
    };
    Kind::new(
        move |raw| all(items(raw)?.into_iter().enumerate().map(&parse_item)),
        move |values: &Vec<T>| Value::Array(values.iter().map(&print).collect()),
    )
    .limits(item.limits)
}

/// A whole number.
pub(super) fn number(range: RangeInclusive<usize>) -> Kind<usize> {
    let (min, max) = (*range.start(), *range.end());
    let parse = move |raw: RawValue| {
        let value = raw.into_toml();
        let Some(number) = value.as_integer() else {
            return expected("a whole number", &value);
        };
        match usize::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(number),
            Ok(_) | Err(_) => invalid(format!("must be between {min} and {max}, found {number}")),
        }
    };
    Kind::new(parse, |number| {
        Value::Integer(i64::try_from(*number).unwrap_or(i64::MAX))
    })
    .limits(format!(
        "{} to {}",
        with_separators(min),
        with_separators(max)
    ))
}

/// A number of bytes, with or without a unit. The bounds are documented in KiB, MiB or GiB.
pub(super) fn bytes(range: RangeInclusive<usize>) -> Kind<usize> {
    let [min, max] = [*range.start(), *range.end()].map(|bytes| match bytes / KIB {
        kib if kib < KIB => format!("{kib} KiB"),
        kib if kib <= KIB * KIB => format!("{} MiB", kib / KIB),
        kib => format!("{} GiB", kib / KIB / KIB),
    });
    let Kind { parse, print, .. } = number(range);
    let parse = move |raw: RawValue| {
        let mut value = raw.into_toml();
        if let Value::String(text) = &value {
            let bytes = parse::byte_count(text.trim()).or_else(invalid)?;
            value = Value::Integer(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        parse(RawValue::Toml(value))
    };
    Kind::new(parse, print).limits(format!("{min} to {max}"))
}

/// `true` or `false`.
pub(super) fn boolean() -> Kind<bool> {
    Kind::new(
        |raw: RawValue| {
            let value = raw.into_toml();
            let Some(boolean) = value.as_bool() else {
                return expected("true or false", &value);
            };
            Ok(boolean)
        },
        |boolean| Value::Boolean(*boolean),
    )
}

/// A duration such as `500ms`, `20s` or `1h30m`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> Kind<Duration> {
    let [min, max] = [*range.start(), *range.end()].map(parse::print_duration);
    let limits = format!("{min} to {max}");
    let parse = move |raw| {
        let text = match raw {
            RawValue::Text(text) | RawValue::Toml(Value::String(text)) => text,
            RawValue::Toml(other) => other.to_string(),
        };
        let duration = parse::duration(text.trim()).or_else(invalid)?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let found = parse::print_duration(duration);
        invalid(format!("must be between {min} and {max}, found {found}"))
    };
    let print = |duration: &Duration| Value::String(parse::print_duration(*duration));
    Kind::new(parse, print).limits(limits)
}

/// An amount of money.
pub(super) fn amount() -> Kind<f64> {
    Kind::new(
        |raw| parse::amount(&raw.into_toml()).or_else(invalid),
        |amount| Value::Float(*amount),
    )
    .limits(format!("0 to {}", with_separators(parse::MAX_AMOUNT)))
}

/// A table of prices by model.
pub(super) fn prices() -> Kind<BTreeMap<String, Price>> {
    let parse_price = |(model, value): (String, Value)| match (parse::amount(&value), value) {
        (Ok(amount), _) => Ok((model, Price::Fixed(amount))),
        (Err(_), Value::String(text)) if !text.is_empty() => Ok((model, Price::Expression(text))),
        (Err(message), _) => Err(vec![(
            format!(".{model}"),
            format!("{message}, or an expression as text"),
        )]),
    };
    let print_price = |(model, price): (&String, &Price)| match price {
        Price::Fixed(amount) => (model.clone(), Value::Float(*amount)),
        Price::Expression(expression) => (model.clone(), Value::String(expression.clone())),
    };
    Kind::new(
        move |raw| {
            let value = raw.into_toml();
            if let Value::Table(table) = value {
                all(table.into_iter().map(parse_price))
            } else {
                expected("a table", &value)
            }
        },
        move |prices: &BTreeMap<_, _>| Value::Table(prices.iter().map(print_price).collect()),
    )
}

/// Returns all values, or all errors.
fn all<T, C: FromIterator<T>>(parsed: impl Iterator<Item = Parsed<T>>) -> Parsed<C> {
    let mut errors = Vec::new();
    let values = parsed.filter_map(|parsed| parsed.map_err(|found| errors.extend(found)).ok());
    let values = values.collect();
    if errors.is_empty() {
        Ok(values)
    } else {
        Err(errors)
    }
}

fn string(raw: RawValue) -> Parsed<String> {
    match raw {
        RawValue::Text(text) | RawValue::Toml(Value::String(text)) => Ok(text),
        RawValue::Toml(other) => expected("text", &other),
    }
}

fn items(raw: RawValue) -> Parsed<Vec<Value>> {
    match raw {
        RawValue::Toml(Value::Array(items)) => Ok(items),
        RawValue::Toml(other) => expected("a list", &other),
        RawValue::Text(text) if text.trim_start().starts_with('[') => match text.parse() {
            Ok(Value::Array(items)) => Ok(items),
            Ok(_) | Err(_) => invalid("begins with '[' but is not a TOML list"),
        },
        RawValue::Text(text) => {
            let items = text.split(',').map(str::trim);
            Ok(items.map(|item| Value::String(item.to_owned())).collect())
        }
    }
}

fn expected<T>(what: &str, found: &Value) -> Parsed<T> {
    let found = match found {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    };
    invalid(format!("must be {what}, found {found}"))
}

/// Removes user, password and options from the URL of a store. Each of them may be a secret.
fn redact_url(url: &str) -> String {
    if url.starts_with("sqlite:") {
        return url.to_owned();
    }
    let (url, options) = match url.split_once('?') {
        Some((url, _)) => (url, format!("?{REDACTED}")),
        None => (url, String::new()),
    };
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{REDACTED}@{host}{options}"),
        _ => format!("{url}{options}"),
    }
}

/// Formats a number with thousands separators.
fn with_separators(number: usize) -> String {
    if number < 1000 {
        number.to_string()
    } else {
        format!("{},{:03}", with_separators(number / 1000), number % 1000)
    }
}
