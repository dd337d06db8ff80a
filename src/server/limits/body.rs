//! Limits on the memory for request bodies.
//!
//! A node has one limit for the bodies of requests with a token, and one for the bodies of webhooks
//! that are not verified yet. Each address may use a part of it. Clients behind a trusted proxy have
//! no limit per address.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::address::ClientAddress;

/// Fraction of the memory of a node that the bodies from one address may use.
const ADDRESS_SHARE: usize = 8;

/// The memory of a node for one kind of body.
#[derive(Debug)]
pub(super) struct BodyMemory {
    node: Arc<Semaphore>,
    max_per_address: usize,
}

impl BodyMemory {
    /// Creates a limit of `max_bytes` per node. The limit per address is at least `max_body_bytes`.
    pub(super) fn new(max_bytes: usize, max_body_bytes: usize) -> Self {
        let max_bytes = max_bytes.min(Semaphore::MAX_PERMITS);
        Self {
            node: Arc::new(Semaphore::new(max_bytes)),
            max_per_address: max_body_bytes.max(max_bytes / ADDRESS_SHARE),
        }
    }

    /// Adds `bytes` to a permit. Returns false, and adds nothing, if the address or the node has
    /// reached its limit.
    pub(super) fn try_reserve(&self, permit: &mut BodyPermit, bytes: usize) -> bool {
        let node = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&self.node).try_acquire_many_owned(bytes).ok());
        let Some(node) = node else {
            return false;
        };
        let address = &permit.address;
        if !address.try_reserve_body(bytes, self.max_per_address) {
            return false;
        }
        permit.bytes += bytes;
        match &mut permit.node {
            Some(permit) => permit.merge(node),
            none => *none = Some(node),
        }
        true
    }
}

/// Permit for the bytes of a body. Dropping it releases them.
pub struct BodyPermit {
    address: ClientAddress,
    pub(super) is_authenticated: bool,
    bytes: usize,
    node: Option<OwnedSemaphorePermit>,
}

impl BodyPermit {
    /// Creates a permit without bytes for a body that `address` sends.
    pub fn new(address: ClientAddress, is_authenticated: bool) -> Self {
        Self {
            address,
            is_authenticated,
            bytes: 0,
            node: None,
        }
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.address.release_body(self.bytes);
    }
}
