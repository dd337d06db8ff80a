-- Moves the next poll of an unfinished job to an earlier time. Changes nothing if the next poll is
-- not later than the requested time.
--
-- Parameters: job id, requested time, cool-down in milliseconds.
UPDATE jobs SET
    poll_at = min(ifnull(poll_at, requested.at), requested.at),
    poll_requested_at = min(ifnull(poll_requested_at, requested.at), requested.at)
FROM (SELECT max(?2, ifnull(last_polled_at + ?3, ?2)) AS at FROM jobs WHERE id = ?1)
    AS requested
WHERE id = ?1 AND finished_at IS NULL
    AND (poll_at IS NULL OR poll_at > requested.at
        OR poll_requested_at IS NULL OR poll_requested_at > requested.at)
