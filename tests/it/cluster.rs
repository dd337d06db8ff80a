//! Several hubs on one Redis: what their users see while parts of it break.
//!
//! Invariant: who judges stands outside. [`traffic::Traffic`] sends webhooks, watches over sockets
//! and reads by HTTP, and knows of the hubs no more than their addresses.

mod cross_node_delivery;
mod failover;
mod node_crash;
mod redis_outage;
mod rolling_restart;
mod shared_limits;
mod watchers;
mod webhook_sender;
mod workload;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::RngExt;
use reqwest::Method;

use crate::app::{TEST_TIMEOUT, TestApp, TestAppBuilder, send};

/// Hubs on one store. Dropping them stops them.
pub struct Fleet {
    nodes: Vec<Option<TestApp>>,
    pub addresses: Addresses,
    urls: Vec<String>,
    dress: Box<dyn Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync>,
    is_of_processes: bool,
}

/// Where the hubs are that are up, as service discovery would know it.
#[derive(Clone, Default)]
pub struct Addresses(Arc<Mutex<Vec<Option<String>>>>);

impl Addresses {
    fn set(&self, node: usize, address: Option<String>) {
        let mut addresses = self.0.lock().unwrap();
        if addresses.len() <= node {
            addresses.resize(node + 1, None);
        }
        addresses[node] = address;
    }

    /// One of them; none while none is up.
    fn any(&self) -> Option<String> {
        let addresses = self.0.lock().unwrap();
        let up: Vec<&String> = addresses.iter().flatten().collect();
        (!up.is_empty()).then(|| up[rand::rng().random_range(0..up.len())].clone())
    }

    /// This one, while it is up, or else another.
    fn rather(&self, node: usize) -> Option<String> {
        let this = self.0.lock().unwrap().get(node).cloned().flatten();
        this.or_else(|| self.any())
    }
}

/// Waits until a load balancer would send something to this hub.
pub async fn wait_until_ready(app: &TestApp) {
    let waiting = async {
        let ready = || send(app.request_without_token(Method::GET, "/v1/health/ready"));
        while ready().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, waiting)
        .await
        .expect("it is ready");
}

impl Fleet {
    /// A hub per store URL, in this process, each with these settings.
    pub async fn start(
        urls: &[String],
        dress: impl Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync + 'static,
    ) -> Self {
        Self::assemble(urls, Box::new(dress), false).await
    }

    /// The same as processes, which can be killed.
    pub async fn start_processes(
        urls: &[String],
        dress: impl Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync + 'static,
    ) -> Self {
        Self::assemble(urls, Box::new(dress), true).await
    }

    async fn assemble(
        urls: &[String],
        dress: Box<dyn Fn(TestAppBuilder) -> TestAppBuilder + Send + Sync>,
        is_of_processes: bool,
    ) -> Self {
        let mut fleet = Self {
            nodes: Vec::new(),
            addresses: Addresses::default(),
            urls: urls.to_vec(),
            dress,
            is_of_processes,
        };
        for node in 0..urls.len() {
            fleet.nodes.push(None);
            fleet.bring_up(node).await;
        }
        fleet
    }

    /// Starts the hub of this number, which is down, and waits until it is ready.
    pub async fn bring_up(&mut self, node: usize) {
        let builder = TestApp::builder().set("store.url", &self.urls[node]);
        let builder = (self.dress)(builder);
        let app = if self.is_of_processes {
            builder.spawn_process(&[]).await
        } else {
            builder.spawn().await
        };
        wait_until_ready(&app).await;
        self.addresses.set(node, Some(app.url.clone()));
        self.nodes[node] = Some(app);
    }

    /// Stops it in good order.
    pub async fn restart(&mut self, node: usize) {
        let app = self.nodes[node].take().expect("it is up");
        app.begin_shutdown();
        self.addresses.set(node, None);
        app.shut_down().await;
        self.bring_up(node).await;
    }

    /// Kills its process, as a power cut would.
    pub fn kill(&mut self, node: usize) {
        self.addresses.set(node, None);
        drop(self.nodes[node].take().expect("it is up").kill());
    }

    /// The hub of this number.
    pub fn node(&self, node: usize) -> &TestApp {
        self.nodes[node].as_ref().expect("it is up")
    }

    /// Those that are up.
    pub fn up(&self) -> impl Iterator<Item = &TestApp> {
        self.nodes.iter().flatten()
    }

    pub fn size(&self) -> usize {
        self.urls.len()
    }
}
