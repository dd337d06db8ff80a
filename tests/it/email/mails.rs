//! Mails of a running hub: who gets them, how often, and after failures.

use jsonwebtoken::{EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};

use super::servers::{MailServer, Mailpit};
use crate::app::{JWT_SECRET, TestApp, TestAppBuilder, TestResponse, reserve_port, send};
use crate::command_line::{err, out, run_with};
use crate::webhooks_out::{
    Engine, as_admin, deliveries, destination, hub, on_each_engine, operate, wait_for_delivery,
    wait_for_destination,
};

const ADDRESS: &str = "ada.lovelace@example.com";

/// Returns a hub that sends mails to a server on this port.
pub fn mailing_hub(port: u16) -> TestAppBuilder {
    hub()
        .set("email.smtp_url", format!("smtp://127.0.0.1:{port}"))
        .set("email.from", "Hub <hub@example.com>")
}

/// Returns a token of scopes `jobs:read jobs:write` with further claims.
fn token(sub: &str, claims: &Value) -> String {
    let mut all = json!({
        "sub": sub,
        "scope": "jobs:read jobs:write",
        "exp": jiff::Timestamp::now().as_second() + 600,
    });
    let more = claims.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    let key = EncodingKey::from_secret(JWT_SECRET.as_bytes());
    encode(&Header::default(), &all, &key).unwrap()
}

/// Registers a worker's job for `owner`.
async fn register(app: &TestApp, owner: &str, body: Value) -> TestResponse {
    let mut all = json!({ "owner": owner });
    let more = body.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    let worker = app.token("worker", "jobs:publish");
    let request = app.request_with_token(Method::POST, "/v1/jobs", &worker);
    send(request.json(&all)).await
}

/// Registers a job with a mail address and ends it. Returns its id.
async fn finish(app: &TestApp, owner: &str, update: Value) -> String {
    let response = register(app, owner, json!({ "owner_email": ADDRESS })).await;
    assert_eq!(response.status, 201, "{}", response.body);
    let id = response.body["id"].as_str().unwrap().to_owned();
    let pushed = app.push_update(&id, update).await;
    assert_eq!(pushed.body["applied"], true, "{}", pushed.body);
    id
}

pub async fn succeed(app: &TestApp, owner: &str) -> String {
    finish(app, owner, json!({ "status": "succeeded" })).await
}

