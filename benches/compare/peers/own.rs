//! The two servers of this program's own, started as a second process of it.
//!
//! Invariant: they run the same executable as the generator, and share nothing else with it.

use super::{Ground, Stand, by_path, by_post};
use crate::process::{Process, free_address};

/// The word that makes this program the floor.
pub const FLOOR: &str = "serve-floor";

/// The word that makes this program the actix-ws broadcast.
pub const BROADCAST: &str = "serve-actix-ws";

pub(super) fn start(ground: &Ground<'_>, word: &str) -> anyhow::Result<Stand> {
    let address = free_address()?;
    let me = std::env::current_exe()?;
    let command = [&*me.to_string_lossy(), word, &address.to_string()];
    let mut process = Process::start(&command, ground.cores, ground.dir, word)?;
    process.listens(address)?;
    Ok(Stand {
        processes: vec![process],
        door: by_path(address, ground.channels),
        publish_at: address,
        publish: by_post(&ground.template),
    })
}
