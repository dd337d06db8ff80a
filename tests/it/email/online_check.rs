//! The command `check --online`: the login to the mail server, over TLS too, and the hosts of webhooks.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::servers::MailServer;
use crate::app::{JWT_SECRET, TestApp};
use crate::command_line::{err, out, run_with};

const SECRET: &str = "whsec_b3V0Ym91bmQgc2VjcmV0IG9mIHRoZSB0ZXN0cw==";

fn check(settings: &[(&str, &str)], environment: &[(&str, &str)]) -> Output {
    let secret = ("auth.hs256_secrets", JWT_SECRET);
    let settings = [secret].into_iter().chain(settings.iter().copied());
    let settings: Vec<String> = settings
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut arguments = vec!["check", "--online"];
    arguments.extend(
        settings
            .iter()
            .flat_map(|setting| ["--set", setting.as_str()]),
    );
    run_with(&arguments, environment)
}

/// A certificate authority, and a certificate for `localhost` that it has signed.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let authority = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ];
        authority.openssl(
            &[
                &[
                    "req",
                    "-x509",
                    "-subj",
                    "/CN=Test CA",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                ],
                &key[..],
            ]
            .concat(),
        );
        authority.openssl(
            &[
                &[
                    "req",
                    "-subj",
                    "/CN=localhost",
                    "-keyout",
                    "key.pem",
                    "-out",
                    "request.pem",
                ],
                &key[..],
            ]
            .concat(),
        );
        std::fs::write(authority.path("names"), "subjectAltName=DNS:localhost\n").unwrap();
        authority.openssl(&[
            "x509",
            "-req",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            "names",
            "-out",
            "cert.pem",
        ]);
        authority
    }

    fn openssl(&self, arguments: &[&str]) {
        let status = Command::new("openssl")
            .args(arguments)
            .current_dir(self.folder.path())
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{arguments:?}");
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn server(&self, tls: &str) -> Option<MailServer> {
        let text = |path: &Path| path.display().to_string();
        let (certificate, key) = (text(&self.path("cert.pem")), text(&self.path("key.pem")));
        MailServer::start(&[
            "--certificate",
            &certificate,
            "--key",
            &key,
            "--tls",
            tls,
            "--user",
            "hub",
            "--password",
            "right",
        ])
    }
}

#[test]
fn login_over_tls_is_checked() {
    let authority = Authority::new();
    let certificate = authority.path("ca.pem").display().to_string();
    let trusted = [("SSL_CERT_FILE", certificate.as_str())];
    for (tls, scheme, query) in [
        ("implicit", "smtps", ""),
        ("starttls", "smtp", "?tls=required"),
    ] {
        let Some(server) = authority.server(tls) else {
            return;
        };
        let check = |login: &str, host: &str, environment: &[(&str, &str)]| {
            let url = format!("{scheme}://{login}@{host}:{}{query}", server.port);
            check(
                &[("email.smtp_url", &url), ("email.from", "hub@example.com")],
                environment,
            )
        };
        let valid = check("hub:right", "localhost", &trusted);
        assert!(valid.status.success(), "{tls}: {}", err(&valid));
        assert!(out(&valid).contains("(set)@localhost"), "{}", out(&valid));
        for (login, host, environment, expected) in [
            ("hub:wrong", "localhost", &trusted[..], "535"),
            ("hub:right", "127.0.0.1", &trusted, "ertificate"),
            ("hub:right", "localhost", &[], "ertificate"),
        ] {
            let invalid = check(login, host, environment);
            assert_eq!(invalid.status.code(), Some(2), "{tls} {login} {host}");
            let errors = err(&invalid);
            assert!(
                errors.contains("email.smtp_url: ") && errors.contains(expected),
                "{errors}"
            );
            assert!(!errors.contains("hub:"), "{errors}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_are_sent_over_tls() {
    let authority = Authority::new();
    for (tls, scheme, query) in [
        ("implicit", "smtps", ""),
        ("starttls", "smtp", "?tls=required"),
    ] {
        let Some(server) = authority.server(tls) else {
            return;
        };
        let url = format!("{scheme}://hub:right@localhost:{}{query}", server.port);
        let app = TestApp::builder()
            .set("email.smtp_url", url)
            .set("email.from", "hub@example.com")
            .set("email.to", "ada@example.com")
            .environment("SSL_CERT_FILE", authority.path("ca.pem").display())
            .spawn_process(&[])
            .await;
        let id = app.register_worker_job("ada").await;
        app.push_update(&id, serde_json::json!({ "status": "succeeded" }))
            .await;
        let mails = server.wait_for_mails(1).await;
        assert_eq!(mails[0]["is_encrypted"], true);
        assert_eq!(mails[0]["user"], "hub");
    }
}

#[test]
fn hosts_of_webhooks_are_resolved() {
    let endpoint = |url: &str| {
        let settings = [("webhooks.app.url", url), ("webhooks.app.secrets", SECRET)];
        check(&settings, &[])
    };
    let private = endpoint("https://localhost/hook");
    assert_eq!(private.status.code(), Some(2));
    let expected = "webhooks.app.url: host has an address that is not allowed";
    assert!(err(&private).contains(expected), "{}", err(&private));
    let unknown = endpoint("https://host.invalid/hook");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        err(&unknown).contains("webhooks.app.url: "),
        "{}",
        err(&unknown)
    );
    let hosts = check(
        &[
            ("webhook_defaults.hosts", "localhost,host.invalid"),
            ("webhook_defaults.secret", SECRET),
        ],
        &[],
    );
    let errors = err(&hosts);
    let expected = "webhook_defaults.hosts: localhost: host has an address that is not allowed";
    assert!(errors.contains(expected), "{errors}");
    assert!(
        errors.contains("webhook_defaults.hosts: host.invalid: "),
        "{errors}"
    );
    let public = endpoint("https://1.1.1.1/hook");
    assert!(public.status.success(), "{}", err(&public));
}

#[test]
fn several_errors_are_reported_together() {
    let checked = check(
        &[
            ("webhooks.app.url", "https://localhost/hook"),
            ("webhooks.app.secrets", SECRET),
            ("email.smtp_url", "smtp://127.0.0.1:9"),
            ("email.from", "hub@example.com"),
        ],
        &[],
    );
    let errors = err(&checked);
    assert_eq!(checked.status.code(), Some(2));
    assert!(
        errors.contains("invalid configuration: 2 errors"),
        "{errors}"
    );
    assert!(
        errors.contains("webhooks.app.url: ") && errors.contains("email.smtp_url: "),
        "{errors}"
    );
}
