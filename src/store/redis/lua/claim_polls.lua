-- Claims jobs to be looked at: those that are still due, each put off as its agenda says.
--
-- KEYS: watch, then the jobs
-- ARGV: the moment, then the jobs' ids
-- Answers: for each claimed job its document and its ticket
local now = tonumber(ARGV[1])
local claimed = {}
for n = 2, #KEYS do
  local id = ARGV[n]
  local due = redis.call('ZSCORE', KEYS[1], id)
  if due and tonumber(due) <= now then
    local job = redis.call('HMGET', KEYS[n], 'doc', 'ticket', 'every', 'patient', 'updated', 'deadline', 'spread')
    if job[1] then
      local span = tonumber(job[3])
      if job[4] == '1' then
        span = math.max(span, 2 * (now - tonumber(job[5])))
      end
      span = span + math.floor(span / 10 * tonumber(job[7]) / 1024)
      local again, deadline = now + span, tonumber(job[6])
      if now < deadline then
        again = math.min(again, deadline)
      end
      redis.call('ZADD', KEYS[1], string.format('%.0f', again), id)
      redis.call('HSET', KEYS[n], 'looked', ARGV[1])
      redis.call('HDEL', KEYS[n], 'hastened')
      claimed[#claimed + 1] = job[1]
      claimed[#claimed + 1] = job[2]
    else
      redis.call('ZREM', KEYS[1], id)
    end
  end
end
return claimed
