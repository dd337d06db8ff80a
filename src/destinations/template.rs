//! Templates for the bodies of webhooks, for mails and for the keys of archived outputs.
//!
//! A template is checked when the configuration is loaded: its syntax, every name it uses, and its
//! output for a sample of each event. Values are escaped for the format of the output, so that text
//! of a user can't change its structure.

mod json;
pub(super) mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::LazyLock;

use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use serde::Serialize;
use serde_json::Value as Json;

use crate::outbox::Event;
use crate::template::{self, describe};

/// Maximum size of the output of a template.
pub const MAX_OUTPUT_BYTES: usize = 256 << 10;

/// The format of a template's output. It determines how values are escaped, and what a value that is
/// missing or null becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain text. Values are not escaped, a missing value is empty.
    Text,
    /// HTML. Special characters of values are escaped, a missing value is empty.
    Html,
    /// JSON. A value in a string becomes part of the string. Any other value becomes a JSON value,
    /// and a missing value `null`. The output is valid JSON.
    Json,
    /// Plain text, in which a missing value is an error.
    Strict,
}

/// Why a template is invalid or can't be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

/// A template that was checked.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    kind: Kind,
}

/// The values that a template can use, by name.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Context(BTreeMap<&'static str, Json>);

static TEXT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = template::environment();
    environment.set_formatter(format_text);
    environment
});

static HTML: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = template::environment();
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    environment.set_formatter(format_text);
    environment
});

static JSON: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = template::environment();
    environment.set_formatter(json::mark);
    environment
});

static STRICT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = template::environment();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_formatter(format_required);
    environment
});

impl Kind {
    fn environment(self) -> &'static Environment<'static> {
        match self {
            Self::Text => &TEXT,
            Self::Html => &HTML,
            Self::Json => &JSON,
            Self::Strict => &STRICT,
        }
    }
}

impl Context {
    /// Creates the values for a document: `job` and `event`.
    ///
    /// # Errors
    /// [`TemplateError`] if the document is not JSON.
    pub fn new(document: &str, event: &str) -> Result<Self, TemplateError> {
        let job = serde_json::from_str(document)
            .map_err(|_| TemplateError("the document is not JSON".to_owned()))?;
        Ok(Self::of(job, event))
    }

    /// As [`Context::new`], for a document that is parsed already.
    #[must_use]
    pub fn of(job: Json, event: &str) -> Self {
        Self(BTreeMap::from([("event", Json::from(event)), ("job", job)]))
    }

    /// Returns a sample for each event. In one of them, every field of the document has a value.
    #[must_use]
    pub fn samples() -> Vec<Self> {
        let sample = |event: Event| Self::of(sample::document(event), event.as_str());
        Event::ALL.map(sample).into()
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Json>) -> Self {
        self.0.insert(name, value.into());
        self
    }

    /// Adds a value as a field of `job`.
    #[must_use]
    pub fn with_job_field(mut self, name: &str, value: impl Into<Json>) -> Self {
        if let Some(Json::Object(job)) = self.0.get_mut("job") {
            job.insert(name.to_owned(), value.into());
        }
        self
    }

    /// Returns whether a path such as `job.error.kind` can have a value. Metadata can have any field.
    fn has(&self, path: &str) -> bool {
        let mut names = path.split('.');
        let mut value = names.next().and_then(|name| self.0.get(name));
        for name in names {
            value = match value {
                Some(Json::Object(fields)) => fields.get(name),
                Some(_) | None => None,
            };
        }
        value.is_some() || path.starts_with("job.metadata.")
    }
}

impl Template {
    /// Parses and checks a template over `job`, the document, and `event`, such as `job.succeeded`.
    ///
    /// # Errors
    /// [`TemplateError`] with the line, if the text is not a template, uses an unknown name, or does
    /// not produce valid output for every event.
    pub fn parse(source: &str, kind: Kind) -> Result<Self, TemplateError> {
        Self::parse_with(source, kind, &Context::samples())
    }

