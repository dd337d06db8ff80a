-- Moves the next poll of an active job forward. Never postpones it.
--
-- KEYS: the job, the poll queue
-- ARGV: job id, requested time, cool-down after the last poll, TTL of the queue
local job, queue = KEYS[1], KEYS[2]
local id, requested_at, cool_down, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local fields = redis.call('HMGET', job, 'final', 'last_polled_at', 'poll_requested_at')
local final, last_polled_at, poll_requested_at = fields[1], fields[2], fields[3]
if final ~= '0' then
  return 0
end
local poll_at = requested_at
if last_polled_at then
  poll_at = math.max(poll_at, tonumber(last_polled_at) + cool_down)
end
local score = string.format('%.0f', poll_at)
local due_at = redis.call('ZSCORE', queue, id)
if not due_at or poll_at < tonumber(due_at) then
  redis.call('ZADD', queue, score, id)
  redis.call('PEXPIRE', queue, ttl)
end
if not poll_requested_at or poll_at < tonumber(poll_requested_at) then
  redis.call('HSET', job, 'poll_requested_at', score)
end
return 1
