-- Claims a name (a provider's task, a caller's key) for a job.
--
-- KEYS: the name, what is parked for it
-- ARGV: the job's id, a fingerprint, how long it is kept, the claim that is to be overridden ('' for
--       none), then what is parked as far as the job has it
-- Answers: {'claimed'}, {'held', the claim, its milliseconds of age} or {'parked'} (there is more)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[4] then
  local claim = cjson.decode(held)
  if claim.job ~= ARGV[1] then
    return { 'held', held, now - claim.at }
  end
end
local news = redis.call('LRANGE', KEYS[2], 0, -1)
if #news ~= #ARGV - 4 then
  return { 'parked' }
end
for n, one in ipairs(news) do
  if one ~= ARGV[n + 4] then
    return { 'parked' }
  end
end
local claim = cjson.encode({ job = ARGV[1], print = ARGV[2], at = now })
redis.call('SET', KEYS[1], claim, 'PX', ARGV[3])
return { 'claimed' }
