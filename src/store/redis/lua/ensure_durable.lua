-- Rewrites a version of a job if it is still the stored one, so that WAIT covers it.
--
-- KEYS: the job
-- ARGV: version, update time of the version
-- Returns: 'done', 'conflict' or 'not_found'
local job, version, updated_at = KEYS[1], ARGV[1], ARGV[2]

local stored = redis.call('HMGET', job, 'version', 'updated_at')
if not stored[1] then
  return 'not_found'
end
if stored[1] ~= version or stored[2] ~= updated_at then
  return 'conflict'
end
redis.call('HSET', job, 'version', version)
return 'done'
