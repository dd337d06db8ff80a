-- Deletes an expired job and its entries in the queues and indexes of its partition.
--
-- Updates do not change the score of an unfinished job in the expiry queue. If the job was updated
-- within its retention, the script sets the score to the end of the retention and keeps the job.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, all jobs,
--       the active jobs
-- ARGV: job id, current time, retention of unfinished jobs after their last update (ms)
-- Returns: 1 if the job was deleted, 0 if it has not expired
local job, expiry_queue = KEYS[1], KEYS[4]
local id, now, active_retention = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local expires_at = redis.call('ZSCORE', expiry_queue, id)
if not expires_at or tonumber(expires_at) >= now then
  return 0
end
local state = redis.call('HMGET', job, 'final', 'updated_at')
if state[1] == '0' then
  local updated_until = tonumber(state[2]) + active_retention
  if updated_until >= now then
    redis.call('ZADD', expiry_queue, string.format('%.0f', updated_until), id)
    return 0
  end
end
redis.call('DEL', job)
for n = 2, #KEYS do
  redis.call('ZREM', KEYS[n], id)
end
return 1
