-- Stores the next version of a job, updates its queues and publishes it, as one atomic step.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, all jobs,
--       the active jobs, the budget outbox, the channel of the job, the channel of its owner
-- ARGV: PUBLISH or SPUBLISH, job id, document, internal state, changes (JSON, see `RedisStore::changes`),
--       expected version, provider task ('' if unknown), '1' if the task is claimed,
--       document key of the outbox entry ('' for none), outbox entry
-- Returns: {'not_found'}, {'conflict'}, {'task_not_claimed'} (claim the task first) or
--          {'committed', '1' if the job held a slot before}
local job, poll_queue, submit_queue, expiry_queue = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local active_jobs, outbox, job_channel, owner_channel = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local publish, id, document, internal = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local changes, expected_version = cjson.decode(ARGV[5]), ARGV[6]
local task, is_task_claimed = ARGV[7], ARGV[8] == '1'
local outbox_field, outbox_entry = ARGV[9], ARGV[10]

local before = redis.call('HMGET', job, 'version', 'task', 'slot', 'submit_at', 'poll_requested_at')
local version, bound_task, slot, submit_at, poll_requested_at = unpack(before, 1, 5)
if not version then
  return { 'not_found' }
end
if version ~= expected_version then
  return { 'conflict' }
end
if bound_task ~= task and task ~= '' and not is_task_claimed then
  return { 'task_not_claimed' }
end
local submit_due_at = submit_at ~= '' and redis.call('ZSCORE', submit_queue, id)
-- A score other than `submit_at` is the lease of a claim, which holds a slot as well.
local held_slot = slot == '1' or (submit_due_at and submit_due_at ~= submit_at)

redis.call('HSET', job, 'document', document, 'internal', internal, 'task', task,
  unpack(changes.fields))
redis.call('PEXPIRE', job, changes.ttl)
if changes.poll_at ~= '' then
  -- A requested poll that has not been claimed yet is not postponed.
  local poll_at = changes.poll_at
  if poll_requested_at and tonumber(poll_requested_at) < tonumber(poll_at) then
    poll_at = poll_requested_at
  end
  redis.call('ZADD', poll_queue, poll_at, id)
  redis.call('PEXPIRE', poll_queue, changes.shared_ttl)
else
  redis.call('ZREM', poll_queue, id)
end
if changes.submit_at ~= '' then
  redis.call('ZADD', submit_queue, changes.submit_at, id)
  redis.call('PEXPIRE', submit_queue, changes.shared_ttl)
elseif submit_due_at then
  redis.call('ZREM', submit_queue, id)
end
redis.call('ZADD', expiry_queue, changes.expires_at, id)
redis.call('PEXPIRE', expiry_queue, changes.shared_ttl)
if changes.final then
  redis.call('ZREM', active_jobs, id)
end
if outbox_field ~= '' then
  redis.call('HSET', outbox, outbox_field, outbox_entry)
  redis.call('PEXPIRE', outbox, changes.shared_ttl)
end
redis.call(publish, job_channel, document)
redis.call(publish, owner_channel, document)
return { 'committed', held_slot and '1' or '0' }
