-- KEYS: the list. ARGV: prefix, consumer, session or nothing for any. Returns the number of deliveries returned.
local q = open(KEYS[1], ARGV[1])
touch(q, 'consumers', 'HGET,HDEL,HLEN')
touch_due(q)
touch_return_leases(q)
touch_restore_list(q)
ready({ 'HDEL', 'HGET', 'HLEN', 'HSET', 'RPUSH', 'ZADD', 'ZRANGE', 'ZRANGEBYSCORE', 'ZREM', 'ZREVRANGE' })
local consumer, session = ARGV[2], ARGV[3]
local known = call('HGET', q.consumers, consumer)
if session ~= '' and known and string.sub(known, 14) ~= session then return 0 end
tick(q)
local found = return_leases(q, function(who) return who == consumer end)
call('HDEL', q.consumers, consumer)
if call('HLEN', q.consumers) == 0 then restore_list(q) end
return found
