-- Probes whether commands would succeed, without changing anything.

-- A write that changes nothing detects a replica, full memory, an unwritable disk and missing replicas.
local function try_write(key)
  call('SET', key, '', 'XX')
end

-- Before 7.0 a script cannot query permissions, so each command runs on a key where it has no effect.
-- `hash` holds a hash or nothing; `key` never exists.
local function try_commands(hash, key)
  if may_run then return end
  local tries = {
    { 'HSET', key, 'a', 'b', 'c' }, { 'HDEL', key, 'a' }, { 'RPOP', key }, { 'LTRIM', key, 0, 0 },
    { 'ZADD', key, 'XX', '0', 'a' }, { 'ZREM', key, 'a' }, { 'DEL', key }, { 'PERSIST', key }, { 'PEXPIRE', key, 1 },
    { 'XADD', key, 'NOMKSTREAM', '*', 'a', 'b' }, { 'XACK', key, 'a', '0-1' }, { 'XCLAIM', key, 'a', 'b', '0', '0-1' },
    { 'XTRIM', key, 'MAXLEN', '1' }, { 'XGROUP', 'CREATE', key, 'a', '0' }, { 'XGROUP', 'DESTROY', key, 'a' },
    { 'XGROUP', 'SETID', key, 'a', '0' }, { 'XGROUP', 'DELCONSUMER', key, 'a', 'b' },
    { 'XREADGROUP', 'GROUP', 'a', 'b', 'STREAMS', key, '>' }, { 'GET', key }, { 'HGET', key, 'a' }, { 'HLEN', key },
    { 'HGETALL', key }, { 'LLEN', key }, { 'LRANGE', key, 0, 0 }, { 'LINDEX', key, 0 }, { 'ZCARD', key },
    { 'ZSCORE', key, 'a' }, { 'ZMSCORE', key, 'a' }, { 'HMGET', key, 'a' }, { 'ZRANGE', key, 0, 0 }, { 'ZREVRANGE', key, 0, 0 }, { 'ZRANGEBYLEX', key, '-', '+' },
    { 'ZRANGEBYSCORE', key, 0, 0 }, { 'SMEMBERS', key }, { 'XRANGE', key, '-', '+' }, { 'XREVRANGE', key, '+', '-' },
    { 'XLEN', key }, { 'XPENDING', key, 'a' }, { 'XINFO', 'STREAM', key },
  }
  if redis.call('EXISTS', hash) == 1 then
    tries[#tries + 1] = { 'LPUSH', hash, 'a' }
    tries[#tries + 1] = { 'RPUSH', hash, 'a' }
  end
  for _, one in ipairs(tries) do
    local answer = redis.pcall(unpack(one))
    local text = type(answer) == 'table' and answer.err or ''
    if string.find(text, "can't run this command", 1, true) then refuse('NOPERM', one[1], key) end
  end
end
