-- Every time is in milliseconds since the Unix epoch.

CREATE TABLE jobs (
    id          TEXT NOT NULL PRIMARY KEY,
    owner       TEXT NOT NULL,
    status      TEXT NOT NULL,
    version     INTEGER NOT NULL,
    provider    TEXT,
    task_id     TEXT,
    submit_at   INTEGER,           -- the agenda; null: nothing to do
    submit_due  INTEGER,           -- submit_at, or the end of the lease that is on it
    watch_at    INTEGER,           -- the agenda; put off by each claim
    watch_every INTEGER NOT NULL,  -- milliseconds
    holds_place INTEGER NOT NULL,  -- 0 or 1
    deadline_at INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    finished_at INTEGER,           -- null: unfinished
    doc         TEXT NOT NULL,     -- JSON, exactly the public document
    ticket      TEXT NOT NULL      -- JSON, what it takes to submit the job and to ask about it
) STRICT;

CREATE UNIQUE INDEX jobs_by_task ON jobs (provider, task_id)
    WHERE provider IS NOT NULL AND task_id IS NOT NULL;
CREATE INDEX jobs_to_submit ON jobs (provider, submit_due) WHERE submit_due IS NOT NULL;
CREATE INDEX jobs_leased ON jobs (provider, submit_due) WHERE submit_due <> submit_at;
CREATE INDEX jobs_with_place ON jobs (provider) WHERE holds_place;
CREATE INDEX jobs_to_watch ON jobs (watch_at) WHERE watch_at IS NOT NULL;
CREATE INDEX jobs_by_owner ON jobs (owner, id);
CREATE INDEX jobs_unfinished ON jobs (id) WHERE finished_at IS NULL;
CREATE INDEX jobs_unfinished_by_owner ON jobs (owner, id) WHERE finished_at IS NULL;
CREATE INDEX jobs_by_end ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_by_news ON jobs (updated_at) WHERE finished_at IS NULL;

CREATE TABLE idempotency (
    caller      TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    job_id      TEXT NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_job ON idempotency (job_id);

CREATE TABLE parked (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    provider  TEXT NOT NULL,
    task_id   TEXT NOT NULL,
    news      TEXT NOT NULL,       -- JSON
    parked_at INTEGER NOT NULL
) STRICT;

CREATE INDEX parked_by_task ON parked (provider, task_id);
CREATE INDEX parked_by_time ON parked (parked_at);
