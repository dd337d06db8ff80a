//! Several hubs on one Redis, and what their clients see when a part of it fails.

mod cross_node_delivery;
mod failover;
mod node_crash;
mod redis_outage;
mod rolling_restart;
mod shared_limits;
mod watchers;
mod webhook_sender;
mod workload;

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use reqwest::{Method, RequestBuilder};

use crate::app::{TestApp, TestAppBuilder, TestResponse, send};
use crate::wait::{wait_for, wait_until};

type Configure = dyn Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync;

#[derive(Clone, Copy)]
enum NodeKind {
    InProcess,
    /// A process that can be killed.
    Process,
}

/// Hubs on one store. They stop when this is dropped.
pub struct HubCluster {
    nodes: Vec<Option<TestApp>>,
    pub addresses: NodeAddresses,
    store_urls: Vec<String>,
    configure: Box<Configure>,
    kind: NodeKind,
}

/// The URLs of the running hubs, as a load balancer would know them.
#[derive(Clone, Default)]
pub struct NodeAddresses(Arc<Mutex<Vec<Option<String>>>>);

impl NodeAddresses {
    fn set(&self, node: usize, address: Option<String>) {
        let mut addresses = self.0.lock().unwrap();
        if addresses.len() <= node {
            addresses.resize(node + 1, None);
        }
        addresses[node] = address;
    }

    /// Returns the address of a random hub, or `None` if none is running.
    fn any(&self) -> Option<String> {
        let addresses = self.0.lock().unwrap();
        let running: Vec<&String> = addresses.iter().flatten().collect();
        (!running.is_empty()).then(|| running[rand::rng().random_range(0..running.len())].clone())
    }

    /// Returns the address of a hub, or of a random one if that hub is not running.
    fn prefer(&self, node: usize) -> Option<String> {
        let preferred = self.0.lock().unwrap().get(node).cloned().flatten();
        preferred.or_else(|| self.any())
    }
}

/// Waits until a hub reports that it is ready.
pub async fn wait_until_ready(app: &TestApp) {
    wait_until("the hub is ready", async || {
        let readiness = app.request_without_token(Method::GET, "/v1/health/ready");
        send(readiness).await.status == 200
    })
    .await;
}

/// Repeats a request while the response is 503, which a busy machine may cause without a fault.
async fn send_until_available(request: impl Fn() -> RequestBuilder) -> TestResponse {
    wait_for("the store is available", async || {
        let response = send(request()).await;
        (response.status != 503).then_some(response)
    })
    .await
}

/// The delay of a client before it tries again, and of a fault before it strikes. The randomness
/// varies the interleavings. No assertion depends on it.
async fn random_delay(range: Range<Duration>) {
    let delay = rand::rng().random_range(range);
    tokio::time::sleep(delay).await;
}

impl HubCluster {
    /// Starts a hub in this process for each store URL.
    pub async fn start(
        store_urls: &[String],
        configure: impl Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync + 'static,
    ) -> Self {
        Self::start_nodes(store_urls, Box::new(configure), NodeKind::InProcess).await
    }

    /// Starts a hub as a process for each store URL.
    pub async fn start_processes(store_urls: &[String]) -> Self {
        Self::start_processes_with(store_urls, |hub| hub).await
    }

    pub async fn start_processes_with(
        store_urls: &[String],
        configure: impl Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync + 'static,
    ) -> Self {
        Self::start_nodes(store_urls, Box::new(configure), NodeKind::Process).await
    }

    async fn start_nodes(store_urls: &[String], configure: Box<Configure>, kind: NodeKind) -> Self {
        let mut cluster = Self {
            nodes: Vec::new(),
            addresses: NodeAddresses::default(),
            store_urls: store_urls.to_vec(),
            configure,
            kind,
        };
        for node in 0..store_urls.len() {
            cluster.nodes.push(None);
            cluster.start_node(node).await;
        }
        cluster
    }

    /// Starts a hub that is not running, and waits until it is ready.
    pub async fn start_node(&mut self, node: usize) {
        // A test does not answer pings while it waits for something else.
        let builder = TestApp::builder()
            .set("store.url", &self.store_urls[node])
            .set("socket.heartbeat", "10m");
        let builder = (self.configure)(builder);
        let app = match self.kind {
            NodeKind::InProcess => builder.spawn().await,
            NodeKind::Process => builder.spawn_process(&[]).await,
        };
        wait_until_ready(&app).await;
        self.addresses.set(node, Some(app.url.clone()));
        self.nodes[node] = Some(app);
    }

    /// Shuts a hub down gracefully and starts it again.
    pub async fn restart_node(&mut self, node: usize) {
        let app = self.take_node(node);
        app.begin_shutdown();
        app.shut_down().await;
        self.start_node(node).await;
    }

    /// Kills the process of a hub.
    pub fn kill_node(&mut self, node: usize) {
        drop(self.take_node(node).kill());
    }

    fn take_node(&mut self, node: usize) -> TestApp {
        self.addresses.set(node, None);
        self.nodes[node].take().expect("the hub is running")
    }

    pub fn node(&self, node: usize) -> &TestApp {
        self.nodes[node].as_ref().expect("the hub is running")
    }

    pub fn running(&self) -> impl Iterator<Item = &TestApp> {
        self.nodes.iter().flatten()
    }

    pub fn size(&self) -> usize {
        self.store_urls.len()
    }
}
