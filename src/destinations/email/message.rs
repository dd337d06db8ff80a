//! The content of a mail.

use std::time::{Duration, SystemTime};

use lettre::Message;
use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use url::Url;

use super::super::template::{Context, Kind, Template};
use crate::config::{ConfigError, EmailConfig};
use crate::outbox::Delivery;

/// Maximum length of a subject in characters.
const MAX_SUBJECT_CHARS: usize = 120;

/// Maximum length of the URL in `List-Unsubscribe`. A line of a mail has at most 998 bytes.
const MAX_UNSUBSCRIBE_BYTES: usize = 900;

/// The templates of a mail.
pub(super) struct MessageTemplates {
    subject: Template,
    text: Template,
    html: Option<Template>,
    unsubscribe_url: Option<Template>,
}

impl MessageTemplates {
    /// Parses the templates of a configuration.
    pub(super) fn parse(config: &EmailConfig) -> Result<Self, Vec<ConfigError>> {
        let html = config.html.as_ref();
        let html = html.map(|source| parse("html", source, Kind::Html));
        let url = config.unsubscribe_url.as_ref();
        let url = url.map(|source| parse_unsubscribe_url(source));
        let parsed = (
            parse("subject", &config.subject, Kind::Text),
            parse("text", &config.text, Kind::Text),
            html.transpose(),
            url.transpose(),
        );
        match parsed {
            (Ok(subject), Ok(text), Ok(html), Ok(unsubscribe_url)) => Ok(Self {
                subject,
                text,
                html,
                unsubscribe_url,
            }),
            (subject, text, html, url) => {
                let errors = [subject.err(), text.err(), html.err(), url.err()];
                Err(errors.into_iter().flatten().collect())
            }
        }
    }

    /// Creates the mail of a delivery. Each attempt creates the same mail.
    ///
    /// # Errors
    /// The error of a template.
    pub(super) fn message(
        &self,
        sender: &Mailbox,
        recipient: Mailbox,
        delivery: &Delivery,
    ) -> Result<Message, String> {
        let context = Context::new(&delivery.document, &delivery.id.event);
        let context = context.map_err(|error| error.to_string())?;
        let render = |key: &str, template: &Template| {
            let rendered = template.render_in(&context);
            rendered.map_err(|error| format!("email.{key}: {error}"))
        };
        let text = render("text", &self.text)?;
        let html = self.html.as_ref().map(|html| render("html", html));
        let url = self.unsubscribe_url.as_ref();
        let url = url.map(|url| render("unsubscribe_url", url)).transpose()?;
        let created_at = u64::try_from(delivery.created_at.millis()).unwrap_or_default();
        let id = format!("<{}@{}>", delivery.id, sender.email.domain());
        let mut message = Message::builder()
            .from(sender.clone())
            .to(recipient)
            .subject(subject(&render("subject", &self.subject)?))
            .date(SystemTime::UNIX_EPOCH + Duration::from_millis(created_at))
            .message_id(Some(id))
            .header(AutoSubmitted);
        if let Some(url) = url.as_deref().and_then(unsubscribe_url) {
            message = message
                .header(ListUnsubscribe(url))
                .header(ListUnsubscribePost);
        }
        let message = match html.transpose()? {
            Some(html) => message.multipart(MultiPart::alternative_plain_html(text, html)),
            None => message.singlepart(SinglePart::plain(text)),
        };
        message.map_err(|error| error.to_string())
    }
}

fn parse(key: &str, source: &str, kind: Kind) -> Result<Template, ConfigError> {
    Template::parse(source, kind).map_err(|error| config_error(key, error.to_string()))
}

fn parse_unsubscribe_url(source: &str) -> Result<Template, ConfigError> {
    let key = "unsubscribe_url";
    let template = parse(key, source, Kind::Text)?;
    let is_valid = |sample: &Context| {
        let rendered = template.render_in(sample);
        rendered.is_ok_and(|text| unsubscribe_url(&text).is_some())
    };
    if Context::samples().iter().all(is_valid) {
        Ok(template)
    } else {
        let message = format!("must be an https URL of at most {MAX_UNSUBSCRIBE_BYTES} bytes");
        Err(config_error(key, message))
    }
}

fn config_error(key: &str, message: String) -> ConfigError {
    let key = format!("email.{key}");
    ConfigError { key, message }
}

/// Replaces each sequence of control characters and white space by a space, because values of the
/// document may contain line breaks, and limits the length.
fn subject(rendered: &str) -> String {
    let words = rendered.split(|c: char| c.is_whitespace() || c.is_control());
    let words = words.filter(|word| !word.is_empty());
    let line = Vec::from_iter(words).join(" ");
    line.chars().take(MAX_SUBJECT_CHARS).collect()
}

/// Returns the URL that a template produced, in its serialized form, which has printable ASCII
/// characters only.
fn unsubscribe_url(rendered: &str) -> Option<String> {
    let url = Url::parse(rendered.trim()).ok()?;
    let is_valid = url.scheme() == "https" && url.as_str().len() <= MAX_UNSUBSCRIBE_BYTES;
    is_valid.then(|| url.to_string())
}

/// `Auto-Submitted` (RFC 3834): keeps other systems from answering the mail.
#[derive(Clone)]
struct AutoSubmitted;

/// `List-Unsubscribe` (RFC 2369).
#[derive(Clone)]
struct ListUnsubscribe(String);

/// `List-Unsubscribe-Post` (RFC 8058).
#[derive(Clone)]
struct ListUnsubscribePost;

/// Returns a header whose value has printable ASCII characters only.
fn ascii_header(name: HeaderName, value: &str) -> HeaderValue {
    HeaderValue::dangerous_new_pre_encoded(name, value.to_owned(), value.to_owned())
}

type ParseResult<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> ParseResult<Self> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        ascii_header(Self::name(), "auto-generated")
    }
}

impl Header for ListUnsubscribe {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("List-Unsubscribe")
    }

    fn parse(value: &str) -> ParseResult<Self> {
        Ok(Self(value.trim_matches(['<', '>']).to_owned()))
    }

    fn display(&self) -> HeaderValue {
        ascii_header(Self::name(), &format!("<{}>", self.0))
    }
}

impl Header for ListUnsubscribePost {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("List-Unsubscribe-Post")
    }

    fn parse(_: &str) -> ParseResult<Self> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        ascii_header(Self::name(), "List-Unsubscribe=One-Click")
    }
}
