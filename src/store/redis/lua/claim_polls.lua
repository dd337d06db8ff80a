-- Claims jobs that are due for a poll and schedules the next poll of each.
--
-- KEYS: the poll queue, then the jobs
-- ARGV: current time, then the job ids
-- Returns: the document and the internal state of each claimed job
local queue, now = KEYS[1], tonumber(ARGV[1])
local claimed = {}
for n = 2, #KEYS do
  local key, id = KEYS[n], ARGV[n]
  local due_at = redis.call('ZSCORE', queue, id)
  if due_at and tonumber(due_at) <= now then
    local job = redis.call('HMGET', key, 'document', 'internal', 'poll_interval', 'poll_backoff',
      'updated_at', 'deadline_at', 'jitter')
    if job[1] then
      local interval, has_backoff = tonumber(job[3]), job[4] == '1'
      local updated_at, deadline_at, jitter = tonumber(job[5]), tonumber(job[6]), tonumber(job[7])
      if has_backoff then
        interval = math.max(interval, 2 * (now - updated_at))
      end
      interval = interval + math.floor(interval / 10 * jitter / 1024)
      local next_at = now + interval
      if now < deadline_at then
        next_at = math.min(next_at, deadline_at)
      end
      redis.call('ZADD', queue, string.format('%.0f', next_at), id)
      redis.call('HSET', key, 'last_polled_at', ARGV[1])
      redis.call('HDEL', key, 'poll_requested_at')
      claimed[#claimed + 1] = job[1]
      claimed[#claimed + 1] = job[2]
    else
      redis.call('ZREM', queue, id)
    end
  end
end
return claimed
