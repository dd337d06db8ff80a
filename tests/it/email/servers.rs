//! Real mail servers for tests. `scripts/test` installs them.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::app::{TEST_TIMEOUT, reserve_port};
use crate::wait::wait_for;
use crate::webhooks_out::skip;

/// Returns a program that `scripts/test` installs into the folder of build outputs. Returns `None`, and
/// says so, if it is missing.
fn installed(file: &str) -> Option<PathBuf> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_progress-hub"));
    let target = program.ancestors().nth(2).expect("a target folder");
    let path = target.join(file);
    if !path.exists() {
        skip(&path);
        return None;
    }
    Some(path)
}

/// An `aiosmtpd` server on a free port.
pub struct MailServer {
    pub port: u16,
    process: Child,
    mails: Arc<Mutex<Vec<Value>>>,
}

impl MailServer {
    /// Starts the server with the options of `tests/libraries/mail_server.py`. Returns `None` if it is not
    /// installed.
    pub fn start(options: &[&str]) -> Option<Self> {
        let mut process = Command::new(installed("python-libraries/bin/python")?)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/libraries/mail_server.py"
            ))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the mail server");
        let mut output = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut port = String::new();
        output.read_line(&mut port).expect("read the port");
        let port = port
            .trim()
            .parse()
            .expect("the mail server prints its port");
        let mails = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&mails);
        std::thread::spawn(move || receive(output, &received));
        Some(Self {
            port,
            process,
            mails,
        })
    }

    /// Returns the mails that the server has accepted.
    pub fn mails(&self) -> Vec<Value> {
        self.mails.lock().unwrap().clone()
    }

    /// Waits until the server has accepted this number of mails, and returns them.
    pub async fn wait_for_mails(&self, count: usize) -> Vec<Value> {
        wait_for("the mails arrive", || {
            let mails = Some(self.mails()).filter(|mails| mails.len() >= count);
            std::future::ready(mails)
        })
        .await
    }
}

fn receive(output: BufReader<ChildStdout>, mails: &Mutex<Vec<Value>>) {
    for line in output.lines().map_while(Result::ok) {
        let mail = serde_json::from_str(&line).expect("a line of JSON");
        mails.lock().unwrap().push(mail);
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A Mailpit server on free ports. It fails on request.
pub struct Mailpit {
    pub port: u16,
    api: String,
    http: reqwest::Client,
    process: Child,
    _folder: TempDir,
    /// Keep the ports reserved.
    _ports: [socket2::Socket; 2],
}

impl Mailpit {
    /// Starts the server. Returns `None` if it is not installed.
    pub async fn start() -> Option<Self> {
        let program = installed("mail-servers/mailpit")?;
        let folder = tempfile::tempdir().unwrap();
        let (smtp_port, smtp) = reserve_port();
        let (http_port, http) = reserve_port();
        let process = Command::new(program)
            .args(["--smtp", &smtp.to_string(), "--listen", &http.to_string()])
            .args(["--enable-chaos", "--quiet", "--disable-version-check"])
            .args(["--smtp-auth-accept-any", "--smtp-auth-allow-insecure"])
            .arg("--database")
            .arg(folder.path().join("mailpit.db"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start Mailpit");
        let mailpit = Self {
            port: smtp.port(),
            api: format!("http://{http}/api/v1"),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            process,
            _folder: folder,
            _ports: [smtp_port, http_port],
        };
        wait_for("Mailpit responds", async || {
            let response = mailpit
                .http
                .get(format!("{}/info", mailpit.api))
                .send()
                .await;
            response
                .ok()
                .filter(|response| response.status().is_success())
        })
        .await;
        Some(mailpit)
    }

    /// Makes the server reply to a stage (`Sender`, `Recipient` or `Authentication`) with a status, or
    /// normally if it is 0.
    pub async fn fail(&self, stage: &str, status: u16) {
        let probability = if status == 0 { 0 } else { 100 };
        let code = if status == 0 { 451 } else { status };
        let failures = json!({ stage: { "ErrorCode": code, "Probability": probability } });
        let request = self.http.put(format!("{}/chaos", self.api)).json(&failures);
        let response = request.timeout(TEST_TIMEOUT).send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
    }

    /// Returns all messages with their parsed content, newest first.
    pub async fn messages(&self) -> Vec<Value> {
        let list = self.get("messages").await;
        let ids = list["messages"].as_array().unwrap().iter();
        let ids: Vec<&str> = ids.map(|message| message["ID"].as_str().unwrap()).collect();
        let mut messages = Vec::new();
        for id in ids {
            messages.push(self.get(&format!("message/{id}")).await);
        }
        messages
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}/{path}", self.api));
        let response = request.timeout(TEST_TIMEOUT).send().await.unwrap();
        response.json().await.unwrap()
    }
}

impl Drop for Mailpit {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A server that replies to the lines it receives from a script, and then stays silent with the
/// connection open.
pub struct ScriptedServer {
    pub port: u16,
    task: JoinHandle<()>,
}

impl ScriptedServer {
    /// Starts the server. It sends the first reply at once and each further reply after a line. While
    /// it receives the content of a mail, only the line `.` counts.
    pub async fn start(replies: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.push(tokio::spawn(follow(stream, replies)));
            }
        });
        Self { port, task }
    }
}

async fn follow(mut stream: tokio::net::TcpStream, replies: &[&str]) {
    let mut received = String::new();
    for reply in replies {
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
        let end = if reply.starts_with("354") {
            "\r\n.\r\n"
        } else {
            "\r\n"
        };
        let mut buffer = [0; 4096];
        while !received.contains(end) {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => received += &String::from_utf8_lossy(&buffer[..length]),
            }
        }
        received.clear();
    }
    std::future::pending::<()>().await;
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
