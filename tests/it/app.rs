//! Starts a real hub on a free port for a test, optionally with a simulated provider.

use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use progress_hub::config::Config;
use progress_hub::server::Server;
use progress_hub_auth::jwt::Minter;
use progress_hub_simulator::{Inspector, Scenario, Settings, Simulator};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::TestClient;
use crate::wait::{wait_for, wait_until};

/// HS256 secret for the tokens of all tests.
pub const JWT_SECRET: &str = "a test secret that is long enough for HS256";

/// Standard Webhooks secret of the simulated provider.
pub const WEBHOOK_SECRET: &str = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI=";

/// Maximum time that a test waits for a condition. Long, so that tests also pass on a busy machine.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Configures a [`TestApp`]. Every hub has its own data directory and port.
pub struct TestAppBuilder {
    settings: Vec<(String, String)>,
    scenario: Option<Scenario>,
    data_dir: Option<TempDir>,
    has_log_reader: bool,
    open_files: Option<OpenFiles>,
    environment: Vec<(String, String)>,
}

/// Limit on the open files of a process, as set by `ulimit`.
pub enum OpenFiles {
    Soft(usize),
    Hard(usize),
}

/// A running hub, stopped on drop.
pub struct TestApp {
    pub url: String,
    pub simulator: Option<Inspector>,
    http: reqwest::Client,
    minter: Minter,
    shutdown: CancellationToken,
    task: Option<JoinHandle<()>>,
    process: Option<Child>,
    simulator_shutdown: Option<CancellationToken>,
    data_dir: Option<TempDir>,
    /// Reserves the port for the whole test, so that no other test binds it after this hub stops.
    _port: socket2::Socket,
}

