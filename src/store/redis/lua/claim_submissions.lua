-- Claims jobs to be sent: those that are still due, each with a lease on it.
--
-- KEYS: submit, then the jobs
-- ARGV: the moment, the lease's end, then the jobs' ids
-- Answers: for each claimed job its document and its ticket
local claimed = {}
for n = 2, #KEYS do
  local id = ARGV[n + 1]
  local due = redis.call('ZSCORE', KEYS[1], id)
  if due and tonumber(due) <= tonumber(ARGV[1]) then
    local job = redis.call('HMGET', KEYS[n], 'doc', 'ticket')
    if job[1] then
      redis.call('ZADD', KEYS[1], ARGV[2], id)
      claimed[#claimed + 1] = job[1]
      claimed[#claimed + 1] = job[2]
    else
      redis.call('ZREM', KEYS[1], id)
    end
  end
end
return claimed
