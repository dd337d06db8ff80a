-- Writes a job's version over itself, if it is the one that was read, so that replicas can be waited
-- for.
--
-- KEYS: the job
-- ARGV: the version, the moment it was made
-- Answers: 'done', 'stale' or 'gone'
local kept = redis.call('HMGET', KEYS[1], 'version', 'updated')
if not kept[1] then
  return 'gone'
end
if kept[1] ~= ARGV[1] or kept[2] ~= ARGV[2] then
  return 'stale'
end
redis.call('HSET', KEYS[1], 'version', kept[1])
return 'done'
