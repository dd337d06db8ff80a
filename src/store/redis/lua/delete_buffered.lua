-- Deletes the updates buffered for a provider task, all of them or those received before a time.
--
-- KEYS: the buffered updates, the index of tasks with buffered updates
-- ARGV: task, time ('' for all updates)
-- Returns: the number of updates deleted because of their age
local buffer, index = KEYS[1], KEYS[2]
local task, before = ARGV[1], ARGV[2]

local function received_at(update)
  return string.match(update, '^%-?%d+')
end

local count = 0
if before == '' then
  redis.call('DEL', buffer)
end
local oldest = redis.call('LINDEX', buffer, 0)
while oldest and tonumber(received_at(oldest)) < tonumber(before) do
  redis.call('LPOP', buffer)
  count = count + 1
  oldest = redis.call('LINDEX', buffer, 0)
end
if oldest then
  redis.call('ZADD', index, received_at(oldest), task)
else
  redis.call('ZREM', index, task)
end
return count
