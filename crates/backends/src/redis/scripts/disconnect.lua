-- KEYS: the list. ARGV: prefix, consumer, session or nothing for any. Returns how many deliveries came back.
local q = open(KEYS[1], ARGV[1])
touch(q, 'consumers', 'HGET,HDEL,HLEN')
touch_due(q)
touch_taken_back(q)
touch_refilled(q)
ready({ 'HDEL', 'HGET', 'HLEN', 'HSET', 'RPUSH', 'ZADD', 'ZRANGE', 'ZRANGEBYSCORE', 'ZREM', 'ZREVRANGE' })
local consumer, session = ARGV[2], ARGV[3]
local known = call('HGET', q.consumers, consumer)
if session ~= '' and known and string.sub(known, 14) ~= session then return 0 end
tick(q)
local found = take_back(q, function(who) return who == consumer end)
call('HDEL', q.consumers, consumer)
if call('HLEN', q.consumers) == 0 then refill(q) end
return found
