-- Inserts a job, or replaces its version. A requested poll is not postponed.
--
-- A commit rarely changes `task_id`, `holds_slot` and `finished_at`, and updating their indexes is
-- expensive. `commit_job` updates these columns only if they have changed.
INSERT INTO jobs (id, owner, status, version, provider, task_id, submit_at,
    submit_claimable_at, poll_at, poll_interval_ms, poll_backoff, holds_slot,
    deadline_at, created_at, updated_at, finished_at, document, internal)
VALUES (:id, :owner, :status, :version, :provider, :task_id, :submit_at,
    :submit_at, :poll_at, :poll_interval_ms, :poll_backoff, :holds_slot,
    :deadline_at, :created_at, :updated_at, :finished_at, :document, :internal)
ON CONFLICT (id) DO UPDATE SET status = :status, version = :version,
    submit_at = :submit_at, submit_claimable_at = :submit_at,
    poll_at = min(:poll_at, ifnull(poll_requested_at, :poll_at)),
    poll_interval_ms = :poll_interval_ms, poll_backoff = :poll_backoff,
    deadline_at = :deadline_at, updated_at = :updated_at,
    document = :document, internal = :internal
