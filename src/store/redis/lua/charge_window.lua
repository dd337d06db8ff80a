-- Books a job's sum on an account, once however often it is asked for.
--
-- KEYS: the account, accounts by their end
-- ARGV: the moment, the account's end, how long it is kept, its name, the job's tag, the sum, then
--       amounts and limits ('' for none), in whose order the balance must never exceed them
-- Answers: the number of the first amount over its limit, or 0
local account = KEYS[1]
local ends = redis.call('HGET', account, 'ends')
if ends and tonumber(ends) <= tonumber(ARGV[1]) then
  redis.call('DEL', account)
end
if redis.call('HEXISTS', account, ARGV[5]) == 1 then
  return 0
end
local balance = tonumber(redis.call('HGET', account, 'sum') or '0')
for n = 7, #ARGV, 2 do
  balance = balance + tonumber(ARGV[n])
  if ARGV[n + 1] ~= '' and balance > tonumber(ARGV[n + 1]) then
    return (n - 5) / 2
  end
end
local added = redis.pcall('HINCRBY', account, 'sum', ARGV[6])
if type(added) == 'table' then
  local most = string.sub(ARGV[6], 1, 1) == '-' and '-9223372036854775808' or '9223372036854775807'
  redis.call('HSET', account, 'sum', most)
end
redis.call('HSET', account, ARGV[5], ARGV[6], 'ends', ARGV[2])
redis.call('PEXPIRE', account, ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[3], 'GT')
redis.call('PEXPIRE', KEYS[2], ARGV[3], 'NX')
return 0
