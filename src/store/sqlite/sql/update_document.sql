-- Replaces the version of a job whose schedule and task do not change. Updates no index.
--
-- Changes no row if anything else would have to change. `commit_job` then takes the general path.
UPDATE jobs SET status = :status, version = :version, updated_at = :updated_at,
    document = :document, internal = :internal
WHERE id = :id AND version = :expected_version AND finished_at IS NULL
    AND task_id IS :task_id AND submit_at IS :submit_at AND submit_claimable_at IS :submit_at
    AND poll_at IS :poll_at AND poll_requested_at IS NULL
    AND poll_interval_ms = :poll_interval_ms AND poll_backoff = :poll_backoff
    AND holds_slot = :holds_slot AND deadline_at = :deadline_at
