-- Adds an amount to a budget window, at most once for each charge.
--
-- KEYS: the window, the index of windows by end time
-- ARGV: current time, end time of the window, TTL of the keys, name of the window, charge key,
--       amount, limit ('' for no limit)
-- Returns: 1, or 0 if the limit would be exceeded
local window, index = KEYS[1], KEYS[2]
local now, ends_at, ttl, name = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local charge, amount, limit = ARGV[5], ARGV[6], ARGV[7]

local stored_end = redis.call('HGET', window, 'ends_at')
if stored_end and tonumber(stored_end) <= now then
  redis.call('DEL', window)
end
if redis.call('HEXISTS', window, charge) == 1 then
  return 1
end
local balance = tonumber(redis.call('HGET', window, 'balance') or '0')
if limit ~= '' and balance + tonumber(amount) > tonumber(limit) then
  return 0
end

local added = redis.pcall('HINCRBY', window, 'balance', amount)
if type(added) == 'table' then
  -- The sum overflows 64 bits: saturate.
  local is_negative = string.sub(amount, 1, 1) == '-'
  redis.call('HSET', window, 'balance', is_negative and '-9223372036854775808' or '9223372036854775807')
end
redis.call('HSET', window, charge, amount, 'ends_at', ends_at)
redis.call('PEXPIRE', window, ttl)
redis.call('ZADD', index, ends_at, name)
redis.call('PEXPIRE', index, ttl, 'GT')
redis.call('PEXPIRE', index, ttl, 'NX')
return 1
