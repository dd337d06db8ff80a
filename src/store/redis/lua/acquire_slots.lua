-- Assigns free concurrency slots of a provider to jobs.
--
-- An entry whose TTL has elapsed still occupies its slot. The script returns such entries if they
-- prevent an assignment, so that the caller verifies them.
--
-- KEYS: the provider's slots
-- ARGV: current time, expiry of new entries, maximum number of slots, TTL of the key, then job ids
-- Returns: {'verify', id, score, ...} if expired entries must be verified first,
--          otherwise {'granted', id, ...}
local slots = KEYS[1]
local now, expires_at, max_slots, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local first_id = 5

local free = max_slots - redis.call('ZCARD', slots)
local must_verify = free < #ARGV - first_id + 1
for n = first_id, #ARGV do
  local score = redis.call('ZSCORE', slots, ARGV[n])
  must_verify = must_verify or (score and tonumber(score) <= tonumber(now))
end
if must_verify then
  local expired = redis.call('ZRANGEBYSCORE', slots, '-inf', now, 'WITHSCORES')
  if #expired > 0 then
    return { 'verify', unpack(expired) }
  end
end

local result = { 'granted' }
for n = first_id, #ARGV do
  if free > 0 and redis.call('ZADD', slots, 'NX', expires_at, ARGV[n]) == 1 then
    free = free - 1
    result[#result + 1] = ARGV[n]
  end
end
redis.call('PEXPIRE', slots, ttl)
return result
