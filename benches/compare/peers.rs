//! The servers that are compared: what each needs, and how it is started.
//!
//! Invariant: a server is given what its own documentation recommends for this work, one process
//! where it lets one choose, and a configuration of the run's own; nothing of the system's is touched.

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

use crate::clients::{Door, Greeting};
use crate::message::{Stamp, Template};
use crate::process::{Cores, Process};

pub use hub::{Hub, WEBHOOK_SECRET};
pub use own::{BROADCAST, FLOOR};

/// What a server is started with.
pub struct Ground<'a> {
    /// Where it may write.
    pub dir: &'a Path,
    /// Where it runs.
    pub cores: Cores,
    /// How many channels there are to be.
    pub channels: usize,
    /// What its messages look like.
    pub template: Rc<Template>,
    /// What a job carries beside its title, in bytes.
    pub padding: usize,
}

/// One of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// A bare epoll writer: the least that one write per delivery can cost.
    Floor,
    /// The hub.
    Hub,
    /// Two of them, on one Redis.
    Fleet,
    /// nginx with Debian's module.
    Nchan,
    /// Debian's.
    Pushpin,
    /// A plain broadcast in the framework that the hub is built with.
    ActixWs,
    /// Express with ws and Redis.
    Express,
}

impl Peer {
    /// All of them; the first is the floor that the others are measured by.
    pub const ALL: [Self; 7] = [
        Self::Floor,
        Self::Hub,
        Self::Fleet,
        Self::Nchan,
        Self::Pushpin,
        Self::ActixWs,
        Self::Express,
    ];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor: a bare epoll writer",
            Self::Hub => "**progress-hub**",
            Self::Fleet => "**progress-hub**, two nodes on a Redis",
            Self::Nchan => "Nchan (nginx)",
            Self::Pushpin => "Pushpin",
            Self::ActixWs => "actix-ws broadcast",
            Self::Express => "Express + ws + Redis",
        }
    }

    /// What is missing for it, and how it is installed.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Floor | Self::Hub | Self::ActixWs => None,
            Self::Fleet => redis::missing(),
            Self::Nchan => nchan::missing(),
            Self::Pushpin => pushpin::missing(),
            Self::Express => express::missing(),
        }
    }

    /// Starts it.
    pub async fn start(self, ground: &Ground<'_>) -> anyhow::Result<Stand> {
        let stand = match self {
            Self::Floor => own::start(ground, FLOOR),
            Self::Hub => hub::start(ground).await,
            Self::Fleet => Hub::fleet(ground, 2).await,
            Self::Nchan => nchan::start(ground),
            Self::Pushpin => pushpin::start(ground),
            Self::ActixWs => own::start(ground, BROADCAST),
            Self::Express => express::start(ground),
        };
        stand.with_context(|| format!("{} did not start", self.name()))
    }
}

/// A server that is up; dropped, it is stopped.
pub struct Stand {
    processes: Vec<Process>,
    /// Where and how its sockets connect.
    pub door: Door,
    /// Where updates are posted.
    pub publish_at: SocketAddr,
    publish: Box<dyn Fn(usize, Stamp) -> Vec<u8>>,
}

impl Stand {
    /// The request that publishes an update.
    pub fn update(&self, channel: usize, stamp: Stamp) -> Vec<u8> {
        (self.publish)(channel, stamp)
    }

    /// CPU time of all its processes so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        self.processes.iter().map(Process::cpu).sum()
    }

    /// Memory of all its processes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        self.processes.iter().map(Process::memory).sum()
    }
}

/// Handshakes under way at once, where a server does not have to be spared.
pub const MAX_CONCURRENT_HANDSHAKES: usize = 1024;

/// The door of a server whose path names the channel.
fn by_path(address: SocketAddr, channels: usize) -> Door {
    let greeting = |channel| Greeting {
        path: format!("/ws/{channel}"),
        headers: String::new(),
        subscribe: None,
    };
    Door {
        addresses: vec![address],
        greetings: (0..channels).map(greeting).collect(),
        at_once: MAX_CONCURRENT_HANDSHAKES,
    }
}

/// Publishes by posting the message itself to a path that names the channel.
fn by_post(template: &Rc<Template>) -> Box<dyn Fn(usize, Stamp) -> Vec<u8>> {
    let template = Rc::clone(template);
    Box::new(move |channel, stamp| {
        let path = format!("/publish/{channel}");
        let text = template.message(&stamp.text());
        crate::http_connection::post(&path, &[("Content-Type", "text/plain")], &text)
    })
}
