-- Enters a job into lists.
--
-- KEYS: the lists
-- ARGV: the job's id, its score there, how long the lists are kept
for _, list in ipairs(KEYS) do
  redis.call('ZADD', list, ARGV[2], ARGV[1])
  redis.call('PEXPIRE', list, ARGV[3])
end
return #KEYS