/// A complete HTTP response.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl TestApp {
    /// Starts a hub with an embedded store and the webhook-only provider `generic`.
    pub async fn spawn() -> Self {
        Self::builder().spawn().await
    }

    pub fn builder() -> TestAppBuilder {
        let settings = [
            ("server.bind", "127.0.0.1:0"),
            ("server.drain", "2s"),
            ("auth.hs256_secrets", JWT_SECRET),
            (
                "callback.secret",
                "a callback secret that is long enough too",
            ),
            ("providers.generic.spec", "generic"),
            ("providers.generic.webhook_secrets", "hub_test_secret"),
        ];
        let settings = settings
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .to_vec();
        TestAppBuilder {
            settings,
            scenario: None,
            data_dir: None,
            has_log_reader: true,
            open_files: None,
            environment: Vec::new(),
        }
    }

    /// Returns a token for `sub` with the scopes `scope`, valid for ten minutes.
    pub fn token(&self, sub: &str, scope: &str) -> String {
        self.token_for(sub, scope, None, Duration::from_secs(600))
    }

    pub fn token_for(
        &self,
        sub: &str,
        scope: &str,
        jobs: Option<&[&str]>,
        ttl: Duration,
    ) -> String {
        let jobs = jobs.map(|jobs| jobs.iter().map(|job| (*job).to_owned()).collect());
        self.minter
            .mint(sub, jobs, Some(scope), ttl, jiff::Timestamp::now())
            .unwrap()
            .token
    }

    /// Prepares a request as `sub` with the scopes of a browser client: `jobs:read jobs:write`.
    pub fn request(&self, method: Method, path: &str, sub: &str) -> RequestBuilder {
        self.request_with_token(method, path, &self.token(sub, "jobs:read jobs:write"))
    }

    pub fn request_with_token(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        self.request_without_token(method, path).bearer_auth(token)
    }

    pub fn request_without_token(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .timeout(TEST_TIMEOUT)
    }

    /// Returns the current document of a job as `owner`.
    pub async fn get_job(&self, id: &str, owner: &str) -> Value {
        let response = send(self.request(Method::GET, &format!("/v1/jobs/{id}"), owner)).await;
        assert_eq!(response.status, 200, "{}", response.body);
        response.body
    }

    /// Waits until `is_done` accepts the job's document. Follows the job by long polling.
    ///
    /// # Panics
    /// If the job becomes final before `is_done` accepts it.
    pub async fn wait_for_job(
        &self,
        id: &str,
        owner: &str,
        is_done: impl Fn(&Value) -> bool,
    ) -> Value {
        let wait = async {
            let mut job = self.get_job(id, owner).await;
            while !is_done(&job) {
                assert_ne!(job["final"], true, "unexpected final state: {job}");
                let path = format!("/v1/jobs/{id}?wait=10&since={}", job["version"]);
                let response = send(self.request(Method::GET, &path, owner)).await;
                if response.status == 200 {
                    job = response.body;
                }
            }
            job
        };
        tokio::time::timeout(TEST_TIMEOUT, wait)
            .await
            .expect("timed out waiting for the job to meet the condition")
    }

    /// Waits until the job is final.
    pub async fn wait_until_final(&self, id: &str, owner: &str) -> Value {
        self.wait_for_job(id, owner, |job| job["final"] == true)
            .await
    }

    /// Registers a worker job for `owner` and returns its id.
    pub async fn register_worker_job(&self, owner: &str) -> String {
        let body = json!({ "owner": owner });
        let worker = self.token("worker", "jobs:publish");
        let response = send(
            self.request_with_token(Method::POST, "/v1/jobs", &worker)
                .json(&body),
        )
        .await;
        assert_eq!(response.status, 201, "{}", response.body);
        response.body["id"].as_str().unwrap().to_owned()
    }

    /// Pushes an update to a job as a worker.
    pub async fn push_update(&self, id: &str, update: Value) -> TestResponse {
        let worker = self.token("worker", "jobs:publish");
        send(
            self.request_with_token(Method::POST, &format!("/v1/jobs/{id}/updates"), &worker)
                .json(&update),
        )
        .await
    }

    /// Submits a job to the simulated provider as `owner` and returns the job's document.
    pub async fn submit(&self, owner: &str, scenario: Scenario) -> Value {
        let body = json!({
            "provider": "simulated",
            "model": "kling-v3.0-pro",
            "prompt": "a lighthouse in the rain",
            "input": { "scenario": scenario.name() },
        });
        let response = send(self.request(Method::POST, "/v1/videos", owner).json(&body)).await;
        assert_eq!(response.status, 202, "{}", response.body);
        response.body
    }

    /// Connects a WebSocket as `sub` and waits for `hello`.
    pub async fn connect(&self, sub: &str) -> TestClient {
        TestClient::connect(&self.url, &self.token(sub, "jobs:read jobs:write")).await
    }

    /// Returns the inspector of the simulated provider.
    pub fn simulator(&self) -> &Inspector {
        self.simulator
            .as_ref()
            .expect("the hub has no simulated provider")
    }

    /// Returns the host and port that the hub listens on.
    pub fn address(&self) -> &str {
        self.url.split("://").nth(1).expect("a URL")
    }

    /// Returns the value of a metric, or 0 if there is none. `name` has labels but not the prefix
    /// `progress_hub_`.
    pub async fn metric(&self, name: &str) -> f64 {
        let admin = self.token("operator", "admin");
        let response = send(self.request_with_token(Method::GET, "/metrics", &admin)).await;
        let text = response.body.as_str().expect("/metrics returns text");
        let value = text
            .lines()
            .filter_map(|line| line.strip_prefix("progress_hub_")?.strip_prefix(name))
            .find_map(|rest| rest.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until `is_done` accepts the value of a metric.
    pub async fn wait_for_metric(&self, name: &str, is_done: impl Fn(f64) -> bool) {
        let condition = format!("the metric {name} has the expected value");
        wait_until(&condition, async || is_done(self.metric(name).await)).await;
    }

    /// Waits until no client is connected and no job is subscribed to.
    pub async fn wait_until_no_connections(&self) {
        for kind in ["websocket", "sse", "poll"] {
            let name = format!("connections{{kind=\"{kind}\"}}");
            self.wait_for_metric(&name, |open| open == 0.0).await;
        }
        self.wait_for_metric("subscribed_jobs", |jobs| jobs == 0.0)
            .await;
    }

    /// Starts a graceful shutdown, as SIGTERM does, and returns at once.
    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Shuts the hub down gracefully. Returns its data directory for [`TestAppBuilder::data_dir`].
    pub async fn shut_down(mut self) -> Option<TempDir> {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            tokio::time::timeout(TEST_TIMEOUT, task)
                .await
                .expect("timed out waiting for the shutdown")
                .expect("the hub panicked");
        }
        self.data_dir.take()
    }
}

