-- Stores a value that all nodes share and notifies them of the change.
--
-- KEYS: the shared state, the notification channel
-- ARGV: PUBLISH or SPUBLISH, name, value, TTL of the shared state
local state, channel = KEYS[1], KEYS[2]
local publish, name, value, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

redis.call('HSET', state, name, value)
redis.call('PEXPIRE', state, ttl)
redis.call(publish, channel, '')
