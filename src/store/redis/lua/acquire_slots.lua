-- Gives away a provider's free places. An entry whose time is over is believed no more: it is named,
-- so that somebody looks at its job, and counts until then.
--
-- KEYS: the places
-- ARGV: the moment, until when a place is believed, how many there are, how long they are kept, then
--       the ids of those who want one
-- Answers: {'look', id, score, …} where such entries stand in somebody's way, else {'given', id, …}
local free = tonumber(ARGV[3]) - redis.call('ZCARD', KEYS[1])
local is_short = free < #ARGV - 4
for n = 5, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[n])
  is_short = is_short or (score and tonumber(score) <= tonumber(ARGV[1]))
end
if is_short then
  local doubtful = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES')
  if #doubtful > 0 then
    return { 'look', unpack(doubtful) }
  end
end
local given = { 'given' }
for n = 5, #ARGV do
  if free > 0 and redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[n]) == 1 then
    free = free - 1
    given[#given + 1] = ARGV[n]
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return given
