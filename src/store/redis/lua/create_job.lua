-- Keeps a new job, puts it in its queues and tells of it, as one step.
--
-- KEYS: the job, watch, submit, ends, jobs, open, owed, its channel, its owner's channel
-- ARGV: PUBLISH or SPUBLISH, the id, the document, the ticket, the fields of the job's hash that
--       every commit sets (see `fields`), the rest of them, what is owed ('' or a name)
-- Answers: 'exists', 'void' (what was reserved for it was given back) or 'done'
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 'exists'
end
local a = cjson.decode(ARGV[5])
if ARGV[7] ~= '' and redis.call('HDEL', KEYS[7], ARGV[7]) == 0 then
  return 'void'
end
local id = ARGV[2]
redis.call('HSET', KEYS[1], 'doc', ARGV[3], 'ticket', ARGV[4], unpack(a.fields))
redis.call('HSET', KEYS[1], unpack(cjson.decode(ARGV[6])))
redis.call('PEXPIRE', KEYS[1], a.ttl)
if a.watch then
  redis.call('ZADD', KEYS[2], a.watch, id)
  redis.call('PEXPIRE', KEYS[2], a.longest)
end
if a.submit then
  redis.call('ZADD', KEYS[3], a.submit, id)
  redis.call('PEXPIRE', KEYS[3], a.longest)
end
redis.call('ZADD', KEYS[4], a.forget, id)
redis.call('ZADD', KEYS[5], 0, id)
redis.call('PEXPIRE', KEYS[4], a.longest)
redis.call('PEXPIRE', KEYS[5], a.longest)
if not a.final then
  redis.call('ZADD', KEYS[6], 0, id)
  redis.call('PEXPIRE', KEYS[6], a.longest)
end
redis.call(ARGV[1], KEYS[8], ARGV[3])
redis.call(ARGV[1], KEYS[9], ARGV[3])
return 'done'
