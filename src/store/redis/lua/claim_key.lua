-- Claims a unique key (a provider task or an idempotency key) for a job.
--
-- The claim fails if the buffer holds updates other than those that the job already contains.
--
-- KEYS: the unique key, the updates buffered for it
-- ARGV: expired claim to replace ('' for none), job id, fingerprint, TTL of the claim,
--       then the buffered updates that the job contains
-- Returns: {'acquired'}, {'held', claim, age of the claim in milliseconds} or {'updates_missed'}
local key, buffer = KEYS[1], KEYS[2]
local expired_claim, job, fingerprint, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local first_update = 5

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local stored = redis.call('GET', key)
if stored and stored ~= expired_claim then
  local claim = cjson.decode(stored)
  if claim.job ~= job then
    return { 'held', stored, now - claim.at }
  end
end

local buffered = redis.call('LRANGE', buffer, 0, -1)
if #buffered ~= #ARGV - first_update + 1 then
  return { 'updates_missed' }
end
for n, update in ipairs(buffered) do
  if update ~= ARGV[first_update + n - 1] then
    return { 'updates_missed' }
  end
end

local claim = cjson.encode({ job = job, fingerprint = fingerprint, at = now })
redis.call('SET', key, claim, 'PX', ttl)
return { 'acquired' }
