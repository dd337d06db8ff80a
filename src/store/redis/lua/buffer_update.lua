-- Buffers an update for a provider task that no job has claimed.
--
-- An identical update is stored once. When the buffer is full, the oldest update is dropped.
--
-- KEYS: the claim of the task, the buffered updates, the index of tasks with buffered updates
-- ARGV: expired claim to remove ('' for none), update, time received, maximum number of updates,
--       TTL of the keys, task
-- Returns: {'buffered'} or {'held', claim, age of the claim in milliseconds}
local claim_key, buffer, index = KEYS[1], KEYS[2], KEYS[3]
local expired_claim, update, received_at = ARGV[1], ARGV[2], ARGV[3]
local max_updates, ttl, task = ARGV[4], ARGV[5], ARGV[6]

local claim = redis.call('GET', claim_key)
if claim and claim ~= expired_claim then
  local clock = redis.call('TIME')
  local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
  return { 'held', claim, now - cjson.decode(claim).at }
end
if claim then
  redis.call('DEL', claim_key)
end

for n, entry in ipairs(redis.call('LRANGE', buffer, 0, -1)) do
  if string.sub(entry, string.find(entry, ' ', 1, true) + 1) == update then
    -- The repeated write gives WAIT something to wait for.
    redis.call('LSET', buffer, n - 1, entry)
    return { 'buffered' }
  end
end
redis.call('RPUSH', buffer, received_at .. ' ' .. update)
redis.call('LTRIM', buffer, -max_updates, -1)
redis.call('PEXPIRE', buffer, ttl)
local oldest = redis.call('LINDEX', buffer, 0)
redis.call('ZADD', index, string.match(oldest, '^%-?%d+'), task)
redis.call('PEXPIRE', index, ttl)
return { 'buffered' }
