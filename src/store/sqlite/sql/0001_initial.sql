-- Times are milliseconds since the Unix epoch. Booleans are 0 or 1.

CREATE TABLE jobs (
    id                  TEXT NOT NULL PRIMARY KEY,
    owner               TEXT NOT NULL,
    status              TEXT NOT NULL,
    version             INTEGER NOT NULL,
    provider            TEXT,
    task_id             TEXT,
    submit_at           INTEGER,           -- null: nothing to submit
    submit_claimable_at INTEGER,           -- submit_at, or the end of the claim lease
    poll_at             INTEGER,           -- null: no poll needed; each claim postpones it
    poll_interval_ms    INTEGER NOT NULL,
    poll_backoff        INTEGER NOT NULL,
    last_polled_at      INTEGER,           -- time of the last poll claim
    poll_requested_at   INTEGER,           -- requested poll; commits do not postpone it
    holds_slot          INTEGER NOT NULL,
    deadline_at         INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    finished_at         INTEGER,           -- null: unfinished
    document            TEXT NOT NULL,     -- JSON, exactly the public document
    internal            TEXT NOT NULL      -- JSON, state needed to submit and poll the job
) STRICT;

CREATE UNIQUE INDEX jobs_by_task ON jobs (provider, task_id)
    WHERE provider IS NOT NULL AND task_id IS NOT NULL;
CREATE INDEX jobs_to_submit ON jobs (provider, submit_claimable_at, owner)
    WHERE submit_claimable_at IS NOT NULL;
CREATE INDEX jobs_claimed ON jobs (provider, submit_claimable_at)
    WHERE submit_claimable_at <> submit_at;
CREATE INDEX jobs_holding_slot ON jobs (provider) WHERE holds_slot;
CREATE INDEX jobs_to_poll ON jobs (poll_at) WHERE poll_at IS NOT NULL;
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_active ON jobs (id) WHERE finished_at IS NULL;
CREATE INDEX jobs_active_by_owner ON jobs (owner, id) WHERE finished_at IS NULL;
CREATE INDEX jobs_by_finished_at ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_active_by_created_at ON jobs (created_at) WHERE finished_at IS NULL;

CREATE TABLE idempotency_keys (
    caller      TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    job_id      TEXT NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_id);

CREATE TABLE buffered_updates (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    provider    TEXT NOT NULL,
    task_id     TEXT NOT NULL,
    payload     TEXT NOT NULL,             -- JSON
    received_at INTEGER NOT NULL
) STRICT;

CREATE INDEX buffered_updates_by_task ON buffered_updates (provider, task_id);
CREATE INDEX buffered_updates_by_received_at ON buffered_updates (received_at);

CREATE TABLE budget_windows (
    name    TEXT NOT NULL PRIMARY KEY,
    balance INTEGER NOT NULL,
    ends_at INTEGER NOT NULL               -- the balance is zero from then on
) STRICT, WITHOUT ROWID;

CREATE INDEX budget_windows_by_ends_at ON budget_windows (ends_at);

CREATE TABLE deliveries (
    job_id      TEXT NOT NULL,
    event       TEXT NOT NULL,
    destination TEXT NOT NULL,
    version     INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    target      TEXT,
    state       TEXT NOT NULL,             -- waiting, delivered or failed
    due_at      INTEGER,                   -- null: not waiting
    created_at  INTEGER NOT NULL,
    revision    INTEGER NOT NULL,
    progress    TEXT NOT NULL,             -- JSON, with the state and the revision
    PRIMARY KEY (job_id, event, destination)
) STRICT, WITHOUT ROWID;

-- Every index ends with the primary key, so that it has the order of a list.
CREATE INDEX deliveries_due ON deliveries (destination, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_waiting ON deliveries (created_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_failed ON deliveries (created_at) WHERE state = 'failed';
CREATE INDEX deliveries_by_created_at ON deliveries (created_at);
CREATE INDEX deliveries_by_owner ON deliveries (owner, created_at);
CREATE INDEX deliveries_by_destination ON deliveries (destination, created_at);

CREATE TABLE delivery_documents (          -- shared by the deliveries of a version
    job_id   TEXT NOT NULL,
    version  INTEGER NOT NULL,
    document TEXT NOT NULL,                -- JSON
    PRIMARY KEY (job_id, version)
) STRICT;

CREATE TABLE destinations (
    name     TEXT NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    state    TEXT NOT NULL                 -- JSON
) STRICT, WITHOUT ROWID;
