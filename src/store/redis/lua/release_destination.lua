-- Releases the lease of a destination if a node holds it.
--
-- KEYS: the lease
-- ARGV: the node
-- Returns: 1 if the lease was released, otherwise 0
local lease, node = KEYS[1], ARGV[1]

if redis.call('GET', lease) ~= node then
  return 0
end
return redis.call('DEL', lease)
