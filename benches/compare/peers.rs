//! The servers that are compared: their requirements and their setup.
//!
//! Every server is configured as its documentation recommends for this work, with one process where that is
//! configurable. Configuration and data are temporary.

mod centrifugo;
mod durable_streams;
mod express;
pub mod hub;
mod nchan;
mod own;
mod pushpin;
mod redis;
pub mod webhooks;

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;

use crate::clients::{Endpoint, Protocol, Subscription};
use crate::message::{Stamp, Template};
use crate::process::{Cores, Process, Usage};
use crate::stack::Step;

use centrifugo::Kept;
use hub::{Reports, Store};

pub use own::serve;

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
    /// Bare epoll writer that syncs each update to disk before it delivers it
    DurableFloor,
    /// The hub on SQLite
    Hub,
    /// The hub on SQLite, updated by signed webhooks
    HubWebhooks,
    /// The hub on Redis
    HubRedis,
    /// The hub on Redis, updated by signed webhooks
    HubRedisWebhooks,
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
    /// Bare stack: stores and delivers messages with the libraries of the hub
    Stack,
    /// Like `stack`, and decodes reports and encodes documents as JSON
    StackJson,
    /// Like `stack-json`, and verifies tokens
    StackToken,
    /// Like `stack-token`, and applies each report to the stored document
    StackVersions,
    /// Like `stack-versions`, and maintains indexes
    StackIndexes,
    /// Like `stack-indexes`, and delivers through change feeds
    StackFeeds,
    /// Like `stack-feeds`, and records metrics
    StackMetrics,
    /// actix-ws with SQLite, one transaction per update
    ActixSqlite,
    /// The Rust server of Durable Streams
    DurableStreams,
    /// Centrifugo without history
    Centrifugo,
    /// Centrifugo with history and recovery
    CentrifugoHistory,
    /// Centrifugo with history and recovery on Redis
    CentrifugoRedis,
}

impl Peer {
    /// Servers of the measurements of deliveries. All others are compared with the first.
    pub const OF_DELIVERIES: &[Self] = &[
        Self::Floor,
        Self::Hub,
        Self::Cluster,
        Self::Nchan,
        Self::Pushpin,
        Self::ActixWs,
        Self::Express,
    ];

    /// Servers of the measurements of updates. All others are compared with the first.
    pub const OF_UPDATES: &[Self] = &[
        Self::DurableFloor,
        Self::Hub,
        Self::HubWebhooks,
        Self::HubRedis,
        Self::HubRedisWebhooks,
        Self::Stack,
        Self::StackJson,
        Self::StackToken,
        Self::StackVersions,
        Self::StackIndexes,
        Self::StackFeeds,
        Self::StackMetrics,
        Self::ActixSqlite,
        Self::DurableStreams,
        Self::Centrifugo,
        Self::CentrifugoHistory,
        Self::CentrifugoRedis,
        Self::Nchan,
        Self::Express,
    ];

    /// Servers of the measurement of a mixed load. The first is measured in every run.
    pub const OF_MIXED_LOAD: &[Self] = &[
        Self::DurableFloor,
        Self::Hub,
        Self::HubRedis,
        Self::DurableStreams,
        Self::Centrifugo,
        Self::CentrifugoRedis,
        Self::Nchan,
        Self::Express,
    ];

    /// Returns the `candidates` that are requested and installed. Prints how to install the requested ones that are
    /// missing. If `requested` is empty, all candidates are requested. The first candidate always is.
    pub fn choose(candidates: &[Self], requested: &[Self]) -> Vec<Self> {
        let is_requested = |peer: &Self| {
            requested.is_empty() || requested.contains(peer) || candidates.first() == Some(peer)
        };
        let is_installed = |peer: &Self| match peer.missing() {
            None => true,
            Some(command) => {
                eprintln!("skipping {}; install it with: {command}", peer.name());
                false
            }
        };
        let chosen = candidates.iter().copied().filter(is_requested);
        chosen.filter(is_installed).collect()
    }

