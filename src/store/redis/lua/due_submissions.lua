-- Lists the jobs that are due for submission, each with its owner.
--
-- KEYS: the provider's submit queue
-- ARGV: current time, maximum number of jobs, prefix of the keys of jobs (in the same partition)
-- Returns: id, due time and owner of each job, earliest first
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local jobs = {}
for n = 1, #due, 2 do
  jobs[#jobs + 1] = due[n]
  jobs[#jobs + 1] = due[n + 1]
  jobs[#jobs + 1] = redis.call('HGET', ARGV[3] .. due[n], 'owner') or ''
end
return jobs
