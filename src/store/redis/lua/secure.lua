-- Writes a job's version over itself, so that replicas can be waited for.
--
-- KEYS: the job
local version = redis.call('HGET', KEYS[1], 'version')
if version then
  redis.call('HSET', KEYS[1], 'version', version)
end
return 1
