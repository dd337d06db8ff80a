use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, json};

use super::*;
use crate::config::Config;
use crate::job::{InternalState, JobId, NewJob, Status};
use crate::outbox::{DeliveryId, Progress};
use crate::time::Time;

const SERVER: &str = "smtp://127.0.0.1:2525";

fn config(settings: &[(&str, &str)]) -> EmailConfig {
    let basic = [("smtp_url", SERVER), ("from", "Hub <hub@example.com>")];
    let flags = basic
        .iter()
        .chain(settings)
        .map(|(key, value)| (format!("email.{key}"), (*value).to_owned()));
    let (config, errors) = Config::read(None, std::iter::empty(), flags.collect());
    let errors: Vec<_> = errors.iter().filter(|it| it.is_about("email")).collect();
    assert!(errors.is_empty(), "{errors:?}");
    config.email
}

fn loaded(settings: &[(&str, &str)]) -> EmailChannel {
    EmailChannel::load(&config(settings)).unwrap().unwrap()
}

fn problems(settings: &[(&str, &str)]) -> Vec<String> {
    let errors = EmailChannel::load(&config(settings)).err().unwrap();
    errors.iter().map(ToString::to_string).collect()
}

fn job(owner_email: Option<&str>, metadata: serde_json::Value) -> Job {
    let serde_json::Value::Object(metadata) = metadata else {
        panic!("metadata is an object");
    };
    let job = Job::new(
        NewJob {
            owner: "ada@users.example".to_owned(),
            provider: None,
            provider_task_id: None,
            model: None,
            metadata,
            request: None,
            deadline: Duration::from_secs(60),
        },
        Time::now(),
    );
    let internal = InternalState {
        owner_email: owner_email.map(str::to_owned),
        ..InternalState::default()
    };
    Job {
        status: Status::Succeeded,
        internal: Arc::new(internal),
        ..job
    }
}

fn delivery(job: &Job) -> Delivery {
    Delivery {
        id: DeliveryId {
            job: JobId::parse("job_01k9").unwrap(),
            version: 7,
            event: "job.succeeded".to_owned(),
            destination: EMAIL.to_owned(),
        },
        owner: job.owner.clone(),
        target: Some("ada@example.com".to_owned()),
        document: serde_json::to_string(job).unwrap(),
        created_at: Time::from_millis(1_790_000_000_000),
        progress: Progress::new(Time::now()),
    }
}

fn recipient(settings: &[(&str, &str)], job: &Job) -> Option<String> {
    let mut deliveries = loaded(settings).deliveries(job, Event::Succeeded);
    assert!(deliveries.iter().all(|it| it.destination == "email"));
    deliveries.pop()?.target
}

fn mail(settings: &[(&str, &str)], metadata: serde_json::Value) -> String {
    let channel = loaded(settings);
    let message = channel.message(&delivery(&job(None, metadata))).unwrap();
    String::from_utf8(message.formatted()).unwrap()
}

/// Returns the names of the headers before the body.
fn header_names(mail: &str) -> Vec<&str> {
    let (head, _) = mail.split_once("\r\n\r\n").unwrap();
    let lines = head
        .split("\r\n")
        .filter(|line| !line.starts_with([' ', '\t']));
    lines.map(|line| line.split(':').next().unwrap()).collect()
}

#[test]
fn owner_without_address_gets_no_mail() {
    let address = Some("ada@example.com");
    assert_eq!(
        recipient(&[], &job(address, json!({}))),
        address.map(str::to_owned)
    );
    assert_eq!(recipient(&[], &job(None, json!({}))), None);
    for event in [Event::Created, Event::Updated, Event::Cancelled] {
        assert_eq!(loaded(&[]).deliveries(&job(address, json!({})), event), []);
    }
}

#[test]
fn recipient_is_one_address_in_an_allowed_domain() {
    let settings = [
        ("to", "{{ job.metadata.email }}"),
        ("allowed_domains", "example.com, Bücher.example"),
    ];
    for (text, is_allowed) in [
        ("ada@example.com", true),
        (" ada@EXAMPLE.com ", true),
        ("ada@xn--bcher-kva.example", true),
        ("ada@sub.example.com", false),
        ("ada@example.com.evil.example", false),
        ("ada@evil.example", false),
        ("ada@example.com, eve@evil.example", false),
        ("ada@example.com\r\nBcc: eve@evil.example", false),
        ("\"eve@evil.example\" <ada@example.com>", false),
        ("ada@[127.0.0.1]", false),
        ("ada@127.0.0.1", false),
        ("example.com", false),
        ("", false),
    ] {
        let found = recipient(&settings, &job(None, json!({ "email": text })));
        let expected = is_allowed.then(|| text.trim().to_owned());
        assert_eq!(found, expected, "{text:?}");
    }
    assert_eq!(
        recipient(&settings, &job(None, json!({ "email": null }))),
        None
    );
    assert_eq!(recipient(&settings, &job(None, json!({}))), None);
}

#[test]
fn values_of_callers_need_allowed_domains() {
    for to in [
        "{{ job.metadata.email }}",
        "{{ job.owner }}",
        "{{ job.model }}@example.com",
        "{{ job['metadata'].email }}",
        "{% set j = job %}{{ j.owner }}",
        "{% for key in job %}{{ key }}{% endfor %}",
        "{{ job.error.message }}",
    ] {
        let problem = problems(&[("to", to)]).remove(0);
        assert!(problem.starts_with("email.to: uses job"), "{problem}");
        assert!(problem.contains("email.allowed_domains"), "{problem}");
        let allowed = config(&[("to", to), ("allowed_domains", "example.com")]);
        assert!(EmailChannel::load(&allowed).is_ok(), "{to}");
    }
    for to in [
        "ops@example.com",
        "{% if job.status == 'failed' %}ops@example.com{% else %}{{ job.owner_email }}{% endif %}",
    ] {
        loaded(&[("to", to)]);
    }
}

