-- Keeps news for a task that nobody has claimed: the same once, and of too much the latest.
--
-- KEYS: the name, what is parked for it, tasks with something parked
-- ARGV: the news, when it came, how much is kept, how long, the task, the claim that is void ('' for
--       none)
-- Answers: {'kept'} or {'held', the claim, its milliseconds of age}
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[6] then
  local clock = redis.call('TIME')
  return { 'held', held, clock[1] * 1000 + math.floor(clock[2] / 1000) - cjson.decode(held).at }
end
if held then
  redis.call('DEL', KEYS[1])
end
for n, one in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  if string.sub(one, string.find(one, ' ', 1, true) + 1) == ARGV[1] then
    -- Written once more, so that replicas can be waited for.
    redis.call('LSET', KEYS[2], n - 1, one)
    return { 'kept' }
  end
end
redis.call('RPUSH', KEYS[2], ARGV[2] .. ' ' .. ARGV[1])
redis.call('LTRIM', KEYS[2], -ARGV[3], -1)
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local oldest = redis.call('LINDEX', KEYS[2], 0)
redis.call('ZADD', KEYS[3], string.match(oldest, '^%-?%d+'), ARGV[5])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return { 'kept' }
