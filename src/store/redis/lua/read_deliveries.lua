-- Reads deliveries. Removes those that do not exist from the queue or index that contains them.
--
-- KEYS: for each delivery, the deliveries of its job, and the queue or index
-- ARGV: the members of the deliveries
-- Returns: for each delivery its fields `delivery` and `progress` and its document, or three nulls
local fields = {}
for n, member in ipairs(ARGV) do
  local deliveries, index = KEYS[2 * n - 1], KEYS[2 * n]
  local name = member:match(' (.*)')
  local delivery = redis.call('HGET', deliveries, 'delivery ' .. name)
  local progress, document = false, false
  if delivery then
    progress = redis.call('HGET', deliveries, 'progress ' .. name)
    document = redis.call('HGET', deliveries, 'document ' .. delivery:match('^%d+'))
  else
    redis.call('ZREM', index, member)
  end
  fields[#fields + 1] = delivery
  fields[#fields + 1] = progress
  fields[#fields + 1] = document
end
return fields
