-- Compares a job's version, stores the next document, sets its agenda and tells of it, as one step.
--
-- KEYS: the job, watch, submit, ends, open, owed, its channel, its owner's channel
-- ARGV: PUBLISH or SPUBLISH, the id, the document, the ticket, what else changes, the expected
--       version, the task ('' where none is known), whether the task is claimed ('1'), the name of
--       what is owed ('' where nothing is), what is owed
-- Answers: {'gone'}, {'stale'}, {'unbound'} (the task is to be claimed first) or
--          {'done', '1' where the job took a place before}
local before = redis.call('HMGET', KEYS[1], 'version', 'task', 'place', 'submit', 'hastened')
if not before[1] then
  return { 'gone' }
end
if before[1] ~= ARGV[6] then
  return { 'stale' }
end
if before[2] ~= ARGV[7] and ARGV[7] ~= '' and ARGV[8] ~= '1' then
  return { 'unbound' }
end
local a = cjson.decode(ARGV[5])
local id = ARGV[2]
local due = before[4] ~= '' and redis.call('ZSCORE', KEYS[3], id)
local had_place = before[3] == '1' or (due and due ~= before[4])

redis.call('HSET', KEYS[1], 'doc', ARGV[3], 'ticket', ARGV[4], 'task', ARGV[7], unpack(a.fields))
redis.call('PEXPIRE', KEYS[1], a.ttl)
if a.watch then
  if before[5] and tonumber(before[5]) < tonumber(a.watch) then
    a.watch = before[5]
  end
  redis.call('ZADD', KEYS[2], a.watch, id)
  redis.call('PEXPIRE', KEYS[2], a.longest)
else
  redis.call('ZREM', KEYS[2], id)
end
if a.submit then
  redis.call('ZADD', KEYS[3], a.submit, id)
  redis.call('PEXPIRE', KEYS[3], a.longest)
elseif due then
  redis.call('ZREM', KEYS[3], id)
end
redis.call('ZADD', KEYS[4], a.forget, id)
redis.call('PEXPIRE', KEYS[4], a.longest)
if a.final then
  redis.call('ZREM', KEYS[5], id)
end
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[6], ARGV[9], ARGV[10])
  redis.call('PEXPIRE', KEYS[6], a.longest)
end
redis.call(ARGV[1], KEYS[7], ARGV[3])
redis.call(ARGV[1], KEYS[8], ARGV[3])
return { 'done', had_place and '1' or '0' }
