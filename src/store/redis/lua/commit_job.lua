-- Stores the next version of a job, updates its queues and publishes it, as one atomic step.
--
-- The score of the job in the expiry queue changes only when the job ends. For an unfinished job,
-- the delete script also checks the time of the last update.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, the active jobs,
--       the budget outbox, the channel of the job, the channel of its owner, then the keys of
--       `add_deliveries`
-- ARGV: PUBLISH or SPUBLISH, job id, head of the message, time of the next poll, time of the next
--       submission ('' for none), end of the retention, TTL of the job, TTL of the queues,
--       '1' if the job is final, expected version, expected revision ('' for any),
--       provider task ('' if unknown), '1' if the task is claimed, deliveries as JSON ('' for none),
--       TTL of the deliveries, document key of the entry of the budget outbox ('' for none), the
--       entry, then names and values of the fields, with the document first
-- Returns: {'not_found'}, {'conflict', revision, document, internal state} of the stored version,
--          {'task_not_claimed'} (claim the task first) or
--          {'committed', '1' if the job held a slot before}
local job, poll_queue, submit_queue, expiry_queue = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local active_jobs, budget_outbox, job_channel, owner_channel = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local publish, id, head = ARGV[1], ARGV[2], ARGV[3]
local poll_at, submit_at, expires_at = ARGV[4], ARGV[5], ARGV[6]
local ttl, shared_ttl, is_final = ARGV[7], ARGV[8], ARGV[9] == '1'
local expected_version, expected_revision = ARGV[10], ARGV[11]
local task, is_task_claimed = ARGV[12], ARGV[13] == '1'
local deliveries, deliveries_ttl = ARGV[14], ARGV[15]
local charges_field, charges = ARGV[16], ARGV[17]
local first_delivery_key, first_field = 9, 18
local document = ARGV[first_field + 1]

local before = redis.call('HMGET', job, 'version', 'revision', 'task', 'slot', 'submit_at',
  'poll_requested_at')
local version, revision, bound_task, slot = before[1], before[2], before[3], before[4]
local submit_at_before, poll_requested_at = before[5], before[6]
if not version then
  return { 'not_found' }
end
if version ~= expected_version or (expected_revision ~= '' and expected_revision ~= revision) then
  return { 'conflict', revision, unpack(redis.call('HMGET', job, 'document', 'internal')) }
end
if bound_task ~= task and task ~= '' and not is_task_claimed then
  return { 'task_not_claimed' }
end
local submit_due_at = submit_at_before ~= '' and redis.call('ZSCORE', submit_queue, id)
-- A score other than `submit_at` is the lease of a claim, which holds a slot as well.
local held_slot = slot == '1' or (submit_due_at and submit_due_at ~= submit_at_before)

redis.call('HSET', job, unpack(ARGV, first_field))
redis.call('PEXPIRE', job, ttl)
if poll_at == '' then
  redis.call('ZREM', poll_queue, id)
else
  -- A requested poll that has not been claimed yet is not postponed.
  if poll_requested_at and tonumber(poll_requested_at) < tonumber(poll_at) then
    poll_at = poll_requested_at
  end
  if redis.call('ZADD', poll_queue, poll_at, id) == 1 then
    redis.call('PEXPIRE', poll_queue, shared_ttl)
  end
end
if submit_at ~= '' then
  redis.call('ZADD', submit_queue, submit_at, id)
  redis.call('PEXPIRE', submit_queue, shared_ttl)
elseif submit_due_at then
  redis.call('ZREM', submit_queue, id)
end
if is_final then
  redis.call('ZADD', expiry_queue, expires_at, id)
  redis.call('PEXPIRE', expiry_queue, shared_ttl)
  redis.call('ZREM', active_jobs, id)
end
if charges_field ~= '' then
  redis.call('HSET', budget_outbox, charges_field, charges)
  redis.call('PEXPIRE', budget_outbox, shared_ttl)
end
add_deliveries(first_delivery_key, id, document, deliveries, deliveries_ttl)
local message = head .. document
redis.call(publish, job_channel, message)
redis.call(publish, owner_channel, message)
return { 'committed', held_slot and '1' or '0' }
