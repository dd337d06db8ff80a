-- Extends or releases a slot after its job was verified, unless another node changed it first.
--
-- KEYS: the provider's slots
-- ARGV: job id, score that was verified, new score ('' to release the slot)
local slots = KEYS[1]
local id, verified_score, new_score = ARGV[1], ARGV[2], ARGV[3]

if redis.call('ZSCORE', slots, id) ~= verified_score then
  return 0
end
if new_score == '' then
  return redis.call('ZREM', slots, id)
end
return redis.call('ZADD', slots, 'CH', new_score, id)
