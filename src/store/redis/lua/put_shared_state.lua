-- Remembers a text for all nodes and tells them that there is something new.
--
-- KEYS: what is remembered, the channel
-- ARGV: PUBLISH or SPUBLISH, the name, the text, how long it is kept
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call(ARGV[1], KEYS[2], '')
