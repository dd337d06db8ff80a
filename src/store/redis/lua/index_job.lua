-- Adds a job to indexes.
--
-- KEYS: the indexes
-- ARGV: job id, score, TTL of the indexes
local id, score, ttl = ARGV[1], ARGV[2], ARGV[3]

for _, index in ipairs(KEYS) do
  redis.call('ZADD', index, score, id)
  redis.call('PEXPIRE', index, ttl)
end
return #KEYS
