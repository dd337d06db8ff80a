-- Stores a new job, adds it to its queues and publishes it, as one atomic step.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, the active jobs,
--       the budget outbox, the channel of the job, the channel of its owner, all jobs, then the keys
--       of `add_deliveries`
-- ARGV: PUBLISH or SPUBLISH, job id, head of the message, time of the next poll, time of the next
--       submission ('' for none), end of the retention, TTL of the job, TTL of the queues,
--       '1' if the job is final, deliveries as JSON ('' for none), TTL of the deliveries, document
--       key of the reservation ('' for none), then names and values of the fields, with the
--       document first
-- Returns: 'exists', 'reservation_released' (a sweep released the reservation of the job) or
--          'created'
local job, poll_queue, submit_queue, expiry_queue = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local active_jobs, budget_outbox, job_channel, owner_channel = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local all_jobs = KEYS[9]
local publish, id, head = ARGV[1], ARGV[2], ARGV[3]
local poll_at, submit_at, expires_at = ARGV[4], ARGV[5], ARGV[6]
local ttl, shared_ttl, is_final = ARGV[7], ARGV[8], ARGV[9] == '1'
local deliveries, deliveries_ttl, reservation = ARGV[10], ARGV[11], ARGV[12]
local first_delivery_key, first_field = 10, 13
local document = ARGV[first_field + 1]

if redis.call('EXISTS', job) == 1 then
  return 'exists'
end
if reservation ~= '' and redis.call('HDEL', budget_outbox, reservation) == 0 then
  return 'reservation_released'
end

redis.call('HSET', job, unpack(ARGV, first_field))
redis.call('PEXPIRE', job, ttl)

local function enqueue(queue, score)
  redis.call('ZADD', queue, score, id)
  redis.call('PEXPIRE', queue, shared_ttl)
end
if poll_at ~= '' then
  enqueue(poll_queue, poll_at)
end
if submit_at ~= '' then
  enqueue(submit_queue, submit_at)
end
enqueue(expiry_queue, expires_at)
enqueue(all_jobs, 0)
if not is_final then
  enqueue(active_jobs, 0)
end
add_deliveries(first_delivery_key, id, document, deliveries, deliveries_ttl)
local message = head .. document
redis.call(publish, job_channel, message)
redis.call(publish, owner_channel, message)
return 'created'
