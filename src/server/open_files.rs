//! The limit of open files, which also limits the connections of the process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Number of descriptors that are reserved for the store, providers, listeners, health checks and
/// rejected connections.
const RESERVED_DESCRIPTORS: usize = 256;

/// Raises the soft limit of open files to the hard limit, and returns the resulting limit. The
/// default soft limit is often 1024, for programs that use `select`.
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "failed to raise limit of open files");
            limit.current
        }
    };
    current.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

/// Returns the maximum number of client connections for a limit of open files.
pub fn max_clients(open_files: usize) -> usize {
    open_files - RESERVED_DESCRIPTORS.min(open_files / 4)
}
