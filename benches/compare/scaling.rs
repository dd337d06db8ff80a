//! What an update costs the hub as work grows, one thing at a time.
//!
//! Invariant: each point is a hub that was just started, with its own sockets, updated one by one;
//! what is plotted is the CPU time of an update, all it leads to included.

use std::fs;
use std::path::Path;

use crate::measurements::{Scene, Size};
use crate::peers::{Ground, Hub, Peer};
use crate::plot::Plot;
use crate::process::Cores;
use crate::table::{machine, today};

const SOCKETS: [usize; 7] = [1, 10, 100, 1000, 5000, 10_000, 18_000];
const JOBS: [usize; 5] = [1, 10, 100, 1000, 10_000];
const SUBSCRIPTIONS: [usize; 5] = [1, 4, 16, 64, 256];
const BYTES: [usize; 4] = [0, 1000, 1600, 2400];
const NODES: [usize; 3] = [1, 2, 3];

/// Sockets of a fleet, over all its nodes.
const SHARED: usize = 600;

/// Sockets that watch, where it is not they that grow.
const FEW: usize = 100;

/// Measures all curves and writes them as SVG into `folder`.
pub async fn draw(core: usize, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let cores = Cores::One(core);
    let size = |sockets, channels, bytes| Size {
        sockets,
        channels,
        bytes,
    };
    let mut sockets = Vec::new();
    for many in SOCKETS {
        sockets.push((many, update(cores, size(many, 1, 0)).await?));
    }
    let mut jobs = Vec::new();
    for many in JOBS {
        jobs.push((many, update(cores, size(many, many, 0)).await?));
    }
    let mut subscriptions = Vec::new();
    for many in SUBSCRIPTIONS {
        let dir = crate::place()?;
        let stand = Hub::with_many(&ground(dir.path(), cores)?, many).await?;
        let scene = Scene::with(stand, size(FEW, 1, 0)).await?;
        subscriptions.push((many, cost(scene, FEW).await?));
    }
    let mut bytes = Vec::new();
    for many in BYTES {
        let size = size(FEW, 1, many);
        bytes.push((size.message()?, update(cores, size).await?));
    }
    let mut nodes = Vec::new();
    for many in NODES {
        let dir = crate::place()?;
        let stand = Hub::fleet(&ground(dir.path(), cores)?, many).await?;
        let scene = Scene::with(stand, size(SHARED, 1, 0)).await?;
        nodes.push((many, cost(scene, SHARED).await?));
    }
    let about = format!("{}, {}", today(), machine());
    for (name, title, across, points) in [
        (
            "sockets",
            "An update to all sockets of one job",
            "sockets",
            sockets,
        ),
        (
            "jobs",
            "An update of one of many jobs, each with a socket",
            "jobs",
            jobs,
        ),
        (
            "subscriptions",
            "An update of one of the jobs that 100 sockets watch",
            "jobs that each socket watches",
            subscriptions,
        ),
        (
            "bytes",
            "An update to 100 sockets, by length",
            "bytes of a message",
            bytes,
        ),
        (
            "nodes",
            "An update to 600 sockets, over all nodes and their Redis",
            "nodes on one Redis",
            nodes,
        ),
    ] {
        let plot = Plot {
            title,
            across,
            up: "µs of CPU per update",
            about: &about,
            points,
        };
        fs::write(folder.join(format!("{name}.svg")), plot.svg())?;
        println!("{}", plot.table());
    }
    Ok(())
}

async fn update(cores: Cores, size: Size) -> anyhow::Result<f64> {
    let dir = crate::place()?;
    let scene = Scene::open(Peer::Hub, cores, dir.path(), size).await?;
    cost(scene, size.sockets / size.channels).await
}

/// Microseconds of CPU for an update to so many sockets.
async fn cost(mut scene: Scene, sockets: usize) -> anyhow::Result<f64> {
    let updates = (100_000 / sockets).clamp(20, 500);
    scene.one_by_one(updates / 5).await?;
    let pace = scene.one_by_one(updates).await?;
    #[expect(clippy::cast_precision_loss, reason = "nowhere near 2⁵³")]
    let each = pace.cpu * sockets as f64 / 1000.0;
    eprintln!("{sockets} sockets: {each:.0} µs");
    Ok(each)
}

fn ground(dir: &Path, cores: Cores) -> anyhow::Result<Ground<'_>> {
    Ok(Ground {
        dir,
        cores,
        channels: 1,
        template: std::rc::Rc::new(crate::message::Template::new(0)?),
        padding: 0,
    })
}
