-- Gives a name up, if it is this job's.
--
-- KEYS: the name
-- ARGV: the job's id
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).job == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