fn subjects(mails: &[Value]) -> Vec<&str> {
    let contents = mails.iter().map(|mail| mail["content"].as_str().unwrap());
    contents
        .map(|content| {
            let mut lines = content.lines();
            let subject = lines.find_map(|line| line.strip_prefix("Subject: "));
            subject.unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_is_mailed_once_for_each_end_of_a_job() {
    let Some(server) = MailServer::start(&[]) else {
        return;
    };
    let app = mailing_hub(server.port).spawn().await;
    let succeeded = succeed(&app, "ada").await;
    let error = json!({ "kind": "safety", "message": "no\r\nBcc: eve@evil.example" });
    let failed = finish(&app, "ada", json!({ "status": "failed", "error": error })).await;
    let mails = server.wait_for_mails(2).await;
    let mut found = subjects(&mails);
    found.sort_unstable();
    assert_eq!(found, ["Your video: failed", "Your video: succeeded"]);
    for id in [&succeeded, &failed] {
        let delivery = wait_for_delivery(&app, id, "email", |it| it["state"] == "delivered").await;
        assert_eq!(delivery["attempts"][0]["status"], 250);
        assert_eq!(delivery["address"], "…@example.com");
    }
    for mail in &mails {
        assert_eq!(mail["to"], json!([ADDRESS]));
    }
    // A repeated update changes nothing and causes no mail.
    let repeated = app
        .push_update(&succeeded, json!({ "status": "succeeded" }))
        .await;
    assert_eq!(repeated.status, 409);
    assert_eq!(deliveries(&app, "").await.len(), 2);
    assert_eq!(server.mails().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn address_comes_from_the_verified_claim_of_the_owner() {
    let Some(server) = MailServer::start(&[]) else {
        return;
    };
    let app = mailing_hub(server.port)
        .with_simulator(progress_hub_simulator::Scenario::Normal)
        .spawn()
        .await;
    let submit = async |claims: Value, more: Value| {
        let mut body = json!({ "provider": "simulated", "model": "kling-v3.0-pro", "prompt": "x" });
        let more = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        let token = token("ada", &claims);
        send(
            app.request_with_token(Method::POST, "/v1/videos", &token)
                .json(&body),
        )
        .await
    };
    let mut mailed = Vec::new();
    let mut silent = Vec::new();
    for (claims, is_mailed) in [
        (json!({ "email": "ada@example.com" }), true),
        (
            json!({ "email": "ada@example.com", "email_verified": true }),
            true,
        ),
        (
            json!({ "email": "ada@example.com", "email_verified": "true" }),
            true,
        ),
        (
            json!({ "email": "ada@example.com", "email_verified": false }),
            false,
        ),
        (
            json!({ "email": "ada@example.com", "email_verified": "false" }),
            false,
        ),
        (
            json!({ "email": "ada@example.com", "email_verified": null }),
            true,
        ),
        (json!({ "email": ["ada@example.com"] }), false),
        (
            json!({ "email": "ada@example.com\r\nBcc: eve@evil.example" }),
            false,
        ),
        (json!({}), false),
    ] {
        let response = submit(claims, json!({})).await;
        assert_eq!(response.status, 202, "{}", response.body);
        let id = response.body["id"].as_str().unwrap().to_owned();
        let jobs = if is_mailed { &mut mailed } else { &mut silent };
        jobs.push(id);
    }
    for id in mailed.iter().chain(&silent) {
        app.wait_until_final(id, "ada").await;
    }
    let mails = server.wait_for_mails(mailed.len()).await;
    assert!(
        mails
            .iter()
            .all(|mail| mail["to"] == json!(["ada@example.com"]))
    );
    for id in &silent {
        assert_eq!(
            deliveries(&app, &format!("job={id}")).await,
            [Value::Null; 0]
        );
    }
    // Only a backend may name the address.
    let response = submit(json!({}), json!({ "owner_email": ADDRESS })).await;
    assert_eq!(
        (response.status.as_u16(), &response.body["code"]),
        (403, &json!("forbidden"))
    );
    let scopes = json!({ "scope": "jobs:write jobs:publish" });
    let response = submit(scopes, json!({ "owner_email": ADDRESS })).await;
    assert_eq!(response.status, 202, "{}", response.body);
    let mails = server.wait_for_mails(mailed.len() + 1).await;
    assert_eq!(mails.last().unwrap()["to"], json!([ADDRESS]));
}

#[tokio::test(flavor = "multi_thread")]
async fn registered_job_takes_the_address_of_its_owner_only() {
    let app = mailing_hub(9).spawn().await;
    let response = register(&app, "ada", json!({ "owner_email": "ada" })).await;
    assert_eq!(response.status, 400);
    assert_eq!(
        response.body["detail"],
        "owner_email must be a mail address"
    );
    let claims = json!({ "email": "worker@example.com", "scope": "jobs:publish" });
    for (owner, count) in [("ada", 0), ("worker", 1)] {
        let request = app.request_with_token(Method::POST, "/v1/jobs", &token("worker", &claims));
        let response = send(request.json(&json!({ "owner": owner }))).await;
        let id = response.body["id"].as_str().unwrap();
        app.push_update(id, json!({ "status": "succeeded" })).await;
        let found = deliveries(&app, &format!("job={id}")).await;
        assert_eq!(found.len(), count, "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn address_and_password_are_shown_nowhere() {
    let Some(server) = MailServer::start(&[
        "--user",
        "hub",
        "--password",
        "hunter2hunter2",
        "--reply",
        "RCPT=550 5.1.1 <ada.lovelace@example.com> unknown",
    ]) else {
        return;
    };
    let url = format!("smtp://hub:hunter2hunter2@127.0.0.1:{}", server.port);
    let app = mailing_hub(server.port)
        .set("email.smtp_url", &url)
        .spawn_process(&["--log-level", "debug"])
        .await;
    let id = succeed(&app, "ada").await;
    let delivery = wait_for_delivery(&app, &id, "email", |it| it["state"] == "failed").await;
    let error = delivery["attempts"][0]["error"].as_str().unwrap();
    assert!(error.contains("5.1.1 <address> unknown"), "{error}");
    let job = app.get_job(&id, "ada").await;
    let repeated = register(&app, "ada", json!({ "owner_email": ADDRESS })).await;
    let check = run_with(
        &[
            "check",
            "--set",
            &format!("email.smtp_url={url}"),
            "--set",
            "email.from=hub@example.com",
            "--set",
            &format!("auth.hs256_secrets={JWT_SECRET}"),
        ],
        &[],
    );
    assert!(check.status.success(), "{}", err(&check));
    for text in [
        job.to_string(),
        repeated.body.to_string(),
        delivery.to_string(),
        destination(&app, "email").await.to_string(),
        app.log(),
        out(&check),
    ] {
        assert!(!text.contains("ada.lovelace"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

on_each_engine! {
    mails_beyond_the_daily_limit_fail(engine) {
        let Some(server) = MailServer::start(&[]) else {
            return;
        };
        let store = engine.start().await;
        let app = mailing_hub(server.port).set("email.per_owner_per_day", 2);
        let app = store.configure(app).spawn().await;
        let mut jobs = Vec::new();
        for _ in 0..4 {
            jobs.push(succeed(&app, "ada").await);
        }
        let other = succeed(&app, "grace").await;
        let mut delivered = 0;
        for id in &jobs {
            let ended = |it: &Value| it["ended_at"].is_string();
            let delivery = wait_for_delivery(&app, id, "email", ended).await;
            if delivery["state"] == "delivered" {
                delivered += 1;
            } else {
                let error = "email.per_owner_per_day: the limit of 2 is reached";
                assert_eq!(delivery["attempts"][0]["error"], error);
            }
        }
        assert_eq!(delivered, 2);
        wait_for_delivery(&app, &other, "email", |it| it["state"] == "delivered").await;
        assert_eq!(server.mails().len(), 3);
        assert_eq!(destination(&app, "email").await["state"], "active");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_sent_after_a_kill_between_commit_and_send() {
    let (reserved, address) = reserve_port();
    // No server listens yet, so the mail waits in the outbox.
    let app = mailing_hub(address.port()).spawn_process(&[]).await;
    let id = succeed(&app, "ada").await;
    let folder = app.kill();
    drop(reserved);
    let Some(server) = MailServer::start(&["--port", &address.port().to_string()]) else {
        return;
    };
    let app = mailing_hub(server.port)
        .data_dir(folder)
        .spawn_process(&[])
        .await;
    let mails = server.wait_for_mails(1).await;
    assert_eq!(subjects(&mails), ["Your video: succeeded"]);
    wait_for_delivery(&app, &id, "email", |it| it["state"] == "delivered").await;
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_failure_is_repeated() {
    let Some(mailpit) = Mailpit::start().await else {
        return;
    };
    mailpit.fail("Recipient", 451).await;
    let app = mailing_hub(mailpit.port).spawn().await;
    let id = succeed(&app, "ada").await;
    wait_for_delivery(&app, &id, "email", |it| it["attempts"][0]["status"] == 451).await;
    mailpit.fail("Recipient", 0).await;
    let delivery = wait_for_delivery(&app, &id, "email", |it| it["state"] == "delivered").await;
    let message = mailpit.messages().await;
    assert_eq!(message.len(), 1);
    let id = delivery["id"].as_str().unwrap();
    assert_eq!(message[0]["MessageID"], format!("{id}@example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_login_pauses_the_destination_and_loses_no_mail() {
    let Some(mailpit) = Mailpit::start().await else {
        return;
    };
    mailpit.fail("Authentication", 535).await;
    let url = format!("smtp://hub:password@127.0.0.1:{}", mailpit.port);
    let app = mailing_hub(mailpit.port)
        .set("email.smtp_url", url)
        .set("deliveries.pause", "1h")
        .spawn()
        .await;
    let tested = operate(&app, "email", "test").await;
    assert_eq!(
        (&tested["delivered"], &tested["status"]),
        (&json!(false), &json!(535))
    );
    let id = succeed(&app, "ada").await;
    let paused = wait_for_destination(&app, "email", |it| it["state"] == "paused").await;
    assert!(
        paused["last_error"].as_str().unwrap().contains("535"),
        "{paused}"
    );
    let waiting = wait_for_delivery(&app, &id, "email", |_| true).await;
    assert_eq!(
        (&waiting["state"], &waiting["attempt_count"]),
        (&json!("waiting"), &json!(0))
    );

    mailpit.fail("Authentication", 0).await;
    assert_eq!(operate(&app, "email", "test").await["delivered"], true);
    assert_eq!(
        mailpit.messages().await,
        [Value::Null; 0],
        "a test sends no mail"
    );
    operate(&app, "email", "enable").await;
    let path = format!(
        "/v1/deliveries/{}/redeliver",
        waiting["id"].as_str().unwrap()
    );
    assert_eq!(as_admin(&app, Method::POST, &path).await.status, 202);
    wait_for_delivery(&app, &id, "email", |it| it["state"] == "delivered").await;
    assert_eq!(mailpit.messages().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_mail_server_delays_no_job() {
    let server = super::servers::ScriptedServer::start(&[]).await;
    let app = mailing_hub(server.port).spawn().await;
    for _ in 0..20 {
        succeed(&app, "ada").await;
    }
    assert_eq!(deliveries(&app, "state=waiting").await.len(), 20);
}