    /// Returns the name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor: a bare epoll writer",
            Self::DurableFloor => "durable floor: epoll, `fdatasync` per turn",
            Self::Hub => "**progress-hub**",
            Self::HubWebhooks => "**progress-hub**, signed webhooks",
            Self::HubRedis => "**progress-hub** on Redis",
            Self::HubRedisWebhooks => "**progress-hub** on Redis, signed webhooks",
            Self::Cluster => "**progress-hub**, two nodes on a Redis",
            Self::Nchan => "Nchan (nginx)",
            Self::Pushpin => "Pushpin",
            Self::ActixWs => "actix-ws broadcast",
            Self::Express => "Express + ws + Redis",
            Self::Stack => "bare stack: actix-web, actix-ws, SQLite",
            Self::StackJson => "+ JSON",
            Self::StackToken => "+ token",
            Self::StackVersions => "+ versions",
            Self::StackIndexes => "+ indexes",
            Self::StackFeeds => "+ feeds",
            Self::StackMetrics => "+ metrics",
            Self::ActixSqlite => "actix-ws + SQLite, as commonly written",
            Self::DurableStreams => "Durable Streams (SSE)",
            Self::Centrifugo => "Centrifugo",
            Self::CentrifugoHistory => "Centrifugo, history and recovery",
            Self::CentrifugoRedis => "Centrifugo on Redis, history and recovery",
        }
    }

    /// Returns the command that installs the server, or `None` if it is installed.
    fn missing(self) -> Option<String> {
        match self {
            Self::Floor
            | Self::DurableFloor
            | Self::Hub
            | Self::HubWebhooks
            | Self::ActixWs
            | Self::Stack
            | Self::StackJson
            | Self::StackToken
            | Self::StackVersions
            | Self::StackIndexes
            | Self::StackFeeds
            | Self::StackMetrics
            | Self::ActixSqlite => None,
            Self::HubRedis | Self::HubRedisWebhooks | Self::Cluster => redis::missing(),
            Self::Nchan => nchan::missing(),
            Self::Pushpin => pushpin::missing(),
            Self::Express => express::missing(),
            Self::DurableStreams => durable_streams::missing(),
            Self::Centrifugo => centrifugo::missing(Kept::Nothing),
            Self::CentrifugoHistory => centrifugo::missing(Kept::InMemory),
            Self::CentrifugoRedis => centrifugo::missing(Kept::OnRedis),
        }
    }

    /// Starts the server.
    pub async fn start(self, context: &StartContext<'_>) -> anyhow::Result<RunningServer> {
        let one_node = Store::Redis { nodes: 1 };
        let two_nodes = Store::Redis { nodes: 2 };
        let server = match self {
            Self::Floor => own::start(context, own::FLOOR),
            Self::DurableFloor => own::start(context, own::DURABLE_FLOOR),
            Self::Hub => hub::start(context, Store::Sqlite, Reports::Pushes).await,
            Self::HubWebhooks => hub::start(context, Store::Sqlite, Reports::Webhooks).await,
            Self::HubRedis => hub::start(context, one_node, Reports::Pushes).await,
            Self::HubRedisWebhooks => hub::start(context, one_node, Reports::Webhooks).await,
            Self::Cluster => hub::start(context, two_nodes, Reports::Pushes).await,
            Self::Nchan => nchan::start(context),
            Self::Pushpin => pushpin::start(context),
            Self::ActixWs => own::start(context, own::BROADCAST),
            Self::Express => express::start(context),
            Self::Stack => own::start(context, own::stack(Step::Plain)),
            Self::StackJson => own::start(context, own::stack(Step::Json)),
            Self::StackToken => own::start(context, own::stack(Step::Token)),
            Self::StackVersions => own::start(context, own::stack(Step::Versions)),
            Self::StackIndexes => own::start(context, own::stack(Step::Indexes)),
            Self::StackFeeds => own::start(context, own::stack(Step::Feeds)),
            Self::StackMetrics => own::start(context, own::stack(Step::Metrics)),
            Self::ActixSqlite => own::start(context, own::WITH_SQLITE),
            Self::DurableStreams => durable_streams::start(context).await,
            Self::Centrifugo => centrifugo::start(context, Kept::Nothing),
            Self::CentrifugoHistory => centrifugo::start(context, Kept::InMemory),
            Self::CentrifugoRedis => centrifugo::start(context, Kept::OnRedis),
        };
        server.with_context(|| format!("{} did not start", self.name()))
    }
}

/// Returns the request that publishes an update to a channel.
type Publish = Box<dyn Fn(usize, Stamp) -> anyhow::Result<Vec<u8>>>;

/// A running server. Dropping it stops it.
pub struct RunningServer {
    processes: Vec<Process>,
    /// Address and subscriptions of its sockets.
    pub endpoint: Endpoint,
    /// Address that updates are sent to.
    pub publish_address: SocketAddr,
    publish: Publish,
}

impl RunningServer {
    /// Returns the request that publishes an update.
    pub fn update(&self, channel: usize, stamp: Stamp) -> anyhow::Result<Vec<u8>> {
        (self.publish)(channel, stamp)
    }

    /// Returns the usage of all processes.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut usages = self.processes.iter().map(Process::usage);
        usages.try_fold(Usage::default(), |sum, usage| Ok(sum + usage?))
    }

    /// Returns the CPU time of all processes.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(self.usage()?.cpu)
    }

    /// Returns the ids of all processes.
    pub fn process_ids(&self) -> anyhow::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for process in &self.processes {
            ids.extend(process.ids()?);
        }
        Ok(ids)
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
        protocol: Protocol::WebSocket,
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
fn by_post(template: &Rc<Template>) -> Publish {
    let template = Rc::clone(template);
    Box::new(move |channel, stamp| {
        let path = format!("/publish/{channel}");
        let text = template.message(&stamp.text());
        let headers = [("Content-Type", "text/plain")];
        Ok(crate::http_connection::post(&path, &headers, &text))
    })
}
