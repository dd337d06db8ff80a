-- Deletes an expired job, its ended deliveries, and its entries in the queues and indexes of its
-- partition.
--
-- Updates do not change the score of an unfinished job in the expiry queue. If the job was updated
-- within its retention, the script sets the score to the end of the retention and keeps the job.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, all jobs,
--       the active jobs, the deliveries of the job, all waiting deliveries, all delivered ones, all
--       failed ones, the deliveries of the owner
-- ARGV: job id, current time, retention of unfinished jobs after their last update (ms)
-- Returns: 1 if the job was deleted, 0 if it has not expired
local job, expiry_queue, deliveries, waiting = KEYS[1], KEYS[4], KEYS[7], KEYS[8]
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
for n = 2, 6 do
  redis.call('ZREM', KEYS[n], id)
end
local function has_ended(name)
  return not redis.call('ZSCORE', waiting, id .. ' ' .. name)
end
for _, name in ipairs(select_deliveries(deliveries, has_ended)) do
  delete_delivery(deliveries, id .. ' ' .. name, { unpack(KEYS, 9) })
end
delete_unused_documents(deliveries)
return 1