    /// As [`Template::parse`], for a template over the names of `samples`.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub fn parse_with(
        source: &str,
        kind: Kind,
        samples: &[Context],
    ) -> Result<Self, TemplateError> {
        let template = Self {
            source: source.to_owned(),
            kind,
        };
        if kind == Kind::Json && source.contains(json::MARKS) {
            return Err(TemplateError(
                "must not contain the characters U+FDD0 to U+FDD2".to_owned(),
            ));
        }
        for path in template.paths()? {
            check_path(source, &path, samples)?;
        }
        // A sample lacks values that a document may have, such as metadata.
        let is_lenient = kind == Kind::Strict;
        let trial = Self {
            kind: if is_lenient { Kind::Text } else { kind },
            ..template.clone()
        };
        for sample in samples {
            trial.render_in(sample)?;
        }
        Ok(template)
    }

    /// Renders the template for a document and an event.
    ///
    /// # Errors
    /// [`TemplateError`] if the evaluation fails, or if the output is not valid or longer than
    /// [`MAX_OUTPUT_BYTES`].
    pub fn render(&self, document: &str, event: &str) -> Result<String, TemplateError> {
        self.render_in(&Context::new(document, event)?)
    }

    /// As [`Template::render`], with the values of `context`.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_in(&self, context: &Context) -> Result<String, TemplateError> {
        let mut output = LimitedOutput::default();
        let rendered = self.compile()?.render_captured_to(context, &mut output);
        if output.is_exceeded {
            let message = format!("output is longer than {MAX_OUTPUT_BYTES} bytes");
            return Err(TemplateError(message));
        }
        rendered.map_err(|error| located(&error))?;
        let text = String::from_utf8(output.bytes)
            .map_err(|_| TemplateError("output is not UTF-8".to_owned()))?;
        match self.kind {
            Kind::Text | Kind::Html | Kind::Strict => Ok(text),
            Kind::Json => json::insert_marked(&text).map_err(TemplateError),
        }
    }

    /// Returns the values that the template uses, such as `event` or `job.error.kind`. A path that
    /// the template computes is represented by its constant beginning, such as `job`.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn paths(&self) -> Result<BTreeSet<String>, TemplateError> {
        let paths = self.compile()?.undeclared_variables(true);
        let environment = self.kind.environment();
        let is_global = |path: &String| environment.globals().any(|(global, _)| global == path);
        Ok(paths.into_iter().filter(|path| !is_global(path)).collect())
    }

    fn compile(&self) -> Result<minijinja::Template<'_, '_>, TemplateError> {
        let environment = self.kind.environment();
        environment
            .template_from_str(&self.source)
            .map_err(|error| located(&error))
    }
}

/// Checks that a sample has a value for a path.
fn check_path(source: &str, path: &str, samples: &[Context]) -> Result<(), TemplateError> {
    if samples.iter().any(|sample| sample.has(path)) {
        return Ok(());
    }
    let line = source
        .lines()
        .position(|line| line.contains(path))
        .map_or(String::new(), |index| format!("line {}: ", index + 1));
    let names: BTreeSet<&str> = match path.split_once('.') {
        Some(("job", _)) => {
            let documents = samples.iter().filter_map(|it| it.0.get("job")?.as_object());
            documents.flatten().map(|(name, _)| name.as_str()).collect()
        }
        Some(_) | None => samples.iter().flat_map(|it| it.0.keys().copied()).collect(),
    };
    let known = Vec::from_iter(names).join(", ");
    let what = if path.starts_with("job.") {
        "fields of job are"
    } else {
        "known names are"
    };
    let message = format!("{line}unknown name: {path}; {what} {known}");
    Err(TemplateError(message))
}

/// Writes a value, or nothing if it is missing or null.
fn format_text(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.is_none() || value.is_undefined() {
        return Ok(());
    }
    minijinja::escape_formatter(out, state, value)
}

/// Writes a value that must not be missing. MiniJinja checks for `undefined` itself.
fn format_required(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    if value.is_none() {
        return Err(Error::new(ErrorKind::UndefinedError, "value is null"));
    }
    minijinja::escape_formatter(out, state, value)
}

fn located(error: &Error) -> TemplateError {
    let description = describe(error);
    TemplateError(match error.line() {
        Some(line) => format!("line {line}: {description}"),
        None => description,
    })
}

/// A buffer that rejects output beyond [`MAX_OUTPUT_BYTES`].
#[derive(Default)]
struct LimitedOutput {
    bytes: Vec<u8>,
    is_exceeded: bool,
}

impl io::Write for LimitedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.is_exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
