//! A hub to test against: the real one, on a free port, with a simulated provider where asked for.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
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

/// Signs the tokens of all tests.
pub const JWT_SECRET: &str = "a test secret that is long enough for HS256";

/// Signs the simulated provider's callbacks.
pub const WEBHOOK_SECRET: &str = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI=";

/// The longest that a test waits for anything.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(15);

/// What a test's hub is made from; every test has its own folder and its own ports.
pub struct TestAppBuilder {
    settings: Vec<(String, String)>,
    scenario: Option<Scenario>,
    folder: Option<TempDir>,
}

/// A running hub. Dropping it stops it.
pub struct TestApp {
    pub url: String,
    pub simulator: Option<Inspector>,
    http: reqwest::Client,
    minter: Minter,
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
    process: Option<Child>,
    simulating: Option<CancellationToken>,
    folder: Option<TempDir>,
    /// Keeps the port from every other test, as long as this one may still speak of it.
    _port: socket2::Socket,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct TestResponse {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl TestApp {
    /// A hub with an embedded store and no provider but `generic`, which it only hears from.
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
            folder: None,
        }
    }

    /// A token for `sub` with these scopes.
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

    /// A request as `sub` with the scopes of a page: `jobs:read jobs:write`.
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

    /// The newest document of a job, as its owner sees it.
    pub async fn get_job(&self, id: &str, owner: &str) -> Value {
        let answer = send(self.request(Method::GET, &format!("/v1/jobs/{id}"), owner)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Waits until the job's document is as wished, by long-polling.
    pub async fn wait_for_job(
        &self,
        id: &str,
        owner: &str,
        wish: impl Fn(&Value) -> bool,
    ) -> Value {
        let waiting = async {
            let mut job = self.get_job(id, owner).await;
            while !wish(&job) {
                assert_ne!(job["final"], true, "ended otherwise: {job}");
                let path = format!("/v1/jobs/{id}?wait=10&since={}", job["version"]);
                let answer = send(self.request(Method::GET, &path, owner)).await;
                if answer.status == 200 {
                    job = answer.body;
                }
            }
            job
        };
        tokio::time::timeout(TEST_TIMEOUT, waiting)
            .await
            .expect("the job comes to be as wished")
    }

    /// Waits until the job has ended.
    pub async fn wait_until_final(&self, id: &str, owner: &str) -> Value {
        self.wait_for_job(id, owner, |job| job["final"] == true)
            .await
    }

    /// Registers a worker's own job.
    pub async fn register_worker_job(&self, owner: &str) -> String {
        let body = json!({ "owner": owner });
        let worker = self.token("worker", "jobs:publish");
        let answer = send(
            self.request_with_token(Method::POST, "/v1/jobs", &worker)
                .json(&body),
        )
        .await;
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// Pushes an update as a worker.
    pub async fn push_update(&self, id: &str, update: Value) -> TestResponse {
        let worker = self.token("worker", "jobs:publish");
        send(
            self.request_with_token(Method::POST, &format!("/v1/jobs/{id}/updates"), &worker)
                .json(&update),
        )
        .await
    }

    /// Submits to the simulated provider as `owner`; the scenario decides what happens.
    pub async fn submit(&self, owner: &str, scenario: Scenario) -> Value {
        let body = json!({
            "provider": "simulated",
            "model": "kling-v3.0-pro",
            "prompt": "a lighthouse in the rain",
            "input": { "scenario": scenario.name() },
        });
        let answer = send(self.request(Method::POST, "/v1/videos", owner).json(&body)).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.body
    }

    /// A socket of `sub`, welcomed already.
    pub async fn connect(&self, sub: &str) -> TestClient {
        TestClient::connect(&self.url, &self.token(sub, "jobs:read jobs:write")).await
    }

    /// What the simulated provider has seen.
    pub fn simulator(&self) -> &Inspector {
        self.simulator
            .as_ref()
            .expect("a hub with a simulated provider")
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// A number of `/metrics`, by its name without the prefix and with its labels; 0 where there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = send(self.request_without_token(Method::GET, "/metrics")).await;
        let text = answer.body.as_str().expect("a text").to_owned();
        let number = text
            .lines()
            .filter_map(|line| line.strip_prefix("progress_hub_")?.strip_prefix(name))
            .find_map(|rest| rest.strip_prefix(' '));
        number.map_or(0.0, |number| number.parse().unwrap())
    }

    /// Waits until a number of `/metrics` is as wished.
    pub async fn wait_for_metric(&self, name: &str, wish: impl Fn(f64) -> bool) {
        let mut last = f64::NAN;
        let waiting = async {
            loop {
                last = self.metric(name).await;
                if wish(last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(TEST_TIMEOUT, waiting).await;
        assert!(waited.is_ok(), "{name} came to be {last}");
    }

    /// Waits until nobody is connected and nothing is watched: whatever was held has been let go.
    pub async fn wait_until_no_connections(&self) {
        for kind in ["websocket", "sse", "poll"] {
            let name = format!("connections{{kind=\"{kind}\"}}");
            self.wait_for_metric(&name, |open| open == 0.0).await;
        }
        self.wait_for_metric("subscribed_jobs", |jobs| jobs == 0.0)
            .await;
    }

    /// Tells the hub to stop, as SIGTERM does, without waiting for it.
    pub fn begin_shutdown(&self) {
        self.stop.cancel();
    }

    /// Stops the hub in good order; its folder stays for [`TestBuilder::folder`].
    pub async fn shut_down(mut self) -> Option<TempDir> {
        self.stop.cancel();
        if let Some(running) = self.running.take() {
            tokio::time::timeout(TEST_TIMEOUT, running)
                .await
                .expect("it stops")
                .expect("it stops well");
        }
        self.folder.take()
    }
}

impl TestApp {
    /// Kills the process of a hub from [`TestBuilder::spawn_process`] with SIGKILL, as a power cut
    /// would; its folder stays.
    pub fn kill(mut self) -> TempDir {
        self.end_process();
        self.folder.take().expect("a folder")
    }

    /// What a hub's process has logged so far.
    pub fn log(&self) -> String {
        let folder = self.folder.as_ref().expect("a folder");
        std::fs::read_to_string(folder.path().join("hub.log")).expect("a log")
    }

    /// The file that the hub keeps its jobs in.
    pub fn database_path(&self) -> std::path::PathBuf {
        self.folder
            .as_ref()
            .expect("a folder")
            .path()
            .join("hub.db")
    }

    fn end_process(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it is killed");
            process.wait().expect("it has ended");
        }
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.end_process();
        self.stop.cancel();
        if let Some(simulating) = &self.simulating {
            simulating.cancel();
        }
    }
}

impl TestAppBuilder {
    /// Sets a key of the configuration.
    #[expect(clippy::needless_pass_by_value, reason = "so a number stands as it is")]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// Adds a simulated provider called `simulated`, whose jobs do this unless told otherwise.
    pub fn with_simulator(mut self, scenario: Scenario) -> Self {
        self.scenario = Some(scenario);
        self
    }

    /// Keeps its store in this folder, where an earlier hub may have had one.
    pub fn data_dir(mut self, folder: TempDir) -> Self {
        self.folder = Some(folder);
        self
    }

    /// A hub in this process.
    pub async fn spawn(self) -> TestApp {
        let (config, _, mut app) = self.prepare();
        let server = Server::bind(config, None).expect("it binds");
        let stop = app.stop.clone();
        app.url = server.url();
        let running = async move { server.run(stop).await.expect("it serves") };
        app.running = Some(tokio::spawn(running));
        app
    }

    /// A hub in a process of its own, from the built program: one that can be killed.
    pub async fn spawn_process(self, arguments: &[&str]) -> TestApp {
        let (_, settings, mut app) = self.prepare();
        let folder = app.folder.as_ref().expect("a folder").path();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("hub.log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_progress-hub"));
        command.arg("serve").args(arguments);
        for (key, value) in settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("it starts");
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let greeting = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            output.read_line(&mut line).map(|_| line)
        });
        let greeting = tokio::time::timeout(TEST_TIMEOUT, greeting)
            .await
            .expect("it greets in time");
        let greeting = greeting.unwrap().unwrap();
        app.process = Some(process);
        let url = greeting.trim().strip_prefix("progress-hub is at ");
        app.url = url
            .unwrap_or_else(|| panic!("{greeting:?}; {}", app.log()))
            .trim_end_matches('/')
            .to_owned();
        app
    }

    /// Everything but the hub itself: its configuration, as typed and as text, and a shell that it
    /// goes into.
    fn prepare(self) -> (Config, Vec<(String, String)>, TestApp) {
        let folder = self.folder.unwrap_or_else(|| tempfile::tempdir().unwrap());
        let mut settings = vec![(
            "store.url".to_owned(),
            format!("sqlite://{}/hub.db", folder.path().display()),
        )];
        settings.extend(self.settings);
        let (mut witness, mut simulating) = (None, None);
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
            let before = simulator_settings(&simulator.url());
            // A test's own settings come last and win.
            settings.splice(0..0, before);
            let stop = CancellationToken::new();
            witness = Some(simulator.inspector());
            tokio::spawn(simulator.run(stop.clone()));
            simulating = Some(stop);
        }
        // Providers need an address to call back before the hub listens, so one is reserved.
        let (port, bind) = reserve_port();
        let public_url = ("server.public_url".to_owned(), format!("http://{bind}"));
        settings.insert(0, public_url);
        for setting in &mut settings {
            if setting.0 == "server.bind" && setting.1 == "127.0.0.1:0" {
                setting.1 = bind.to_string();
            }
        }
        let config =
            Config::load(None, std::iter::empty(), settings.clone()).expect("a good configuration");
        let minter = Minter::new(&config.auth).unwrap();
        let app = TestApp {
            url: String::new(),
            simulator: witness,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            minter,
            stop: CancellationToken::new(),
            running: None,
            process: None,
            simulating,
            folder: Some(folder),
            _port: port,
        };
        (config, settings, app)
    }
}

/// The settings of a provider called `simulated`, which is a simulator at this URL.
pub fn simulator_settings(url: &str) -> Vec<(String, String)> {
    let settings = [
        ("spec", "kling"),
        ("base_url", url),
        ("api_key", "a key"),
        ("webhook_secrets", WEBHOOK_SECRET),
        ("poll_after", "2s"),
        ("poll_every", "300ms"),
        ("deadline", "30s"),
        ("max_concurrent", "100"),
    ];
    let named =
        |(key, value): (&str, &str)| (format!("providers.simulated.{key}"), value.to_owned());
    settings.map(named).to_vec()
}

/// A port that nobody else gets, though a listener that reuses addresses may bind it too.
pub fn reserve_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Sends and reads to the end; an empty body is null.
pub async fn send(request: RequestBuilder) -> TestResponse {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    TestResponse {
        status,
        headers,
        body,
    }
}
