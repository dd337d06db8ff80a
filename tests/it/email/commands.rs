//! The commands `deliveries` and `destinations`.

use serde_json::Value;

use super::mails::{mailing_hub, succeed};
use super::servers::MailServer;
use crate::app::JWT_SECRET;
use crate::command_line::{err, out, run_with};
use crate::webhooks_out::wait_for_delivery;

#[tokio::test(flavor = "multi_thread")]
async fn commands_list_show_and_repeat_deliveries() {
    let Some(server) = MailServer::start(&[]) else {
        return;
    };
    let app = mailing_hub(server.port).spawn().await;
    let id = succeed(&app, "ada").await;
    let delivery = wait_for_delivery(&app, &id, "email", |it| it["state"] == "delivered").await;
    let delivery_id = delivery["id"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, app.token("operator", "admin") + "\n").unwrap();
    let file = file.to_str().unwrap();
    let environment = [("PROGRESS_HUB_URL", app.url.as_str())];
    let run =
        |arguments: &[&str]| run_with(&[arguments, &["--token-file", file]].concat(), &environment);
    let output = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{}", err(&output));
        out(&output)
    };

    let table = output(&["deliveries", "list", "--job", &id]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("ID") && lines[0].ends_with("LAST ERROR"),
        "{table}"
    );
    assert!(
        lines[1].starts_with(delivery_id) && lines[1].contains("delivered"),
        "{table}"
    );
    assert_eq!(lines.len(), 2);
    let list: Value = serde_json::from_str(&output(&["deliveries", "list", "--json"])).unwrap();
    assert_eq!(list["deliveries"][0]["id"], delivery_id);
    assert_eq!(
        output(&["deliveries", "list", "--state", "failed"])
            .lines()
            .count(),
        1
    );

    let shown = output(&["deliveries", "show", delivery_id]);
    assert!(
        shown.contains("…@example.com") && shown.contains("250"),
        "{shown}"
    );
    let shown: Value =
        serde_json::from_str(&output(&["deliveries", "show", delivery_id, "--json"])).unwrap();
    assert_eq!(shown["job"], id.as_str());
    let repeated = output(&["deliveries", "redeliver", delivery_id]);
    assert!(repeated.contains("waiting"), "{repeated}");
    server.wait_for_mails(2).await;

    let table = output(&["destinations", "list"]);
    assert!(
        table.starts_with("NAME") && table.contains("127.0.0.1"),
        "{table}"
    );
    let table = output(&["destinations", "disable", "email"]);
    assert!(table.contains("disabled"), "{table}");
    let table = output(&["destinations", "enable", "email"]);
    assert!(table.contains("active"), "{table}");
    let tested = output(&["destinations", "test", "email"]);
    assert!(tested.starts_with("email: test succeeded"), "{tested}");
    drop(server);
    let tested = run(&["destinations", "test", "email"]);
    assert_eq!(tested.status.code(), Some(1));
    assert!(
        err(&tested).contains("email: test failed: "),
        "{}",
        err(&tested)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_report_what_the_hub_refuses() {
    let app = mailing_hub(9).spawn().await;
    let token = app.token("ada", "jobs:read");
    let environment = [
        ("PROGRESS_HUB_TOKEN", token.as_str()),
        ("PROGRESS_HUB_URL", app.url.as_str()),
    ];
    for (arguments, code, expected) in [
        (&["destinations", "list"][..], 1, "403: forbidden: "),
        (
            &["deliveries", "show", "job_1.1.job-failed.app"],
            1,
            "not_found",
        ),
        (
            &["deliveries", "list", "--state", "lost"],
            1,
            "400: invalid_request: ",
        ),
        (
            &["deliveries", "list", "--url", "http://hub.example.com"],
            2,
            "--url must be https",
        ),
        (
            &["deliveries", "list", "--token-file", "/nowhere"],
            2,
            "--token-file /nowhere: ",
        ),
        (
            &["destinations", "list", "--url", "http://127.0.0.1:9"],
            1,
            "no response from http://127.0.0.1:9",
        ),
    ] {
        let output = run_with(arguments, &environment);
        let errors = err(&output);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(
            errors.contains(expected) && !errors.contains(&token),
            "{errors}"
        );
    }
    // Without a token, the command signs one with the secret of the configuration.
    let secret = format!("auth.hs256_secrets={JWT_SECRET}");
    let output = run_with(
        &["destinations", "list", "--url", &app.url, "--set", &secret],
        &[("PROGRESS_HUB_TOKEN", "")],
    );
    assert!(
        output.status.success() && out(&output).contains("email"),
        "{}",
        err(&output)
    );
    let output = run_with(
        &["destinations", "list", "--url", &app.url],
        &[("PROGRESS_HUB_TOKEN", "")],
    );
    assert_eq!(output.status.code(), Some(2));
}