#[test]
fn invalid_settings_are_reported_by_their_key() {
    let found = problems(&[
        ("from", "nobody"),
        ("to", "{{ job.owner_mail }}"),
        ("subject", "{{ job.stauts }}"),
        ("text", "a\n{{ job.id"),
        ("html", "{{ job.id|shout }}"),
        ("unsubscribe_url", "http://example.com/{{ job.id }}"),
    ]);
    for (problem, expected) in found.iter().zip([
        "email.from: must be an address",
        "email.to: line 1: unknown name: job.owner_mail",
        "email.subject: line 1: unknown name: job.stauts",
        "email.text: line 2: syntax error",
        "email.html: line 1: unknown filter",
        "email.unsubscribe_url: must be an https URL",
    ]) {
        assert!(problem.starts_with(expected), "{problem}");
    }
    assert_eq!(found.len(), 6);
    assert!(
        EmailChannel::load(&Config::defaults().email)
            .unwrap()
            .is_none()
    );
}

#[test]
fn mail_has_the_delivery_id_and_says_that_a_program_sent_it() {
    let mail = mail(&[], json!({}));
    for line in [
        "From: Hub <hub@example.com>\r\n",
        "To: ada@example.com\r\n",
        "Subject: Your video: succeeded\r\n",
        "Message-ID: <job_01k9.7.job-succeeded.email@example.com>\r\n",
        "Date: Mon, 21 Sep 2026 14:13:20 +0000\r\n",
        "Auto-Submitted: auto-generated\r\n",
    ] {
        assert!(mail.contains(line), "{line}: {mail}");
    }
    assert!(!mail.contains("List-Unsubscribe"));
}

#[test]
fn unsubscribe_headers_are_added_if_configured() {
    let url = "https://example.com/stop?owner={{ job.owner|urlencode }}";
    let mail = mail(&[("unsubscribe_url", url)], json!({}));
    let header = "List-Unsubscribe: <https://example.com/stop?owner=ada%40users.example>\r\n";
    assert!(mail.contains(header), "{mail}");
    let header = "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n";
    assert!(mail.contains(header), "{mail}");
}

#[test]
fn metadata_cannot_add_headers_or_recipients() {
    let plain = header_names(&mail(&[], json!({}))).join(" ");
    for title in [
        "a\r\nBcc: eve@evil.example",
        "a\nBcc: eve@evil.example\n\nbody",
        "a\rBcc: eve@evil.example",
        "=?utf-8?q?a=0D=0ABcc:_eve@evil.example?=",
        "é\u{85}Bcc: eve@evil.example\u{2028}\u{2029}",
    ] {
        let settings = [("subject", "{{ job.metadata.title }}")];
        let mail = mail(&settings, json!({ "title": title }));
        assert_eq!(header_names(&mail).join(" "), plain, "{mail}");
        let channel = loaded(&settings);
        let message = channel.message(&delivery(&job(None, json!({ "title": title }))));
        assert_eq!(message.unwrap().envelope().to().len(), 1);
    }
}

#[test]
fn subject_is_one_short_line() {
    let channel = loaded(&[("subject", "{{ job.metadata.title }}")]);
    let title = format!(" a\r\n\tb\u{0}c\u{1b}[0m {}", "ü".repeat(500));
    let message = channel.message(&delivery(&job(None, json!({ "title": title }))));
    let message = message.unwrap();
    let subject = message.headers().get_raw("Subject").unwrap();
    assert!(subject.starts_with("a b c [0m üü"), "{subject}");
    assert_eq!(subject.chars().count(), 120);
}

#[test]
fn text_and_escaped_html_are_alternatives() {
    let settings = [
        ("text", "{{ job.metadata.title }}"),
        ("html", "<p>{{ job.metadata.title }}</p>"),
    ];
    let mail = mail(&settings, json!({ "title": "<b>&" }));
    assert!(
        mail.contains("Content-Type: multipart/alternative;"),
        "{mail}"
    );
    let (text, html) = mail.split_once("Content-Type: text/html").unwrap();
    assert!(text.contains("\r\n\r\n<b>&\r\n"), "{mail}");
    assert!(html.contains("<p>&lt;b&gt;&amp;</p>"), "{mail}");
}

#[test]
fn addresses_of_a_reply_are_not_shown() {
    let reply = "permanent error (550): 5.1.1 <ada@example.com>: no such\r\nuser ada@example.com";
    let shown = "permanent error (550): 5.1.1 <address> no such user <address>";
    assert_eq!(without_addresses(reply), shown);
    assert_eq!(without_addresses(&"x".repeat(500)).len(), 200);
}

#[test]
fn owner_email_is_in_no_document() {
    let job = job(
        Some("ada@example.com"),
        serde_json::Value::Object(Map::new()),
    );
    assert!(
        !serde_json::to_string(&job)
            .unwrap()
            .contains("ada@example.com")
    );
    assert_eq!(loaded(&[]).deliveries(&job, Event::Succeeded).len(), 1);
    let problem = problems(&[("text", "{{ job.owner_email }}")]).remove(0);
    assert!(
        problem.contains("unknown name: job.owner_email"),
        "{problem}"
    );
}
