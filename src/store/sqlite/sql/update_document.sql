-- Replaces the version of a job whose schedule and task do not change. Updates no index.
--
-- Changes no row if anything else would have to change. `commit_job` then takes the general path.
--
-- Parameters: id, expected version, new status, version, time of the update, document and internal
-- state; then the task id, the schedule and the deadline, which do not change. Parameters are
-- numbered, because SQLite looks up a named parameter by comparing names.
UPDATE jobs SET status = ?3, version = ?4, updated_at = ?5, document = ?6, internal = ?7
WHERE id = ?1 AND version = ?2 AND finished_at IS NULL
    AND task_id IS ?8 AND submit_at IS ?9 AND submit_claimable_at IS ?9
    AND poll_at IS ?10 AND poll_requested_at IS NULL
    AND poll_interval_ms = ?11 AND poll_backoff = ?12
    AND holds_slot = ?13 AND deadline_at = ?14