impl TestApp {
    /// Kills the process of [`TestAppBuilder::spawn_process`] with SIGKILL. Returns its data directory.
    pub fn kill(mut self) -> TempDir {
        self.kill_process();
        self.data_dir.take().expect("a data directory")
    }

    /// Sends a signal, such as `HUP`, to the process of [`TestAppBuilder::spawn_process`].
    pub fn signal(&self, name: &str) {
        let process = self.process.as_ref().expect("a process");
        let sent = Command::new("kill")
            .args(["-s", name, &process.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Returns the log of the hub's process.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("hub.log")).expect("a log file")
    }

    /// Returns the path of the SQLite database.
    pub fn database_path(&self) -> PathBuf {
        self.path("hub.db")
    }

    fn path(&self, file: &str) -> PathBuf {
        let data_dir = self.data_dir.as_ref().expect("a data directory");
        data_dir.path().join(file)
    }

    fn kill_process(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("send SIGKILL");
            process.wait().expect("wait for the process");
        }
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.kill_process();
        self.shutdown.cancel();
        if let Some(shutdown) = &self.simulator_shutdown {
            shutdown.cancel();
        }
    }
}

impl TestAppBuilder {
    /// Sets a configuration key.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers can pass numbers and strings without a borrow"
    )]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Sets an environment variable of [`TestAppBuilder::spawn_process`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers can pass numbers and strings without a borrow"
    )]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Removes a key that a test app has by default.
    pub fn unset(self, key: &str) -> Self {
        self.set(key, "")
    }

    /// Adds a simulated provider named `simulated`. Its jobs follow `scenario` unless they name another.
    pub fn with_simulator(mut self, scenario: Scenario) -> Self {
        self.scenario = Some(scenario);
        self
    }

    /// Keeps the store in this directory, which may contain the data of an earlier hub.
    pub fn data_dir(mut self, data_dir: TempDir) -> Self {
        self.data_dir = Some(data_dir);
        self
    }

    /// Connects the standard error of the process to a pipe that is never read.
    pub fn without_log_reader(mut self) -> Self {
        self.has_log_reader = false;
        self
    }

    /// Limits the open files of [`TestAppBuilder::spawn_process`].
    pub fn open_files(mut self, limit: OpenFiles) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Sets an environment variable of [`TestAppBuilder::spawn_process`].
    pub fn environment(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Starts the hub in this process.
    pub async fn spawn(self) -> TestApp {
        let (config, _, mut app) = self.prepare();
        let server = Server::bind(config, None).expect("bind the hub");
        let shutdown = app.shutdown.clone();
        app.url = server.url();
        app.task = Some(tokio::spawn(async move {
            server.run(shutdown).await.expect("run the hub");
        }));
        app
    }

    /// Starts the built binary in a process of its own, so that a test can kill it.
    pub async fn spawn_process(self, arguments: &[&str]) -> TestApp {
        let has_log_reader = self.has_log_reader;
        let ulimit = self.open_files.as_ref().map(|limit| match limit {
            OpenFiles::Soft(files) => format!("ulimit -Sn {files}"),
            OpenFiles::Hard(files) => format!("ulimit -n {files}"),
        });
        let environment = self.environment.clone();
        let (_, settings, mut app) = self.prepare();
        let public_url = settings[0].1.clone();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(app.path("hub.log"))
            .unwrap();
        let hub = env!("CARGO_BIN_EXE_progress-hub");
        let mut command = match ulimit {
            None => Command::new(hub),
            Some(ulimit) => {
                let mut shell = Command::new("sh");
                let script = format!("{ulimit} && exec \"$0\" \"$@\"");
                shell.args(["-c", script.as_str(), hub]);
                shell
            }
        };
        command.arg("serve").args(arguments);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let earlier = app.log().lines().count();
        let process = command
            .envs(environment)
            .stdout(Stdio::null())
            .stderr(if has_log_reader {
                log.into()
            } else {
                Stdio::piped()
            })
            .spawn()
            .expect("start the hub's process");
        app.process = Some(process);
        if !has_log_reader {
            let address = public_url.trim_start_matches("http://");
            let connect = || ready(std::net::TcpStream::connect(address).ok());
            wait_for("the hub listens", connect).await;
            app.url = public_url;
            return app;
        }
        app.url = wait_for("the hub logs its URL", || {
            let exited = app.process.as_mut().unwrap().try_wait().unwrap();
            let log = app.log();
            assert_eq!(exited, None, "the hub exited; log: {log}");
            ready(log.lines().skip(earlier).find_map(url_in_log))
        })
        .await;
        app
    }

    /// Starts the simulator and returns the configuration, the settings it was loaded from, and a
    /// `TestApp` without a running hub.
    fn prepare(self) -> (Config, Vec<(String, String)>, TestApp) {
        let data_dir = self
            .data_dir
            .unwrap_or_else(|| tempfile::tempdir().unwrap());
        // Providers receive a callback URL before the hub listens, so the port is reserved first.
        let (port, address) = reserve_port();
        let mut settings = vec![
            ("server.public_url".to_owned(), format!("http://{address}")),
            (
                "store.url".to_owned(),
                format!("sqlite://{}/hub.db", data_dir.path().display()),
            ),
        ];
        let (mut inspector, mut simulator_shutdown) = (None, None);
        if let Some(default_scenario) = self.scenario {
            let simulator = Simulator::bind(
                "127.0.0.1:0",
                Settings {
                    api_key: "a key".to_owned(),
                    webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
                    pace: Duration::from_millis(20),
                    default_scenario,
                },
            )
            .unwrap();
            settings.extend(simulator_settings(&simulator.url()));
            let shutdown = CancellationToken::new();
            inspector = Some(simulator.inspector());
            tokio::spawn(simulator.run(shutdown.clone()));
            simulator_shutdown = Some(shutdown);
        }
        // The last value of a key wins, so a test can override every default.
        settings.extend(self.settings);
        let is_unset = |(_, value): &&(String, String)| value.is_empty();
        let unset = settings.iter().filter(is_unset);
        let unset: Vec<String> = unset.map(|(key, _)| key.clone()).collect();
        settings.retain(|(key, _)| !unset.contains(key));
        for (key, value) in &mut settings {
            if key == "server.bind" && value == "127.0.0.1:0" {
                *value = address.to_string();
            }
        }
        let config =
            Config::load(None, std::iter::empty(), settings.clone()).expect("valid configuration");
        let minter = Minter::new(&config.auth).unwrap();
        let app = TestApp {
            url: String::new(),
            simulator: inspector,
            http: reqwest::Client::builder()
                .no_proxy()
                .tls_danger_accept_invalid_certs(true)
                .build()
                .unwrap(),
            minter,
            shutdown: CancellationToken::new(),
            task: None,
            process: None,
            simulator_shutdown,
            data_dir: Some(data_dir),
            _port: port,
        };
        (config, settings, app)
    }
}

