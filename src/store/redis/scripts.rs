//! The Lua scripts. Redis runs each of them as one atomic step.
//!
//! A script accesses keys of a single partition. Its first lines document keys, arguments and return
//! value. A script can consist of several files, of which all but the last define functions.

use std::sync::LazyLock;

/// A Lua script.
pub(super) struct Script {
    pub(super) source: &'static str,
    /// SHA-1 of the source, by which a server caches the script.
    pub(super) sha: String,
    /// Whether the call waits until the required number of replicas have acknowledged the writes.
    pub(super) is_replicated: bool,
}

macro_rules! scripts {
    (is_replicated: $is_replicated:literal; $($name:ident = $($file:literal)+),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            let source = concat!($(include_str!(concat!("lua/", $file))),+);
            let sha = fred::util::sha1_hash(source);
            Script { source, sha, is_replicated: $is_replicated }
        });)*
    };
}

// Writes that a caller relies on after a successful call.
scripts! {
    is_replicated: true;
    BUFFER_UPDATE = "buffer_update.lua",
    CHARGE_WINDOW = "charge_window.lua",
    CLAIM_KEY = "claim_key.lua",
    COMMIT_JOB = "outbox.lua" "add_deliveries.lua" "commit_job.lua",
    CREATE_JOB = "outbox.lua" "add_deliveries.lua" "create_job.lua",
    ENSURE_DURABLE = "ensure_durable.lua",
    INDEX_JOB = "index_job.lua",
    PUT_DESTINATION_STATE = "put_destination_state.lua",
    RECORD_PROGRESS = "record_progress.lua",
    SCHEDULE_POLL = "schedule_poll.lua",
    UPDATE_JOB = "update_job.lua",
}

// Reads, and writes whose loss is harmless, because they are repeated or expire.
scripts! {
    is_replicated: false;
    ACQUIRE_SLOTS = "acquire_slots.lua",
    CLAIM_POLLS = "claim_polls.lua",
    CLAIM_SUBMISSIONS = "claim_submissions.lua",
    DELETE_BUFFERED = "delete_buffered.lua",
    DELETE_DELIVERY = "outbox.lua" "delete_delivery.lua",
    DELETE_JOB = "outbox.lua" "delete_job.lua",
    DUE_SUBMISSIONS = "due_submissions.lua",
    LEASE_DESTINATION = "lease_destination.lua",
    PUT_SHARED_STATE = "put_shared_state.lua",
    READ_DELIVERIES = "read_deliveries.lua",
    READ_JOBS = "read_jobs.lua",
    REFRESH_SLOT = "refresh_slot.lua",
    RELEASE_CHARGE = "release_charge.lua",
    RELEASE_DESTINATION = "release_destination.lua",
    RELEASE_KEY = "release_key.lua",
}
