-- Adds an amount to a budget window, at most once for each document.
--
-- KEYS: the window, the index of windows by end time
-- ARGV: current time, end time of the window, TTL of the keys, name of the window, document key,
--       total amount, then pairs of amount and limit ('' for no limit), checked in this order
-- Returns: the number of the first pair that exceeds its limit, or 0
local window, index = KEYS[1], KEYS[2]
local now, ends_at, ttl, name = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local document, total = ARGV[5], ARGV[6]
local first_pair = 7

local stored_end = redis.call('HGET', window, 'ends_at')
if stored_end and tonumber(stored_end) <= now then
  redis.call('DEL', window)
end
if redis.call('HEXISTS', window, document) == 1 then
  return 0
end

local balance = tonumber(redis.call('HGET', window, 'balance') or '0')
for n = first_pair, #ARGV, 2 do
  local amount, limit = ARGV[n], ARGV[n + 1]
  balance = balance + tonumber(amount)
  if limit ~= '' and balance > tonumber(limit) then
    return (n - first_pair) / 2 + 1
  end
end

local added = redis.pcall('HINCRBY', window, 'balance', total)
if type(added) == 'table' then
  -- The sum overflows 64 bits: saturate.
  local is_negative = string.sub(total, 1, 1) == '-'
  redis.call('HSET', window, 'balance', is_negative and '-9223372036854775808' or '9223372036854775807')
end
redis.call('HSET', window, document, total, 'ends_at', ends_at)
redis.call('PEXPIRE', window, ttl)
redis.call('ZADD', index, ends_at, name)
redis.call('PEXPIRE', index, ttl, 'GT')
redis.call('PEXPIRE', index, ttl, 'NX')
return 0
