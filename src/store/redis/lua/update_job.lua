-- Stores the next version of an unfinished job and publishes it, as one atomic step.
--
-- Has the effect of the commit script for a commit that changes only the document, the internal
-- state and the time of the next poll, and extends no TTL. Most commits are of this kind. The
-- expected revision guarantees that the other fields have the values that the caller knows.
--
-- KEYS: the job, the poll queue, the channel of the job, the channel of its owner
-- ARGV: PUBLISH or SPUBLISH, job id, head of the message, expected revision, time of the next poll
--       ('' if unchanged), TTL of the poll queue, then names and values of the fields, with the
--       document first
-- Returns: {'not_found'}, {'committed'} or {'conflict', revision, document, internal state} of the
--          stored version
local job, poll_queue, job_channel, owner_channel = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local publish, id, head, expected_revision = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local poll_at, queue_ttl = ARGV[5], ARGV[6]
local first_field = 7
local document = ARGV[first_field + 1]

local revision = redis.call('HGET', job, 'revision')
if not revision then
  return { 'not_found' }
end
if revision ~= expected_revision then
  return { 'conflict', revision, unpack(redis.call('HMGET', job, 'document', 'internal')) }
end

redis.call('HSET', job, unpack(ARGV, first_field))
if poll_at ~= '' then
  -- A requested poll that has not been claimed yet is not postponed.
  local requested_at = redis.call('HGET', job, 'poll_requested_at')
  if requested_at and tonumber(requested_at) < tonumber(poll_at) then
    poll_at = requested_at
  end
  if redis.call('ZADD', poll_queue, poll_at, id) == 1 then
    redis.call('PEXPIRE', poll_queue, queue_ttl)
  end
end
local message = head .. document
redis.call(publish, job_channel, message)
redis.call(publish, owner_channel, message)
return { 'committed' }
