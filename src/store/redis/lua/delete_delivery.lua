-- Deletes a delivery, unless it waits for an attempt at or after a given time.
--
-- KEYS: the deliveries of the job, the destinations with a queue, the queue of the destination, all
--       waiting deliveries, all delivered ones, all failed ones, the deliveries of the owner
-- ARGV: member of the delivery, destination, the time
-- Returns: 1 if the delivery was deleted, 0 if it is kept
local deliveries, destinations, queue = KEYS[1], KEYS[2], KEYS[3]
local member, destination, before = ARGV[1], ARGV[2], tonumber(ARGV[3])

local due_at = redis.call('ZSCORE', queue, member)
if due_at and tonumber(due_at) >= before then
  return 0
end
delete_delivery(deliveries, member, { unpack(KEYS, 3) })
delete_unused_documents(deliveries)
if redis.call('EXISTS', queue) == 0 then
  redis.call('ZREM', destinations, destination)
end
return 1
