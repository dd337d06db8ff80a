-- Brings the next look at an unfinished job forward; never puts it off.
--
-- KEYS: the job, watch
-- ARGV: the id, the moment, the cool-down after the last look, how long the queue is kept
local job = redis.call('HMGET', KEYS[1], 'final', 'looked', 'hastened')
if job[1] ~= '0' then
  return 0
end
local look = tonumber(ARGV[2])
if job[2] then
  look = math.max(look, tonumber(job[2]) + tonumber(ARGV[3]))
end
local text = string.format('%.0f', look)
local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not due or look < tonumber(due) then
  redis.call('ZADD', KEYS[2], text, ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
if not job[3] or look < tonumber(job[3]) then
  redis.call('HSET', KEYS[1], 'hastened', text)
end
return 1
