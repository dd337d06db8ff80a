-- Forgets a job whose time is over, and all that its partition knows of it.
--
-- KEYS: the job, watch, submit, ends, jobs, open
-- ARGV: the id, the moment
local forget = redis.call('ZSCORE', KEYS[4], ARGV[1])
if not forget or tonumber(forget) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('DEL', KEYS[1])
for n = 2, #KEYS do
  redis.call('ZREM', KEYS[n], ARGV[1])
end
return 1
