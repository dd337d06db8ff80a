-- Reads jobs.
--
-- KEYS: the jobs
-- Answers: for each its document and its ticket, or twice nothing
local found = {}
for _, job in ipairs(KEYS) do
  local fields = redis.call('HMGET', job, 'doc', 'ticket')
  found[#found + 1] = fields[1]
  found[#found + 1] = fields[2]
end
return found
