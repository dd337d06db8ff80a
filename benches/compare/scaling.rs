//! CPU time of an update of the hub as one quantity grows: sockets, jobs, subscriptions, bytes or nodes.
//!
//! Every point is a newly started hub with its own sockets. Updates are sent one at a time, except for the jobs that
//! change at once.

use std::fs;
use std::path::Path;

use crate::measurements::{Scenario, Size};
use crate::peers::hub::{self, Hub, Reports, Store};
use crate::peers::{Peer, StartContext};
use crate::plot::Plot;
use crate::process::Cores;
use crate::table::{machine, today};

const SOCKETS: [usize; 7] = [1, 10, 100, 1000, 5000, 10_000, 18_000];
const JOBS: [usize; 5] = [1, 10, 100, 1000, 10_000];
const SUBSCRIPTIONS: [usize; 5] = [1, 4, 16, 64, 256];
const BYTES: [usize; 4] = [0, 1000, 1600, 2400];
const NODES: [usize; 3] = [1, 2, 3];

/// Sockets over all nodes of a cluster.
const CLUSTER_SOCKETS: usize = 600;

/// Sockets if another quantity grows.
const FEW_SOCKETS: usize = 100;

/// Measures all curves and writes them as SVG to `directory`.
pub async fn draw(core: usize, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let cores = Cores::One(core);
    let size = |sockets, channels, bytes| Size {
        sockets,
        channels,
        bytes,
    };
    let mut sockets = Vec::new();
    for count in SOCKETS {
        sockets.push((count, update(cores, size(count, 1, 0)).await?));
    }
    let mut jobs = Vec::new();
    for count in JOBS {
        jobs.push((count, update(cores, size(count, count, 0)).await?));
    }
    let mut changing_jobs = Vec::new();
    for count in JOBS {
        let dir = crate::temp_dir()?;
        let scenario = Scenario::open(Peer::Hub, cores, dir.path(), size(count, count, 0)).await?;
        changing_jobs.push((count, cost_at_once(&scenario, count).await?));
    }
    let mut subscriptions = Vec::new();
    for count in SUBSCRIPTIONS {
        let dir = crate::temp_dir()?;
        let server = Hub::start_with_jobs(&context(dir.path(), cores)?, count).await?;
        let scenario = Scenario::with_server(server, size(FEW_SOCKETS, 1, 0)).await?;
        subscriptions.push((count, cost(scenario, FEW_SOCKETS).await?));
    }
    let mut bytes = Vec::new();
    for count in BYTES {
        let size = size(FEW_SOCKETS, 1, count);
        bytes.push((size.message_bytes()?, update(cores, size).await?));
    }
    let mut nodes = Vec::new();
    for count in NODES {
        let dir = crate::temp_dir()?;
        let server = hub::start(
            &context(dir.path(), cores)?,
            Store::Redis { nodes: count },
            Reports::Pushes,
        )
        .await?;
        let scenario = Scenario::with_server(server, size(CLUSTER_SOCKETS, 1, 0)).await?;
        nodes.push((count, cost(scenario, CLUSTER_SOCKETS).await?));
    }
    let footer = format!("{}, {}", today(), machine());
    for (name, title, x_label, points) in [
        (
            "sockets",
            "Update to all sockets of one job",
            "sockets",
            sockets,
        ),
        (
            "jobs",
            "Update of one of many jobs, one socket each",
            "jobs",
            jobs,
        ),
        (
            "changing-jobs",
            "Update of many jobs at once, one socket each",
            "jobs that change at once",
            changing_jobs,
        ),
        (
            "subscriptions",
            "Update of one of the jobs of 100 sockets",
            "jobs per socket",
            subscriptions,
        ),
        (
            "bytes",
            "Update to 100 sockets by size",
            "bytes per message",
            bytes,
        ),
        (
            "nodes",
            "Update to 600 sockets, all nodes and Redis",
            "nodes",
            nodes,
        ),
    ] {
        let plot = Plot {
            title,
            x_label,
            y_label: "µs of CPU per update",
            footer: &footer,
            points,
        };
        fs::write(directory.join(format!("{name}.svg")), plot.svg()?)?;
        println!("{}", plot.table());
    }
    Ok(())
}

async fn update(cores: Cores, size: Size) -> anyhow::Result<f64> {
    let dir = crate::temp_dir()?;
    let scenario = Scenario::open(Peer::Hub, cores, dir.path(), size).await?;
    cost(scenario, size.sockets / size.channels).await
}

/// Returns the CPU time of an update to `sockets` sockets, in microseconds.
async fn cost(mut scenario: Scenario, sockets: usize) -> anyhow::Result<f64> {
    let updates = (100_000 / sockets).clamp(20, 500);
    scenario.sequential(updates / 5).await?;
    let cost = scenario.sequential(updates).await?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2⁵³")]
    let micros = cost.cpu_nanos * sockets as f64 / 1000.0;
    eprintln!("{sockets} sockets: {micros:.0} µs");
    Ok(micros)
}

/// Returns the CPU time of an update if all `jobs` change at once, in microseconds.
async fn cost_at_once(scenario: &Scenario, jobs: usize) -> anyhow::Result<f64> {
    let bursts = (20_000 / jobs).clamp(3, 500);
    scenario.bursts(bursts.div_ceil(5)).await?;
    let micros = scenario.bursts(bursts).await?.cpu_nanos / 1000.0;
    eprintln!("{jobs} jobs at once: {micros:.0} µs");
    Ok(micros)
}

fn context(dir: &Path, cores: Cores) -> anyhow::Result<StartContext<'_>> {
    Ok(StartContext {
        dir,
        cores,
        channels: 1,
        template: std::rc::Rc::new(crate::message::Template::new(0)?),
        padding: 0,
    })
}
