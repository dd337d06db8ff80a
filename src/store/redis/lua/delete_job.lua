-- Deletes an expired job and its entries in the queues and indexes of its partition.
--
-- KEYS: the job, the poll queue, the provider's submit queue, the expiry queue, all jobs,
--       the active jobs
-- ARGV: job id, current time
-- Returns: 1 if the job was deleted, 0 if it has not expired
local job, expiry_queue = KEYS[1], KEYS[4]
local id, now = ARGV[1], tonumber(ARGV[2])

local expires_at = redis.call('ZSCORE', expiry_queue, id)
if not expires_at or tonumber(expires_at) >= now then
  return 0
end
redis.call('DEL', job)
for n = 2, #KEYS do
  redis.call('ZREM', KEYS[n], id)
end
return 1
