-- Reads jobs.
--
-- KEYS: the jobs
-- Returns: the document and the internal state of each job, or two nils for a missing job
local jobs = {}
for _, key in ipairs(KEYS) do
  local job = redis.call('HMGET', key, 'document', 'internal')
  jobs[#jobs + 1] = job[1]
  jobs[#jobs + 1] = job[2]
end
return jobs
