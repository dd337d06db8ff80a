-- Reverses a charge to a budget window, at most once.
--
-- KEYS: the window
-- ARGV: charge key, end time of the window, TTL of the window,
--       '1' if it may be charged again, '' to prevent a charge that is still in flight
local window = KEYS[1]
local charge, ends_at, ttl, may_charge_again = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

local amount = redis.call('HGET', window, charge)
if amount and amount ~= '0' then
  local reversal = string.sub(amount, 1, 1) == '-' and string.sub(amount, 2) or '-' .. amount
  redis.call('HINCRBY', window, 'balance', reversal)
end
if may_charge_again then
  return redis.call('HDEL', window, charge)
end
redis.call('HSET', window, charge, '0')
redis.call('HSETNX', window, 'ends_at', ends_at)
redis.call('PEXPIRE', window, ttl)
return 0
