-- Says until when a place is taken, now that its job was looked at, unless another was faster.
--
-- KEYS: the places
-- ARGV: the id, its score before, its score from now on ('' where the place is free)
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
if ARGV[3] == '' then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZADD', KEYS[1], 'CH', ARGV[3], ARGV[1])
