-- Releases the claim of a unique key if the job holds it.
--
-- KEYS: the unique key
-- ARGV: job id
local key, job = KEYS[1], ARGV[1]

local claim = redis.call('GET', key)
if claim and cjson.decode(claim).job == job then
  return redis.call('DEL', key)
end
return 0
