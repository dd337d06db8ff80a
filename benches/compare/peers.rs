//! The servers that are compared: their requirements and their setup.
//!
//! Every server is configured as its documentation recommends for this work, with one process where that is
//! configurable. Configuration and data are temporary.

mod express;
mod hub;
mod nchan;
mod own;
mod pushpin;
mod redis;

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;

use crate::clients::{Endpoint, Subscription};
use crate::message::{Stamp, Template};
use crate::process::{Cores, Process};

pub use hub::{Hub, WEBHOOK_SECRET};
pub use own::{BROADCAST, FLOOR};

/// Parameters of a server.
pub struct StartContext<'a> {
    /// Directory for its files.
    pub dir: &'a Path,
    pub cores: Cores,
    pub channels: usize,
    /// Messages that are published.
    pub template: Rc<Template>,
    /// Additional bytes in the metadata of a job.
    pub padding: usize,
}

/// A server that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Bare epoll writer: the minimum cost of one write per delivery
    Floor,
    /// The hub
    Hub,
    /// Two nodes of the hub on one Redis
    Cluster,
    /// nginx with Debian's module
    Nchan,
    /// Pushpin as packaged by Debian
    Pushpin,
    /// Broadcast with the web framework of the hub
    ActixWs,
    /// Express with ws and Redis
    Express,
}

impl Peer {
    /// All servers. The first is the floor, which the others are compared with.
    pub const ALL: [Self; 7] = [
        Self::Floor,
        Self::Hub,
        Self::Cluster,
        Self::Nchan,
        Self::Pushpin,
        Self::ActixWs,
        Self::Express,
    ];

    /// Returns the name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor: a bare epoll writer",
            Self::Hub => "**progress-hub**",
            Self::Cluster => "**progress-hub**, two nodes on a Redis",
            Self::Nchan => "Nchan (nginx)",
            Self::Pushpin => "Pushpin",
            Self::ActixWs => "actix-ws broadcast",
            Self::Express => "Express + ws + Redis",
        }
    }

    /// Returns the command that installs the server, or `None` if it is installed.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Floor | Self::Hub | Self::ActixWs => None,
            Self::Cluster => redis::missing(),
            Self::Nchan => nchan::missing(),
            Self::Pushpin => pushpin::missing(),
            Self::Express => express::missing(),
        }
    }

    /// Starts the server.
    pub async fn start(self, context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
        let server = match self {
            Self::Floor => own::start(context, FLOOR),
            Self::Hub => hub::start(context).await,
            Self::Cluster => Hub::start_cluster(context, 2).await,
            Self::Nchan => nchan::start(context),
            Self::Pushpin => pushpin::start(context),
            Self::ActixWs => own::start(context, BROADCAST),
            Self::Express => express::start(context),
        };
        server.with_context(|| format!("{} did not start", self.name()))
    }
}

/// A running server. Dropping it stops it.
pub struct RunningServer {
    processes: Vec<Process>,
    /// Address and subscriptions of its sockets.
    pub endpoint: Endpoint,
    /// Address that updates are sent to.
    pub publish_address: SocketAddr,
    publish: Box<dyn Fn(usize, Stamp) -> Vec<u8>>,
}

impl RunningServer {
    /// Returns the request that publishes an update.
    pub fn update(&self, channel: usize, stamp: Stamp) -> Vec<u8> {
        (self.publish)(channel, stamp)
    }

    /// Returns the CPU time of all processes.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        self.processes.iter().map(Process::cpu).sum()
    }

    /// Returns the memory of all processes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        self.processes.iter().map(Process::memory).sum()
    }
}

/// Maximum concurrent handshakes.
pub const MAX_CONCURRENT_HANDSHAKES: usize = 1024;

/// Returns the endpoint of a server whose path contains the channel.
fn by_path(address: SocketAddr, channels: usize) -> Endpoint {
    let subscription = |channel| Subscription {
        path: format!("/ws/{channel}"),
        headers: String::new(),
        message: None,
    };
    Endpoint {
        addresses: vec![address],
        subscriptions: (0..channels).map(subscription).collect(),
        max_handshakes: MAX_CONCURRENT_HANDSHAKES,
    }
}

/// Returns requests that post the message to a path with the channel.
fn by_post(template: &Rc<Template>) -> Box<dyn Fn(usize, Stamp) -> Vec<u8>> {
    let template = Rc::clone(template);
    Box::new(move |channel, stamp| {
        let path = format!("/publish/{channel}");
        let text = template.message(&stamp.text());
        crate::http_connection::post(&path, &[("Content-Type", "text/plain")], &text)
    })
}
