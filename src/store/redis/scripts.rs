//! The Lua scripts. Redis runs each of them as one atomic step.
//!
//! A script accesses keys of a single partition. Its first lines document keys, arguments and return
//! value.

use std::sync::LazyLock;

use super::connection::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("lua/", $file))));)*
    };
}

scripts! {
    ACQUIRE_SLOTS = "acquire_slots.lua",
    BUFFER_UPDATE = "buffer_update.lua",
    CHARGE_WINDOW = "charge_window.lua",
    CLAIM_KEY = "claim_key.lua",
    CLAIM_POLLS = "claim_polls.lua",
    CLAIM_SUBMISSIONS = "claim_submissions.lua",
    COMMIT_JOB = "commit_job.lua",
    CREATE_JOB = "create_job.lua",
    DELETE_BUFFERED = "delete_buffered.lua",
    DELETE_JOB = "delete_job.lua",
    ENSURE_DURABLE = "ensure_durable.lua",
    INDEX_JOB = "index_job.lua",
    PUT_SHARED_STATE = "put_shared_state.lua",
    READ_JOBS = "read_jobs.lua",
    REFRESH_SLOT = "refresh_slot.lua",
    RELEASE_KEY = "release_key.lua",
    RELEASE_RESERVATION = "release_reservation.lua",
    SCHEDULE_POLL = "schedule_poll.lua",
}
