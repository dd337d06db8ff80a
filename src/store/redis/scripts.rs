//! The scripts: every change that has to be one step.
//!
//! Invariant: a script touches one partition, and says itself what it takes and answers.

use std::sync::LazyLock;

use super::connection::Script;

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("lua/", $file))));)*
    };
}

scripts! {
    CHARGE_WINDOW = "charge_window.lua",
    CLAIM_KEY = "claim_key.lua",
    CLAIM_SUBMISSIONS = "claim_submissions.lua",
    CLAIM_POLLS = "claim_polls.lua",
    COMMIT_JOB = "commit_job.lua",
    CREATE_JOB = "create_job.lua",
    RELEASE_KEY = "release_key.lua",
    DELETE_JOB = "delete_job.lua",
    SCHEDULE_POLL = "schedule_poll.lua",
    INDEX_JOB = "index_job.lua",
    BUFFER_UPDATE = "buffer_update.lua",
    READ_JOBS = "read_jobs.lua",
    PUT_SHARED_STATE = "put_shared_state.lua",
    ENSURE_DURABLE = "ensure_durable.lua",
    REFRESH_SLOT = "refresh_slot.lua",
    ACQUIRE_SLOTS = "acquire_slots.lua",
    DELETE_BUFFERED = "delete_buffered.lua",
    RELEASE_RESERVATION = "release_reservation.lua",
}
