-- Replaces the state of a destination if it has the expected revision.
--
-- KEYS: the states of the partition's destinations
-- ARGV: name of the destination, expected revision, revision, state as JSON, TTL of the states
-- Returns: 1 if the state was replaced, otherwise 0
local states, name, expected_revision = KEYS[1], ARGV[1], ARGV[2]
local revision, state, ttl = ARGV[3], ARGV[4], ARGV[5]

local before = redis.call('HGET', states, name) or '0'
if before:match('^%d+') ~= expected_revision then
  return 0
end
redis.call('HSET', states, name, revision .. ' ' .. state)
redis.call('PEXPIRE', states, ttl)
return 1
