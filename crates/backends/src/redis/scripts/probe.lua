-- KEYS: the list. ARGV: prefix, `first` when the process begins to use it. Fails where any other script on the queue would; changes nothing.
-- From 7.0 on each script checks its permissions, and no probe is needed.
if ARGV[2] == 'first' and may_run then return 0 end
local q = open(KEYS[1], ARGV[1])
touch_arrivals(q, {})
touch_due(q)
touch_return_leases(q)
touch_restore_list(q)
touch_forgotten(q)
touch_buried(q)
touch(q, 'list', 'LRANGE,LTRIM,RPOP')
touch(q, 'records', 'HMGET')
touch(q, 'leased', 'ZMSCORE,ZSCORE')
touch(q, 'keys', 'HSET')
touch(q, 'delayed', 'ZADD')
touch(q, 'consumers', 'HGET,HSET,HGETALL,HDEL,HLEN')
try_commands(q.queue, q.side .. 'probe')
allow(q.side .. 'probe', 'string', 'SET')
ready({
  'HDEL', 'HGET', 'HGETALL', 'HLEN', 'HMGET', 'HSET', 'LLEN', 'LPUSH', 'LRANGE', 'LTRIM', 'RPOP', 'RPUSH', 'SET',
  'ZADD', 'ZCARD', 'ZMSCORE', 'ZRANGE', 'ZRANGEBYLEX', 'ZRANGEBYSCORE', 'ZREM', 'ZREVRANGE', 'ZSCORE',
})
try_write(q.side .. 'probe')
return 0
