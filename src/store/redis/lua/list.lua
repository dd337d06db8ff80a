-- Enters a job into lists.
--
-- KEYS: the lists
-- ARGV: the job's id, how long the lists are kept
for _, list in ipairs(KEYS) do
  redis.call('ZADD', list, 0, ARGV[1])
  redis.call('PEXPIRE', list, ARGV[2])
end
return #KEYS
