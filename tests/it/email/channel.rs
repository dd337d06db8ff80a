//! Attempts to send a mail, and what follows from them.

use progress_hub::config::Config;
use progress_hub::destinations::email::EmailChannel;
use progress_hub::destinations::{Channel, Outcome, Verdict};
use progress_hub::job::{Job, JobId, NewJob, Status};
use progress_hub::outbox::{Delivery, DeliveryId, Progress};
use progress_hub::time::Time;
use serde_json::{Map, Value, json};

use super::servers::{MailServer, Mailpit, ScriptedServer};
use crate::app::TEST_TIMEOUT;

fn channel(url: &str, settings: &[(&str, &str)]) -> EmailChannel {
    let basic = [("smtp_url", url), ("from", "Hub <hub@example.com>")];
    let settings = basic.iter().chain(settings);
    let flags = settings.map(|(key, value)| (format!("email.{key}"), (*value).to_owned()));
    let (config, errors) = Config::read(None, std::iter::empty(), flags.collect());
    assert!(
        !errors.iter().any(|error| error.is_about("email")),
        "{errors:?}"
    );
    EmailChannel::load(&config.email).unwrap().unwrap()
}

fn local(port: u16) -> String {
    format!("smtp://127.0.0.1:{port}")
}

fn delivery(metadata: Value) -> Delivery {
    let Value::Object(metadata) = metadata else {
        panic!("metadata is an object");
    };
    let new = NewJob {
        owner: "ada".to_owned(),
        provider: None,
        provider_task_id: None,
        model: None,
        metadata,
        request: None,
        deadline: TEST_TIMEOUT,
    };
    let job = Job {
        status: Status::Succeeded,
        ..Job::new(new, Time::now())
    };
    Delivery {
        id: DeliveryId {
            job: JobId::new(),
            version: 7,
            event: "job.succeeded".to_owned(),
            destination: "email".to_owned(),
        },
        owner: job.owner.clone(),
        target: Some("ada@example.com".to_owned()),
        document: serde_json::to_string(&job).unwrap(),
        created_at: job.updated_at,
        progress: Progress::new(Time::now()),
    }
}

async fn deliver(channel: &EmailChannel) -> Outcome {
    channel.deliver(&delivery(Value::Object(Map::new()))).await
}

fn error(outcome: &Outcome) -> &str {
    match &outcome.verdict {
        Verdict::Failed { error, .. }
        | Verdict::SourceFailed { error }
        | Verdict::Rejected { error }
        | Verdict::Misconfigured { error } => error,
        Verdict::Delivered { .. } | Verdict::Gone | Verdict::Postponed { .. } => {
            panic!("no error: {outcome:?}")
        }
    }
}

#[track_caller]
fn assert_delivered(outcome: &Outcome) {
    let is_delivered = matches!(outcome.verdict, Verdict::Delivered { .. });
    assert!(is_delivered && outcome.status == Some(250), "{outcome:?}");
}

#[track_caller]
fn assert_failed(outcome: &Outcome, status: Option<u16>) {
    let is_failed = matches!(
        outcome.verdict,
        Verdict::Failed {
            retry_after: None,
            ..
        }
    );
    assert!(is_failed && outcome.status == status, "{outcome:?}");
}

#[track_caller]
fn assert_rejected(outcome: &Outcome, status: Option<u16>) {
    let is_rejected = matches!(outcome.verdict, Verdict::Rejected { .. });
    assert!(is_rejected && outcome.status == status, "{outcome:?}");
}

#[track_caller]
fn assert_misconfigured(outcome: &Outcome, status: Option<u16>) {
    let is_misconfigured = matches!(outcome.verdict, Verdict::Misconfigured { .. });
    assert!(is_misconfigured && outcome.status == status, "{outcome:?}");
}

