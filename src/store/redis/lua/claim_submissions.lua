-- Claims jobs that are due for submission and leases each of them.
--
-- KEYS: the provider's submit queue, then the jobs
-- ARGV: current time, end of the lease, then the job ids
-- Returns: the document and the internal state of each claimed job
local queue, now, lease_ends_at = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local claimed = {}
for n = 2, #KEYS do
  local id = ARGV[n + 1]
  local due_at = redis.call('ZSCORE', queue, id)
  if due_at and tonumber(due_at) <= now then
    local job = redis.call('HMGET', KEYS[n], 'document', 'internal')
    if job[1] then
      redis.call('ZADD', queue, lease_ends_at, id)
      claimed[#claimed + 1] = job[1]
      claimed[#claimed + 1] = job[2]
    else
      redis.call('ZREM', queue, id)
    end
  end
end
return claimed
