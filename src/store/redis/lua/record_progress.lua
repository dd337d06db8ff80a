-- Replaces the progress of a delivery, and moves the delivery to the index of its state.
--
-- KEYS: the deliveries of the job, the queue of the destination, the index of the new state, the
--       indexes of the other states, the destinations with a queue, the job
-- ARGV: member of the delivery, destination, version, expected revision, revision, progress as JSON,
--       time of the next attempt ('' if the delivery has ended), TTL of all keys
-- Returns: 'stale' (the version or the revision differs), 'recorded' or 'orphaned' (recorded, but the
--          job does not exist)
local deliveries, queue, index, destinations, job = KEYS[1], KEYS[2], KEYS[3], KEYS[6], KEYS[7]
local member, destination, version, expected_revision = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local revision, progress, due_at, ttl = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local name = member:match(' (.*)')
local before = redis.call('HMGET', deliveries, 'delivery ' .. name, 'progress ' .. name)
if not before[1] or before[1]:match('^%d+') ~= version
  or before[2]:match('^%d+') ~= expected_revision then
  return 'stale'
end
redis.call('HSET', deliveries, 'progress ' .. name, revision .. ' ' .. progress)
redis.call('ZREM', KEYS[4], member)
redis.call('ZREM', KEYS[5], member)
redis.call('ZADD', index, before[1]:match('^%d+ (%d+)'), member)
if due_at ~= '' then
  redis.call('ZADD', queue, due_at, member)
  redis.call('ZADD', destinations, 0, destination)
  redis.call('PEXPIRE', queue, ttl)
  redis.call('PEXPIRE', destinations, ttl)
else
  redis.call('ZREM', queue, member)
  if redis.call('EXISTS', queue) == 0 then
    redis.call('ZREM', destinations, destination)
  end
end
redis.call('PEXPIRE', index, ttl)
redis.call('PEXPIRE', deliveries, ttl)
return redis.call('EXISTS', job) == 1 and 'recorded' or 'orphaned'
