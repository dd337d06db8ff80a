-- Acquires or extends the lease of a destination.
--
-- KEYS: the lease
-- ARGV: the node, TTL of the lease
-- Returns: 1 if the node holds the lease, otherwise 0
local lease, node, ttl = KEYS[1], ARGV[1], ARGV[2]

local holder = redis.call('GET', lease)
if holder and holder ~= node then
  return 0
end
redis.call('SET', lease, node, 'PX', ttl)
return 1