#[tokio::test]
async fn mailpit_receives_text_html_and_headers() {
    let Some(mailpit) = Mailpit::start().await else {
        return;
    };
    let settings = [
        ("subject", "Ready: {{ job.metadata.title }}"),
        ("text", "Hello {{ job.metadata.title }}"),
        ("html", "<p>Hello {{ job.metadata.title }}</p>"),
        ("unsubscribe_url", "https://example.com/stop/{{ job.id }}"),
    ];
    let url = format!(
        "smtp://user:password@127.0.0.1:{}/hub.example.com",
        mailpit.port
    );
    let channel = channel(&url, &settings);
    let delivery = delivery(json!({ "title": "<Ünïcode>\r\nBcc: eve@evil.example" }));
    assert_delivered(&channel.deliver(&delivery).await);
    let message = mailpit.messages().await.remove(0);
    assert_eq!(
        message["From"],
        json!({"Name": "Hub", "Address": "hub@example.com"})
    );
    assert_eq!(
        message["To"],
        json!([{"Name": "", "Address": "ada@example.com"}])
    );
    assert_eq!(message["Bcc"], json!([]));
    assert_eq!(message["Cc"], json!([]));
    assert_eq!(message["Subject"], "Ready: <Ünïcode> Bcc: eve@evil.example");
    assert_eq!(message["MessageID"], format!("{}@example.com", delivery.id));
    let text = message["Text"].as_str().unwrap().replace("\r\n", "\n");
    assert_eq!(text.trim_end(), "Hello <Ünïcode>\nBcc: eve@evil.example");
    let html = message["HTML"].as_str().unwrap();
    assert!(html.contains("<p>Hello &lt;Ünïcode&gt;"), "{html}");
    let unsubscribe = &message["ListUnsubscribe"];
    let link = format!(
        "https://example.com/stop/{}",
        serde_json::from_str::<Value>(&delivery.document).unwrap()["id"]
            .as_str()
            .unwrap()
    );
    assert_eq!(unsubscribe["Links"], json!([link]), "{unsubscribe}");
    assert_eq!(unsubscribe["HeaderPost"], "List-Unsubscribe=One-Click");
    assert_eq!(unsubscribe["Errors"], "");
}

#[tokio::test]
async fn mailpit_failures_decide_what_follows() {
    let Some(mailpit) = Mailpit::start().await else {
        return;
    };
    let url = format!("smtp://user:password@127.0.0.1:{}", mailpit.port);
    let channel = channel(&url, &[]);
    mailpit.fail("Recipient", 451).await;
    assert_failed(&deliver(&channel).await, Some(451));
    mailpit.fail("Recipient", 550).await;
    assert_rejected(&deliver(&channel).await, Some(550));
    mailpit.fail("Recipient", 0).await;
    mailpit.fail("Sender", 450).await;
    assert_failed(&deliver(&channel).await, Some(450));
    mailpit.fail("Sender", 553).await;
    assert_misconfigured(&deliver(&channel).await, Some(553));
    mailpit.fail("Sender", 0).await;
    mailpit.fail("Authentication", 535).await;
    assert_misconfigured(&deliver(&channel).await, Some(535));
    mailpit.fail("Authentication", 454).await;
    assert_failed(&deliver(&channel).await, Some(454));
    mailpit.fail("Authentication", 0).await;
    assert_eq!(mailpit.messages().await, [Value::Null; 0]);
    assert_delivered(&deliver(&channel).await);
    assert_eq!(mailpit.messages().await.len(), 1);
}

#[tokio::test]
async fn aiosmtpd_receives_one_recipient() {
    let Some(server) = MailServer::start(&["--user", "hub", "--password", "p@:/"]) else {
        return;
    };
    let url = format!("smtp://hub:p%40%3A%2F@127.0.0.1:{}", server.port);
    let settings = [("subject", "{{ job.metadata.title }}")];
    let channel = channel(&url, &settings);
    let title = "a\r\nBcc: eve@evil.example\r\n.\r\nRCPT TO:<eve@evil.example>";
    let delivery = delivery(json!({ "title": title }));
    assert_delivered(&channel.deliver(&delivery).await);
    let mails = server.wait_for_mails(1).await;
    assert_eq!(mails[0]["from"], "hub@example.com");
    assert_eq!(mails[0]["to"], json!(["ada@example.com"]));
    assert_eq!(mails[0]["user"], "hub");
    let content = mails[0]["content"].as_str().unwrap();
    let id = format!("Message-ID: <{}@example.com>\r\n", delivery.id);
    assert!(content.contains(&id), "{content}");
    assert!(
        content.contains("Auto-Submitted: auto-generated\r\n"),
        "{content}"
    );
    assert!(!content.contains("\r\nBcc"), "{content}");
}

