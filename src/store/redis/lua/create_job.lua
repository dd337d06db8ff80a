-- Stores a new job, adds it to its queues and publishes it, as one atomic step.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, all jobs,
--       the active jobs, the budget outbox, the channel of the job, the channel of its owner
-- ARGV: PUBLISH or SPUBLISH, job id, document, internal state, changes (JSON, see
--       `RedisStore::changes`), document key of the reservation ('' for none)
-- Returns: 'exists', 'reservation_released' (a sweep released the reservation of the job) or
--          'created'
local job, poll_queue, submit_queue, expiry_queue = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local all_jobs, active_jobs, outbox = KEYS[5], KEYS[6], KEYS[7]
local job_channel, owner_channel = KEYS[8], KEYS[9]
local publish, id, document, internal = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local changes, reservation = cjson.decode(ARGV[5]), ARGV[6]

if redis.call('EXISTS', job) == 1 then
  return 'exists'
end
if reservation ~= '' and redis.call('HDEL', outbox, reservation) == 0 then
  return 'reservation_released'
end

redis.call('HSET', job, 'document', document, 'internal', internal, unpack(changes.fields))
redis.call('PEXPIRE', job, changes.ttl)

local function enqueue(queue, score)
  redis.call('ZADD', queue, score, id)
  redis.call('PEXPIRE', queue, changes.shared_ttl)
end
if changes.poll_at ~= '' then
  enqueue(poll_queue, changes.poll_at)
end
if changes.submit_at ~= '' then
  enqueue(submit_queue, changes.submit_at)
end
enqueue(expiry_queue, changes.expires_at)
enqueue(all_jobs, 0)
if not changes.final then
  enqueue(active_jobs, 0)
end
redis.call(publish, job_channel, document)
redis.call(publish, owner_channel, document)
return 'created'