/// Returns the URL in the `listening` line of a hub's log. Accepts both log formats.
fn url_in_log(line: &str) -> Option<String> {
    let (_, fields) = line.split_once("listening")?;
    let url = fields.get(fields.find("http")?..)?;
    url.split('"').next().map(str::to_owned)
}

/// Returns the settings of a provider named `simulated`, whose API is the simulator at `url`.
pub fn simulator_settings(url: &str) -> Vec<(String, String)> {
    let settings = [
        ("spec", "kling"),
        ("base_url", url),
        ("api_key", "a key"),
        ("webhook_secrets", WEBHOOK_SECRET),
        ("poll_after", "2s"),
        ("poll_every", "300ms"),
        ("deadline", "2m"),
        ("max_concurrent", "100"),
    ];
    settings
        .map(|(key, value)| (format!("providers.simulated.{key}"), value.to_owned()))
        .to_vec()
}

/// Reserves a free port for the lifetime of the socket. A listener with `SO_REUSEADDR` can bind it.
pub fn reserve_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Sends a request and reads the whole response. A body that is not JSON becomes a string.
pub async fn send(request: RequestBuilder) -> TestResponse {
    let response = request.send().await.expect("no response");
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("incomplete response body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    TestResponse {
        status,
        headers,
        body,
    }
}