#[tokio::test]
async fn wrong_password_is_a_misconfiguration() {
    let Some(server) = MailServer::start(&["--user", "hub", "--password", "right"]) else {
        return;
    };
    let wrong = channel(&format!("smtp://hub:wrong@127.0.0.1:{}", server.port), &[]);
    let outcome = deliver(&wrong).await;
    assert_misconfigured(&outcome, Some(535));
    assert!(!error(&outcome).contains("wrong"), "{outcome:?}");
    // A server that requires a login refuses the sender with 530.
    assert_misconfigured(
        &deliver(&channel(&local(server.port), &[])).await,
        Some(530),
    );
    assert_eq!(server.mails(), [Value::Null; 0]);
}

#[tokio::test]
async fn replies_of_aiosmtpd_decide_what_follows() {
    for (reply, status) in [
        ("RCPT=550 5.1.1 <ada@example.com> unknown", 550),
        ("DATA=554 5.7.1 spam to ada@example.com", 554),
        ("RCPT=452 4.2.2 full", 452),
        ("DATA=451 4.3.0 later", 451),
        ("MAIL=550 5.7.1 not your address", 550),
    ] {
        let Some(server) = MailServer::start(&["--reply", reply]) else {
            return;
        };
        let outcome = deliver(&channel(&local(server.port), &[])).await;
        match (reply.split_once('=').unwrap().0, status) {
            ("MAIL", _) => assert_misconfigured(&outcome, Some(status)),
            (_, 500..) => assert_rejected(&outcome, Some(status)),
            (_, _) => assert_failed(&outcome, Some(status)),
        }
        assert!(!error(&outcome).contains("ada@example.com"), "{outcome:?}");
    }
}

#[tokio::test]
async fn unreachable_server_is_a_failure() {
    let (_port, address) = crate::app::reserve_port();
    assert_failed(&deliver(&channel(&local(address.port()), &[])).await, None);
}

const GREETING: &str = "220 mail.example.com\r\n";
const HELLO: &str = "250 mail.example.com\r\n";
const OK: &str = "250 OK\r\n";
const START: &str = "354 go ahead\r\n";

#[tokio::test]
async fn silent_server_is_cut_off_at_every_step() {
    for replies in [
        &[][..],
        &[GREETING],
        &[GREETING, HELLO],
        &[GREETING, HELLO, OK],
        &[GREETING, HELLO, OK, OK],
        &[GREETING, HELLO, OK, OK, START],
    ] {
        let server = ScriptedServer::start(replies).await;
        let channel = channel(&local(server.port), &[("timeout", "300ms")]);
        let outcome = deliver(&channel).await;
        assert_failed(&outcome, None);
        assert!(error(&outcome).contains("email.timeout"), "{outcome:?}");
    }
}

#[tokio::test]
async fn accepted_mail_is_delivered_though_the_server_does_not_say_good_bye() {
    let server = ScriptedServer::start(&[GREETING, HELLO, OK, OK, START, OK]).await;
    assert_delivered(&deliver(&channel(&local(server.port), &[])).await);
}

#[tokio::test]
async fn broken_servers_are_failures() {
    for replies in [&["hello\r\n"][..], &["220", "\r\n"], &[GREETING, "25"]] {
        let server = ScriptedServer::start(replies).await;
        let channel = channel(&local(server.port), &[("timeout", "300ms")]);
        assert_failed(&deliver(&channel).await, None);
    }
    let server = ScriptedServer::start(&["421 too busy\r\n"]).await;
    assert_failed(
        &deliver(&channel(&local(server.port), &[])).await,
        Some(421),
    );
    let server = ScriptedServer::start(&["554 blocked\r\n"]).await;
    assert_misconfigured(
        &deliver(&channel(&local(server.port), &[])).await,
        Some(554),
    );
}

#[tokio::test]
async fn nothing_is_sent_without_required_encryption() {
    let Some(server) = MailServer::start(&[]) else {
        return;
    };
    let url = format!("smtp://127.0.0.1:{}?tls=required", server.port);
    assert_misconfigured(&deliver(&channel(&url, &[])).await, None);
    let url = format!("smtps://127.0.0.1:{}", server.port);
    let channel = channel(&url, &[("timeout", "2s")]);
    assert_failed(&deliver(&channel).await, None);
    assert_eq!(server.mails(), [Value::Null; 0]);
}
