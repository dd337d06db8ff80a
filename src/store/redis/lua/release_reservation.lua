-- Takes a job's booking back, once.
--
-- KEYS: the account
-- ARGV: the job's tag, the account's end, how long it is kept, '1' where it may be made again
--       (else, if it was not made yet, it never will be)
local amount = redis.call('HGET', KEYS[1], ARGV[1])
if amount and amount ~= '0' then
  local back = string.sub(amount, 1, 1) == '-' and string.sub(amount, 2) or '-' .. amount
  redis.call('HINCRBY', KEYS[1], 'sum', back)
end
if ARGV[4] == '1' then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('HSET', KEYS[1], ARGV[1], '0')
redis.call('HSETNX', KEYS[1], 'ends', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0
