//! Requests to endpoints on loopback, and the URLs of submissions.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Starts a server that sends the same response to every request. Returns its URL and the requests.
async fn start_server(response: &'static str) -> (Url, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let recorded = Arc::clone(&recorded);
            tokio::spawn(async move {
                let mut request = vec![0; 1 << 16];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    let text = String::from_utf8_lossy(&request[..length]).into_owned();
                    recorded.lock().unwrap().push(text);
                    stream.write_all(response.as_bytes()).await.unwrap();
                    if response.contains("connection: close") {
                        return;
                    }
                }
            });
        }
    });
    (url.parse().unwrap(), requests)
}

fn defaults(allow: &[&str]) -> WebhookDefaults {
    WebhookDefaults {
        allow: allow
            .iter()
            .map(|network| network.parse().unwrap())
            .collect(),
        ..Config::defaults().webhook_defaults
    }
}

fn sender(defaults: &WebhookDefaults) -> Sender {
    Sender {
        client: WebhookClient::new(defaults).unwrap(),
        secrets: [SigningSecret::parse(&SECRET.into()).unwrap()].into(),
        headers: HeaderMap::new(),
    }
}

async fn send_to(response: &'static str) -> Outcome {
    let (url, _) = start_server(response).await;
    let sender = sender(&defaults(&["127.0.0.0/8"]));
    sender.send(&url, "id", "{}".to_owned()).await
}

fn failed(error: &str, retry_after: Option<u64>) -> Verdict {
    Verdict::Failed {
        error: error.to_owned(),
        retry_after: retry_after.map(std::time::Duration::from_secs),
    }
}

#[tokio::test]
async fn status_decides_the_verdict() {
    let delivered = Verdict::Delivered {
        result: Value::Null,
    };
    for (response, expected) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            delivered.clone(),
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", delivered.clone()),
        // The body never arrives completely.
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nx",
            delivered,
        ),
        (
            "HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n",
            Verdict::Gone,
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",
            failed("status 302; redirects are not followed", None),
        ),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            failed("status 404", None),
        ),
        (
            "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            failed("status 429", Some(7)),
        ),
    ] {
        assert_eq!(send_to(response).await.verdict, expected, "{response}");
    }
}

#[tokio::test]
async fn private_addresses_are_refused_unless_allowed() {
    let (url, requests) = start_server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = url.port().unwrap();
    let sender = sender(&defaults(&["10.0.0.0/8"]));
    for host in [
        "127.0.0.1",
        "2130706433",
        "localhost",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ] {
        for scheme in ["http", "https"] {
            let url = Url::parse(&format!("{scheme}://{host}:{port}/hook")).unwrap();
            let outcome = sender.send(&url, "id", "{}".to_owned()).await;
            let error = outcome.verdict.error().unwrap();
            assert!(error.contains("address"), "{scheme}://{host}: {error}");
        }
    }
    assert_eq!(requests.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn connections_are_reused_and_signed_by_attempt() {
    let (url, requests) = start_server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let sender = sender(&defaults(&["127.0.0.0/8"]));
    for _ in 0..2 {
        sender
            .send(&url, "job_1.2.job-failed.app", "{}".to_owned())
            .await;
    }
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 2);
    for request in requests.iter() {
        for part in [
            "POST /hook HTTP/1.1",
            "webhook-id: job_1.2.job-failed.app",
            "webhook-timestamp: ",
            "webhook-signature: v1,",
            "content-type: application/json",
            "user-agent: progress-hub/",
        ] {
            assert!(request.contains(part), "{part} in {request}");
        }
    }
}

#[test]
fn url_of_a_submission_must_be_on_a_configured_host() {
    let host = |url: &str| HostAndPort::of(&Url::parse(url).unwrap()).unwrap();
    let hosts = WebhookHosts::new(&WebhookDefaults {
        hosts: vec![
            host("https://hooks.example.com"),
            host("https://hooks.example.com:8443"),
            host("https://127.0.0.1:9000"),
        ],
        ..defaults(&[])
    });
    for url in [
        "https://hooks.example.com/a?b=c",
        "https://HOOKS.example.com:443/",
        "https://hooks.example.com:8443/",
    ] {
        assert!(hosts.parse(url).is_ok(), "{url}");
    }
    for (url, expected) in [
        ("", "must be a URL"),
        ("hooks.example.com", "must be a URL"),
        ("https://hooks.example.com/\n", "must be a URL"),
        ("http://hooks.example.com/", "must be https"),
        ("ftp://hooks.example.com/", "must be https"),
        ("https://127.0.0.1:9000/", "must have a public address"),
        (
            "https://u:p@hooks.example.com/",
            "must not contain a user name or password",
        ),
        (
            "https://hooks.example.com:444/",
            "must not be on hooks.example.com:444; see webhook_defaults.hosts",
        ),
        (
            "https://hooks.example.com.evil.example/secret",
            "must not be on hooks.example.com.evil.example; see webhook_defaults.hosts",
        ),
    ] {
        let error = hosts.parse(url).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("webhook_url {expected}"),
            "{url}"
        );
    }
}
