-- Forgets what was parked for a task before a moment, or all of it; says how much.
--
-- KEYS: what is parked for it, tasks with something parked
-- ARGV: the task, the moment ('' for all)
local count = 0
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
end
local oldest = redis.call('LINDEX', KEYS[1], 0)
while oldest and tonumber(string.match(oldest, '^%-?%d+')) < tonumber(ARGV[2]) do
  redis.call('LPOP', KEYS[1])
  count = count + 1
  oldest = redis.call('LINDEX', KEYS[1], 0)
end
if oldest then
  redis.call('ZADD', KEYS[2], string.match(oldest, '^%-?%d+'), ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return count
